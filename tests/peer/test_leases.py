"""The time of a session: when it is over, what waits, who renews it, and what breaks."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

import durable
from ocapn import (
    Backpressure,
    E,
    Lease,
    MemoryNetlayer,
    MemoryNetwork,
    NotPassable,
    Peer,
    Promise,
    Reconnect,
    Session,
    SessionEnded,
    SessionExpired,
    SturdyRef,
    Target,
    field,
    is_settled,
    make_promise,
    method,
    open_peer,
    send_only,
    untag,
)
from ocapn.captp.delivery import RemoteVow
from ocapn.leases import Tenure
from ocapn.references import current_node
from ocapn.testing import linked_peers
from tests.peer.support import Box, Echo, Gate, Recorder, between, far, settle
from tests.peer.test_durable import agreed
from tests.peer.test_supervision import B, apart, peer, status, steps, until
from tests.support import trio_test, trio_test_real


class Desk:
    """Who is asked whether sessions go on. Answers when told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[Session, str, float]] = []
        self._send, self._receive = trio.open_memory_channel[bool | Exception](10)

    async def __call__(self, session: Session, why: str) -> bool:
        self.asked.append((session, why, trio.current_time()))
        answer = await self._receive.receive()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def says(self, answer: bool | Exception) -> None:
        self._send.send_nowait(answer)


@trio_test
async def test_when_its_life_is_over_what_is_sent_waits_and_goes_out_in_order() -> None:
    desk = Desk()
    network = MemoryNetwork()
    async with peer(network, "b") as b, peer(network, "a", lease=Lease(life=100.0, on_reauthorise=desk)) as a:
        began = trio.current_time()
        recorder = Recorder()
        ref = await far(b, a, recorder)
        session = between(a, b)
        events = session.events()
        await E(ref).note(0)
        await trio.sleep_until(began + 99.0)
        await E(ref).note(1)
        await trio.sleep_until(began + 101.0)
        assert desk.asked == [(session, "life", began + 100.0)]
        assert status(session) == "expired"
        answers: list[Any] = [E(ref).note(2)]
        send_only(ref).note(3)
        answers.append(E(ref).note_later(4))
        answers.append(E(ref).note(5))
        await trio.sleep(10.0)
        assert recorder.seen == [0, 1]
        assert session.waiting == 4
        assert not any(is_settled(answer) for answer in answers)
        desk.says(True)
        await settle()
        assert recorder.seen == [0, 1, 2, 3, 4, 5]
        assert session.waiting == 0
        assert status(session) == "live"
        for answer in answers:
            await answer
        assert [(await events.receive()).status for _ in range(2)] == ["expired", "live"]
        await trio.sleep_until(began + 111.0 + 99.0)
        assert status(session) == "live"
        await trio.sleep(1.5)
        assert len(desk.asked) == 2


@trio_test
async def test_a_session_is_idle_when_neither_side_sends_anything() -> None:
    desk = Desk()
    network = MemoryNetwork()
    lease = Lease(idle=50.0, on_reauthorise=desk)
    async with peer(network, "b") as b, peer(network, "a") as a:
        connection = await a.connect(B, Reconnect(keepalive=5.0, lease=lease))
        session = await connection.session()
        ref = await far(b, a, Recorder())
        other = await far(a, b, Recorder())
        for _ in range(4):
            await trio.sleep(40.0)
            await E(ref).note(0)
            await trio.sleep(40.0)
            await E(other).note(0)  # from the other side
        used = trio.current_time()
        await until(connection, "expired")
        assert desk.asked == [(session, "idle", used + 50.0)]
        desk.says(True)
        await until(connection, "connected")
        assert connection.snapshot().session is session


@trio_test
async def test_a_no_breaks_what_waits_and_ends_the_session() -> None:
    desk = Desk()
    network = MemoryNetwork()
    async with peer(network, "b") as b, peer(network, "a") as a:
        connection = await a.connect(B, Reconnect(lease=Lease(life=10.0, on_reauthorise=desk)))
        await connection.session()
        recorder = Recorder()
        ref = await far(b, a, recorder)
        events = connection.events()
        await until(connection, "expired")
        answer = E(ref).note(1)
        send_only(ref).note(2)
        desk.says(False)
        with pytest.raises(SessionExpired, match="as old as it may become"):
            await answer
        await settle()
        assert status(connection) == "expired"
        assert connection.snapshot().session is None
        with pytest.raises(SessionExpired):
            await connection.session()
        with pytest.raises(SessionExpired):
            await E(ref).note(3)
        await trio.sleep(1000)
        assert status(connection) == "expired"
        assert a.sessions == b.sessions == []
        assert recorder.seen == []
        assert steps(events) == ["connected expired", "expired expired"]
        connection.retry()
        await until(connection, "connected")


