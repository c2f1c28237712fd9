"""A store whose rows are sealed: whoever has its files, and not its key, learns sizes, counts and times.

A layer over `DirectoryStore`, which keeps for a row its mac and its key and value, encrypted, and knows nothing of what
they are. The keys of all rows are in memory, in order. spec/sealing.md has the bytes.
"""

from __future__ import annotations

import secrets
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import blake2b
from os import PathLike
from pathlib import Path
from typing import Final

from nacl.exceptions import CryptoError
from nacl.secret import Aead

from durable.directory import LOG_SIZE, DirectoryStore
from durable.errors import BaggageCorrupt
from durable.header import Header
from durable.migrations import migrate
from durable.seals import KEY_SIZE, Seal, data_key_of, kind_of, lengths, new_sealing
from durable.sqlite import STATE
from durable.store import TABLES, Changes, Store, above_prefix, check_table, row_name

#: How a sealed row is made, which is authenticated with it.
SCHEMA: Final = 1
_MAC: Final = 32
_LENGTH: Final = 4
#: Of a sealed value: nonce, authenticator, length of the key.
_LEAST: Final = Aead.NONCE_SIZE + Aead.MACBYTES + _LENGTH
#: Rows that are read together where all are, sealed and open.
_PAGE: Final = 200
#: Rows that are read one by one, in the disorder of their macs, rather than with all others of their table.
_FEW: Final = 50


class Rows:
    """Seals and opens the rows of one store with its data key."""

    def __init__(self, data_key: bytes, store_id: bytes) -> None:
        self.data_key = data_key
        self._box = Aead(blake2b(digest_size=KEY_SIZE, key=data_key, person=b"ocapn rows").digest())
        mac_key = blake2b(digest_size=KEY_SIZE, key=data_key, person=b"ocapn keys").digest()
        self._macs = {
            table: blake2b(lengths(table.encode()), digest_size=_MAC, key=mac_key) for table in TABLES
        }
        schema = SCHEMA.to_bytes(4, "big")
        self._about = {
            table: lengths(store_id, schema, table.encode()) + _MAC.to_bytes(8, "big") for table in TABLES
        }

    def mac(self, table: str, key: bytes) -> bytes:
        """What stands in place of a key."""
        mac = self._macs[table].copy()
        mac.update(lengths(key))
        return mac.digest()

    def seal(self, table: str, key: bytes, value: bytes, nonce: bytes | None = None) -> tuple[bytes, bytes]:
        """The row that is kept for one in clear. The nonce is drawn, other than for examples."""
        mac = self.mac(table, key)
        clear = b"".join((len(key).to_bytes(_LENGTH, "big"), key, value))
        return mac, bytes(self._box.encrypt(clear, self._about[table] + mac, nonce))

    def open(self, table: str, mac: bytes, sealed: bytes) -> tuple[bytes, bytes]:
        """Key and value of a row. Raises BaggageCorrupt if it is not the one that was kept under this mac, here."""
        if len(sealed) < _LEAST:
            raise BaggageCorrupt("the row does not open", STATE, table, row_name(mac))
        try:
            clear: bytes = self._box.decrypt(sealed, self._about[table] + mac)
        except CryptoError:
            raise BaggageCorrupt("the row does not open", STATE, table, row_name(mac)) from None
        end = _LENGTH + int.from_bytes(clear[:_LENGTH], "big")
        if len(clear) < end or self.mac(table, clear[_LENGTH:end]) != mac:
            raise BaggageCorrupt("the row is not that of its key", STATE, table, row_name(mac))
        return clear[_LENGTH:end], clear[end:]


