"""The `ocapn` command: `main` is its entry point. A module for each command, and exit codes in `ExitCode`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ocapn import __version__, compiled
from ocapn.cli import baggage, call, demo, locator, relay, serve, status, syrup
from ocapn.cli.command import Command
from ocapn.cli.exits import ExitCode, Failure, Stopped, failure_of, table
from ocapn.cli.output import complain, complain_with_traceback, debugging, discard_output, flush_output
from ocapn.cli.signals import SIGNALS

COMMANDS = {
    command.name: command
    for command in (
        *(demo.COMMAND, serve.COMMAND, call.COMMAND, status.COMMAND),
        *(relay.COMMAND, baggage.COMMAND, locator.COMMAND, syrup.COMMAND),
    )
}

_HELP = """\
usage: ocapn COMMAND ...

An OCapN peer: object capabilities across processes and machines (https://ocapn.org).

{commands}
  help     this text; 'ocapn help COMMAND' or 'ocapn COMMAND --help' tells more, with an example

  --version prints the version.

Example, which shows in a few seconds what this is about:
  $ ocapn demo

Exit codes:
{codes}

Errors are one line on standard error. With OCAPN_DEBUG=1 in the environment a traceback precedes it.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command that `arguments`, by default those of the process, ask for; returns its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    command, rest = _command(given)
    prog = "ocapn" if command is None else f"ocapn {command.name}"
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # an arrow must not fail on a terminal that has none
            reconfigure(errors="backslashreplace")
    try:
        with SIGNALS:
            code = _dispatch(command, rest)
            flush_output()
            return code
    except BaseException as error:
        return _failed(prog, error)


def _command(given: list[str]) -> tuple[Command | None, list[str]]:
    """The command that is meant, if it is one, and what else was given."""
    command = COMMANDS.get(given[0]) if given else None
    if command is None:
        return None, given
    for part in command.parts:
        if given[:2] == part.name.split():
            return part, given[2:]
    return command, given[1:]


def _dispatch(command: Command | None, given: list[str]) -> int:
    try:
        if command is not None:
            command.run(command.parser().parse_intermixed_args(given))
            return ExitCode.OK
        return _overview(given)
    except SystemExit as error:  # argparse, after --help
        if error.code in (None, 0):
            return ExitCode.OK
        raise


def _overview(given: list[str]) -> int:
    match given:
        case ["--version"]:
            print(f"ocapn {__version__}, {'compiled' if compiled else 'pure Python'}")
        case [] | ["help"] | ["-h" | "--help", *_]:
            commands = "\n".join(f"  {name:<8} {command.summary}" for name, command in COMMANDS.items())
            print(_HELP.format(commands=commands, codes=table()), end="")
            return ExitCode.OK if given else ExitCode.USAGE
        case ["help", name] if name in COMMANDS:
            COMMANDS[name].parser().print_help()
        case ["help", *names] if (found := _command(names))[0] is not None and not found[1]:
            found[0].parser().print_help()
        case ["help", *names] | names:
            name = " ".join(names[:2] if names[0] in COMMANDS else names[:1])
            raise Failure(ExitCode.USAGE, f"there is no command {name}; 'ocapn help' lists them")
    return ExitCode.OK


def _failed(prog: str, error: BaseException) -> int:
    """Says what went wrong, and returns the exit code for it."""
    if isinstance(error, Stopped):
        code = ExitCode(128 + error.signum)
        complain(f"{prog}: {'interrupted' if code == ExitCode.INTERRUPTED else 'terminated'}")
    else:
        failure = failure_of(error)
        code = failure.code
        if debugging():
            complain_with_traceback(error)
        if failure.what:
            complain(f"{prog}: {failure.what}")
    if code == ExitCode.PIPE:
        discard_output()
        return code
    try:
        flush_output()  # what was printed before it went wrong
    except OSError:
        pass
    return code


__all__ = ["COMMANDS", "ExitCode", "main"]