@pytest.mark.parametrize("how", ["raises", "late", "nobody"])
def test_who_does_not_say_yes_says_no(how: str, caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk()

    @trio_test
    async def check() -> None:
        lease = Lease(life=10.0, within=5.0, on_reauthorise=None if how == "nobody" else desk)
        network = MemoryNetwork()
        async with peer(network, "b") as b, peer(network, "a", lease=lease) as a:
            ref = await far(b, a, Echo())
            began = between(a, b)._core.renewed
            await trio.sleep_until(began + 11.0)
            answer = E(ref).echo(1)
            if how == "raises":
                desk.says(ZeroDivisionError("in the callback"))
            with pytest.raises(SessionExpired):
                await answer
            assert trio.current_time() == began + (11.0 if how == "raises" else 15.0)
            await settle()
            assert a._registry.tenures == {}

    check()
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == (how == "raises")


@trio_test
async def test_what_finds_no_room_breaks_and_the_rest_waits_on() -> None:
    desk = Desk()
    lease = Lease(life=10.0, queue=3, on_reauthorise=desk)
    network = MemoryNetwork()
    async with peer(network, "b") as b, peer(network, "a", lease=lease) as a:
        recorder = Recorder()
        ref = await far(b, a, recorder)
        await trio.sleep(11.0)
        answers = [E(ref).note(number) for number in range(5)]
        for late in answers[3:]:
            with pytest.raises(SessionExpired, match="3 messages wait for it to be renewed already"):
                await late
        with pytest.raises(SessionExpired):
            send_only(ref).note(5)
        desk.says(True)
        for answer in answers[:3]:
            await answer
        assert recorder.seen == [0, 1, 2]


def test_thirty_two_wait_by_default() -> None:
    assert Lease(idle=1.0).queue == 32


@trio_test
async def test_a_queue_of_none_breaks_all() -> None:
    network = MemoryNetwork()
    async with peer(network, "b") as b, peer(network, "a", lease=Lease(life=10.0, queue=0)) as a:
        ref = await far(b, a, Echo())
        await trio.sleep(11.0)
        with pytest.raises(SessionExpired):
            await E(ref).echo(1)


@trio_test
async def test_what_is_sent_to_promises_waits_too() -> None:
    """Pipelined messages, selections, and what was queued here on a promise that becomes something of the peer."""
    desk = Desk()
    lease = Lease(life=10.0, on_reauthorise=desk)
    network = MemoryNetwork()
    async with peer(network, "b") as b, peer(network, "a", lease=lease) as a:
        box = Box({"echo": Echo(), "n": 7})
        inner = Recorder()
        ref = await far(b, a, box)
        holder = await far(b, a, Box(inner))
        later, resolver = make_promise()
        queued = E(later).get()
        await trio.sleep(9.0)
        before = E(holder).get()  # sent, and answered, before
        await trio.sleep(2.0)
        struct = E(ref).get()
        number = field(struct, "n")
        piped = E(field(struct, "echo")).echo("x")
        noted = before.note(1)
        resolver.fulfill(ref)
        await settle()
        assert inner.seen == []
        assert not is_settled(queued)
        assert between(a, b).waiting == 6
        desk.says(True)
        assert await number == 7
        assert await piped == "x"
        assert await noted is None
        assert (await queued)["n"] == 7
        assert inner.seen == [1]


@trio_test
async def test_what_was_sent_before_is_answered_and_what_the_peer_sends_is_served() -> None:
    network = MemoryNetwork()
    async with peer(network, "b") as b, peer(network, "a", lease=Lease(life=10.0, within=100.0)) as a:
        waits = Gate()
        ref = await far(b, a, waits)
        mine = await far(a, b, Echo())
        await trio.sleep(9.0)
        answer = E(ref).wait("done")
        await trio.sleep(5.0)
        assert status(between(a, b)) == "expired"
        assert await E(mine).echo(5) == 5
        waits.opened.set()
        assert await answer == "done"


@trio_test
async def test_a_reference_of_an_expired_session_is_not_given_away() -> None:
    async with linked_peers("a", "b", "c", lease=Lease(life=10.0, within=100.0)) as (a, b, c):
        there = await far(b, a, Echo())
        await trio.sleep(5.0)
        taker = await far(c, a, Recorder())
        await trio.sleep(6.0)
        assert status(between(a, b)) == "expired"
        with pytest.raises(Backpressure, match="not given away until it is renewed"):
            await E(taker).note(there)
        assert await E(taker).note(1) is None


@trio_test
async def test_a_gift_is_no_use_of_the_session_with_the_peer_that_exports_it() -> None:
    """Nobody has sent that peer anything: it is only told for whom it is to keep the gift."""
    network = MemoryNetwork()
    lease = Lease(idle=10.0, within=1000.0)
    async with (
        peer(network, "b", lease=lease) as b,
        peer(network, "c") as c,
        peer(network, "a", lease=lease) as a,
    ):
        there = await far(b, a, Echo())
        box = Box()
        taker = await far(c, a, box)
        await trio.sleep(9.0)
        await E(taker).put(there)
        await box.content
        assert status(between(a, b)) == "live"
        await trio.sleep(2.0)
        assert [status(between(a, one)) for one in (b, c)] == ["expired", "live"]
        assert status(between(b, a)) == "expired"


@trio_test
async def test_renew_begins_the_time_again_before_and_after_its_end() -> None:
    network = MemoryNetwork()
    async with peer(network, "b") as b, peer(network, "a", lease=Lease(life=10.0, idle=8.0)) as a:
        ref = await far(b, a, Echo())
        session = between(a, b)
        for _ in range(10):
            await trio.sleep(7.0)
            session.renew()
        assert status(session) == "live"
        await trio.sleep(8.5)
        answer = E(ref).echo(1)
        assert status(session) == "expired"
        session.renew()
        assert await answer == 1
        with pytest.raises(RuntimeError, match="no lease"):
            between(b, a).renew()
        session.end()
        session.renew()
        with pytest.raises(SessionEnded):
            await E(ref).echo(1)


@trio_test
async def test_time_goes_on_while_a_session_is_suspended() -> None:
    desk = Desk()
    network = MemoryNetwork()
    async with peer(network, "b") as b, peer(network, "a") as a:
        connection = await a.connect(B, Reconnect(lease=Lease(life=100.0, on_reauthorise=desk)))
        await connection.session()
        ref = await far(b, a, Echo())
        await agreed(a, b)
        held = apart(network)
        await until(connection, "suspended")
        await until(connection, "expired")
        answer = E(ref).echo(1)
        desk.says(True)
        await until(connection, "suspended")
        assert not is_settled(answer)
        network._listeners.update(held)
        await until(connection, "connected")
        assert await answer == 1


@trio_test
async def test_an_end_while_it_is_expired_breaks_what_waits_and_nobody_is_asked_any_more() -> None:
    desk = Desk()
    network = MemoryNetwork()
    async with peer(network, "b") as b, peer(network, "a", durable="never") as a:
        connection = await a.connect(B, Reconnect(lease=Lease(life=10.0, on_reauthorise=desk)))
        await connection.session()
        ref = await far(b, a, Echo())
        await until(connection, "expired")
        answer = E(ref).echo(1)
        network.cut("a", "b")
        with pytest.raises(SessionEnded):
            await answer
        await settle()
        desk.says(True)
        await trio.sleep(1000)
        assert status(connection) == "expired"  # another session would go round whoever has to say yes
        assert a.sessions == []


@trio_test
async def test_a_policy_s_lease_is_for_the_session_that_is_there_already() -> None:
    network = MemoryNetwork()
    async with peer(network, "b") as b, peer(network, "a", lease=Lease(life=1000.0)) as a:
        await b.connect(a.locator())
        session = between(a, b)
        await trio.sleep(5.0)
        connection = await a.connect(B, Reconnect(lease=Lease(life=10.0)))
        await until(connection, "expired")
        assert trio.current_time() == session._core.renewed + 10.0


@pytest.mark.parametrize(
    "wrong",
    [{"life": 0.0}, {"idle": 0.0}, {"life": math.inf}, {"idle": math.nan}, {"within": 0.0}, {"queue": -1}],
)
def test_leases_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Lease(**wrong)


@trio_test
async def test_a_century_is_a_life() -> None:
    network = MemoryNetwork()
    century = 100 * 365.25 * 86400
    async with peer(network, "b") as b, peer(network, "a", lease=Lease(life=century)) as a:
        ref = await far(b, a, Echo())
        await trio.sleep(3600)
        assert await E(ref).echo(1) == 1


# What an attack has found


@trio_test
async def test_what_a_promise_becomes_is_not_overtaken() -> None:
    """A message to a promise of the peer waits; the promise becomes an object of ours, to which one sends directly."""
    desk = Desk()
    network = MemoryNetwork()
    lease = Lease(life=10.0, on_reauthorise=desk)
    async with peer(network, "b") as b, peer(network, "a", lease=lease) as a:
        gate, mine = Gate(), Recorder()
        ref = await far(b, a, gate)
        await trio.sleep(9.0)
        promise = E(ref).wait(mine)
        await trio.sleep(2.0)
        assert status(between(a, b)) == "expired"
        send_only(promise).note(1)
        gate.opened.set()
        await settle()
        assert not is_settled(promise)
        send_only(promise).note(2)
        desk.says(True)
        assert await promise is mine
        send_only(mine).note(3)
        await trio.sleep(1.0)
        assert mine.seen == [1, 2, 3]


@trio_test
async def test_what_the_peer_sends_to_itself_through_here_is_not_held() -> None:
    network = MemoryNetwork()
    async with peer(network, "b") as b, peer(network, "a", lease=Lease(life=10.0, within=1000.0)) as a:
        theirs = Recorder()
        ours = await far(b, a, theirs)
        pending, resolver = make_promise()
        promise = await far(a, b, Box({"later": pending}))
        later = field(E(promise).get(), "later")
        await trio.sleep(11.0)
        assert status(between(a, b)) == "expired"
        send_only(later).note(1)
        await settle()
        resolver.fulfill(ours)
        assert await later is theirs
        send_only(later).note(2)
        await settle()
        assert theirs.seen == [1, 2]


@trio_test
async def test_all_that_waits_counts() -> None:
    """Also what is pipelined on an answer that has not been asked for yet."""
    desk = Desk()
    network = MemoryNetwork()
    lease = Lease(life=10.0, queue=3, on_reauthorise=desk)
    async with peer(network, "b") as b, peer(network, "a", lease=lease) as a:
        recorder = Recorder()
        ref = await far(b, a, Box(recorder))
        await trio.sleep(11.0)
        answer = E(ref).get()
        notes = [E(answer).note(number) for number in range(10)]
        parts = [field(answer, "x"), untag(answer, "y")]
        assert between(a, b).waiting == 3
        for late in (*notes[2:], *parts):
            with pytest.raises(SessionExpired):
                await late
        desk.says(True)
        for note in notes[:2]:
            await note
        assert recorder.seen == [0, 1]


@trio_test
async def test_enlivening_waits_for_the_renewal() -> None:
    desk = Desk()
    network = MemoryNetwork()
    async with peer(network, "b") as b, peer(network, "a", lease=Lease(life=10.0, on_reauthorise=desk)) as a:
        sturdyref = b.export(Echo())
        await a.enliven(sturdyref)
        for answer in (True, False):
            await trio.sleep(11.0)
            results: list[Any] = []

            async def enliven(results: list[Any] = results) -> None:
                try:
                    results.append(await a.enliven(sturdyref))
                except SessionExpired as error:
                    results.append(error)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(enliven)
                await trio.sleep(1.0)
                assert results == []
                desk.says(answer)
            assert isinstance(results[0], SessionExpired) is not answer


@trio_test
async def test_a_gift_of_a_peer_whose_session_has_expired_is_withdrawn() -> None:
    async with linked_peers("a", "b", "c", lease=Lease(life=100.0, within=1000.0)) as (a, b, c):
        echo = Echo()
        there = await far(b, c, echo)
        await far(b, a, Echo())
        await trio.sleep(90.0)
        giver = await far(c, a, Box(there))
        between(a, c).renew()
        between(c, b).renew()
        await trio.sleep(15.0)
        assert status(between(a, b)) == "expired"
        given = await E(giver).get()
        answer = E(given).echo(1)
        await settle()
        assert not is_settled(answer)
        between(a, b).renew()
        assert await answer == 1


@trio_test
async def test_the_other_side_s_use_is_use() -> None:
    """Enlivening, and what is sent to promises, as well as calls; its keepalive and its answers are not."""
    network = MemoryNetwork()
    async with peer(network, "b") as b, peer(network, "a", lease=Lease(idle=10.0, within=1000.0)) as a:
        sturdyref = a.export(Echo())
        await b.connect(a.locator())
        for _ in range(10):
            await trio.sleep(9.0)
            await b.enliven(sturdyref)
        pending, _ = make_promise()
        holder = await far(a, b, Box({"p": pending}))
        promise = field(E(holder).get(), "p")
        for _ in range(10):
            await trio.sleep(9.0)
            send_only(promise).note(1)
        assert status(between(a, b)) == "live"
        used = trio.current_time()
        await b.connect(a.locator(), Reconnect(keepalive=2.0))
        await trio.sleep(9.0)
        assert status(between(a, b)) == "live"
        await trio.sleep_until(used + 10.5)
        assert status(between(a, b)) == "expired"


@trio_test
async def test_a_yes_at_once_is_told_too() -> None:
    async def yes(session: Session, why: str) -> bool:
        return True

    network = MemoryNetwork()
    async with peer(network, "b"), peer(network, "a") as a:
        connection = await a.connect(B, Reconnect(lease=Lease(life=10.0, on_reauthorise=yes)))
        await connection.session()
        await settle()
        events = connection.events()
        await trio.sleep(11.0)
        assert steps(events) == ["connected expired", "expired connected"]


@trio_test
async def test_attempts_that_were_spent_while_it_was_expired_do_not_count_once_it_is_renewed() -> None:
    desk = Desk()
    network = MemoryNetwork()
    only_dials = MemoryNetlayer(network, "a", listen=False)
    async with peer(network, "b") as b, open_peer([only_dials]) as a:
        policy = Reconnect(base=1.0, jitter=0.0, attempts=3, lease=Lease(life=100.0, on_reauthorise=desk))
        connection = await a.connect(B, policy)
        await connection.session()
        await far(b, a, Echo())
        await agreed(a, b)
        await until(connection, "expired")
        held = apart(network)
        await trio.sleep(20.0)
        network._listeners.update(held)
        desk.says(True)
        await trio.sleep(5.0)
        assert connection.status == "connected"


@trio_test
async def test_a_connection_to_a_session_that_is_expired_is_expired() -> None:
    desk = Desk()
    network = MemoryNetwork()
    async with peer(network, "b") as b, peer(network, "a", lease=Lease(life=10.0, on_reauthorise=desk)) as a:
        await a.connect(B)
        await trio.sleep(11.0)
        connection = await a.connect(B, Reconnect())
        await settle()
        assert connection.status == "expired"
        desk.says(False)
        await trio.sleep(100.0)
        assert connection.status == "expired"
        assert a.sessions == b.sessions == []


@trio_test
async def test_who_is_asked_is_asked_in_the_context_of_the_peer() -> None:
    nodes: list[object] = []

    async def yes(session: Session, why: str) -> bool:
        nodes.append(current_node.get())
        return True

    async with linked_peers("a", "b", lease=Lease(life=10.0, on_reauthorise=yes)) as (a, b):
        await b.connect(a.locator())
        await trio.sleep(11.0)
        assert {*nodes} == {a.node, b.node}


@trio_test
async def test_without_a_lease_a_policy_gives_back_that_of_the_peer() -> None:
    network = MemoryNetwork()
    async with peer(network, "b"), peer(network, "a") as a:
        connection = await a.connect(B, Reconnect(lease=Lease(life=10.0)))
        session = await connection.session()
        connection.stop()
        await a.connect(B, Reconnect())
        await trio.sleep(100.0)
        assert session.status == "live"


@trio_test
async def test_the_path_of_what_cannot_be_sent_is_the_same_when_it_waits() -> None:
    network = MemoryNetwork()
    async with peer(network, "b") as b, peer(network, "a", lease=Lease(life=10.0, within=100.0)) as a:
        ref = await far(b, a, Echo())
        for _ in range(2):
            for send in (E(ref).echo, send_only(ref).echo):
                with pytest.raises(NotPassable, match=r"args\[0\]"):
                    send(object())
            await trio.sleep(11.0)


def test_nothing_turns_while_the_end_of_a_session_is_committed() -> None:
    """A commit takes its time; the tenure has nothing to do until it is told."""
    turned = 0

    class Slow(durable.MemoryStore):
        def commit(self, changes: Any) -> None:
            time.sleep(0.2)
            super().commit(changes)

    @trio_test_real
    async def check() -> None:
        network = MemoryNetwork()
        baggage = durable.Baggage(Slow())
        baggage.blocks = True
        async with (
            peer(network, "b"),
            open_peer(
                [MemoryNetlayer(network, "a")], baggage=baggage, lease=Lease(life=2.0, within=0.1)
            ) as a,
        ):
            session = await a.connect(B)
            real = Tenure._any

            async def counted(one: trio.Event, other: trio.Event) -> None:
                nonlocal turned
                turned += 1
                await real(one, other)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Tenure, "_any", staticmethod(counted))
                async with session.events() as events:
                    async for _ in events:
                        pass

    check()
    assert turned < 10


