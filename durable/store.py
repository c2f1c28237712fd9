"""What a baggage asks of the place where it is kept. `durable.testing.check_store` checks an implementation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Protocol

#: The tables of a store (spec/baggage.md says what is in them).
TABLES = (
    "node",
    "session",
    "progress",
    "outbox",
    "slot",
    "answer",
    "promise",
    "turn",
    "gift",
    "swiss",
    "object",
    "user",
)

#: What one commit writes: a value for a table and a key, None where the row goes.
Changes = Mapping[tuple[str, bytes], bytes | None]


class Store(Protocol):
    """Rows of bytes in fixed tables. Every method blocks.

    `get` and `scan` may be called in one thread while another is inside `commit`, and then show what was there
    before it or after it, never a part. A table that is not in TABLES is a ValueError, and changes nothing.

    After a failed commit, and after `close`, every method but `close` raises BaggageFailed. What is read is what was
    written, or BaggageCorrupt.
    """

    @property
    def store_id(self) -> bytes:
        """32 random bytes, drawn when the store was made."""

    def get(self, table: str, key: bytes) -> bytes | None:
        """The value, or None if there is no such row."""

    def scan(
        self, table: str, prefix: bytes = b"", after: bytes | None = None, limit: int | None = None
    ) -> list[tuple[bytes, bytes]]:
        """Keys and values in the order of keys: of those that begin with `prefix` and are above `after`, the first."""

    def commit(self, changes: Changes) -> None:
        """Writes all or nothing, and returns when it is on disk. Called in a worker thread. Raises BaggageFailed."""

    def scrub(self) -> None:
        """Erases from the files what was overwritten or deleted, as far as the medium allows. Raises BaggageFailed."""

    def verify(self) -> int:
        """Reads everything and says how many rows there are. Commits wait for it. Raises BaggageCorrupt."""

    def close(self) -> None:
        """Gives the place free for others. May be called again."""


def check_table(table: str) -> None:
    """Raises ValueError for a name that is not in TABLES."""
    if table not in TABLES:
        raise ValueError(f"no such table: {table}")


def number_key(number: int) -> bytes:
    """The key, or the end of one, that stands for a number: in the order of numbers."""
    return number.to_bytes(8, "big")


def key_number(key: bytes) -> int:
    """The number that a key of `number_key` stands for."""
    return int.from_bytes(key, "big")


def row_name(key: bytes) -> str:
    """How a message names a row, as keys are not for logs."""
    return blake2b(key, digest_size=8).hexdigest()


def above_prefix(prefix: bytes) -> bytes | None:
    """The lowest key above all that begin with `prefix`; None if there is none."""
    trimmed = prefix.rstrip(b"\xff")
    return trimmed[:-1] + bytes([trimmed[-1] + 1]) if trimmed else None


def laid_over(
    over: Mapping[bytes, bytes | None],
    scan: Callable[[int | None], list[tuple[bytes, bytes]]],
    prefix: bytes,
    after: bytes | None,
    limit: int | None,
) -> list[tuple[bytes, bytes]]:
    """What `Store.scan` gives of rows with newer ones over them; `scan` gives the first so many of those below."""
    over = {
        key: value for key, value in over.items() if key.startswith(prefix) and (after is None or key > after)
    }
    # Of what is below, at most so many are removed.
    rows = scan(None if limit is None else limit + sum(value is None for value in over.values()))
    if not over:
        return rows
    merged = dict(rows) | over
    return [(key, value) for key in sorted(merged) if (value := merged[key]) is not None][:limit]
