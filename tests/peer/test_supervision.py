"""Supervised connections: every transition, every timer, and what an application sees of them."""

from __future__ import annotations

import gc
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from ocapn import (
    ConnectFailed,
    ConnectionEvent,
    Disconnected,
    E,
    Introduction,
    MemoryNetlayer,
    MemoryNetwork,
    Peer,
    PeerLocator,
    Reconnect,
    Session,
    SessionLost,
    SupervisedConnection,
    open_peer,
    send_only,
)
from ocapn.captp import handshake
from ocapn.captp.session import Session as CoreSession
from ocapn.supervision import TRANSITIONS
from tests.peer.raw import LIMITS, Raw, abort, hello
from tests.peer.support import Echo, Recorder, Trace, between, far, settle
from tests.peer.test_durable import agreed
from tests.support import interpreted, trio_test

#: Delays that can be told in a test.
PLAIN = Reconnect(base=1.0, factor=2.0, cap=5.0, jitter=0.0)
B = PeerLocator("memory", "b")


def steps(events: trio.MemoryReceiveChannel[ConnectionEvent]) -> list[str]:
    """What was told since the last call, each as status after status."""
    told = []
    try:
        while True:
            event = events.receive_nowait()
            told.append(f"{event.before} {event.now.status}")
    except (trio.WouldBlock, trio.EndOfChannel):
        return told


@asynccontextmanager
async def peer(network: MemoryNetwork, name: str, **options: Any) -> AsyncIterator[Peer]:
    async with open_peer([MemoryNetlayer(network, name)], **options) as one:
        yield one


def status(one: SupervisedConnection | Session) -> str:
    return one.status


async def until(connection: SupervisedConnection, status: str) -> None:
    with trio.fail_after(3600):
        while connection.status != status:
            await connection._changed.wait()


def apart(network: MemoryNetwork) -> dict[str, Any]:
    """Cuts all connections; nobody can be dialled until what this returns is put back."""
    network.cut("a", "b")
    held: dict[str, Any] = dict(network._listeners)
    network._listeners.clear()
    return held


# Dialling


@trio_test
async def test_a_peer_that_is_not_there_is_dialled_until_it_is() -> None:
    network = MemoryNetwork()
    async with peer(network, "a") as a:
        began = trio.current_time()
        connection = await a.connect(B, PLAIN)
        assert connection.status == "connecting"
        events = connection.events()
        told = []
        for _ in range(5):
            event = await events.receive()
            told.append((event.now.attempt, event.now.delay, trio.current_time() - began))
            assert (event.before, event.now.status) == ("connecting", "connecting")
            assert isinstance(event.now.cause, ConnectFailed)
            assert event.now.since == began
        assert told == [(1, 1.0, 0.0), (2, 2.0, 1.0), (3, 4.0, 3.0), (4, 5.0, 7.0), (5, 5.0, 12.0)]
        async with peer(network, "b") as b:
            session = await connection.session()
            assert session is between(a, b)
            assert trio.current_time() == began + 17.0
            assert steps(events) == ["connecting connected"]
            now = connection.snapshot()
            assert (now.cause, now.attempt, now.delay, now.session) == (None, 0, 0.0, session)


@trio_test
async def test_jitter_takes_a_random_part_of_each_delay() -> None:
    policy = Reconnect(base=8.0, factor=1.0, cap=100.0, jitter=0.25)
    async with peer(MemoryNetwork(), "a") as a:
        connection = await a.connect(B, policy)
        events = connection.events()
        delays = [(await events.receive()).now.delay for _ in range(50)]
        assert all(6.0 < delay <= 8.0 for delay in delays)
        assert max(delays) - min(delays) > 1.0