@trio_test
async def test_a_peer_that_fulfils_again_and_again_fills_nothing() -> None:
    network = MemoryNetwork()
    async with peer(network, "b") as b, peer(network, "a", lease=Lease(life=10.0, within=100.0)) as a:
        ref = await far(b, a, Gate())
        await trio.sleep(9.0)
        promise = E(ref).wait(1)
        await trio.sleep(2.0)
        send_only(promise).note(1)
        gate = between(a, b)._core.gate
        assert gate is not None
        vow = promise._vow.end()
        assert isinstance(vow, RemoteVow)
        for number in range(100):
            vow.told(number)
        assert len(gate._waiting) == 2
        between(a, b).renew()
        assert await promise == 0


class Slow(Target):
    """Gives its recorder once it may."""

    def __init__(self) -> None:
        self.go = trio.Event()
        self.recorder = Recorder()

    @method
    async def give(self) -> Recorder:
        await self.go.wait()
        return self.recorder


@asynccontextmanager
async def passed_through() -> AsyncIterator[tuple[Slow, Promise, Session]]:
    """What an object gives that is at the sender, to which a message went through the gate; the promise is pending."""
    network = MemoryNetwork()
    async with peer(network, "b") as b, peer(network, "a", lease=Lease(life=10.0, within=50.0)) as a:
        gate, slow = Gate(), Slow()
        ref = await far(b, a, gate)
        session = between(a, b)
        await trio.sleep(9.5)
        promise = E(ref).wait(slow)
        await trio.sleep(1.0)
        given = E(promise).give()
        gate.opened.set()
        await settle()
        assert (status(session), session.waiting) == ("expired", 1)
        session.renew()
        await settle()
        assert (status(session), is_settled(given)) == ("live", False)
        yield slow, given, session


