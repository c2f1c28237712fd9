"""A layer between SQLite and its files, put by ctypes into the library that the standard `sqlite3` module uses.

A copy of the default VFS, registered as the default while somebody observes, whose xOpen and xDelete come here.
A file below an observed directory is opened by the real VFS, in the memory that SQLite gave for it; then its
table of methods is swapped for a copy in which xWrite, xTruncate, xSync and xClose come here. All others, among
them the shared memory and the locks of WAL, stay the native functions: they cost nothing and cannot differ.

The calls come on whatever thread runs SQLite: ctypes takes the GIL for them, and gives it up in the real calls.
What is registered once is never freed, for connections may outlive an observation: they go on undisturbed.
"""

from __future__ import annotations

import _sqlite3
import contextlib
import ctypes
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

OK = 0
IOERR = 10
FULL = 13
IOERR_WRITE = IOERR | 3 << 8
IOERR_FSYNC = IOERR | 4 << 8
IOERR_TRUNCATE = IOERR | 6 << 8

OPEN_JOURNALS = 0x00000800 | 0x00004000 | 0x00080000  # main journal, super-journal, WAL

SECTOR = 512

Kind = Literal["write", "truncate", "sync"]


class Unavailable(Exception):
    """The SQLite library of this Python cannot be reached from outside: linked statically, or not POSIX."""


class Observer(Protocol):
    """Told of each call after it went well. Paths are relative to the observed directory."""

    def refusal(self, kind: Kind, path: str) -> int:
        """Asked before each call: OK, or the result code with which it is to fail."""

    def created(self, path: str) -> None: ...
    def wrote(self, path: str, offset: int, data: bytes) -> None: ...
    def truncated(self, path: str, size: int) -> None: ...
    def synced(self, path: str) -> None: ...
    def sync_failed(self, path: str) -> None: ...
    def deleted(self, path: str) -> None: ...
    def renamed(self, old: str, new: str) -> None: ...
    def broken(self, error: BaseException) -> None:
        """An exception came out of this observer or out of the shim; SQLite was told of an I/O error."""


class _Vfs(ctypes.Structure):
    _fields_ = (
        ("iVersion", ctypes.c_int),
        ("szOsFile", ctypes.c_int),
        ("mxPathname", ctypes.c_int),
        ("pNext", ctypes.c_void_p),
        ("zName", ctypes.c_char_p),
        ("pAppData", ctypes.c_void_p),
        ("xOpen", ctypes.c_void_p),
        ("xDelete", ctypes.c_void_p),
        # xAccess xFullPathname xDlOpen xDlError xDlSym xDlClose xRandomness xSleep xCurrentTime xGetLastError
        # xCurrentTimeInt64 xSetSystemCall xGetSystemCall xNextSystemCall
        ("others", ctypes.c_void_p * 14),
    )


class _Methods(ctypes.Structure):
    _fields_ = (
        ("iVersion", ctypes.c_int),
        ("xClose", ctypes.c_void_p),
        ("xRead", ctypes.c_void_p),
        ("xWrite", ctypes.c_void_p),
        ("xTruncate", ctypes.c_void_p),
        ("xSync", ctypes.c_void_p),
        # xFileSize xLock xUnlock xCheckReservedLock xFileControl xSectorSize xDeviceCharacteristics
        # xShmMap xShmLock xShmBarrier xShmUnmap xFetch xUnfetch
        ("others", ctypes.c_void_p * 13),
    )


# The real calls go through CFUNCTYPE as well, which gives up the GIL for their time.
_Open = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p
)
_Delete = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)
_Close = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
_Write = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64)
_Truncate = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int64)
_Sync = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int)

_Call = Callable[..., int]


def _address(function: Any) -> int | None:
    return ctypes.cast(function, ctypes.c_void_p).value


def _length(struct: type[_Vfs | _Methods], version: int, others: tuple[int, int, int]) -> int:
    """The bytes of a struct of an earlier version of its kind, which has fewer members."""
    return struct.others.offset + others[min(version, 3) - 1] * ctypes.sizeof(ctypes.c_void_p)


@dataclass(slots=True)
class _Table:
    """One of the real VFS's tables of methods, and the copy of it that stands in."""

    original: int
    copy: _Methods
    close: _Call
    write: _Call
    truncate: _Call


@dataclass(slots=True)
class _File:
    path: str
    observer: Observer
    table: _Table
    sync_directory: bool  # with the first sync, as the real VFS does for a journal or WAL it has created