def test_delays_are_those_of_the_policy() -> None:
    assert [PLAIN.delay(n, 0.5) for n in (1, 2, 3, 4, 5000)] == [1.0, 2.0, 4.0, 5.0, 5.0]
    assert Reconnect(attempts=3).delay(2, 0.0) < math.inf
    assert Reconnect(attempts=3).delay(3, 0.0) == math.inf
    assert Reconnect(base=4.0, jitter=1.0).delay(1, 0.75) == 1.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"base": 0.0},
        {"base": math.inf},
        {"base": math.nan},
        {"cap": -1.0},
        {"factor": 0.5},
        {"attempts": 0},
        {"jitter": 1.5},
        {"jitter": -0.1},
        {"keepalive": 0.0},
    ],
)
def test_policies_that_mean_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Reconnect(**wrong)  # type: ignore[arg-type]


@trio_test
async def test_attempts_are_counted_and_then_it_is_given_up() -> None:
    network = MemoryNetwork()
    async with peer(network, "a") as a:
        connection = await a.connect(B, Reconnect(base=1.0, jitter=0.0, attempts=3))
        events = connection.events()
        await until(connection, "given_up")
        assert steps(events) == ["connecting connecting"] * 2 + ["connecting given_up"]
        now = connection.snapshot()
        assert (now.attempt, now.delay, now.session) == (3, math.inf, None)
        with pytest.raises(ConnectFailed, match="nobody listens there"):
            await connection.session()
        await trio.sleep(1000)
        assert steps(events) == []
        connection.retry()
        assert connection.status == "connecting"
        await until(connection, "given_up")
        assert steps(events) == ["given_up connecting"] + ["connecting connecting"] * 2 + [
            "connecting given_up"
        ]
        async with peer(network, "b"):
            connection.retry()
            await until(connection, "connected")


@trio_test
async def test_retry_does_not_wait_for_the_delay() -> None:
    network = MemoryNetwork()
    async with peer(network, "a") as a:
        connection = await a.connect(B, Reconnect(base=1000.0, cap=1000.0))
        events = connection.events()
        await events.receive()
        async with peer(network, "b"):
            now = trio.current_time()
            connection.retry()
            await until(connection, "connected")
            assert trio.current_time() == now


# What cannot heal


@trio_test
async def test_a_peer_that_refuses_this_one_is_given_up_at_once() -> None:
    def refuses(who: Introduction) -> bool:
        return False

    network = MemoryNetwork()
    async with peer(network, "b", authenticate=refuses), peer(network, "a") as a:
        connection = await a.connect(B, PLAIN)
        await until(connection, "given_up")
        assert connection.snapshot().attempt == 1
        assert "does not want a session" in str(connection.snapshot().cause)


@trio_test
async def test_a_peer_that_this_one_does_not_want_is_given_up_at_once() -> None:
    network = MemoryNetwork()
    async with peer(network, "b"), peer(network, "a", authenticate=lambda who: False) as a:
        connection = await a.connect(B, PLAIN)
        await until(connection, "given_up")
        assert connection.snapshot().attempt == 1


@interpreted
@pytest.mark.parametrize("strange", ["a", "b"])
@trio_test
async def test_another_version_is_given_up_at_once(monkeypatch: pytest.MonkeyPatch, strange: str) -> None:
    """Whichever of the two refuses the other's."""
    network = MemoryNetwork()
    real = handshake.Handshake._send_start

    def start(self: handshake.Handshake) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(handshake, "VERSION", "9.9" if self._own.designator == strange else "1.0")
            real(self)

    monkeypatch.setattr(handshake.Handshake, "_send_start", start)
    async with peer(network, "b"), peer(network, "a") as a:
        connection = await a.connect(B, PLAIN)
        await until(connection, "given_up")
        assert "'9.9'" in str(connection.snapshot().cause)
        assert connection.snapshot().attempt == 1


@trio_test
async def test_a_transport_that_this_peer_does_not_have_is_given_up_at_once() -> None:
    async with peer(MemoryNetwork(), "a") as a:
        connection = await a.connect("ocapn://b.unix", PLAIN)
        await until(connection, "given_up")
        assert "no netlayer unix" in str(connection.snapshot().cause)