class SealedStore:
    """Opens the sealed baggage in the directory `path` with its seal, or makes one there.

    Raises what `DirectoryStore` raises, and SealRefused for a seal that is not its own and for a baggage that is not
    sealed. Opening reads all rows.
    """

    def __init__(self, path: str | PathLike[str], seal: Seal, *, log_size: int = LOG_SIZE) -> None:
        kind_of(seal)
        made: list[bytes] = []

        def header(store_id: bytes) -> Header:
            data_key = secrets.token_bytes(KEY_SIZE)
            sealing = new_sealing(seal, Path(path), store_id, data_key)
            made.append(data_key)
            return Header(store_id, sealing)

        self.inner = DirectoryStore(path, header=header, sealed=True, log_size=log_size)
        try:
            self.path = self.inner.path
            data_key = made[0] if made else data_key_of(seal, self.inner.header)
            self.rows = Rows(data_key, self.inner.store_id)
            self._writing = threading.Lock()  # taken before any lock of the store within
            #: The keys of each table, in order. Changes while the store within is still.
            self._keys = {table: self._read_keys(table) for table in TABLES}
        except BaseException:
            self.inner.close()
            raise

    @property
    def store_id(self) -> bytes:
        return self.inner.store_id

    def get(self, table: str, key: bytes) -> bytes | None:
        check_table(table)
        mac = self.rows.mac(table, key)
        sealed = self.inner.get(table, mac)
        return None if sealed is None else self.rows.open(table, mac, sealed)[1]

    def scan(
        self, table: str, prefix: bytes = b"", after: bytes | None = None, limit: int | None = None
    ) -> list[tuple[bytes, bytes]]:
        check_table(table)
        with self.inner.still():
            keys = self._keys[table]
            first = bisect_left(keys, prefix)
            if after is not None:
                first = max(first, bisect_right(keys, after))
            end = above_prefix(prefix)
            last = len(keys) if end is None else bisect_left(keys, end)
            if limit is not None:
                last = min(last, first + limit)
            get: Callable[[bytes], bytes | None] = partial(self.get, table)
            if last - first > _FEW and 4 * (last - first) > len(keys):
                get = dict(self._read(table)).get
            return [(key, self._there(table, key, get(key))) for key in keys[first:last]]

    def commit(self, changes: Changes) -> None:
        for table, _ in changes:
            check_table(table)
        sealed: dict[tuple[str, bytes], bytes | None] = {}
        for (table, key), value in changes.items():
            if value is None:
                sealed[table, self.rows.mac(table, key)] = None
            else:
                mac, box = self.rows.seal(table, key, value)
                sealed[table, mac] = box
        with self._writing:
            self.inner.commit(sealed, lambda: self._note(changes))

    def scrub(self) -> None:
        self.inner.scrub()

    def verify(self) -> int:
        """Also that each row opens, and is that of its key."""
        with self._writing:
            count = self.inner.verify()
            for table in TABLES:
                if self._read_keys(table) != self._keys[table]:
                    raise BaggageCorrupt("its rows are not those that were there at opening", STATE, table)
            return count

    def copy(self, suffix: str) -> Path:
        """As `DirectoryStore.copy`; the copy has the same seal."""
        return self.inner.copy(suffix)

    def close(self) -> None:
        self.inner.close()

    def _there(self, table: str, key: bytes, value: bytes | None) -> bytes:
        if value is None:
            raise BaggageCorrupt("the row is gone", STATE, table, row_name(self.rows.mac(table, key)))
        return value

    def _note(self, changes: Changes) -> None:
        """Notes the keys that have come and gone with a commit."""
        for (table, key), value in changes.items():
            keys = self._keys[table]
            place = bisect_left(keys, key)
            there = place < len(keys) and keys[place] == key
            if value is None and there:
                del keys[place]
            elif value is not None and not there:
                keys.insert(place, key)

    def _read_keys(self, table: str) -> list[bytes]:
        """The keys of a table, of which all rows are opened. Raises BaggageCorrupt."""
        return sorted(key for key, _ in self._read(table))

    def _read(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        """All rows of a table, in no order. Raises BaggageCorrupt."""
        after = None
        while page := self.inner.scan(table, b"", after, _PAGE):
            for mac, sealed in page:
                yield self.rows.open(table, mac, sealed)
            after = page[-1][0]


def open_store(path: str | PathLike[str], seal: Seal | None) -> Store:
    """The store in a directory, made if it is not there: sealed if there is a seal. Its rows are brought up to date."""
    store = DirectoryStore(path) if seal is None else SealedStore(path, seal)
    try:
        migrate(store, store.path, lambda version: store.copy(f".version-{version}"))
    except BaseException:
        store.close()
        raise
    return store