@trio_test
async def test_what_has_left_the_gate_is_not_waited_for_there_again() -> None:
    """Its answer is of an object that is here: else what is sent to it would be overtaken, and break with a no."""
    async with passed_through() as (slow, given, session):
        send_only(given).note("x")
        await trio.sleep(10.5)
        assert status(session) == "expired"
        send_only(given).note("y")
        assert session.waiting == 0
        slow.go.set()
        await given
        send_only(given).note("z")
        await settle()
        assert slow.recorder.seen == ["x", "y", "z"]


@trio_test
async def test_a_gate_whose_session_has_ended_holds_nothing() -> None:
    async with passed_through() as (slow, given, session):
        await trio.sleep(100.0)
        assert session.ended is not None
        answer = E(given).note("y")
        slow.go.set()
        await answer
        assert slow.recorder.seen == ["y"]


@trio_test
async def test_enlivening_while_a_session_is_expired_ends_with_the_peer() -> None:
    """With a baggage the session itself does not end: it goes on when the peer is opened again."""
    network = MemoryNetwork()
    errors: list[Exception] = []

    async def enliven(a: Peer, sturdyref: SturdyRef) -> None:
        try:
            await a.enliven(sturdyref)
        except SessionEnded as error:
            errors.append(error)

    baggage = durable.Baggage(durable.MemoryStore())
    lease = Lease(life=10.0, within=500.0)
    async with peer(network, "b") as b, trio.open_nursery() as outer:
        sturdyref = b.export(Echo())
        async with peer(network, "a", baggage=baggage, lease=lease) as a:
            await a.enliven(sturdyref)
            await agreed(a, b)
            await trio.sleep(11.0)
            assert status(between(a, b)) == "expired"
            outer.start_soon(enliven, a, sturdyref)
            await trio.sleep(1.0)
    assert [str(error) for error in errors] == ["this peer is closing"]


