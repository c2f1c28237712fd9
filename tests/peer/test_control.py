"""The control socket: what a peer tells of itself, and to whom."""

from __future__ import annotations

import json
import socket
import stat
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio

from ocapn import (
    ConnectFailed,
    E,
    Lease,
    MemoryNetlayer,
    MemoryNetwork,
    MemoryStorage,
    Reconnect,
    control,
    open_peer,
)
from ocapn.control import ask, control_socket, report
from tests.peer.support import Echo, far, settle
from tests.peer.test_supervision import B, until
from tests.support import trio_test, trio_test_real


@trio_test_real
async def test_it_tells_of_connections_sessions_and_what_waits(tmp_path: Path) -> None:
    network = MemoryNetwork()
    path = tmp_path / "c"
    async with (
        open_peer([MemoryNetlayer(network, "b")]) as b,
        open_peer([MemoryNetlayer(network, "a")], lease=Lease(life=3600.0)) as a,
        control_socket(a, path),
    ):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        secret = b.export(Echo(), b"a very secret swiss number")
        connection = await a.connect(B, Reconnect())
        given_up = await a.connect("ocapn://c.memory", Reconnect(attempts=1))
        ref = await a.enliven(secret)
        (tenure,) = a._registry.tenures.values()
        tenure.change(Lease(life=0.01))
        await until(connection, "expired")
        await until(given_up, "given_up")
        waits = E(ref).echo("a very secret value")
        found = await ask(path)
        assert found["version"] == 1
        assert found["peer"] == ["ocapn://a.memory"]
        one, other = found["connections"]
        assert (one["peer"], one["status"], one["cause"]) == ("ocapn://b.memory", "expired", None)
        assert (other["status"], other["attempts_failed"], other["delay"]) == ("given_up", 1, None)
        assert "nobody listens there" in other["cause"]
        (session,) = found["sessions"]
        assert (session["peer"], session["status"]) == ("ocapn://b.memory", "expired")
        assert (session["durable"], session["authenticated"]) == (True, False)
        assert session["waiting_for_renewal"] == 1
        assert session["imports"] == 1
        assert "secret" not in json.dumps(found)
        assert found["restored"] == found["set_aside"] == []
        assert found["storage"] == {"peers": 0, "keys": 0, "size": 0}
        assert waits is not None
    assert not path.exists()


@trio_test_real
async def test_one_who_does_not_read_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_READING", 0.3)
    monkeypatch.setattr(control, "report", lambda peer: {"version": 1, "fill": "x" * (8 << 20)})
    path = tmp_path / "c"
    async with open_peer([MemoryNetlayer(MemoryNetwork(), "a")]) as a, control_socket(a, path):
        with ExitStack() as stack:
            for _ in range(40):
                one = stack.enter_context(socket.socket(socket.AF_UNIX))
                one.connect(str(path))
            monkeypatch.setattr(control, "report", report)
            found = None
            while found is None:  # once some are given up
                await trio.sleep(0.1)
                try:
                    found = await ask(path)
                except (ValueError, ConnectFailed):
                    pass  # it was not let in
        assert found["peer"] == ["ocapn://a.memory"]


@trio_test_real
async def test_some_are_told_at_a_time_some_more_wait_and_the_rest_is_not_let_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begun(one: socket.socket) -> bytes | None:
        try:
            return one.recv(1)
        except BlockingIOError:
            return None

    monkeypatch.setattr(control, "_READERS", 2)
    monkeypatch.setattr(control, "report", lambda peer: {"fill": "x" * (8 << 20)})
    path = tmp_path / "c"
    async with open_peer([MemoryNetlayer(MemoryNetwork(), "a")]) as a, control_socket(a, path):
        with ExitStack() as stack:
            readers = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(6)]
            for one in readers:
                one.connect(str(path))
                one.setblocking(False)
            await settle()
            assert [begun(one) for one in readers] == [b"{", b"{", None, None, b"", b""]
            readers[0].close()
            await settle()
            assert [begun(one) for one in readers[2:4]] == [b"{", None]


@trio_test_real
async def test_what_cannot_be_told_ends_nothing_and_errors_of_the_block_leave_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = MemoryStorage()
    monkeypatch.setattr(MemoryStorage, "stats", lambda self: 1 / 0)
    path = tmp_path / "c"
    with pytest.raises(KeyError, match="of the block"):  # noqa: PT012
        async with (
            open_peer([MemoryNetlayer(MemoryNetwork(), "a")], storage=storage) as a,
            control_socket(a, path),
        ):
            assert (await ask(path))["storage"] is None
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(control, "report", lambda peer: 1 / 0)
                with pytest.raises(ValueError, match="Expecting value"):
                    await ask(path)
            assert (await ask(path))["peer"] == ["ocapn://a.memory"]
            raise KeyError("of the block")


@trio_test_real
async def test_what_is_no_peer_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConnectFailed, match="no peer answers at"):
        await ask(tmp_path / "nothing")
    sock = trio.socket.socket(socket.AF_UNIX)
    await sock.bind(str(tmp_path / "other"))
    sock.listen()
    answers = [b"", b"nonsense\n", b'{"version": 99}\n', b"[]\n", b"x" * 2000]
    monkeypatch.setattr(control, "_MOST", 1000)

    async def serve() -> None:
        for answer in answers:
            connection, _ = await sock.accept()
            with connection:
                await connection.send(answer) if answer else None

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        for _ in answers:
            with pytest.raises(ValueError, match=r"Expecting value|of a peer|more than"):
                await ask(tmp_path / "other")
    monkeypatch.setattr(control, "_READING", 0.1)
    with sock, pytest.raises(ConnectFailed, match="within"):
        await ask(tmp_path / "other")


@trio_test_real
async def test_a_path_in_use_is_refused_and_one_left_behind_is_not(tmp_path: Path) -> None:
    path = tmp_path / "c"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    async with open_peer([MemoryNetlayer(MemoryNetwork(), "a")]) as a, control_socket(a, path):
        with pytest.raises(ConnectFailed, match="another process listens"):
            async with control_socket(a, path):
                pass
        assert (await ask(path))["peer"] == ["ocapn://a.memory"]
    (tmp_path / "file").write_text("x")
    async with open_peer([MemoryNetlayer(MemoryNetwork(), "a")]) as a:
        with pytest.raises(ConnectFailed, match="not a socket file"):
            async with control_socket(a, tmp_path / "file"):
                pass
    assert (tmp_path / "file").read_text() == "x"


@trio_test
async def test_the_document_is_json_even_when_nothing_is_there() -> None:
    async with open_peer([MemoryNetlayer(MemoryNetwork(), "a")]) as a:
        found = json.loads(json.dumps(report(a)))
        assert found["connections"] == found["sessions"] == []
        assert await far(a, a, Echo()) is not None