@trio_test
async def test_a_lost_session_is_for_the_application_to_begin_anew() -> None:
    network = MemoryNetwork()
    async with peer(network, "b") as b, peer(network, "a") as a:
        connection = await a.connect(B, PLAIN)
        session = await connection.session()
        await E(await far(b, a, Echo())).echo(1)
        await agreed(a, b)
        network.cut("a", "b")
        between(b, a)._core.lose("for the test")
        events = connection.events()
        await until(connection, "given_up")
        assert isinstance(connection.snapshot().cause, SessionLost)
        assert session.ended is not None
        assert steps(events)[-1] == "suspended given_up"
        with pytest.raises(ConnectFailed, match="the peer has ended the session"):
            await connection.session()
        connection.retry()
        assert await connection.session() is not session


# Cuts and ends


@trio_test
async def test_a_durable_session_is_suspended_and_resumed_by_the_policy() -> None:
    network = MemoryNetwork()
    async with peer(network, "a") as a, peer(network, "b") as b:
        recorder = Recorder()
        connection = await a.connect(B, PLAIN)
        session = await connection.session()
        ref = await far(b, a, recorder)
        await agreed(a, b)
        await settle()
        events = connection.events()
        held = apart(network)
        await until(connection, "suspended")
        assert connection.snapshot().session is session
        assert isinstance(connection.snapshot().cause, Disconnected)
        send_only(ref).note(1)
        began = trio.current_time()
        await trio.sleep(7.5)
        told = []
        for _ in range(4):
            told.append(await events.receive())
        assert [(one.now.attempt, one.now.delay) for one in told] == [
            (0, 0.0),
            (1, 1.0),
            (2, 2.0),
            (3, 4.0),
        ]
        assert {one.now.since for one in told} == {began}
        network._listeners.update(held)
        await until(connection, "connected")
        assert steps(events)[-1] == "suspended connected"
        await E(ref).note(2)
        assert recorder.seen == [1, 2]
        assert connection.snapshot().session is session


@trio_test
async def test_attempts_to_resume_are_spent_and_the_session_waits_for_retry() -> None:
    network = MemoryNetwork()
    async with peer(network, "a") as a, peer(network, "b") as b:
        connection = await a.connect(B, Reconnect(base=1.0, jitter=0.0, attempts=3))
        session = await connection.session()
        await agreed(a, b)
        events = connection.events()
        held = apart(network)
        await until(connection, "given_up")
        assert connection.snapshot().attempt == 3
        assert connection.snapshot().session is session
        assert status(session) == "suspended"
        await trio.sleep(1000)
        assert status(connection) == "given_up"
        assert status(session) == "suspended"
        network._listeners.update(held)
        connection.retry()
        assert status(connection) == "suspended"
        await until(connection, "connected")
        assert connection.snapshot().session is session
        assert steps(events) == [
            "connected suspended",
            "suspended suspended",
            "suspended suspended",
            "suspended given_up",
            "given_up connecting",
            "connecting suspended",
            "suspended connected",
        ]


@trio_test
async def test_an_ordinary_session_that_is_cut_is_followed_by_another() -> None:
    network = MemoryNetwork()
    async with peer(network, "b") as b, peer(network, "a", durable="never") as a:
        connection = await a.connect(B, PLAIN)
        first = await connection.session()
        ref = await far(b, a, Echo())
        events = connection.events()
        network.cut("a", "b")
        await until(connection, "reconnecting")
        await until(connection, "connected")
        assert steps(events) == ["connected reconnecting", "reconnecting connected"]
        assert await connection.session() is not first
        with pytest.raises(Disconnected):
            await E(ref).echo(1)


