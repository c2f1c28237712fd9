"""What a command is, and the parser of its arguments."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import Final, NoReturn, final

import attrs

from ocapn.cli import exits
from ocapn.cli.exits import ExitCode, Failure


@final
class Parser(argparse.ArgumentParser):
    """argparse, with errors of one line and nothing abbreviated."""

    def __init__(self, name: str, usage: str, description: str, epilog: str) -> None:
        super().__init__(
            prog=f"ocapn {name}",
            usage=f"ocapn {name} {usage}",
            description=description,
            epilog=epilog,
            formatter_class=_Formatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        if re.match(r"unrecognized arguments: -\d", message):
            message += " (put -- before arguments that begin with -)"
        raise Failure(ExitCode.USAGE, f"{message}; '{self.prog} --help' explains")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26, width=96)


@final
@attrs.frozen
class Command:
    """One command: how its help describes it, and what it does."""

    name: str
    #: One line, for the list of commands.
    summary: str
    #: What follows the name in the usage line.
    usage: str
    #: What it does, as paragraphs wrapped at 95 columns.
    description: str
    #: What follows the options in the help: at least an example.
    epilog: str
    #: The exit codes that it has beside those that all have.
    codes: tuple[ExitCode, ...]
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]
    #: The commands that this one consists of: their names begin with its name.
    parts: tuple[Command, ...] = ()

    def parser(self) -> Parser:
        codes = sorted({*self.codes, *_COMMON})
        epilog = f"{self.epilog.strip()}\n\nExit codes:\n{exits.table(*codes)}"
        parser = Parser(self.name, self.usage, self.description.strip(), epilog)
        self.add_arguments(parser)
        return parser


_COMMON: Final = (ExitCode.OK, ExitCode.USAGE, ExitCode.INTERRUPTED, ExitCode.TERMINATED)
