"""unix: the socket file, from the first moment to the last."""

from __future__ import annotations

import os
import re
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import trio

from ocapn.codec.framing import SYRUP
from ocapn.errors import BadLocator, ConnectFailed
from ocapn.limits import Limits
from ocapn.model.locators import PeerLocator
from ocapn.netlayers import unix
from ocapn.netlayers.base import Channel, Listener
from ocapn.netlayers.unix import TRANSPORT, UnixNetlayer
from tests.support import trio_test_real

LIMITS = Limits()
MESSAGE = b"<1'a1+>"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "peer.sock"


@pytest.fixture
def open_umask() -> Iterator[None]:
    """A process whose files anybody may use."""
    old = os.umask(0)
    yield
    os.umask(old)


def inode(path: Path) -> int:
    return path.lstat().st_ino


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def kind(path: Path) -> int | None:
    """socket, regular file...: one of the S_IF of `stat`; None if there is nothing."""
    try:
        return stat.S_IFMT(path.lstat().st_mode)
    except FileNotFoundError:
        return None


async def listening(path: Path) -> Listener:
    listener = await UnixNetlayer(path).listen(LIMITS)
    assert listener is not None
    return listener


def leave_stale(path: Path) -> int:
    """A socket file as a process that was killed leaves it; returns its inode."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
    return inode(path)


def put_in_the_way(file: Path, directory: Path, link: Path) -> None:
    """What is no socket, among it a symbolic link to one that is stale."""
    file.write_text("precious")
    directory.mkdir()
    stale = link.parent / "stale"
    leave_stale(stale)
    link.symlink_to(stale)


async def reaches(listener: Listener) -> bool:
    """Whether a message gets from a dialler to this listener."""
    near = await UnixNetlayer().dial(listener.location, LIMITS)
    far = await listener.accept()
    await near.send([MESSAGE])
    received = await far.receive(1)
    await near.aclose()
    await far.aclose()
    return received == [MESSAGE]


@pytest.mark.usefixtures("open_umask")
@trio_test_real
async def test_the_file_is_for_this_user_alone_from_the_first_moment(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[int] = []

    class Watched(socket.socket):
        def bind(self, address: object) -> None:
            super().bind(address)  # type: ignore[arg-type]
            modes.append(mode(path))

    with monkeypatch.context() as patched:
        patched.setattr(socket, "socket", Watched)
        listener = await listening(path)
    assert modes == [0o600]
    assert mode(path) == 0o600
    assert kind(path) == stat.S_IFSOCK
    assert await reaches(listener)
    await listener.aclose()


@pytest.mark.usefixtures("open_umask")
@trio_test_real
async def test_the_mask_of_the_process_is_put_back(path: Path, tmp_path: Path) -> None:
    listener = await listening(path)
    await listener.aclose()
    with pytest.raises(ConnectFailed):
        await UnixNetlayer(tmp_path / "missing" / "peer.sock").listen(LIMITS)
    (tmp_path / "other").touch()
    assert stat.S_IMODE((tmp_path / "other").stat().st_mode) == 0o666


@trio_test_real
async def test_the_file_is_removed_at_the_end(path: Path) -> None:
    listener = await listening(path)
    assert kind(path) == stat.S_IFSOCK
    await listener.aclose()
    assert kind(path) is None


@trio_test_real
async def test_a_file_that_somebody_removed_already_is_no_trouble(path: Path) -> None:
    listener = await listening(path)
    os.unlink(path)
    await listener.aclose()
    assert kind(path) is None


@trio_test_real
async def test_a_file_that_another_process_has_put_there_meanwhile_stays(path: Path) -> None:
    listener = await listening(path)
    os.unlink(path)
    theirs = leave_stale(path)
    await listener.aclose()
    assert inode(path) == theirs


@trio_test_real
async def test_a_file_of_a_process_that_is_gone_is_replaced(path: Path) -> None:
    leave_stale(path)
    listener = await listening(path)
    assert await reaches(listener)
    await listener.aclose()
    assert kind(path) is None


@trio_test_real
async def test_a_file_that_somebody_listens_on_is_not_replaced(path: Path) -> None:
    first = await listening(path)
    before = inode(path)
    expected = f"^another process listens on {re.escape(str(path))}; choose another path$"
    with pytest.raises(ConnectFailed, match=expected):
        await UnixNetlayer(path).listen(LIMITS)
    assert inode(path) == before
    probe = await first.accept()  # whoever asked has hung up
    assert await probe.receive(1) == []
    await probe.aclose()
    assert await reaches(first)
    await first.aclose()


@trio_test_real
async def test_what_is_no_socket_is_not_replaced(tmp_path: Path) -> None:
    things = {
        tmp_path / "file": stat.S_IFREG,
        tmp_path / "directory": stat.S_IFDIR,
        tmp_path / "link": stat.S_IFLNK,
    }
    put_in_the_way(*things)
    for in_the_way, kind_of_it in things.items():
        expected = f"^{re.escape(str(in_the_way))} is in the way, and not a socket file; choose another path$"
        with pytest.raises(ConnectFailed, match=expected):
            await UnixNetlayer(in_the_way).listen(LIMITS)
        assert kind(in_the_way) == kind_of_it
    assert kind(tmp_path / "stale") == stat.S_IFSOCK


@pytest.mark.parametrize("moment", ["connect", "unlink"])
@trio_test_real
async def test_a_stale_file_that_vanishes_meanwhile_is_no_trouble(
    path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes that start at once both find it, and one removes it first."""
    leave_stale(path)

    async def vanish_and_connect(filename: str) -> trio.SocketStream:
        os.unlink(path)
        return await open_unix_socket(filename)

    def vanish_and_unlink(filename: str) -> None:
        unlink(filename)
        unlink(filename)

    open_unix_socket, unlink = trio.open_unix_socket, os.unlink
    with monkeypatch.context() as patched:
        if moment == "connect":
            patched.setattr(trio, "open_unix_socket", vanish_and_connect)
        else:
            patched.setattr(os, "unlink", vanish_and_unlink)
        listener = await listening(path)
    assert await reaches(listener)
    await listener.aclose()