@trio_test
async def test_a_peer_that_comes_by_itself_ends_the_waiting() -> None:
    network = MemoryNetwork()
    async with peer(network, "a") as a:
        connection = await a.connect(B, Reconnect(base=1000.0, cap=1000.0))
        gives_up = await a.connect(PeerLocator("memory", "c"), Reconnect(attempts=1))
        await until(gives_up, "given_up")
        async with peer(network, "b") as b, peer(network, "c") as c:
            now = trio.current_time()
            for other, one in ((b, connection), (c, gives_up)):
                await other.connect(a.locator())
                await until(one, "connected")
                assert one.snapshot().session is between(a, other)
            assert trio.current_time() == now


# Ends that are asked for


@trio_test
async def test_a_disconnect_never_reconnects() -> None:
    network = MemoryNetwork()
    async with peer(network, "b") as b, peer(network, "a") as a:
        connection = await a.connect(B, PLAIN)
        session = await connection.session()
        events = connection.events()
        connection.disconnect("enough")
        assert connection.status == "disconnected"
        assert session.ended is not None
        assert str(session.ended) == "enough"
        assert connection.snapshot().session is None
        await trio.sleep(1000)
        assert a.sessions == b.sessions == []
        assert a.connections == []
        assert steps(events) == ["connected disconnected"]
        with pytest.raises(trio.EndOfChannel):
            await events.receive()
        with pytest.raises(ConnectFailed, match="was disconnected"):
            await connection.session()
        with pytest.raises(ConnectFailed, match="connect again"):
            connection.retry()
        again = await a.connect(B, PLAIN)
        assert again is not connection
        await until(again, "connected")


@trio_test
async def test_the_end_of_the_session_is_a_disconnect_too() -> None:
    network = MemoryNetwork()
    async with peer(network, "b"), peer(network, "a") as a:
        connection = await a.connect(B, PLAIN)
        (await connection.session()).end()
        await until(connection, "disconnected")
        await trio.sleep(1000)
        assert a.sessions == []


@trio_test
async def test_a_disconnect_while_dialling_leaves_nothing_behind() -> None:
    network = MemoryNetwork(delay=lambda a, b: 5.0)
    async with peer(network, "b") as b, peer(network, "a") as a:
        connection = await a.connect(B, PLAIN)
        await trio.sleep(7.0)  # their op:start-session is on its way
        connection.disconnect()
        await trio.sleep(60.0)
        assert a.sessions == []
        assert b.sessions == []
        assert a._dialler._wanted == {}
        assert a.node.dials == {}


@trio_test
async def test_a_dial_that_others_wait_for_too_goes_on() -> None:
    network = MemoryNetwork(delay=lambda a, b: 2.0)
    async with peer(network, "b"), peer(network, "a") as a, trio.open_nursery() as nursery:
        nursery.start_soon(a.connect, B)
        connection = await a.connect(B, PLAIN)
        await trio.sleep(1.0)
        assert len(network.links) == 1
        connection.disconnect()
        await trio.sleep(30.0)
        assert len(a.sessions) == 1


@trio_test
async def test_many_who_ask_for_one_peer_share_one_dial() -> None:
    network = MemoryNetwork(delay=lambda a, b: 1.0)
    async with peer(network, "b"), peer(network, "a") as a:
        found: list[Any] = []

        async def ask() -> None:
            connection = await a.connect(B, PLAIN)
            found.append((connection, await connection.session()))

        async def ask_once() -> None:
            found.append((found_connection, await a.connect(B)))

        found_connection = await a.connect(B, PLAIN)
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(ask)
                nursery.start_soon(ask_once)
        assert len(set(found)) == 1
        assert len(network.links) == 1
        with pytest.raises(ValueError, match="another policy"):
            await a.connect(B, Reconnect())
        with pytest.raises(ValueError, match="this peer itself"):
            await a.connect(a.locator(), PLAIN)


