"""`ocapn syrup`: Syrup in the notation of the specification."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Final

from ocapn.cli.command import Command
from ocapn.cli.exits import ExitCode, Failure
from ocapn.cli.output import printable
from ocapn.cli.uris import read_bytes
from ocapn.codec.framing import NETSTRING, Framer
from ocapn.codec.notation import notation
from ocapn.codec.syrup import ANY_RECORD, Decoder
from ocapn.errors import DecodeError, RemoteProtocolError
from ocapn.limits import Limits

_DESCRIPTION: Final = """
Prints Syrup, the encoding of OCapN on the wire, in the notation of the specification: one value
a line. A file holds one value after another; with --frames, each in a frame as on TCP
connections (<length>:<value>, or netstrings). What is malformed is refused, with the offset in
the file and the rule; what stands before it is printed.
"""

_EPILOG: Final = """
Example:
  $ printf "<10'op:deliver<11'desc:export5+>[5'greet3\\"Ann]3+f>" | ocapn syrup -
  <op:deliver <desc:export 5> ['greet "Ann"] 3 f>
"""

#: What is read here is somebody else's, and was within that peer's limits: these are only against nonsense.
_LIMITS: Final = Limits(nesting=128, integer_digits=4096)
_ANY_SIZE: Final = 1 << 62


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="what to read; - is standard input")
    parser.add_argument("--frames", action="store_true", help="the file holds frames, as they are on TCP")
    parser.add_argument(
        "--secrets",
        action="store_true",
        help="shows swiss numbers and gift ids, of which otherwise only the length",
    )


def _run(given: argparse.Namespace) -> None:
    data = read_bytes(given.file)
    name = "standard input" if given.file == "-" else printable(given.file)
    try:
        for value in framed(data) if given.frames else values(data):
            print(notation(value, secrets=given.secrets))
    except DecodeError as error:
        hint = ""
        if error.rule.startswith("no value begins with byte 0x0a"):
            hint = "; Syrup has no line ends"
        raise Failure(ExitCode.MALFORMED, f"{name}, byte {error.offset}: {error.rule}{hint}") from None


def values(data: bytes) -> Iterator[bytes]:
    """The values that follow each other in `data`. Raises DecodeError with the offset in `data`."""
    decoder = Decoder(_LIMITS, ANY_RECORD)
    decoder.feed(data)
    offset = 0
    while decoder.pending:
        try:
            found = decoder.next_value()
        except DecodeError as error:
            raise DecodeError(error.rule, offset + error.offset) from None
        if found is None:
            raise DecodeError("the input ends inside a value", len(data))
        yield found[1]
        offset += len(found[1])


def framed(data: bytes) -> Iterator[bytes]:
    """The values in the frames of `data`. Raises DecodeError with the offset in `data`."""
    if data[:1] == b"<":
        raise DecodeError("a value and not a frame, which begins with its length; try without --frames", 0)
    framer = Framer(_LIMITS, None, _ANY_SIZE)
    framer.feed(data)
    offset = (
        0  # of the next frame, but for the commas of netstrings, which are known as such from the second on
    )
    count = 0
    while True:
        try:
            messages = framer.take(1)
        except RemoteProtocolError as error:
            raise DecodeError(str(error), offset + count * (framer.framing == NETSTRING)) from None
        if not messages:
            break
        (message,) = messages
        offset += len(b"%d:" % len(message))
        start = offset + count * (framer.framing == NETSTRING)
        try:
            Decoder(_LIMITS, ANY_RECORD).decode(message)
        except DecodeError as error:
            raise DecodeError(error.rule, start + error.offset) from None
        yield message
        offset += len(message)
        count += 1
    if framer.pending:
        raise DecodeError("the input ends inside a frame", len(data))


COMMAND: Final = Command(
    name="syrup",
    summary="print Syrup, the encoding on the wire, as text",
    usage="FILE|- [--frames] [--secrets]",
    description=_DESCRIPTION,
    epilog=_EPILOG,
    codes=(ExitCode.MALFORMED, ExitCode.FILE, ExitCode.PIPE),
    add_arguments=_add_arguments,
    run=_run,
)
