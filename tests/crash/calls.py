"""The same for what Python writes by itself: stand-ins for `os.open`, `os.write`, `os.rename` and their like.

Recorded are file descriptors from `os.open`, not what goes through `open()`: a store that cares about crashes needs
the descriptor anyway. Tests compare the last image with the directory, which shows whether something was missed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

from tests.crash.shim import FULL, OK, SECTOR, Kind, Observer

_Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]


class _Calls:
    def __init__(self) -> None:
        self._observers: dict[str, Observer] = {}
        self._files: dict[int, tuple[Observer, str]] = {}
        self._lock = threading.Lock()
        self._ours: dict[str, Callable[..., Any]] = {
            "open": self._open,
            "close": self._close,
            "write": self._write,
            "pwrite": self._pwrite,
            "ftruncate": self._ftruncate,
            "fsync": self._fsync,
            "fdatasync": self._fsync,
            "rename": self._rename,
            "replace": self._rename,
            "unlink": self._unlink,
            "remove": self._unlink,
        }
        self._real: dict[str, Callable[..., Any]] = {
            name: getattr(os, name) for name in self._ours if hasattr(os, name)
        }

    def observe(self, root: str, observer: Observer) -> None:
        with self._lock:
            if not self._observers:
                for name in self._real:
                    setattr(os, name, self._ours[name])
            self._observers[root] = observer

    def leave(self, root: str) -> None:
        with self._lock:
            observer = self._observers.pop(root)
            self._files = {file: known for file, known in self._files.items() if known[0] is not observer}
            if not self._observers:
                for name, function in self._real.items():
                    setattr(os, name, function)

    def _whose(self, path: _Path | int) -> tuple[Observer, str] | None:
        if isinstance(path, int):
            return self._files.get(path)
        folder, name = os.path.split(os.path.abspath(os.fsdecode(path)))
        path = os.path.join(os.path.realpath(folder), name)
        for root, observer in list(self._observers.items()):
            if path.startswith(root):
                return observer, path.removeprefix(root)
            if os.path.join(path, "") == root:
                return observer, "."
        return None

    def _open(self, path: _Path, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        known = self._whose(path) if dir_fd is None else None
        length = None
        with contextlib.suppress(OSError):
            length = os.stat(path).st_size if known is not None else None
        file: int = self._real["open"](path, flags, mode, dir_fd=dir_fd)
        if known is not None:
            self._files[file] = known
            observer, name = known
            if length is None:
                observer.created(name)
            elif length and flags & os.O_TRUNC:
                observer.truncated(name, 0)
        return file

    def _close(self, file: int) -> None:
        self._files.pop(file, None)
        self._real["close"](file)

    def _write(self, file: int, data: bytes) -> int:
        if file not in self._files:
            return int(self._real["write"](file, data))
        return self._put(
            file, data, os.lseek(file, 0, os.SEEK_CUR), lambda part: self._real["write"](file, part)
        )

    def _pwrite(self, file: int, data: bytes, offset: int) -> int:
        return self._put(file, data, offset, lambda part: self._real["pwrite"](file, part, offset))

    def _put(self, file: int, data: bytes, offset: int, put: Callable[[bytes], int]) -> int:
        known = self._files.get(file)
        if known is None:
            return put(data)
        observer, path = known
        data = bytes(data)
        error = self._refusal(known, "write")
        if error is not None:
            data = data[: len(data) // 2 // SECTOR * SECTOR]
        written = put(data)
        if written:
            observer.wrote(path, offset, data[:written])
        if error is not None:
            raise error
        return written

    def _ftruncate(self, file: int, length: int) -> None:
        known = self._files.get(file)
        if known is not None and (error := self._refusal(known, "truncate")) is not None:
            raise error
        self._real["ftruncate"](file, length)
        if known is not None:
            known[0].truncated(known[1], length)

    def _fsync(self, file: int) -> None:
        known = self._files.get(file)
        if known is None:
            self._real["fsync"](file)
        elif (error := self._refusal(known, "sync")) is not None:
            known[0].sync_failed(known[1])
            raise error
        else:
            known[0].synced(known[1])

    def _rename(self, source: _Path, target: _Path, **directories: int | None) -> None:
        old, new = self._whose(source), self._whose(target)
        self._real["rename"](source, target, **directories)
        if not any(directories.values()) and old is not None and new is not None and old[0] is new[0]:
            old[0].renamed(old[1], new[1])

    def _unlink(self, path: _Path, *, dir_fd: int | None = None) -> None:
        self._real["unlink"](path, dir_fd=dir_fd)
        if dir_fd is None and (known := self._whose(path)) is not None:
            known[0].deleted(known[1])

    def _refusal(self, known: tuple[Observer, str], kind: Kind) -> OSError | None:
        code = known[0].refusal(kind, known[1])
        if code == OK:
            return None
        number = errno.ENOSPC if code == FULL else errno.EIO
        return OSError(number, os.strerror(number))


_calls = _Calls()


@contextlib.contextmanager
def observed(directory: str | os.PathLike[str], observer: Observer) -> Iterator[None]:
    """The observer is told of what Python does with descriptors and names below the directory, in all threads."""
    root = os.path.join(os.path.realpath(directory), "")
    _calls.observe(root, observer)
    try:
        yield
    finally:
        _calls.leave(root)