@trio_test
async def test_closing_the_peer_disconnects() -> None:
    network = MemoryNetwork()
    async with peer(network, "b"):
        async with peer(network, "a") as a:
            connection = await a.connect(B, PLAIN)
            await connection.session()
            events = connection.events()
        assert connection.status == "disconnected"
        assert steps(events) == ["connected disconnected"]
        with pytest.raises(ConnectFailed, match="is closing"):
            await a.connect(B, PLAIN)


# What is told


@trio_test
async def test_a_snapshot_is_the_same_object_until_something_changes() -> None:
    network = MemoryNetwork()
    async with peer(network, "b"), peer(network, "a") as a:
        connection = await a.connect(B, PLAIN)
        first = connection.snapshot()
        assert connection.snapshot() is first
        await connection.session()
        second = connection.snapshot()
        assert second is not first
        assert (first.status, second.status) == ("connecting", "connected")
        await trio.sleep(1000)
        assert connection.snapshot() is second
        with pytest.raises(AttributeError):
            second.status = "expired"  # type: ignore[misc]


@trio_test
async def test_a_slow_listener_is_told_how_many_it_missed_and_holds_up_nobody() -> None:
    network = MemoryNetwork()
    async with peer(network, "a") as a:
        connection = await a.connect(B, Reconnect(base=1.0, factor=1.0, jitter=0.0))
        slow, quick = connection.events(), connection.events()
        for _ in range(100):
            await quick.receive()
        for _ in range(64):
            assert slow.receive_nowait().missed == 0
        assert (await slow.receive()).missed == 36
        gone = connection.events()
        gone.close()
        await quick.receive()


# Keepalive


@pytest.mark.parametrize("durable", ["offer", "never"])
def test_a_half_open_peer_is_found_within_the_keepalive(durable: Any) -> None:
    @trio_test
    async def check() -> None:
        network = MemoryNetwork()
        async with peer(network, "b") as b, peer(network, "a", durable=durable) as a:
            connection = await a.connect(B, Reconnect(keepalive=10.0))
            await connection.session()
            if durable == "offer":
                await agreed(a, b)
            await trio.sleep(3.0)
            heard = between(a, b)._core.last_heard
            (link,) = network.links_between("a", "b")
            link.hold()
            await until(connection, "suspended" if durable == "offer" else "reconnecting")
            assert trio.current_time() == heard + 10.0
            assert "nothing was heard from the peer for 10 s" in str(connection.snapshot().cause)
            await until(connection, "connected")

    check()


@trio_test
async def test_a_peer_that_answers_is_kept_however_little_it_says() -> None:
    network = MemoryNetwork()
    async with peer(network, "b") as b, peer(network, "a", durable="never") as a:
        connection = await a.connect(B, Reconnect(keepalive=10.0))
        session = await connection.session()
        await trio.sleep(1000)
        assert connection.status == "connected"
        assert await connection.session() is session
        stats = session.stats()
        assert 190 < stats["messages_sent"] < 500  # a question every 5 s, and garbage
        assert stats["questions"] <= 1
        assert between(b, a).stats()["answers"] <= 1


@trio_test
async def test_a_question_is_not_released_before_it_is_answered() -> None:
    """A peer may leave out an answer that nobody wants any more, and would then be taken for one that is gone."""
    network = MemoryNetwork(delay=lambda a, b: 1.0)
    async with peer(network, "b"), peer(network, "a", durable="never") as a:
        connection = await a.connect(B, Reconnect(keepalive=10.0))
        trace = Trace(await connection.session())
        await trio.sleep(10.0)
        assert [line[: len("-> <op:deliver")] for line in trace.lines[:2]] == [
            "-> <op:deliver",
            "<- <op:deliver",
        ]


@trio_test
async def test_without_keepalive_nobody_asks() -> None:
    network = MemoryNetwork()
    async with peer(network, "b"), peer(network, "a", durable="never") as a:
        connection = await a.connect(B, Reconnect(keepalive=None))
        session = await connection.session()
        before = session.stats()["messages_sent"]
        await trio.sleep(1000)
        assert session.stats()["messages_sent"] == before


