"""semantics.md, Backpressure."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

import durable
import ocapn
from ocapn import (
    Backpressure,
    E,
    Limits,
    MemoryNetwork,
    RemoteError,
    SessionEnded,
    Target,
    field,
    method,
    send_only,
    when_broken,
)
from ocapn.netlayers.base import ChannelBroken
from ocapn.references import current_caller
from ocapn.testing import linked_peers, quiet
from tests.peer.support import Box, Echo, Gate, Recorder, between, far, settle
from tests.support import trio_test, trio_test_real

FEW = Limits(outbox_frames=10)


@trio_test
async def test_over_the_outbox_cap_a_sends_promise_breaks() -> None:
    """Over the outbox cap a send's promise breaks with `Backpressure`."""
    network = MemoryNetwork(capacity=1)
    async with linked_peers("a", "b", network=network, limits=FEW) as (a, b):
        recorder = Recorder()
        ref = await far(a, b, recorder)
        await quiet(a, b)
        (link,) = network.links_between("a", "b")
        link.hold()
        sent = [E(ref).note(number) for number in range(30)]
        await settle()
        refused = 0
        for promise in sent[10:]:
            with pytest.raises(Backpressure, match="wait to be sent already"):
                await promise
            refused += 1
        assert refused == 20
        for more in (E(ref).note("more"), E(sent[0]).note("more"), field(sent[0], "more")):
            with pytest.raises(Backpressure):
                await more
        link.release()
        for promise in sent[:10]:
            await promise
        await quiet(a, b)
        assert recorder.seen == list(range(10))  # what was refused was not sent
        assert await E(ref).note("room again") is None


@trio_test
async def test_over_the_outbox_cap_send_only_raises() -> None:
    """And `send_only` raises it."""
    network = MemoryNetwork(capacity=1)
    async with linked_peers("a", "b", network=network, limits=FEW) as (a, b):
        recorder = Recorder()
        ref = await far(a, b, recorder)
        await quiet(a, b)
        (link,) = network.links_between("a", "b")
        link.hold()
        for number in range(10):
            send_only(ref).note(number)
        for _ in range(3):
            with pytest.raises(Backpressure, match="10 messages"):
                send_only(ref).note("too many")
        link.release()
        await quiet(a, b)
        assert recorder.seen == list(range(10))


@trio_test
async def test_the_cap_is_in_bytes_too() -> None:
    network = MemoryNetwork(capacity=1)
    async with linked_peers("a", "b", network=network, limits=Limits(outbox_bytes=10_000)) as (a, b):
        ref = await far(a, b, Box())
        await quiet(a, b)
        network.links_between("a", "b")[0].hold()
        for _ in range(3):
            send_only(ref).put(b"x" * 4_000)
        with pytest.raises(Backpressure, match=r"3 messages \(12\d\d\d bytes\)"):
            send_only(ref).put(b"")


@trio_test
async def test_writable_waits_for_room() -> None:
    """`await session.writable()` waits for room."""
    network = MemoryNetwork(capacity=1)
    async with linked_peers("a", "b", network=network, limits=FEW) as (a, b):
        recorder = Recorder()
        ref = await far(a, b, recorder)
        session = between(b, a)
        with trio.testing.assert_checkpoints():
            await session.writable()  # there is room: a checkpoint
        await quiet(a, b)
        (link,) = network.links_between("a", "b")
        link.hold()
        for number in range(10):
            send_only(ref).note(number)
        with trio.move_on_after(60) as scope:
            await session.writable()
        assert scope.cancelled_caught
        link.release()
        await session.writable()
        send_only(ref).note(10)

        # A sender that waits before each send gets everything across, however slow the other side.
        network.delay = lambda a, b: 1.0
        for number in range(11, 100):
            await session.writable()
            send_only(ref).note(number)
        await trio.sleep(200)
        assert recorder.seen == list(range(100))


@trio_test
async def test_many_tasks_wait_for_room() -> None:
    network = MemoryNetwork(capacity=1)
    async with linked_peers("a", "b", network=network, limits=FEW) as (a, b):
        recorder = Recorder()
        ref = await far(a, b, recorder)
        await quiet(a, b)
        (link,) = network.links_between("a", "b")
        link.hold()
        while True:
            try:
                send_only(ref).note("first")
            except Backpressure:
                break

        async def send(number: int) -> None:
            for _ in range(5):
                await between(b, a).writable()
                send_only(ref).note(number)  # no checkpoint between: there is room

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(send, number)
            await settle()
            link.release()
        await quiet(a, b)
        assert sorted(recorder.seen[10:]) == sorted(list(range(20)) * 5)


