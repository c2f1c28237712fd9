"""Durable sessions between two peers without a baggage: cuts, policies, what the application sees."""

from __future__ import annotations

import pytest
import trio

import ocapn
from ocapn import (
    E,
    MemoryNetlayer,
    MemoryNetwork,
    Peer,
    RemoteError,
    SessionEnded,
    is_settled,
    open_peer,
    send_only,
)
from ocapn.errors import SessionLost
from ocapn.netlayers.memory import Link
from ocapn.testing import linked_peers, quiet
from tests.peer.support import Echo, Gate, Recorder, far
from tests.support import trio_test


async def agreed(*peers: Peer) -> None:
    """Waits until every session of the peers is durable."""
    with trio.fail_after(5):
        while not all(session.durable for peer in peers for session in peer.sessions):  # noqa: ASYNC110
            await trio.sleep(0.01)


def status(session: ocapn.Session) -> str:
    return session.status


def cut(network: MemoryNetwork) -> None:
    assert network.cut("a", "b") == 1


@trio_test
async def test_nothing_is_lost_or_doubled_by_any_number_of_cuts() -> None:
    network = MemoryNetwork(delay=lambda a, b: 0.002)
    async with linked_peers("a", "b", network=network) as (a, b):
        recorder = Recorder()
        ref = await far(a, b, recorder)
        await agreed(a, b)
        cuts = 0
        answers = []
        for number in range(600):
            answers.append(E(ref).note(number))
            if number % 3 == 2:
                await trio.sleep(0.03)
                cuts += network.cut("a", "b")
        for answer in answers:
            assert await answer is None
        assert recorder.seen == list(range(600))
        assert cuts > 20
        await quiet(a, b)
        assert a.sessions[0].stats()["frames_kept"] == b.sessions[0].stats()["frames_kept"] == 0


@trio_test
async def test_references_keep_their_identity_and_promises_settle_across_a_cut() -> None:
    network = MemoryNetwork()
    async with linked_peers("a", "b", network=network) as (a, b):
        gate, echo = Gate(), Echo()
        remote_gate, remote_echo = await far(a, b, gate), await far(a, b, echo)
        mine = Recorder()
        await agreed(a, b)
        waiting = E(remote_gate).wait()
        await quiet(a, b)
        cut(network)
        assert not is_settled(waiting)
        back, same = E(remote_echo).echo(mine), E(remote_echo).echo(remote_gate)
        gate.opened.set()
        await waiting
        assert await back is mine
        assert await same is remote_gate


@trio_test
async def test_status_and_what_is_sent_while_suspended() -> None:
    network = MemoryNetwork()
    async with open_peer([MemoryNetlayer(network, "a")]) as a:
        recorder = Recorder()
        async with open_peer([MemoryNetlayer(network, "b", listen=False)]) as b:
            ref = await b.enliven(a.export(recorder))
            await agreed(a, b)
            (session,) = b.sessions
            assert status(session) == "live"
            listener = network._listeners.pop("a")
            cut(network)
            await trio.sleep(1)
            assert status(session) == "suspended"
            assert b.sessions == [session]
            send_only(ref).note(1)
            assert await b.connect(a.locator()) is session  # a suspended session is not replaced
            await trio.sleep(30)
            assert recorder.seen == []
            network._listeners["a"] = listener
            await trio.sleep(60)
            assert recorder.seen == [1]
            assert status(session) == "live"
        assert session.ended is not None


@pytest.mark.parametrize("asking", ["offer", "accept", "never"])
@pytest.mark.parametrize("asked", ["offer", "accept", "never"])
def test_policies(asking: ocapn.Policy, asked: ocapn.Policy) -> None:
    @trio_test
    async def run() -> None:
        network = MemoryNetwork()
        async with (
            open_peer([MemoryNetlayer(network, "a")], durable=asking) as a,
            open_peer([MemoryNetlayer(network, "b")], durable=asked) as b,
        ):
            await a.connect(b.locator())
            await quiet(a, b)
            expected = asking == "offer" and asked != "never"
            assert [one.durable for one in (*a.sessions, *b.sessions)] == [expected, expected]
            ref = await a.enliven(b.export(Recorder()))
            cut(network)
            await trio.sleep(1)
            if expected:
                assert await E(ref).note(1) is None
            else:
                with pytest.raises(SessionEnded):
                    await E(ref).note(1)

    run()


