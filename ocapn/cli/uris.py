"""URIs as arguments: given as they are, or in a file, which keeps their secrets out of the process list."""

from __future__ import annotations

import sys
from typing import Final

from ocapn.cli.exits import ExitCode, Failure
from ocapn.cli.output import printable

#: For help texts.
URI_HELP: Final = "an ocapn:// URI, or @FILE for one that stands in a file, or @- for standard input"

#: A file with a URI is small; more is some other file.
_MOST: Final = 1 << 16


def read_bytes(name: str, most: int = -1) -> bytes:
    """What is in the file `name`, or on standard input for `-`. Raises Failure."""
    try:
        if name == "-":
            if sys.stdin is None:
                raise Failure(ExitCode.FILE, "standard input is closed; give a file, or something to read")
            return sys.stdin.buffer.read(most)
        with open(name, "rb") as file:
            return file.read(most)
    except OSError as error:
        raise Failure(ExitCode.FILE, f"cannot read {name}: {error.strerror or error}") from error


def read_uri(argument: str) -> str:
    """The URI that an argument gives: itself, or that of the file it names. Raises Failure.

    The file holds one URI, alone or after its name, as `ocapn serve` prints it.
    """
    if not argument.startswith("@"):
        return argument
    name = argument[1:]
    if not name:
        raise Failure(ExitCode.USAGE, "@ is followed by the name of a file, or by - for standard input")
    data = read_bytes(name, _MOST)
    what = "standard input" if name == "-" else printable(name)
    words = data.decode("utf-8", "replace").split()
    uris = [word for word in words if word.lower().startswith("ocapn:")]
    if len(uris) != 1:
        count = f"{len(uris)} URIs" if uris else "no ocapn:// URI"
        raise Failure(ExitCode.MALFORMED, f"{what} holds {count}; put exactly one there")
    return uris[0]