async def promised(session: Session, why: str) -> Any:
    return make_promise()[0]  # as if an `await` were missing


async def fails_on_its_way_out(session: Session, why: str) -> Any:
    async def window() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ZeroDivisionError("the window does not close")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(window)


@pytest.mark.parametrize("ask", [promised, fails_on_its_way_out])
def test_a_callback_that_goes_wrong_is_a_no(ask: Any, caplog: pytest.LogCaptureFixture) -> None:
    @trio_test
    async def check() -> None:
        network = MemoryNetwork()
        lease = Lease(life=10.0, within=5.0, on_reauthorise=ask)
        async with peer(network, "b") as b, peer(network, "a", lease=lease) as a:
            ref = await far(b, a, Echo())
            await trio.sleep(11.0)
            with pytest.raises(SessionExpired):
                await E(ref).echo(1)

    check()
    assert "on_reauthorise for the session with ocapn://b.memory" in caplog.text


@pytest.mark.parametrize("renewed", [False, True])
def test_a_callback_that_cannot_be_cancelled_holds_up_no_time(renewed: bool) -> None:
    async def ask(session: Session, why: str) -> bool:
        with trio.CancelScope(shield=True):  # a thread, say
            await trio.sleep(5000.0)
        return True

    @trio_test
    async def check() -> None:
        network = MemoryNetwork()
        lease = Lease(life=10.0, within=5.0, on_reauthorise=ask)
        async with peer(network, "b") as b, peer(network, "a", lease=lease) as a:
            ref = await far(b, a, Echo())
            session = between(a, b)
            begun = session._core.renewed
            await trio.sleep_until(begun + 11.0)
            answer = E(ref).echo(1)
            if renewed:
                session.renew()
                assert await answer == 1
                begun += 11.0
                await trio.sleep_until(begun + 11.0)
                answer = E(ref).echo(2)
            with pytest.raises(SessionExpired):
                await answer
            assert trio.current_time() == begun + 15.0

    check()