@trio_test
async def test_a_policy_for_one_peer() -> None:
    network = MemoryNetwork()
    async with linked_peers("b", "c", network=network) as (b, c):
        policies: dict[ocapn.PeerLocator, ocapn.Policy] = {b.locator(): "never"}
        async with open_peer([MemoryNetlayer(network, "a")], durables=policies) as a:
            await a.connect(b.locator())
            await a.connect(c.locator())
            await quiet(a, b, c)
            assert {one.location.designator: one.durable for one in a.sessions} == {"b": False, "c": True}


def test_a_policy_that_is_none() -> None:
    @trio_test
    async def run() -> None:
        async with open_peer([MemoryNetlayer(MemoryNetwork(), "a")], durable="always"):  # type: ignore[arg-type]
            pass

    with pytest.raises(ValueError, match="durable is one of offer, accept, never, not 'always'"):
        run()


@trio_test
async def test_a_session_that_was_ended_while_suspended_is_lost_for_the_other_side() -> None:
    network = MemoryNetwork()
    async with linked_peers("a", "b", network=network) as (a, b):
        recorder = Recorder()
        ref = await far(a, b, recorder)
        await agreed(a, b)
        await E(ref).note(1)
        await quiet(a, b)
        (ends,), (other,) = a.sessions, b.sessions
        sent = other._core.frames
        assert sent is not None
        before = sent.sent
        listeners = dict(network._listeners)
        network._listeners.clear()  # so that none resumes at once
        cut(network)
        await trio.sleep(0.01)
        ends.end()
        for number in range(5):
            send_only(ref).note(number)
        waiting = E(ref).note(6)
        network._listeners.update(listeners)
        with pytest.raises(SessionLost) as lost:
            await waiting
        assert (lost.value.delivered, lost.value.never_delivered, lost.value.uncertain) == (before, 6, 0)
        assert "has ended the session" in str(lost.value)
        assert recorder.seen == [1]
        assert a.sessions == b.sessions == []
        await b.connect(a.locator())  # a new one may begin


@trio_test
async def test_a_peer_that_was_restarted_does_not_know_the_session() -> None:
    """It is believed at once only if it is proved to be that peer; else after three tries in ten minutes."""
    for authenticates in (True, False):
        network = MemoryNetwork()
        async with open_peer([MemoryNetlayer(network, "a", authenticates=authenticates)]) as a:
            link: Link | None = None
            async with open_peer([MemoryNetlayer(network, "b")]) as b:
                ref = await a.enliven(b.export(Recorder()))
                await agreed(a, b)
                (link,) = network.links_between("a", "b")
                link.hold()
                sent = E(ref).note(1)
                await trio.sleep(1)
            link.cut()
            async with open_peer([MemoryNetlayer(network, "b")]):
                began = trio.current_time()
                with pytest.raises(SessionLost, match="restarted without it") as lost:
                    await sent
                assert lost.value.uncertain > 0
                assert lost.value.never_delivered == 0
                took = trio.current_time() - began
                assert took < 5 if authenticates else 590 < took < 700


@trio_test
async def test_who_is_refused() -> None:
    network = MemoryNetwork()
    asked: list[ocapn.Introduction] = []
    allowed = True

    def authenticate(introduction: ocapn.Introduction) -> bool:
        asked.append(introduction)
        return allowed

    async with (
        open_peer([MemoryNetlayer(network, "a", authenticates=True)], authenticate=authenticate) as a,
        open_peer([MemoryNetlayer(network, "b")]) as b,
    ):
        ref = await b.enliven(a.export(Recorder()))
        await agreed(a, b)
        (start,) = asked
        assert (start.locator, start.resumes, start.authenticated) == (b.locator(), False, True)
        allowed = False
        cut(network)
        waiting = E(ref).note(1)
        await trio.sleep(100)
        assert not is_settled(waiting)  # it stays suspended
        assert asked[-1] == ocapn.Introduction(b.locator(), start.public_key, True, True, b"")
        async with open_peer([MemoryNetlayer(network, "c")]) as c:
            with pytest.raises(ocapn.ConnectFailed, match="does not want a session"):
                await c.connect(a.locator())
        allowed = True
        await waiting


