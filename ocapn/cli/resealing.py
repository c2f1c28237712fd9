"""`ocapn baggage seal`, `unseal` and `rotate`: the seal of a baggage that is there."""

from __future__ import annotations

import argparse
from typing import Any, Final

from ocapn.cli import baggages, seals
from ocapn.cli.command import Command
from ocapn.cli.exits import ExitCode, Failure
from ocapn.cli.output import progress

_CODES: Final = (ExitCode.MALFORMED, ExitCode.FILE, ExitCode.BAGGAGE, ExitCode.PIPE)
_CRASH: Final = f"""
Should the process or the machine end under it, the baggage has either the seal that it had or the
one that it was to have, whole. {baggages.ALONE}
"""


def _seal(given: argparse.Namespace) -> None:
    options = seals.asked(given)
    with baggages.present(given.directory):
        if baggages.durable().sealed_by(given.directory) is not None:
            raise Failure(
                ExitCode.BAGGAGE,
                f"{given.directory} is sealed already; 'ocapn baggage rotate' puts another seal on",
            )
        new = seals.new_seal(given.directory, options)
        made = seals.file_to_come(new)
        with progress("ocapn baggage seal: sealing all rows"):
            baggages.durable().seal(given.directory, new)
    seals.remark("baggage seal", made)
    print(f"{given.directory} is sealed")


def _unseal(given: argparse.Namespace) -> None:
    old = _old(given)
    with baggages.present(given.directory), progress("ocapn baggage unseal: opening all rows"):
        baggages.durable().unseal(given.directory, old)
    print(f"{given.directory} is not sealed any more")


def _rotate(given: argparse.Namespace) -> None:
    options = seals.asked(given, new=True)
    old = _old(given)
    with baggages.present(given.directory):
        new = old if options.way is None else seals.new_seal(given.directory, options)
        made = seals.file_to_come(new)
        with progress("ocapn baggage rotate: sealing all rows anew"):
            baggages.durable().rotate(given.directory, old, new)
    seals.remark("baggage rotate", made)
    print(f"{given.directory} is sealed anew")


def _old(given: argparse.Namespace) -> Any:
    """The seal of a baggage that is sealed. Raises Failure."""
    options = seals.asked(given)
    with baggages.present(given.directory):
        old = seals.old_seal(given.directory, options)
        if old is None:
            raise Failure(ExitCode.BAGGAGE, f"{given.directory} is not sealed; 'ocapn baggage seal' seals it")
        return old


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="the directory of the baggage")
    seals.add_arguments(parser, plain=False)


def _rotate_arguments(parser: argparse.ArgumentParser) -> None:
    _arguments(parser)
    seals.add_arguments(parser, new=True, plain=False)


SEAL: Final = Command(
    name="baggage seal",
    summary="encrypts a baggage that is not sealed",
    usage="DIR [--seal key-file|passphrase] [--key-file PATH | --passphrase @FILE]",
    description=f"""
Encrypts all that is in a baggage, with a key in a file, or with a passphrase. The key file is
DIR.key unless another is named; it is made if it is not there. What was written to the disk before
may still be in blocks that the filesystem has not used again, and is in copies made before.
{_CRASH}
""",
    epilog="""
Example:
  $ ocapn baggage seal /var/lib/hello --key-file /etc/hello.key
  /var/lib/hello is sealed
""",
    codes=_CODES,
    add_arguments=_arguments,
    run=_seal,
)

UNSEAL: Final = Command(
    name="baggage unseal",
    summary="decrypts a baggage that is sealed",
    usage="DIR [--key-file PATH | --passphrase @FILE]",
    description=f"""
Takes the seal off a baggage: all that is in it is in clear afterwards. The key file stays.
{_CRASH}
""",
    epilog=f"""{seals.HELP}
Example:
  $ ocapn baggage unseal /var/lib/hello
  /var/lib/hello is not sealed any more
""",
    codes=_CODES,
    add_arguments=_arguments,
    run=_unseal,
)

ROTATE: Final = Command(
    name="baggage rotate",
    summary="encrypts a sealed baggage anew, with a new key",
    usage="DIR [--new-key-file PATH | --new-passphrase @FILE] [OPTIONS]",
    description=f"""
Encrypts all that is in a sealed baggage anew, and puts another seal on: another key file, another
passphrase, or the one in place of the other. Without any --new- option the seal stays, and what is
under it has a new key. The old key file stays too, and opens copies made before.
{_CRASH}
""",
    epilog=f"""{seals.HELP}
Example:
  $ ocapn baggage rotate /var/lib/hello --new-key-file /etc/hello.key
  /var/lib/hello is sealed anew
""",
    codes=_CODES,
    add_arguments=_rotate_arguments,
    run=_rotate,
)
