"""`ocapn relay`: passes on connections to peers that may not be dialled."""

from __future__ import annotations

import argparse
import resource
import sys
from functools import partial
from typing import Final

import trio

from ocapn.cli.command import Command
from ocapn.cli.exits import ExitCode, Failure
from ocapn.cli.output import complain, logged
from ocapn.cli.signals import SIGNALS
from ocapn.crypto import Identity
from ocapn.errors import BadLocator
from ocapn.netlayers.identity import identity_file
from ocapn.netlayers.noise import parse_address
from ocapn.relay import Relay, RelayLimits

_DESCRIPTION: Final = """
Runs a relay: peers that nobody can dial, behind a router for instance, register with it, and
others reach them through it by their designators. What it passes on is encrypted from end to end:
a relay can delay and end connections, and see who wants whom, but neither read nor change what is
said, nor be one of the two. It prints its locator, for 'ocapn serve --relay'.
"""

_EPILOG: Final = """
Example:
  $ ocapn relay --listen 127.0.0.1:4711 --identity relay.key > relay.uri &
  $ cat hello.py
  def hello(name):
      return f"Hello, {name}!"
  $ ocapn serve --export hello=hello:hello --listen noise --relay "$(cat relay.uri)" > hello.ref &
  $ ocapn call @hello.ref - '"Ann"'
  'Hello, Ann!'
"""

_LIMITS: Final = RelayLimits()
#: What a process has open besides.
_OTHER_FILES: Final = 64


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--listen",
        default="127.0.0.1:0",
        metavar="HOST:PORT",
        help="where to listen; port 0 takes any free one (default: %(default)s)",
    )
    parser.add_argument(
        "--identity",
        metavar="FILE",
        help="the key of the relay, which is in its locator; a file that is not there is made, with mode 0600. "
        "Drawn at random by default: the locator is another one at each start",
    )
    parser.add_argument(
        "--advertise",
        action="append",
        default=[],
        metavar="HOST:PORT",
        help="where others find the relay, if not where it listens; may be repeated",
    )
    parser.add_argument(
        "--allow",
        action="append",
        metavar="DESIGNATOR",
        help="a peer that may register, and with it only those that are named so; may be repeated. By default "
        "all may",
    )
    for name, what in (
        ("clients", "peers that are registered"),
        ("connections", "connections to one registered peer"),
        (
            "per-source",
            "connections from one address, or of IPv6 the first half of one, registrations included",
        ),
        ("rate", "bytes a second that are passed on to and from one registered peer"),
    ):
        default = getattr(_LIMITS, name.replace("-", "_"))
        parser.add_argument(
            f"--{name}",
            type=int,
            default=default,
            metavar="N",
            help=f"how many {what} (default: {default:,})",
        )
    parser.add_argument(
        "--total",
        type=int,
        metavar="N",
        help="how many connections in all: each needs two of the files that the process may open (default: "
        f"{_LIMITS.total:,}, or as many as there are files for)",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="tells of connections on standard error")


def _run(given: argparse.Namespace) -> None:
    try:
        limits = RelayLimits(
            clients=given.clients,
            connections=given.connections,
            per_source=given.per_source,
            total=_total(given.total),
            rate=given.rate,
        )
        relay = _relay(given, limits, None)  # what is wrong is found before a file is made
    except (BadLocator, ValueError) as error:
        said = str(error).replace("advertise=", "--advertise")
        raise Failure(ExitCode.USAGE, f"{said}; 'ocapn relay --help' explains") from None
    if given.identity is not None:
        relay = _relay(given, limits, identity_file(given.identity))
    with logged("ocapn relay", verbose=given.verbose):
        SIGNALS.run(partial(_serve, relay))


def _relay(given: argparse.Namespace, limits: RelayLimits, identity: Identity | None) -> Relay:
    host, port = _place(given.listen)
    return Relay(host, port, identity=identity, advertise=given.advertise, allow=given.allow, limits=limits)


def _total(asked: int | None) -> int:
    """As many connections as there are files for, for which the process is given as many as it may have."""
    wanted = _LIMITS.total if asked is None else asked
    if wanted <= 0:
        return wanted  # which the limits refuse
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * wanted + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    total = max(1, (soft - _OTHER_FILES) // 2)
    if asked is not None:
        complain(
            f"ocapn relay: {total:,} connections in all, not {wanted:,}: this process may open {soft:,} files "
            "(ulimit -n), and each connection needs two"
        )
    return total


def _place(text: str) -> tuple[str, int]:
    """As an address, where the port may be 0."""
    if text.endswith(":0"):
        return parse_address(f"{text[:-1]}1")[0], 0
    return parse_address(text)


async def _serve(relay: Relay) -> None:
    async with trio.open_nursery() as nursery:
        locator = await nursery.start(relay.run)
        print(locator.uri, flush=True)
        if sys.stderr.isatty():
            complain("ocapn relay: relaying; Ctrl-C stops")


COMMAND: Final = Command(
    name="relay",
    summary="passes on connections to peers that nobody can dial",
    usage="[OPTIONS]",
    description=_DESCRIPTION,
    epilog=_EPILOG,
    codes=(ExitCode.NO_SESSION, ExitCode.FILE),
    add_arguments=_add_arguments,
    run=_run,
)
