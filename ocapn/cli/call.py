"""`ocapn call`: one message to an object, and its answer."""

from __future__ import annotations

import argparse
import math
import re
from functools import partial
from typing import Final

import trio

from ocapn.cli import values
from ocapn.cli.command import Command
from ocapn.cli.exits import ExitCode, Failure
from ocapn.cli.output import logged
from ocapn.cli.signals import SIGNALS
from ocapn.cli.uris import URI_HELP, read_uri
from ocapn.cli.wires import SOCKS_HELP, dialling, limits_for, traced
from ocapn.errors import ConnectFailed, NotPassable, RemoteError
from ocapn.model.locators import SturdyRef
from ocapn.opening import open_peer
from ocapn.sending import E

#: Seconds for all of it. Tor alone may take half a minute to reach a service.
_TIMEOUT: Final = 30.0
_ONION_TIMEOUT: Final = 90.0

_DESCRIPTION: Final = """
Enlivens a sturdyref, sends the object a message, and prints what it answers.

METHOD is the name of a method; - sends the arguments alone, as functions want it, and so does
leaving out both. Each JSON argument is one value. The answer is printed in Python's notation;
with --json as one line of JSON, also an error: {"$error": "message"} (the exit code is 1).

A sturdyref is a secret, and the command line is in the process list and in the history of the
shell: @FILE keeps it out of both. The file holds the URI, or a line as 'ocapn serve' prints it.
"""

_EPILOG: Final = f"""
{values.HELP}

Example, with 'ocapn serve --export greeter=hello:Greeter > greeter.ref' running:
  $ ocapn call @greeter.ref greet '"Ann"'
  'Hello, Ann!'
  $ ocapn call --json @greeter.ref colours
  ["red", {{"$symbol": "green"}}]
"""


def _seconds(text: str) -> float:
    value = float(text)
    if not math.isfinite(value) or value < 0:
        raise ValueError
    return value or math.inf


_seconds.__name__ = "number of seconds"  # argparse says: invalid … value


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("uri", metavar="URI", help=URI_HELP)
    parser.add_argument("method", metavar="METHOD", nargs="?", default="-", help="its name, or - for none")
    parser.add_argument("args", metavar="JSON", nargs="*", default=[], help="an argument, as described below")
    parser.add_argument("--json", action="store_true", help="prints the answer as one line of JSON")
    parser.add_argument(
        "--timeout",
        type=_seconds,
        metavar="S",
        help=f"how many seconds it all may take, 0 for as long as it takes (default: {_TIMEOUT:g}, and over onion "
        f"{_ONION_TIMEOUT:g})",
    )
    parser.add_argument("--tor-socks", metavar="HOST:PORT", help=SOCKS_HELP)
    parser.add_argument(
        "--trace", action="store_true", help="shows every message on standard error, without swiss numbers"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="tells of sessions on standard error")


def _run(given: argparse.Namespace) -> None:
    sturdyref = SturdyRef.parse(read_uri(given.uri))
    try:
        args = [values.parse_json(text, f"argument {i}") for i, text in enumerate(given.args, 1)]
    except ValueError as error:
        raise Failure(ExitCode.MALFORMED, str(error)) from error
    with logged("ocapn call", verbose=given.verbose):
        print(SIGNALS.run(partial(_call, sturdyref, args, given)))


def seconds_for(asked: float | None, transport: str) -> float:
    """How long a call may take."""
    if asked is not None:
        return asked
    return _ONION_TIMEOUT if transport == "onion" else _TIMEOUT


async def _call(sturdyref: SturdyRef, args: list[object], given: argparse.Namespace) -> str:
    """The printed answer: it is made while the session lives, as references in it are described."""
    netlayers = dialling(given.tor_socks)
    limits = limits_for([sturdyref.peer.transport])
    timeout = seconds_for(given.timeout, sturdyref.peer.transport)
    # One message and its answer: if the connection fails, so has the call.
    async with open_peer(
        traced(netlayers) if given.trace else netlayers, limits=limits, durable="never"
    ) as peer:
        waiting = "connecting"
        with trio.move_on_after(timeout):
            try:
                target = await peer.enliven(sturdyref)
            except ConnectFailed as error:
                hint = "; is it running, and can this machine reach it?" if error.__cause__ else ""
                raise Failure(ExitCode.NO_SESSION, f"{error}{hint}") from error
            except RemoteError as error:
                raise Failure(
                    ExitCode.FAILED,
                    f"the peer does not give the object: {error}; ask who gave you the sturdyref for a new one",
                ) from error
            waiting = "waiting for the answer"
            send = E(target) if given.method == "-" else E(target)[given.method]
            try:
                result = await send(*args)
            except RemoteError as error:
                if given.json:
                    print(values.json_line(RemoteError(error.message)))
                raise
            except NotPassable as error:
                raise Failure(ExitCode.MALFORMED, _named(error)) from error
            return values.json_line(result) if given.json else values.readable(result)
    raise Failure(
        ExitCode.TIMEOUT,
        f"{timeout:g} s have passed while {waiting}; --timeout gives it longer",
    )


def _named(error: NotPassable) -> str:
    """What cannot be passed, by its place on the command line."""
    found = re.match(r"args\[(\d+)\](.*)", error.path, re.DOTALL)
    if found is None:
        return str(error)
    return f"argument {int(found[1]) + 1}{found[2]}: {error.why}"


COMMAND: Final = Command(
    name="call",
    summary="send a message to an object by its sturdyref, and print the answer",
    usage="URI|@FILE [METHOD|- [JSON ...]] [--json] [--timeout S]",
    description=_DESCRIPTION,
    epilog=_EPILOG,
    codes=(
        ExitCode.FAILED,
        ExitCode.NO_SESSION,
        ExitCode.MALFORMED,
        ExitCode.TIMEOUT,
        ExitCode.FILE,
        ExitCode.PIPE,
    ),
    add_arguments=_add_arguments,
    run=_run,
)