@trio_test_real
async def test_a_stale_file_that_may_not_be_removed_is_a_clear_error(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_stale(path)

    def refuse(filename: str) -> None:
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", refuse)
        with pytest.raises(ConnectFailed, match=r"cannot remove the socket file .* that nobody listens on: "):
            await UnixNetlayer(path).listen(LIMITS)


@trio_test_real
async def test_a_path_that_is_too_long_is_a_clear_error(tmp_path: Path) -> None:
    for length in (120, 250, 5000):
        path = tmp_path / ("x" * length)
        expected = f"cannot listen on the socket file {re.escape(str(path))}: .*too long"
        with pytest.raises(ConnectFailed, match=expected):
            await UnixNetlayer(path).listen(LIMITS)
        with pytest.raises(ConnectFailed, match="too long"):
            await UnixNetlayer().dial(PeerLocator(TRANSPORT, "x", {"path": str(path)}), LIMITS)


@trio_test_real
async def test_a_directory_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(
        ConnectFailed, match=r"cannot listen on the socket file .*: .*No such file or directory"
    ):
        await UnixNetlayer(tmp_path / "missing" / "peer.sock").listen(LIMITS)


@trio_test_real
async def test_the_locator_names_the_whole_path(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    netlayer = UnixNetlayer("peer.sock", designator="me")
    listener = await netlayer.listen(LIMITS)
    assert listener is not None
    for location in (netlayer.location, listener.location):
        assert location == PeerLocator(TRANSPORT, "me")
        assert location.hints == {"path": str(path)}
    monkeypatch.chdir("/")
    assert await reaches(listener)
    await listener.aclose()
    assert kind(path) is None


@trio_test_real
async def test_without_a_path_it_only_dials() -> None:
    netlayer = UnixNetlayer()
    assert await netlayer.listen(LIMITS) is None
    assert not netlayer.location.hints
    assert netlayer.location.designator != UnixNetlayer().location.designator


@pytest.mark.parametrize("hints", [{}, {"path": ""}, {"path": "/tmp/a\0b"}, {"PATH": "/tmp/a"}])
@trio_test_real
async def test_a_locator_without_a_path_is_malformed(hints: dict[str, str]) -> None:
    with pytest.raises(BadLocator, match="a unix locator needs the hint path"):
        await UnixNetlayer().dial(PeerLocator(TRANSPORT, "x", hints), LIMITS)


@trio_test_real
async def test_where_nobody_listens_a_dial_says_so(path: Path) -> None:
    locator = PeerLocator(TRANSPORT, "x", {"path": str(path)})
    with pytest.raises(ConnectFailed, match=f"^cannot reach {re.escape(locator.uri)}: .*No such file"):
        await UnixNetlayer().dial(locator, LIMITS)
    leave_stale(path)
    with pytest.raises(ConnectFailed, match=f"^cannot reach {re.escape(locator.uri)}: .*refused"):
        await UnixNetlayer().dial(locator, LIMITS)


@trio_test_real
async def test_a_dial_to_a_full_queue_fails_and_does_not_give_a_dead_channel(path: Path) -> None:
    """Linux answers EAGAIN, which trio takes for a connection that is being made."""
    locator = PeerLocator(TRANSPORT, "x", {"path": str(path)})
    opened: list[Channel] = []

    async def dial_often() -> None:
        for _ in range(20):
            opened.append(await UnixNetlayer().dial(locator, LIMITS))

    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen(0)
        with pytest.raises(
            ConnectFailed, match=f"^cannot reach {re.escape(locator.uri)}: too many connections"
        ):
            await dial_often()
        sock.accept()[0].close()
        opened.append(await UnixNetlayer().dial(locator, LIMITS))  # there is room again
    for channel in opened:
        await channel.aclose()


@trio_test_real
async def test_a_dialler_frames_as_syrup(path: Path) -> None:
    listener = await listening(path)
    near = await UnixNetlayer().dial(listener.location, LIMITS)
    assert near.framing == SYRUP
    assert near.authenticated is None
    await near.aclose()
    await listener.aclose()


def test_users_of_any_number_are_known() -> None:
    """Of 32 bits, without a sign."""
    stream = mock.Mock()
    stream.getsockopt.return_value = struct.pack("iII", 1, 3_000_000_000, 1)
    with mock.patch("os.geteuid", return_value=3_000_000_000):
        assert unix._is_ours(stream) is unix.CREDENTIALS
    assert not unix._is_ours(stream)