@pytest.mark.parametrize("life", [1000.0, 1.0])
def test_a_lease_that_is_given_while_a_session_is_expired_counts(life: float) -> None:
    @trio_test
    async def check() -> None:
        desk = Desk()
        network = MemoryNetwork()
        async with peer(network, "b") as b, peer(network, "a", lease=Lease(life=10.0, within=50.0)) as a:
            ref = await far(b, a, Echo())
            await trio.sleep(11.0)
            answer = E(ref).echo(1)
            connection = await a.connect(B, Reconnect(lease=Lease(life=life, on_reauthorise=desk)))
            await settle()
            assert (len(desk.asked), is_settled(answer)) == ((0, True) if life > 11 else (1, False))
            desk.says(True)
            assert await answer == 1
            assert status(connection) == "connected"

    check()


@trio_test
async def test_what_a_peer_asks_of_its_own_promise_through_here_does_not_wait() -> None:
    network = MemoryNetwork()
    async with peer(network, "b") as b, peer(network, "a", lease=Lease(life=10.0, within=1000.0)) as a:
        gate = Gate()
        its = E(await far(b, a, gate)).wait({"x": 1})
        here, resolver = make_promise()
        taken = await far(a, b, Box({"later": here}))
        parts = [field(field(E(taken).get(), "later"), "x") for _ in range(40)]
        await trio.sleep(11.0)
        session = between(a, b)
        assert status(session) == "expired"
        resolver.fulfill(its)
        await settle()
        assert session.waiting == 0
        gate.opened.set()
        assert await parts[0] == 1
