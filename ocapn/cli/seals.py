"""How a baggage is sealed, as the options of a command say it: with a key file, a passphrase, or not at all."""

from __future__ import annotations

import argparse
import getpass
import os
import stat
import warnings
from pathlib import Path
from typing import Any, Final

import attrs

from ocapn.cli import baggages
from ocapn.cli.exits import ExitCode, Failure
from ocapn.cli.output import complain, printable
from ocapn.cli.uris import read_bytes

#: Values of --seal. The first two are kinds in a header too (`durable.header`).
KEY_FILE: Final = "key-file"
PASSPHRASE: Final = "passphrase"
NONE: Final = "none"
WAYS: Final = (KEY_FILE, PASSPHRASE, NONE)

#: For the help of commands that open a baggage that is there.
HELP: Final = """
A baggage that is sealed opens with its key: DIR.key is found by itself, --key-file names another,
and a passphrase is asked for on the terminal unless --passphrase names a file with it.
"""

_KINDS: Final = {KEY_FILE: "a key file", PASSPHRASE: "a passphrase", "caller": "a key that a program gives"}
#: Bytes of a passphrase.
_MOST: Final = 1024


@attrs.frozen
class Asked:
    """What the options say: the way, if one is named, and where the secret is."""

    way: str | None = None
    key_file: str | None = None
    passphrase: str | None = None


def add_arguments(parser: argparse.ArgumentParser, *, new: bool = False, plain: bool = True) -> None:
    """The three options; those of a `new` seal beside an old one have names of their own. `plain` allows none."""
    prefix, which = ("--new-", "the new") if new else ("--", "the")
    ways = WAYS if plain else (KEY_FILE, PASSPHRASE)
    parser.add_argument(
        f"{prefix}seal",
        metavar="WAY",
        choices=ways,
        help=f"how the baggage is {'to be ' if new else ''}sealed: {', '.join(ways[:-1])} or {ways[-1]}",
    )
    parser.add_argument(f"{prefix}key-file", metavar="PATH", help=f"{which} key file, if it is not DIR.key")
    parser.add_argument(
        f"{prefix}passphrase",
        metavar="@FILE",
        help=f"{which} passphrase is the one line that FILE holds; else it is asked for on the terminal",
    )


def asked(given: argparse.Namespace, *, new: bool = False) -> Asked:
    """What the options say, without contradictions. Raises Failure."""
    prefix, dashes = ("new_", "--new-") if new else ("", "--")
    way, key_file, passphrase = (
        getattr(given, f"{prefix}{name}") for name in ("seal", "key_file", "passphrase")
    )
    for value, named in ((key_file, KEY_FILE), (passphrase, PASSPHRASE)):
        if value is not None:
            if way not in (None, named):
                raise Failure(ExitCode.USAGE, f"{dashes}{named} does not go with a seal by {way}")
            way = named
    if key_file == "":
        raise Failure(ExitCode.USAGE, f"{dashes}key-file takes the path of a file")
    if passphrase is not None and (not passphrase.startswith("@") or len(passphrase) == 1):
        raise Failure(
            ExitCode.USAGE,
            f"{dashes}passphrase takes @FILE; a passphrase on the command line would be in the process list",
        )
    return Asked(way, key_file, passphrase)


def beside(path: str) -> Path:
    """The key file of the baggage in a directory, unless another is named."""
    absolute = Path(path).absolute()
    return absolute.with_name(f"{absolute.name}.key")


def is_made(path: str) -> bool:
    """Whether the baggage in a directory was made, to the last step, which is its header."""
    return (Path(path) / "header.cbor").exists()


def described(kind: str | None) -> str:
    """How a baggage is sealed, for people."""
    return "not sealed" if kind is None else f"sealed with {_KINDS[kind]}"


def old_seal(path: str, options: Asked) -> Any:
    """The seal of the baggage in a directory, or None: it keeps what it has. Raises Failure, DurableError."""
    kind = baggages.durable().sealed_by(path)
    if options.way is not None and options.way != (kind or NONE):
        hint = "'ocapn baggage seal' seals it" if kind is None else "'ocapn baggage rotate' changes that"
        raise Failure(ExitCode.USAGE, f"{path} is {described(kind)}, not as --seal says; {hint}")
    match kind:
        case None:
            return None
        case "key-file":
            file = Path(options.key_file) if options.key_file is not None else beside(path)
            if not file.exists():
                raise Failure(
                    ExitCode.BAGGAGE,
                    f"{path} is sealed, and its key file {file} is not there; --key-file says where it is",
                )
            return baggages.durable().KeyFile(file)
        case "passphrase":
            return _passphrase(options, f"Passphrase of {path}: ")
    raise Failure(ExitCode.BAGGAGE, f"{path} is {described(kind)}: only that program opens it")


def new_seal(path: str, options: Asked) -> Any:
    """The seal that a baggage is to have, or None; a key file unless another way is named. Raises Failure."""
    match options.way or KEY_FILE:
        case "passphrase":
            return _passphrase(options, f"New passphrase of {path}: ", again=True)
        case "none":
            return None
    return baggages.durable().KeyFile(options.key_file or beside(path))


def openable(path: str, options: Asked) -> bool:
    """Whether there is anything to open a sealed baggage with, without asking. Raises DurableError."""
    kind = baggages.durable().sealed_by(path)
    if kind is None or options.way is not None:
        return True
    return kind == KEY_FILE and beside(path).exists()


def file_to_come(seal: Any) -> Path | None:
    """The key file that sealing will make, if it is not there."""
    path = getattr(seal, "path", None)
    return path if isinstance(path, Path) and not path.exists() else None


def remark(command: str, file: Path | None) -> None:
    """Says of a key file that was made what it is for."""
    if file is not None and file.exists():
        complain(
            f"ocapn {command}: sealed with the key in {file}, which was made: keep a copy of it elsewhere, as nothing "
            "else opens the baggage. That protects copies of the directory, and disks thrown away without the key; "
            "it does not protect from whoever reads the key file too"
        )


def _passphrase(options: Asked, prompt: str, *, again: bool = False) -> Any:
    text = (
        _prompted(prompt, again=again)
        if options.passphrase is None
        else _read_passphrase(options.passphrase[1:])
    )
    try:
        return baggages.durable().Passphrase(text)
    except ValueError as error:
        raise Failure(ExitCode.MALFORMED, f"{error}") from None


def _prompted(prompt: str, *, again: bool) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", getpass.GetPassWarning)  # it would be shown as it is typed
            text = getpass.getpass(printable(prompt))
            if again and getpass.getpass("The same once more: ") != text:
                raise Failure(ExitCode.USAGE, "the passphrase was not the same twice")
            return text
    except (getpass.GetPassWarning, EOFError, OSError) as error:
        raise Failure(
            ExitCode.USAGE,
            "there is no terminal to ask for a passphrase on; --passphrase @FILE reads it from a file",
        ) from error


def _read_passphrase(name: str) -> str:
    data = read_bytes(name, _MOST + 1)
    what = "standard input" if name == "-" else name
    try:
        text = data.removesuffix(b"\n").removesuffix(b"\r").decode()
    except UnicodeDecodeError:
        text = "\n"
    if not text or "\n" in text or len(data) > _MOST:
        raise Failure(
            ExitCode.MALFORMED, f"{what} holds no passphrase: one line of UTF-8, of up to 1,024 bytes"
        )
    if name != "-" and stat.S_IMODE(os.stat(name).st_mode) & 0o077:
        complain(f"ocapn: warning: other users may read the passphrase in {name}; chmod 600 ends that")
    return text
