"""`unix`: local socket files, reachable by this user alone (mode 0600)."""

from __future__ import annotations

import os
import secrets
import socket
import stat
import struct
from pathlib import Path
from typing import Final

import trio

from ocapn.codec.framing import SYRUP
from ocapn.errors import BadLocator, ConnectFailed
from ocapn.limits import Limits
from ocapn.model.locators import PeerLocator
from ocapn.netlayers.base import Listener, Netlayer, StreamChannel, unreachable

TRANSPORT = "unix"

#: Process, user and group (unix(7), SO_PEERCRED).
_CREDENTIALS: Final = struct.Struct("iII")

#: Whether the kernel says who is at the other end: not on every system.
CREDENTIALS: Final = hasattr(socket, "SO_PEERCRED")


class UnixNetlayer(Netlayer):
    """A socket file at `path`, or none: then this peer only dials.

    The file is made with mode 0600 and removed at the end. A file left by a process that is gone is replaced; one
    that somebody listens on is not. `designator` is any unique string; drawn at random unless given.

    Where the kernel says which user is at the other end (on Linux), peers of this user are authenticated, with the
    designators that they say they have: processes of one user can be each other anyway.
    """

    transport = TRANSPORT
    proves = CREDENTIALS

    def __init__(self, path: str | os.PathLike[str] | None = None, *, designator: str | None = None) -> None:
        self._path = None if path is None else _absolute(path)
        self._drawn = designator is None
        self._designator = designator or secrets.token_hex(16)
        hints = {} if self._path is None else {"path": self._path}
        self.location = PeerLocator(TRANSPORT, self._designator, hints)

    def be_again(self, identity: str) -> None:
        if self._drawn:
            self._designator = identity
            self.location = PeerLocator(TRANSPORT, identity, self.location.hints)

    async def listen(self, limits: Limits) -> Listener | None:
        if self._path is None:
            return None
        return _UnixListener(await SocketFile.make(self._path), self.location, limits)

    async def dial(self, locator: PeerLocator, limits: Limits) -> StreamChannel:
        path = locator.hints.get("path")
        if not path or "\0" in path:
            raise BadLocator("a unix locator needs the hint path")
        try:
            stream = await trio.open_unix_socket(path)
        except OSError as error:
            raise unreachable(locator, error) from error
        try:
            stream.socket.getpeername()
        except OSError as error:  # the queue is full: Linux does not connect then, and trio does not notice
            await trio.aclose_forcefully(stream)
            raise ConnectFailed(
                f"cannot reach {locator.uri}: too many connections wait there to be accepted; try again later"
            ) from error
        channel = StreamChannel(stream, limits, SYRUP, binding=b"")
        channel.vouches = _is_ours(stream)
        return channel


class SocketFile:
    """A socket file that this user alone can open, and that is listened on."""

    def __init__(self, listener: trio.SocketListener, path: str) -> None:
        self.listener = listener
        self._path = path
        self._made = self._identity()

    def _identity(self) -> tuple[int, int]:
        status = os.stat(self._path)
        return status.st_ino, status.st_ctime_ns  # the number of a file that is gone may be that of another

    @classmethod
    async def make(cls, path: str | os.PathLike[str]) -> SocketFile:
        """Makes it with mode 0600, in the place of one that nobody listens on. Raises ConnectFailed."""
        path = _absolute(path)
        await _remove_stale(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # The file must never be there with wider permissions. The mask is the process's: it is put back at once.
        old = os.umask(0o177)
        try:
            sock.bind(path)
        except OSError as error:
            sock.close()
            raise ConnectFailed(f"cannot listen on the socket file {path}: {error}") from error
        finally:
            os.umask(old)
        sock.listen(128)
        return cls(trio.SocketListener(trio.socket.from_stdlib_socket(sock)), path)

    async def aclose(self) -> None:
        """Removes the file, unless another has taken its place."""
        try:
            if self._identity() == self._made:
                os.unlink(self._path)
        except OSError:
            pass  # somebody removed it already
        await self.listener.aclose()


def _is_ours(stream: trio.SocketStream) -> bool:
    """Whether the kernel says that a process of this user is at the other end."""
    if not CREDENTIALS:
        return False
    try:
        _, user, _ = _CREDENTIALS.unpack(
            stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
    except OSError:  # it is gone already
        return False
    return bool(user == os.geteuid())


def _absolute(path: str | os.PathLike[str]) -> str:
    return str(Path(path).absolute())


async def _remove_stale(path: str) -> None:
    """Removes a socket file that nobody listens on. Raises ConnectFailed if it is something else, or in use."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConnectFailed(f"cannot listen on the socket file {path}: {error}") from error
    if not stat.S_ISSOCK(mode):  # connecting to a regular file is refused too: it must not be taken for stale
        raise ConnectFailed(f"{path} is in the way, and not a socket file; choose another path")
    try:
        stream = await trio.open_unix_socket(path)
    except FileNotFoundError:
        return  # whoever left it has removed it meanwhile
    except ConnectionRefusedError:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise ConnectFailed(
                f"cannot remove the socket file {path} that nobody listens on: {error}"
            ) from error
    except OSError as error:
        raise ConnectFailed(f"cannot tell whether somebody listens on {path}: {error}") from error
    else:
        await stream.aclose()
        raise ConnectFailed(f"another process listens on {path}; choose another path")


class _UnixListener(Listener):
    def __init__(self, file: SocketFile, location: PeerLocator, limits: Limits) -> None:
        self._file = file
        self._limits = limits
        self.location = location

    async def accept(self) -> StreamChannel:
        stream = await self._file.listener.accept()
        channel = StreamChannel(stream, self._limits, None, binding=b"")
        channel.vouches = _is_ours(stream)
        return channel

    async def aclose(self) -> None:
        await self._file.aclose()
