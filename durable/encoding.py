"""The bytes of `state.db` that are this package's own: digests of rows, and commits as the log has them."""

from __future__ import annotations

import struct
from hashlib import blake2b
from typing import Final

from durable.store import TABLES, Changes

#: Bytes of the digest of a row.
DIGEST: Final = 16
#: Of a change in the log: the place of its table in TABLES, the lengths of key and value; 0 removes, else one more.
_CHANGE: Final = struct.Struct(">BII")
_NUMBERS: Final = {table: number for number, table in enumerate(TABLES)}


def digest_start(store_id: bytes, table: str) -> blake2b:
    """What the digests of all rows of a table begin with."""
    start = blake2b(digest_size=DIGEST)
    for part in (store_id, table.encode()):
        start.update(len(part).to_bytes(8, "big") + part)
    return start


def digest_of(start: blake2b, key: bytes, value: bytes) -> bytes:
    """The digest of a row of the table that `start` is of."""
    digest = start.copy()
    digest.update(b"".join((len(key).to_bytes(8, "big"), key, len(value).to_bytes(8, "big"), value)))
    return digest.digest()


def logged(changes: Changes) -> bytes:
    """Changes as the log has them."""
    parts = []
    for (table, key), value in changes.items():
        parts += [_CHANGE.pack(_NUMBERS[table], len(key), 0 if value is None else len(value) + 1), key]
        if value is not None:
            parts.append(value)
    return b"".join(parts)


def changes_of(data: bytes) -> Changes:
    """The changes of which `logged` has made this."""
    changes: dict[tuple[str, bytes], bytes | None] = {}
    at = 0
    while at < len(data):
        number, key_size, size = _CHANGE.unpack_from(data, at)
        start = at + _CHANGE.size + key_size
        at = start + max(0, size - 1)
        changes[TABLES[number], data[start - key_size : start]] = data[start:at] if size else None
    return changes