class _Shim:
    def __init__(self) -> None:
        where = getattr(_sqlite3, "__file__", None)
        try:
            library = ctypes.CDLL(where)
            find, self._register = library.sqlite3_vfs_find, library.sqlite3_vfs_register
            self._unregister = library.sqlite3_vfs_unregister
            version = library.sqlite3_libversion
        except (OSError, AttributeError) as error:
            raise Unavailable(f"no sqlite3_vfs_register in {where}: {error}") from None
        version.restype = ctypes.c_char_p
        if version().decode() != sqlite3.sqlite_version:
            raise Unavailable(f"{where} leads to SQLite {version().decode()}, not {sqlite3.sqlite_version}")
        find.restype = ctypes.c_void_p
        find.argtypes = [ctypes.c_char_p]
        self._register.argtypes = [ctypes.c_void_p, ctypes.c_int]
        self._unregister.argtypes = [ctypes.c_void_p]
        self._real = find(None)
        self._vfs = _Vfs()
        real = _Vfs.from_address(self._real)
        ctypes.memmove(ctypes.addressof(self._vfs), self._real, _length(_Vfs, real.iVersion, (10, 11, 14)))
        self._real_open: _Call = _Open(real.xOpen or 0)
        self._real_delete: _Call = _Delete(real.xDelete or 0)
        self._callbacks = (
            _Open(self._open),
            _Delete(self._delete),
            _Close(self._close),
            _Write(self._write),
            _Truncate(self._truncate),
            _Sync(self._sync),
        )
        self._vfs.zName = b"recording"
        self._vfs.pNext = None
        self._vfs.xOpen = _address(self._callbacks[0])
        self._vfs.xDelete = _address(self._callbacks[1])
        self._tables: dict[int, _Table] = {}
        self._files: dict[int, _File] = {}
        self._observers: dict[str, Observer] = {}  # by directory, with a separator at its end
        self._lock = threading.Lock()
        # SQLite keeps pointers to it: it is not freed even at the interpreter's end
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self))

    def observe(self, root: str, observer: Observer) -> None:
        with self._lock:
            if any(root.startswith(other) or other.startswith(root) for other in self._observers):
                raise ValueError(f"{root} is observed already, or one in it or around it is")
            self._observers[root] = observer
            if len(self._observers) == 1:
                self._register(ctypes.addressof(self._vfs), 1)

    def leave(self, root: str) -> None:
        with self._lock:
            del self._observers[root]
            if not self._observers:
                self._register(self._real, 1)
                self._unregister(ctypes.addressof(self._vfs))

    def _whose(self, name: int | None) -> tuple[Observer, str, str] | None:
        """The observer of a path, the path below its directory, the path."""
        if name is None:
            return None
        path = os.fsdecode(ctypes.string_at(name))
        for root, observer in list(self._observers.items()):
            if path.startswith(root):
                return observer, path.removeprefix(root), path
        return None

    def _open(self, _: int, name: int | None, file: int, flags: int, out: int | None) -> int:
        known = self._whose(name)
        new = known is not None and not os.path.exists(known[2])
        code = self._real_open(self._real, name, file, flags, out)
        if known is None or code != OK:
            return code
        observer, path, _path = known
        try:
            methods = ctypes.c_void_p.from_address(file)
            assert methods.value is not None
            table = self._table(methods.value)
            self._files[file] = _File(path, observer, table, new and bool(flags & OPEN_JOURNALS))
            methods.value = ctypes.addressof(table.copy)
            if new:
                observer.created(path)
        except BaseException as error:
            observer.broken(error)
        return code

    def _table(self, address: int) -> _Table:
        table = self._tables.get(address)
        if table is None:
            original = _Methods.from_address(address)
            copy = _Methods()
            ctypes.memmove(ctypes.addressof(copy), address, _length(_Methods, original.iVersion, (7, 11, 13)))
            _, _, close, write, truncate, sync = (_address(callback) for callback in self._callbacks)
            copy.xClose, copy.xWrite, copy.xTruncate, copy.xSync = close, write, truncate, sync
            table = _Table(
                address,
                copy,
                _Close(original.xClose or 0),
                _Write(original.xWrite or 0),
                _Truncate(original.xTruncate or 0),
            )
            self._tables[address] = table
        return table

    def _close(self, file: int) -> int:
        known = self._files.pop(file)
        ctypes.c_void_p.from_address(file).value = known.table.original
        return known.table.close(file)

    def _write(self, file: int, data: int, amount: int, offset: int) -> int:
        known = self._files[file]
        try:
            content = ctypes.string_at(data, amount)
            code = known.observer.refusal("write", known.path)
            if code != OK:  # a disk that fills up takes the beginning
                amount = amount // 2 // SECTOR * SECTOR
                if amount and known.table.write(file, data, amount, offset) == OK:
                    known.observer.wrote(known.path, offset, content[:amount])
                return code
            code = known.table.write(file, data, amount, offset)
            if code == OK:
                known.observer.wrote(known.path, offset, content)
        except BaseException as error:
            known.observer.broken(error)
            return IOERR_WRITE
        return code

    def _truncate(self, file: int, size: int) -> int:
        known = self._files[file]
        try:
            code = known.observer.refusal("truncate", known.path)
            if code == OK:
                code = known.table.truncate(file, size)
                if code == OK:
                    known.observer.truncated(known.path, size)
        except BaseException as error:
            known.observer.broken(error)
            return IOERR_TRUNCATE
        return code

    def _sync(self, file: int, flags: int) -> int:
        """Nothing is synced really: what a crash leaves is for the observer to say."""
        known = self._files[file]
        try:
            code = known.observer.refusal("sync", known.path)
            if code != OK:
                known.observer.sync_failed(known.path)
                return code
            known.observer.synced(known.path)
            if known.sync_directory:
                known.sync_directory = False
                known.observer.synced(os.path.dirname(known.path) or ".")
        except BaseException as error:
            known.observer.broken(error)
            return IOERR_FSYNC
        return OK

    def _delete(self, _: int, name: int | None, sync: int) -> int:
        known = self._whose(name)
        code = self._real_delete(self._real, name, sync if known is None else 0)
        if known is not None and code == OK:
            observer, path, _path = known
            try:
                observer.deleted(path)
                if sync:
                    observer.synced(os.path.dirname(path) or ".")
            except BaseException as error:
                observer.broken(error)
                return IOERR
        return code


_shim: _Shim | None = None


@contextlib.contextmanager
def observed(directory: str | os.PathLike[str], observer: Observer) -> Iterator[None]:
    """The observer is told of what every connection opened in this time does below the directory.

    Raises `Unavailable` where the SQLite library cannot be reached.
    """
    global _shim
    if os.name != "posix":
        raise Unavailable("for POSIX systems only")
    if _shim is None:
        _shim = _Shim()
    root = os.path.join(os.path.realpath(directory), "")
    _shim.observe(root, observer)
    try:
        yield
    finally:
        _shim.leave(root)