@trio_test
async def test_a_wait_for_room_ends_with_the_session() -> None:
    network = MemoryNetwork(capacity=1)
    async with linked_peers("a", "b", network=network, limits=FEW) as (a, b):
        ref = await far(a, b, Recorder())
        await quiet(a, b)
        session = between(b, a)
        (link,) = network.links_between("a", "b")
        link.hold()
        for number in range(10):
            send_only(ref).note(number)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _() -> None:
                with pytest.raises(SessionEnded):
                    await session.writable()

            await settle()
            network.cut("a", "b")
        with pytest.raises(SessionEnded):
            await session.writable()
        with pytest.raises(SessionEnded):
            send_only(ref).note(1)


@trio_test
async def test_more_answers_than_the_other_side_may_owe_is_backpressure_too() -> None:
    async with linked_peers("a", "b", limits=Limits(answers=5)) as (a, b):
        gate = Gate()
        ref = await far(a, b, gate)
        await quiet(a, b)
        owed = [E(ref).wait(number) for number in range(5)]
        for refused in (E(ref).wait(5), field(owed[0], "x")):
            with pytest.raises(Backpressure, match="5 answers are owed by the peer already"):
                await refused
        send_only(ref).wait()  # owes nothing
        await settle()
        assert gate.waiting == 6
        gate.opened.set()
        assert [await promise for promise in owed] == list(range(5))
        await between(b, a).writable()
        assert await E(ref).wait("again") == "again"


@trio_test
async def test_an_answer_counts_until_the_other_side_knows_that_it_is_not_needed() -> None:
    """Peers of the same limits never bring each other over them."""
    async with linked_peers("a", "b", limits=Limits(answers=200)) as (a, b):
        ref = await far(a, b, Echo())
        session = between(b, a)
        answered = refused = 0
        for number in range(2_000):
            try:
                assert await E(ref).echo(number) == number
                answered += 1
            except Backpressure:
                refused += 1
                await session.writable()
        assert answered + refused == 2_000
        assert answered > 1_900
        assert session.ended is None


@trio_test
async def test_answers_to_the_other_side_are_not_refused() -> None:
    """The cap is for sends of the application: what the other side is owed is sent over it."""
    network = MemoryNetwork(capacity=1)
    async with linked_peers("a", "b", network=network, limits=FEW) as (a, b):
        echo = await far(a, b, Echo())
        sink = await far(b, a, Recorder())
        await quiet(a, b)
        (link,) = network.links_between("a", "b")
        a_dialled = link.a == "a"
        link.hold(a_to_b=a_dialled, b_to_a=not a_dialled)  # from a to b
        for number in range(10):
            send_only(sink).note(number)
        with pytest.raises(Backpressure):
            send_only(sink).note(10)
        answers = [E(echo).echo(number) for number in range(5)]
        await settle()
        link.release()
        assert [await answer for answer in answers] == list(range(5))


@trio_test
async def test_a_peer_that_does_not_read_is_given_up() -> None:
    """At twice the cap the session ends: its peer has stopped reading."""
    network = MemoryNetwork(capacity=1)
    async with linked_peers("a", "b", network=network, limits=FEW) as (a, b):
        echo = await far(a, b, Echo())
        await quiet(a, b)
        (link,) = network.links_between("a", "b")
        session = between(a, b)
        broken = when_broken(echo)
        a_dialled = link.a == "a"
        for number in range(40):
            link.hold(a_to_b=a_dialled, b_to_a=not a_dialled)
            with trio.move_on_after(0.1):
                await E(echo).echo(number)
            if session.ended:
                break
        assert session.ended is not None
        assert session.ended.reason == "the peer does not read what it is sent"
        link.release()
        assert isinstance(await broken, SessionEnded)


@trio_test
async def test_too_many_running_methods_of_a_session_are_refused() -> None:
    """The other side's limits: the one that asks too much is told, and nobody else."""

    class Both(Gate):
        @method
        def sync(self) -> str:
            return "sync"

    class Other(Target):
        @method
        async def run(self) -> str:
            await trio.sleep(1)
            return "ran"

    async with linked_peers("a", "b", "c", limits=Limits(running_methods=3)) as (a, b, c):
        gate = Both()
        ref = await far(a, b, gate)
        waiting = [E(ref).wait(number) for number in range(3)]
        with pytest.raises(RemoteError, match="3 methods run for this session already"):
            await E(ref).wait(3)
        assert await E(ref).sync() == "sync"
        assert await E(await far(a, c, Other())).run() == "ran"
        gate.opened.set()
        assert [await promise for promise in waiting] == [0, 1, 2]
        assert await E(ref).wait("room again") == "room again"