def test_every_status_can_be_left_and_reached() -> None:
    statuses = {status for status, _ in TRANSITIONS}
    assert statuses == {*TRANSITIONS.values()}
    assert all((status, "left") in TRANSITIONS for status in statuses - {"disconnected"})
    assert [what for status, what in TRANSITIONS if status == "disconnected"] == ["asked"]


# What an attack has found


@trio_test
async def test_a_cancelled_connect_and_another_do_not_enter_one_dial_twice() -> None:
    network = MemoryNetwork(delay=lambda a, b: 0.01)
    async with peer(network, "b"), peer(network, "a") as a:
        for _ in range(10):  # trio's order is random
            scope = trio.CancelScope()

            async def two(scope: trio.CancelScope) -> None:
                with scope:
                    await a.connect(B)
                await a.connect(B)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(two, scope)
                while B not in a._dialler._wanted:
                    await trio.lowlevel.checkpoint()
                scope.cancel()
            (session,) = a.sessions
            session.end()
            await trio.sleep(1.0)


@pytest.mark.parametrize("when", [0.05, 0.15, 0.25, 0.31, 0.35, 0.41, 0.45, 0.55])
def test_a_cut_while_the_session_is_agreed_on_is_no_loss(when: float) -> None:
    @trio_test
    async def check() -> None:
        network = MemoryNetwork(delay=lambda a, b: 0.1)
        async with peer(network, "b"), peer(network, "a") as a:
            connection = await a.connect(B, PLAIN)
            await trio.sleep(when)
            network.cut("a", "b")
            await trio.sleep(1000)
            assert connection.status == "connected", connection.snapshot()

    check()


@trio_test
async def test_a_peer_that_begins_anew_takes_the_place_of_the_suspended_session() -> None:
    network = MemoryNetwork()
    async with peer(network, "a") as a:
        async with peer(network, "b", durable="offer") as b:
            connection = await a.connect(B, PLAIN)
            first = await connection.session()
            await E(await far(b, a, Echo())).echo(1)
            await agreed(a, b)
            network.cut("a", "b")
            core = between(b, a)._core
            core.node.suspended.clear()  # it crashes, and forgets
            core.ended = Disconnected("crashed")
        await until(connection, "suspended")
        async with peer(network, "b") as b:
            await b.connect(a.locator())
            await settle()
            assert connection.status == "connected"
            assert connection.snapshot().session is not first
            connection.disconnect()
            await trio.sleep(10.0)
            assert a.sessions == []


@trio_test
async def test_a_peer_that_ends_each_session_at_once_is_not_dialled_without_a_pause() -> None:
    network = MemoryNetwork()
    begun = 0
    async with peer(network, "b") as b, peer(network, "a") as a, trio.open_nursery() as nursery:

        async def ends() -> None:
            nonlocal begun
            while True:
                await trio.sleep(0.01)
                for session in b.sessions:
                    begun += 1
                    session.end("not now")

        nursery.start_soon(ends)
        connection = await a.connect(B, PLAIN)
        await trio.sleep(100.0)
        assert 15 < begun < 25
        assert connection.snapshot().attempt > 15
        nursery.cancel_scope.cancel()


@trio_test
async def test_a_session_that_has_ended_before_it_is_picked_up_is_an_attempt_that_has_failed() -> None:
    network = MemoryNetwork()
    listener = await MemoryNetlayer(network, "b").listen(LIMITS)
    assert listener is not None
    async with peer(network, "a") as a:
        connection = await a.connect(B, PLAIN)
        began = trio.current_time()
        dialled = []
        for _ in range(4):
            one = Raw(await listener.accept(), B)
            dialled.append(trio.current_time() - began)
            await one.send(hello(B, one.key), abort("not now"))
        assert dialled == [0.0, 1.0, 3.0, 7.0]
        await settle()
        assert "not now" in str(connection.snapshot().cause)


