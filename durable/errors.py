"""Every exception that `durable` raises of its own.

    DurableError
    ├── BaggageInUse      another process, or this one, has the baggage open; `pid` is the owner's, if it is known
    ├── BaggageRefused    no baggage can be kept in that place: says why, and what to do
    ├── BaggageFailed     a write or a sync failed, or the baggage is closed: open it again to go on
    ├── BaggageCorrupt    what is on disk is not what was written; `file`, `table` and `row` say where
    ├── BaggageNewer      written by a later version of this package
    ├── SealRefused       the seal does not open the baggage, or it is sealed and none is given, or the reverse
    └── NotStorable       a value cannot be kept; says where it stands in the value (also TypeError)

No text holds a value or a key of a row: `row` is a digest of the key (`durable.store.row_name`).
"""

from __future__ import annotations


class DurableError(Exception):
    """Base of all exceptions of this package."""


class BaggageInUse(DurableError):
    """A baggage has one owner at a time."""

    def __init__(self, path: object, pid: int | None) -> None:
        owner = "a process" if pid is None else f"process {pid}"
        super().__init__(f"{path} is in use by {owner}: end it, or choose another directory")
        self.pid = pid


class BaggageRefused(DurableError):
    """The directory is on a network filesystem, open to other users, or holds something else."""


class BaggageFailed(DurableError):
    """The store cannot go on. What was committed before is kept; the commit that failed may be there or not, but whole.

    The same store raises it at every later call; opening the baggage again recovers.
    """


class BaggageCorrupt(DurableError):
    """What is on disk is not what was written."""

    def __init__(self, why: str, file: str = "", table: str | None = None, row: str | None = None) -> None:
        where = ", ".join(
            part
            for part in (file, table and f"table {table}", row and f"the row whose key has digest {row}")
            if part
        )
        super().__init__(f"{where}: {why}" if where else why)
        self.file = file
        self.table = table
        self.row = row


class BaggageNewer(DurableError):
    """The baggage has a format that this version does not read."""

    def __init__(self, path: object, found: int, known: int) -> None:
        super().__init__(
            f"{path} has format {found}, this version reads {known}: use a later version of what wrote it"
        )
        self.found = found
        self.known = known


class SealRefused(DurableError):
    """The baggage does not open with this seal, or cannot be sealed with it. No text tells which part was wrong."""


class NotStorable(DurableError, TypeError):
    """A value that cannot be kept. `path` says where it stands, in Python notation: `value['a'][0]`."""

    def __init__(self, why: str, path: str = "value") -> None:
        super().__init__(f"{path}: {why}")
        self.why = why
        self.path = path