@trio_test_real
async def test_much_that_is_sent_at_once_goes_out_meanwhile() -> None:
    """The other side begins with it, though the sender does not wait."""
    async with (
        ocapn.open_peer([ocapn.TcpTestingNetlayer()]) as a,
        ocapn.open_peer([ocapn.TcpTestingNetlayer(listen=False)]) as b,
    ):
        recorder = Recorder()
        ref = await b.enliven(a.export(recorder))
        (session,) = b.sessions
        waiting = []
        for _ in range(100):
            send_only(ref).note(b"x" * 1000)
            waiting.append(session.stats()["outbox_messages"])
        assert waiting == ([*range(1, 8), 0] * 13)[:100]
        await E(ref).note(b"")
        assert len(recorder.seen) == 101


class Forwards(Target):
    """Sends three messages in a turn."""

    @method
    def forward(self, to: object) -> None:
        for number in range(3):
            E(to).note(number)


@trio_test
async def test_of_what_is_sent_in_a_pass_the_first_goes_out_at_once_and_the_rest_together() -> None:
    """A call that is awaited is not to wait for a pass of the loop. What is sent in a turn goes out behind it."""
    async with linked_peers("a", "b", durable="never") as (a, b):
        recorder, ref = Recorder(), await far(a, b, Forwards())
        await E(ref).forward(recorder)
        await quiet(a, b)
        sent = {peer: _sends(peer) for peer in (a, b)}
        inside: Any = b
        promises = [E(ref).forward(recorder)]
        assert sent[b] == [1]
        assert inside._node.idle
        assert not inside._wakeup._set  # nobody is woken for it
        promises += [E(ref).forward(recorder) for _ in range(2)]
        assert sent[b] == [1]
        assert not inside._node.idle
        assert inside._wakeup._set
        await settle()
        assert sent[b][1] >= 2  # the others, and what the first is answered
        assert all(number % 4 == 0 for number in sent[a][:2])  # three messages and an answer of each call
        assert [await promise for promise in promises] == [None] * 3
        del promises
        await quiet(a, b)
        with pytest.raises(ocapn.NotPassable):
            E(ref).forward(object())
        start = trio.current_time()
        assert await E(ref).forward(recorder) is None
        assert trio.current_time() - start < 1
        await quiet(a, b)
        assert recorder.seen == [0, 1, 2] * 5
        assert not a._node._dirty
        assert not b._node._dirty


@trio_test
async def test_what_goes_with_the_first_call_of_a_pass_to_others_is_not_left() -> None:
    """To hand over a reference of a third peer, its exporter is told."""

    class Uses(Target):
        @method
        async def use(self, echo: object) -> object:
            return await E(echo).echo(5)

    async with linked_peers("a", "b", "c", durable="never") as (a, b, c):
        to, gift = await far(b, a, Uses()), await far(c, a, Echo())
        await quiet(a, b, c)
        start = trio.current_time()
        assert await E(to).use(gift) == 5
        assert trio.current_time() - start < 1


@trio_test
async def test_who_calls_while_a_connection_of_an_ended_session_is_closed_is_told_that_it_has_ended() -> None:
    """Its peer does not read: what it is to be told is not all sent."""
    network = MemoryNetwork(capacity=4)
    limits = Limits(closing=1, draining=10)
    async with (
        ocapn.open_peer([ocapn.MemoryNetlayer(network, "b")]) as b,
        ocapn.open_peer([ocapn.MemoryNetlayer(network, "a")], limits=limits) as a,
    ):
        ref = await a.enliven(b.export(Recorder()))
        await trio.sleep(1)
        (link,) = network.links_between("a", "b")
        link.hold()
        for number in range(40):
            send_only(ref).note(number)
        await trio.sleep(0.1)
        a.sessions[0]._core.abort("enough")
        for _ in range(20):
            await trio.sleep(0.2)
            with pytest.raises(ocapn.SessionEnded):
                await E(ref).note(41)
        link.release()


def _sends(peer: ocapn.Peer) -> list[int]:
    """How many messages its one connection is given at a time, from now on."""
    (connection,) = peer._connections.values()
    sends = connection.channel.send_now
    sent: list[int] = []

    def noted(messages: list[bytes]) -> int:
        sent.append(len(messages))
        return sends(messages)

    connection.channel.send_now = noted  # type: ignore[method-assign]
    return sent