@trio_test
async def test_silence_is_a_cut() -> None:
    """45 s; an op:ack at least every 15 s keeps an idle session from it."""
    network = MemoryNetwork()
    async with linked_peers("a", "b", network=network) as (a, b):
        ref = await far(a, b, Recorder())
        await agreed(a, b)
        (first,) = network.links_between("a", "b")
        await trio.sleep(500)
        assert network.links_between("a", "b") == [first]
        first.hold()
        await trio.sleep(30)
        assert a.sessions[0].status == "live"
        sent = E(ref).note(1)
        await trio.sleep(30)
        await sent
        assert network.links_between("a", "b") != [first]


@trio_test
async def test_a_suspended_session_expires() -> None:
    network = MemoryNetwork()
    limits = ocapn.Limits(suspended=100.0)
    async with (
        open_peer([MemoryNetlayer(network, "a")], limits=limits) as a,
        open_peer([MemoryNetlayer(network, "b", listen=False)]) as b,
    ):
        ref = await a.enliven(await _exported(b, a))
        await agreed(a, b)
        network._listeners.pop("a")
        cut(network)
        sent = E(ref).note(1)
        await trio.sleep(90)
        assert not is_settled(sent)
        with pytest.raises(SessionLost, match="suspended for more than 100 s"):
            await sent
        with pytest.raises(SessionLost):
            await E(ref).note(2)
        await trio.sleep(20)
        assert b.sessions == []


async def _exported(b: Peer, a: Peer) -> ocapn.SturdyRef:
    """A sturdyref of `b`, which cannot be dialled, and a session to reach it by."""
    await b.connect(a.locator())
    return b.export(Recorder())


@trio_test
async def test_an_outbox_at_its_limit_while_suspended() -> None:
    """Application sends meet Backpressure; at twice the limit, which only answers reach, the session is lost."""
    network = MemoryNetwork()
    limits = ocapn.Limits(outbox_frames=100)
    async with (
        open_peer([MemoryNetlayer(network, "a")], limits=limits) as a,
        open_peer([MemoryNetlayer(network, "b", listen=False)], limits=limits) as b,
    ):
        ref = await b.enliven(a.export(Recorder()))
        await agreed(a, b)
        await quiet(a, b)
        network._listeners.pop("a")
        cut(network)
        await trio.sleep(0.1)
        for number in range(100):
            send_only(ref).note(number)
        with pytest.raises(ocapn.Backpressure):
            send_only(ref).note(100)
        with trio.move_on_after(1) as waited:
            await b.sessions[0].writable()
        assert waited.cancelled_caught


@trio_test
async def test_errors_of_a_method_cross_a_cut() -> None:
    network = MemoryNetwork()
    async with linked_peers("a", "b", network=network) as (a, b):
        ref = await far(a, b, Echo())
        await agreed(a, b)
        broken = E(ref).nothing()
        cut(network)
        with pytest.raises(RemoteError, match="no method is called 'nothing'"):
            await broken


@trio_test
async def test_events_of_a_session() -> None:
    network = MemoryNetwork()
    async with linked_peers("a", "b", network=network) as (a, b):
        ref = await far(a, b, Recorder())
        await agreed(a, b)
        (session,) = b.sessions
        events, slow, gone = session.events(), session.events(), session.events()
        gone.close()
        for _ in range(40):
            cut(network)
            await E(ref).note(1)
        session.end()
        seen = [event async for event in events]
        assert [event.status for event in seen[:-1]] == [
            "suspended",
            "live",
        ] * 32  # all that it could leave unread
        assert seen[-1] == ocapn.SessionEvent("ended", session.ended, 16)
        assert len([event async for event in slow]) == 64
        (last,) = [event async for event in session.events()]
        assert (last.status, last.why, last.missed) == ("ended", session.ended, 0)


@trio_test
async def test_a_listener_that_was_too_slow_is_told_how_many_it_missed() -> None:
    network = MemoryNetwork()
    async with linked_peers("a", "b", network=network) as (a, b):
        ref = await far(a, b, Recorder())
        await agreed(a, b)
        (session,) = b.sessions
        async with session.events() as events:
            for _ in range(40):
                cut(network)
                await E(ref).note(1)
            for _ in range(64):
                assert (await events.receive()).missed == 0
            cut(network)
            await E(ref).note(1)
            event = await events.receive()
            assert (event.status, event.why, event.missed) == ("suspended", None, 16)
