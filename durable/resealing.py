"""Sealing a baggage that is there, taking the seal off, and putting another one on: nobody has it open meanwhile.

Each is one step: after a crash the baggage opens with the seal that it had, or with the one that it was to have.
"""

from __future__ import annotations

import secrets
from contextlib import closing
from os import PathLike
from pathlib import Path

from durable.directory import DirectoryStore
from durable.errors import BaggageRefused, SealRefused
from durable.header import HEADER, NEXT_HEADER, Header, read_header
from durable.migrations import refuse_newer
from durable.sealing import Rows, SealedStore
from durable.seals import KEY_SIZE, Seal, new_sealing
from durable.sqlite import STATE


def seal(path: str | PathLike[str], new: Seal) -> None:
    """Seals the baggage in a directory, which is not sealed. Its rows are in no file in clear afterwards.

    That holds of the files: blocks of the medium that were written before are the filesystem's to overwrite. Raises
    SealRefused, and what opening raises. Blocks.
    """
    _require(path)
    with closing(DirectoryStore(path, header=_unfinished, sealed=True)) as store:
        if store.header.sealing is not None:
            raise SealRefused(f"{store.path} is sealed already: rotate puts another seal on")
        refuse_newer(store, store.path)
        store.verify()
        data_key = secrets.token_bytes(KEY_SIZE)
        header = Header(store.store_id, new_sealing(new, store.path, store.store_id, data_key))
        store.replace(header, Rows(data_key, store.store_id).seal)


def unseal(path: str | PathLike[str], old: Seal) -> None:
    """Takes the seal off. Raises SealRefused, and what opening raises. Blocks."""
    _require(path)
    with closing(SealedStore(path, old)) as store:
        refuse_newer(store, store.path)
        store.verify()
        store.inner.replace(Header(store.store_id), store.rows.open)


def rotate(path: str | PathLike[str], old: Seal, new: Seal, *, rows: bool = True) -> None:
    """Puts another seal on, which may be of another kind, or the same for a new data key.

    All rows are written anew, under a new data key. Without `rows` only the key is sealed anew: at once, but whoever
    has the old seal and an old header can still read. Raises SealRefused, and what opening raises. Blocks.
    """
    _require(path)
    with closing(SealedStore(path, old)) as store:
        refuse_newer(store, store.path)
        store.verify()
        data_key = secrets.token_bytes(KEY_SIZE) if rows else store.rows.data_key
        after = Rows(data_key, store.store_id)
        header = Header(store.store_id, new_sealing(new, store.path, store.store_id, data_key))
        store.inner.replace(
            header,
            (lambda table, mac, sealed: after.seal(table, *store.rows.open(table, mac, sealed)))
            if rows
            else None,
        )


def sealed_by(path: str | PathLike[str]) -> str | None:
    """The kind of key that opens the baggage in a directory: "passphrase", "key-file" or "caller"; None for one that is
    not sealed. Raises what opening raises."""
    _require(path)
    header = read_header(Path(path))
    if header is None or (Path(path) / NEXT_HEADER).exists():
        # What a change or a making has left, the store sorts out.
        with closing(DirectoryStore(path, header=_unfinished, sealed=True)) as store:
            header = store.header
    return None if header.sealing is None else header.sealing.kind


def verify_sealed(path: str | PathLike[str]) -> int:
    """What can be verified of a sealed baggage without its key: that all rows are as they were written. Says how many.

    Raises BaggageCorrupt, and what opening raises.
    """
    _require(path)
    with closing(DirectoryStore(path, header=_unfinished, sealed=True)) as store:
        return store.verify()


def _unfinished(store_id: bytes) -> Header:
    """No header is made here: who makes the baggage decides whether it is sealed."""
    raise BaggageRefused("making the baggage has stopped before its end: open it as you would make it")


def _require(path: str | PathLike[str]) -> None:
    """None is made here. Raises BaggageRefused."""
    if not any((Path(path) / name).exists() for name in (HEADER, STATE)):
        raise BaggageRefused(f"there is no baggage in {path}")