@trio_test_real
async def test_many_answers_go_out_meanwhile() -> None:
    """Of what is read at once: the other side begins with the first while the last have their turns."""

    class Large(Target):
        turns = 0

        @method
        def get(self) -> bytes:
            self.turns += 1
            return bytes(1000)

    async with (
        ocapn.open_peer([ocapn.TcpTestingNetlayer()]) as a,
        ocapn.open_peer([ocapn.TcpTestingNetlayer(listen=False)]) as b,
    ):
        large = Large()
        ref = await b.enliven(a.export(large))
        (connection,) = a._connections.values()
        sends, sent = connection.channel.send_now, []

        def noted(messages: list[bytes]) -> int:
            sent.append(large.turns)
            return sends(messages)

        connection.channel.send_now = noted  # type: ignore[method-assign]
        b._node.quick = False  # the first goes with the others
        for promise in [E(ref).get() for _ in range(40)]:
            assert await promise == bytes(1000)
        assert sent[:5] == [8, 16, 24, 32, 40]


@trio_test_real
async def test_the_connection_breaks_under_a_method_that_sends_much() -> None:
    class Pusher(Target):
        @method
        def push(self, to: object) -> str:
            (connection,) = a._connections.values()

            def breaks(messages: list[bytes]) -> int:
                connection.channel.send_now = sends  # type: ignore[method-assign]
                raise ChannelBroken("broken")

            sends = connection.channel.send_now
            connection.channel.send_now = breaks  # type: ignore[method-assign]
            for number in range(50):
                send_only(to).note([number, bytes(1000)])
            assert connection.channel.send_now is sends
            return "done"

    dials = ocapn.TcpTestingNetlayer(listen=False)
    async with ocapn.open_peer([ocapn.TcpTestingNetlayer()]) as a, ocapn.open_peer([dials]) as b:
        recorder = Recorder()
        ref = await b.enliven(a.export(Pusher()))
        while not b.sessions[0].durable:  # noqa: ASYNC110
            await trio.sleep(0.01)
        assert await E(ref).push(recorder) == "done"  # the session goes on, on another connection
        assert [number for number, _ in recorder.seen] == list(range(50))


@trio_test
async def test_what_is_left_of_much_goes_out_though_nothing_follows() -> None:
    """Also where the network takes each part at once."""
    async with linked_peers("a", "b", durable="never") as (a, b):
        ref = await far(a, b, Echo())
        await quiet(a, b)
        (connection,) = a._connections.values()
        (session,) = a._node.sessions.values()
        connection.channel.send_now = len  # type: ignore[method-assign, assignment]  # it has taken all
        answers = [E(ref).echo(bytes(10_000)) for _ in range(100)]
        await quiet(a, b)
        assert (session.outbox.frames, session.outbox.messages) == (0, [])
        assert len(answers) == 100


@trio_test
async def test_who_sends_much_without_waiting_is_listed_once() -> None:
    async with linked_peers("a", "b", durable="never") as (a, b):
        ref = await far(a, b, Recorder())
        await quiet(a, b)
        (connection,) = b._connections.values()

        def takes_all(messages: list[bytes]) -> int:
            taken.extend(messages)
            return len(messages)

        taken: list[bytes] = []
        connection.channel.send_now = takes_all  # type: ignore[method-assign]
        for _ in range(100):
            send_only(ref).note(bytes(40_000))
        assert len(taken) == 100
        assert len(b._node._dirty) == 1


@trio_test
async def test_what_goes_out_while_a_method_runs_does_so_in_nobodys_name() -> None:
    class Sends(Target):
        @method
        def much(self, to: object) -> None:
            for _ in range(3):
                send_only(to).note(bytes(40_000))

    async with linked_peers("a", "b") as (a, b):
        ref = await far(a, b, Sends())
        await quiet(a, b)
        (connection,) = a._connections.values()
        send = connection.channel.send
        callers = []

        async def watched(messages: list[bytes]) -> None:
            callers.append(current_caller.get())
            await send(messages)

        connection.channel.send = watched  # type: ignore[method-assign]
        await E(ref).much(Recorder())
        await quiet(a, b)
        assert set(callers) == {None}


@trio_test
async def test_with_a_baggage_nothing_goes_out_before_its_commit() -> None:
    """However much it is."""
    network = MemoryNetwork()
    async with (
        linked_peers("a", network=network) as (a,),
        ocapn.open_peer([ocapn.MemoryNetlayer(network, "b")], baggage=durable.MemoryBaggage()) as b,
    ):
        recorder = Recorder()
        ref = await far(a, b, recorder)
        await quiet(a, b)
        assert not b._node.quick
        (connection,) = b._connections.values()
        flush = connection.flush
        flushed = 0

        def counted() -> None:
            nonlocal flushed
            flushed += 1
            flush()

        connection.flush = counted  # type: ignore[method-assign]
        for number in range(10):
            send_only(ref).note([number, bytes(40_000)])
        assert flushed == 0
        await quiet(a, b)
        assert flushed > 0
        assert [number for number, _ in recorder.seen] == list(range(10))