@trio_test
async def test_a_session_that_has_lasted_begins_the_delays_again() -> None:
    network = MemoryNetwork()
    async with peer(network, "a") as a:
        connection = await a.connect(B, PLAIN)
        await trio.sleep(5.0)
        assert connection.snapshot().attempt == 3
        events = connection.events()
        async with peer(network, "b"):
            await until(connection, "connected")
            await trio.sleep(PLAIN.cap)
        told = [(await events.receive()).now for _ in range(3)]
        assert [(one.status, one.attempt) for one in told] == [
            ("connected", 0),
            ("reconnecting", 0),
            ("reconnecting", 1),
        ]


@trio_test
async def test_a_disconnect_ends_a_session_that_nobody_has_picked_up_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = MemoryNetwork()
    async with peer(network, "b"), peer(network, "a") as a:
        real = a._dialler.established
        connection: SupervisedConnection

        def established(*given: Any) -> bool:
            told = real(*given)
            connection.disconnect()
            return told

        monkeypatch.setattr(a._dialler, "established", established)
        connection = await a.connect(B, PLAIN)
        await trio.sleep(10.0)
        assert a.sessions == []


@trio_test
async def test_a_session_that_ends_while_nobody_dials_for_it_leaves_nothing() -> None:
    network = MemoryNetwork()
    async with peer(network, "b") as b, peer(network, "a") as a:
        connection = await a.connect(B, Reconnect(base=1.0, attempts=1))
        await connection.session()
        await agreed(a, b)
        tasks = trio.lowlevel.current_statistics().tasks_living
        apart(network)
        await until(connection, "given_up")
        connection.disconnect()
        await trio.sleep(5.0)
        assert not a._dialler._redials
        assert not a._registry.publics
        assert trio.lowlevel.current_statistics().tasks_living < tasks


@trio_test
async def test_a_peer_is_not_cut_that_was_not_asked() -> None:
    network = MemoryNetwork()
    async with peer(network, "b"), peer(network, "a", durable="never") as a:
        connection = await a.connect(B, Reconnect(keepalive=10.0))
        session = await connection.session()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(a, "reads", lambda session: False)  # turns are behind
            await trio.sleep(60.0)
        await trio.sleep(60.0)
        assert await connection.session() is session


@trio_test
async def test_a_retry_during_an_attempt_is_not_lost() -> None:
    network = MemoryNetwork(delay=lambda a, b: 0.5)
    async with peer(network, "b") as b, peer(network, "a") as a:
        connection = await a.connect(B, Reconnect(base=1000.0, cap=1000.0, jitter=0.0))
        await connection.session()
        await agreed(a, b)
        held = apart(network)
        await until(connection, "suspended")
        network._listeners.update(held)
        connection.retry()
        await trio.sleep(0.7)  # an attempt is under way
        network.cut("a", "b")
        connection.retry()
        began = trio.current_time()
        await until(connection, "connected")
        assert trio.current_time() - began < 100.0


@trio_test
async def test_a_listener_that_was_let_go_of_is_forgotten() -> None:
    async with peer(MemoryNetwork(), "a") as a:
        connection = await a.connect(B, Reconnect(base=1.0, factor=1.0))
        for _ in range(20):
            async for _event in connection.events():
                break
        gc.collect()
        await trio.sleep(3.0)
        assert connection._listeners._listeners == []


@trio_test
async def test_no_session_is_made_durable_that_has_ended() -> None:
    network = MemoryNetwork()
    async with peer(network, "b") as b, peer(network, "a") as a:
        real = CoreSession.agree

        def agree(self: CoreSession, args: list[object]) -> list[object]:
            self.abort("between the message and its turn")
            return real(self, args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(CoreSession, "agree", agree)
            await a.connect(B)
            await trio.sleep(1.0)
        b.check()
        assert b.node._keys == {}
