"""`header.cbor`: what must be known of a baggage before its database is opened.

    ["ocapn-baggage", format, body, digest]

`body` is the CBOR of a map, as a byte string, whose keys belong to the format; `digest` is BLAKE2b-256 of the CBOR
of the first three. A later format keeps this frame, so that every version can tell newer from broken.

A header that is to take the place of another is written under a name of its own first. Which of the two belongs to the
rows, the database says (`durable.directory`).
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

from nacl.pwhash import argon2id
from nacl.secret import Aead

from durable.errors import BaggageCorrupt, BaggageNewer
from durable.place import replace, sync, write_synced
from durable.records import decode, encode

HEADER: Final = "header.cbor"
NEW_HEADER: Final = "header.cbor.new"
#: A header that takes the place of HEADER when its rows are there.
NEXT_HEADER: Final = "header.cbor.next"
FORMAT: Final = 1
_LABEL: Final = "ocapn-baggage"
#: Bytes of a header: several times what one has.
_MAX_SIZE: Final = 4096

#: The kinds of keys that seal a baggage.
PASSPHRASE: Final = "passphrase"
KEY_FILE: Final = "key-file"
CALLER: Final = "caller"

#: What the header of a baggage may ask of Argon2id: passes, and bytes of memory, which are a multiple of 1,024. The
#: least is what is quick enough for tests; the most takes a few seconds, whoever wrote the header.
OPSLIMITS: Final = (1, 10)
MEMLIMITS: Final = (8 << 20, 512 << 20)
SALT_SIZE: Final = argon2id.SALTBYTES
#: Of the data key as the header has it: a nonce of 24 bytes, the key of 32, an authenticator of 16.
WRAPPED_SIZE: Final = Aead.NONCE_SIZE + Aead.KEY_SIZE + Aead.MACBYTES


@dataclass(frozen=True)
class Stretching:
    """How Argon2id makes a key of a passphrase. Raises ValueError outside of the limits."""

    opslimit: int
    memlimit: int
    salt: bytes

    def __post_init__(self) -> None:
        for name, value, (least, most) in (
            ("opslimit", self.opslimit, OPSLIMITS),
            ("memlimit", self.memlimit, MEMLIMITS),
        ):
            if type(value) is not int or not least <= value <= most:
                raise ValueError(f"{name} is not between {least:,} and {most:,}")
        if self.memlimit % 1024:
            raise ValueError("memlimit is no multiple of 1,024")
        if type(self.salt) is not bytes or len(self.salt) != SALT_SIZE:
            raise ValueError(f"the salt has not {SALT_SIZE} bytes")


@dataclass(frozen=True)
class Sealing:
    """How a baggage is sealed: by which kind of key, for a passphrase how it becomes one, and the data key under it."""

    kind: str
    stretching: Stretching | None
    wrapped: bytes

    def __post_init__(self) -> None:
        if self.kind not in (PASSPHRASE, KEY_FILE, CALLER):
            raise ValueError("a kind of key that is not known")
        if (self.kind == PASSPHRASE) != (self.stretching is not None):
            raise ValueError("a passphrase is stretched, and nothing else is")
        if type(self.wrapped) is not bytes or len(self.wrapped) != WRAPPED_SIZE:
            raise ValueError(f"the wrapped key has not {WRAPPED_SIZE} bytes")


@dataclass(frozen=True)
class Header:
    """The body of format 1. `sealing` is None for a baggage that is not sealed."""

    store_id: bytes
    sealing: Sealing | None = None


def key_source(kind: str, stretching: Stretching | None) -> list[Any]:
    """What the header says of the key that seals a baggage, in clear."""
    return [kind] if stretching is None else [kind, stretching.opslimit, stretching.memlimit, stretching.salt]


def read_header(directory: Path) -> Header | None:
    """The header, or None if there is none. Raises BaggageCorrupt, BaggageNewer, OSError."""
    data = _read(directory, HEADER)
    return None if data is None else _parsed(data, directory)


def header_of(directory: Path, digest: bytes) -> tuple[Header, bool]:
    """The header that has this digest, of the two that a change may have left; and whether it is the next one.

    Raises BaggageCorrupt, BaggageNewer, OSError.
    """
    for name in (HEADER, NEXT_HEADER):
        data = _read(directory, name)
        if data is not None and blake2b(data, digest_size=32).digest() == digest:
            return _parsed(data, directory), name == NEXT_HEADER
    raise BaggageCorrupt("the rows belong to another header", HEADER)


def _read(directory: Path, name: str) -> bytes | None:
    """The bytes of a file that is to hold a header, no more than a header can have; None if there is none."""
    try:
        with open(directory / name, "rb") as file:
            return file.read(_MAX_SIZE + 1)
    except FileNotFoundError:
        return None


def _parsed(data: bytes, directory: Path) -> Header:
    if len(data) > _MAX_SIZE:
        raise BaggageCorrupt("longer than any header", HEADER)
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
        case {"store": bytes(store_id), "sealing": sealing, **rest} if not rest and number == FORMAT:
            return Header(store_id, _sealing(sealing))
        case _:
            raise BaggageCorrupt("not a header of this format", HEADER)


def header_bytes(header: Header, number: int = FORMAT) -> bytes:
    """The file of a header."""
    sealing = header.sealing and {
        "source": key_source(header.sealing.kind, header.sealing.stretching),
        "key": header.sealing.wrapped,
    }
    body = encode({"store": header.store_id, "sealing": sealing})
    return encode([_LABEL, number, body, _digest(number, body)])


def write_header(directory: Path, header: Header, number: int = FORMAT) -> None:
    """Writes or replaces it, whole or not at all. Raises OSError."""
    replace(directory, HEADER, NEW_HEADER, header_bytes(header, number))


def write_next_header(directory: Path, header: Header) -> bytes:
    """Writes the one that is to follow, and returns the digest of the file. Raises OSError."""
    data = header_bytes(header)
    write_synced(directory, NEXT_HEADER, data)
    return blake2b(data, digest_size=32).digest()


def finish_header(directory: Path) -> None:
    """Puts the next header in the place of the one before it. Raises OSError."""
    (directory / NEXT_HEADER).rename(directory / HEADER)
    sync(directory)


def _sealing(value: object) -> Sealing | None:
    """The sealing in a header, every part of it within its limits. Raises BaggageCorrupt."""
    if value is None:
        return None
    try:
        match value:
            case {"source": [str(kind), *rest], "key": bytes(wrapped), **more} if not more:
                if not rest:
                    return Sealing(kind, None, wrapped)
                opslimit, memlimit, salt = rest
                return Sealing(kind, Stretching(opslimit, memlimit, salt), wrapped)
    except ValueError as error:
        raise BaggageCorrupt(f"not a header of this format: {error}", HEADER) from None
    raise BaggageCorrupt("not a header of this format", HEADER)


def _digest(number: int, body: bytes) -> bytes:
    return blake2b(encode([_LABEL, number, body]), digest_size=32).digest()
