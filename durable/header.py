"""`header.cbor`: what must be known of a baggage before its database is opened.

    ["ocapn-baggage", format, body, digest]

`body` is the CBOR of a map, as a byte string, whose keys belong to the format; `digest` is BLAKE2b-256 of the CBOR
of the first three. A later format keeps this frame, so that every version can tell newer from broken.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final

from durable.errors import BaggageCorrupt, BaggageNewer
from durable.place import replace
from durable.records import decode, encode

HEADER: Final = "header.cbor"
NEW_HEADER: Final = "header.cbor.new"
FORMAT: Final = 1
_LABEL: Final = "ocapn-baggage"


@dataclass(frozen=True)
class Header:
    """The body of format 1. How the baggage is sealed stands in it too, and is None: it is not."""

    store_id: bytes


def read_header(directory: Path) -> Header | None:
    """The header, or None if there is none. Raises BaggageCorrupt, BaggageNewer, OSError."""
    try:
        data = (directory / HEADER).read_bytes()
    except FileNotFoundError:
        return None
    match decode(data, file=HEADER):
        case [str(label), int(number), bytes(body), bytes(digest)] if label == _LABEL and digest == _digest(
            number, body
        ):
            pass
        case _:
            raise BaggageCorrupt("not the header of a baggage, or damaged", HEADER)
    if number > FORMAT:
        raise BaggageNewer(directory, number, FORMAT)
    match decode(body, file=HEADER):
        case {"store": bytes(store_id), "sealing": None, **rest} if not rest and number == FORMAT:
            return Header(store_id)
        case _:
            raise BaggageCorrupt("not a header of this format", HEADER)


def write_header(directory: Path, header: Header, number: int = FORMAT) -> None:
    """Writes or replaces it, whole or not at all. Raises OSError."""
    body = encode({"store": header.store_id, "sealing": None})
    replace(directory, HEADER, NEW_HEADER, encode([_LABEL, number, body, _digest(number, body)]))


def _digest(number: int, body: bytes) -> bytes:
    return blake2b(encode([_LABEL, number, body]), digest_size=32).digest()
