"""semantics.md, Leaving `open_peer`."""

from __future__ import annotations

import pytest
import trio

from ocapn import (
    Aborted,
    ConnectFailed,
    Disconnected,
    E,
    Limits,
    MemoryNetlayer,
    MemoryNetwork,
    PeerLocator,
    Promise,
    RemoteError,
    SessionEnded,
    SturdyRef,
    Target,
    TcpTestingNetlayer,
    UnixNetlayer,
    make_promise,
    method,
    open_peer,
    send_only,
    when_broken,
)
from ocapn.netlayers.base import Channel, ChannelBroken, Listener, Netlayer
from ocapn.testing import linked_peers, quiet
from tests.peer.support import Box, Echo, Gate, Recorder, Trace, between, far, settle
from tests.support import trio_test, trio_test_real


@trio_test
async def test_what_is_queued_is_flushed() -> None:
    network = MemoryNetwork(capacity=1, delay=lambda a, b: 0.01)
    recorder = Recorder()
    async with open_peer([MemoryNetlayer(network, "a")]) as a:
        ref = a.export(recorder)
        async with open_peer([MemoryNetlayer(network, "b")]) as b:
            remote = await b.enliven(ref)
            for number in range(50):
                send_only(remote).note(number)
        assert recorder.seen == list(range(50))


@trio_test
async def test_what_cannot_be_flushed_holds_up_leaving_for_two_seconds_and_a_drain() -> None:
    """At most 2 s, shielded."""
    network = MemoryNetwork(capacity=1)
    async with open_peer([MemoryNetlayer(network, "a")]) as a:
        ref = a.export(Recorder())
        with trio.CancelScope() as scope:
            async with open_peer([MemoryNetlayer(network, "b")]) as b:
                remote = await b.enliven(ref)
                await quiet(a, b)
                network.links_between("a", "b")[0].hold()
                for number in range(50):
                    send_only(remote).note(number)
                start = trio.current_time()
                scope.cancel()
                await trio.sleep_forever()
        assert 1.9 <= trio.current_time() - start <= 3.1


@trio_test
async def test_leaving_is_shielded_from_the_cancellation_that_caused_it() -> None:
    network = MemoryNetwork(delay=lambda a, b: 0.2)
    recorder = Recorder()
    async with open_peer([MemoryNetlayer(network, "a")]) as a:
        ref = a.export(recorder)
        with trio.CancelScope() as scope:
            async with open_peer([MemoryNetlayer(network, "b")]) as b:
                remote = await b.enliven(ref)
                send_only(remote).note("last words")
                scope.cancel()
                await trio.sleep_forever()
        await trio.sleep(1)
        assert recorder.seen == ["last words"]


@trio_test
async def test_sessions_get_op_abort() -> None:
    """All others get `op:abort`."""
    network = MemoryNetwork()
    async with open_peer([MemoryNetlayer(network, "a")]) as a:
        async with open_peer([MemoryNetlayer(network, "b")]) as b:
            ref = await far(a, b, Gate())
            held = await far(b, a, Echo())
            trace = Trace(between(a, b))
            owed = E(ref).wait()
            broken = when_broken(held)
        assert trace.received("op:abort") == ['<- <op:abort "the peer was closed">']
        error = await broken
        assert isinstance(error, Aborted)
        assert error.reason == "the peer was closed"
        with pytest.raises(Aborted):
            await E(held).echo(1)
        with pytest.raises(SessionEnded, match="the peer was closed"):
            await owed
        assert a.sessions == b.sessions == []


@trio_test
async def test_both_sides_may_leave_at_once() -> None:
    network = MemoryNetwork(delay=lambda a, b: 0.1)
    start = trio.current_time()

    async def one(name: str, other: str, ready: trio.Event, both: trio.Event) -> None:
        async with open_peer([MemoryNetlayer(network, name)]) as peer:
            ready.set()
            await both.wait()
            if name == "b":
                await peer.connect(f"ocapn://{other}.memory")
            await trio.sleep(1)

    a, b = trio.Event(), trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one, "a", "b", a, b)
        nursery.start_soon(one, "b", "a", b, a)
    assert trio.current_time() - start < 3


@trio_test
async def test_nothing_is_left_of_a_peer_that_was_left() -> None:
    network = MemoryNetwork()
    async with open_peer([MemoryNetlayer(network, "a")]) as a:
        for _ in range(3):  # the place is free again each time
            async with open_peer([MemoryNetlayer(network, "b")]) as b:
                assert await E(await far(b, a, Echo())).echo(1) == 1
                assert await E(await far(a, b, Echo())).echo(1) == 1
            await quiet(a)
            assert network.links_between("a", "b") == []
        with pytest.raises(ConnectFailed, match="nobody listens there"):
            await a.connect(b.locator())
        with pytest.raises(ConnectFailed, match="closing"):
            await b.connect(a.locator())


@trio_test
async def test_methods_that_run_are_cancelled_and_their_last_words_are_heard() -> None:
    events: list[str] = []

    class Cleans(Target):
        @method
        async def run(self) -> None:
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(5)
                events.append("cleaned up")

    async with linked_peers("a", "b") as (a, b):
        send_only(await far(a, b, Cleans())).run()
        send_only(Cleans()).run()
        await settle()
    assert events == ["cleaned up", "cleaned up"]  # nothing escapes its nursery


@trio_test
async def test_a_connection_that_comes_while_leaving_ends_with_the_rest() -> None:
    network = MemoryNetwork()
    async with (
        open_peer([MemoryNetlayer(network, "a")]) as a,
        open_peer([MemoryNetlayer(network, "c")]) as c,
        trio.open_nursery() as nursery,
    ):
        async with open_peer([MemoryNetlayer(network, "b")]) as b:
            ref = await far(a, b, Recorder())
            await quiet(a, b)
            network.links_between("a", "b")[0].hold()
            send_only(ref).note(1)
            location = b.locator()
            ends: list[object] = []

            @nursery.start_soon
            async def _() -> None:
                await trio.sleep(0.5)  # b drains its connection to a meanwhile
                try:
                    held = await c.enliven(SturdyRef(location, b"swiss"))
                except (ConnectFailed, SessionEnded, RemoteError) as error:
                    held = error
                ends.append(held)

            start = trio.current_time()
        assert trio.current_time() - start < 3.5
        await trio.sleep(5)
        assert len(ends) == 1
        assert isinstance(ends[0], Exception)
        assert c.sessions == []


@trio_test
async def test_nobody_outside_waits_for_ever_for_what_a_peer_that_was_left_owes() -> None:
    """What runs is cancelled, what has not begun breaks, and so does what is sent later."""
    network = MemoryNetwork()
    ends: dict[str, object] = {}
    recorder = Recorder()
    left = trio.Event()

    async def wait(name: str, promise: Promise) -> None:
        try:
            ends[name] = await promise
        except (RemoteError, SessionEnded) as error:
            ends[name] = error

    async def send_later() -> None:
        await left.wait()
        send_only(recorder).note("late")
        await wait("sent later", E(recorder).note("late"))
        promise, resolver = make_promise()
        resolver.fulfill(recorder)
        await wait("sent later to a promise", promise.note("late"))

    with trio.fail_after(100):
        async with trio.open_nursery() as outside:
            async with open_peer([MemoryNetlayer(network, "a")], limits=Limits(slice_turns=1)):
                outside.start_soon(wait, "running", E(Gate()).wait())
                promise, resolver = make_promise()
                outside.start_soon(wait, "kept later", promise)
                outside.start_soon(send_later)
                await settle()
                for number in range(5):
                    outside.start_soon(wait, f"queued {number}", E(recorder).note(number))
                outside.start_soon(wait, "queued and async", E(Gate()).wait())
            left.set()
            resolver.fulfill("kept")
    begun = len(recorder.seen)
    assert begun < 5  # one in each slice, and there were few
    assert {name: str(end) for name, end in ends.items()} == {
        "running": "the method was cancelled",
        **{f"queued {number}": str(None) for number in range(begun)},
        **{f"queued {number}": "the peer was closed" for number in range(begun, 5)},
        "queued and async": "the peer was closed",
        "kept later": "kept",
        "sent later": "the peer was closed",
        "sent later to a promise": "the peer was closed",
    }
    assert "late" not in recorder.seen


# The netlayer's side: flush, half-close, drain, close


class Watching(Netlayer):
    """A memory netlayer that writes down what its dialled channel is asked to do."""

    transport = "memory"

    def __init__(self, network: MemoryNetwork, name: str, calls: list[str]) -> None:
        self.inner = MemoryNetlayer(network, name)
        self.location = self.inner.location
        self.calls = calls

    async def listen(self, limits: Limits) -> Listener | None:
        return await self.inner.listen(limits)

    async def dial(self, locator: PeerLocator, limits: Limits) -> Channel:
        return WatchedChannel(await self.inner.dial(locator, limits), self.calls)


class WatchedChannel(Channel):
    def __init__(self, inner: Channel, calls: list[str]) -> None:
        self.inner = inner
        self.calls = calls

    async def send(self, messages: list[bytes]) -> None:
        self.calls += ["send abort" if b"op:abort" in message else "send" for message in messages]
        await self.inner.send(messages)

    async def receive(self, most: int) -> list[bytes]:
        messages = await self.inner.receive(most)
        if not messages:
            self.calls.append("end received")
        return messages

    def set_max_message(self, size: int) -> None:
        self.inner.set_max_message(size)

    async def send_eof(self) -> None:
        self.calls.append("half-close")
        await self.inner.send_eof()

    async def aclose(self) -> None:
        self.calls.append("close")
        await self.inner.aclose()


@trio_test
async def test_closing_a_connection_is_flush_half_close_drain_close() -> None:
    """Closing a connection is: flush, half-close, drain at most 1 s, close."""
    network = MemoryNetwork()
    calls: list[str] = []
    async with open_peer([MemoryNetlayer(network, "a")]) as a:
        async with open_peer([Watching(network, "b", calls)]) as b:
            ref = await far(a, b, Recorder())
            await quiet(a, b)
            calls.clear()
            send_only(ref).note(1)
        assert calls == ["send", "send abort", "half-close", "end received", "close"]


@trio_test
async def test_draining_takes_at_most_a_second() -> None:
    network = MemoryNetwork()
    calls: list[str] = []
    async with open_peer([MemoryNetlayer(network, "a")]) as a:
        async with open_peer([Watching(network, "b", calls)]) as b:
            await far(a, b, Recorder())
            await quiet(a, b)
            calls.clear()
            (link,) = network.links_between("a", "b")
            link.hold(a_to_b=False, b_to_a=True)  # b dialled: what a sends does not come
            start = trio.current_time()
        assert calls == ["send abort", "half-close", "close"]
        assert 0.9 <= trio.current_time() - start <= 1.1


@trio_test_real
async def test_the_last_words_are_read_over_real_sockets() -> None:
    """A plain close with unread input would reset the connection, and the abort would be lost."""
    async with open_peer([TcpTestingNetlayer()]) as a:
        box = Box()
        ref = a.export(box)
        async with open_peer([TcpTestingNetlayer(listen=False)]) as b:
            remote = await b.enliven(ref)
            await E(remote).put(Echo())
            broken = when_broken(box.content)
            box.content = b"x" * 500_000
            unread = [E(remote).get() for _ in range(5)]  # a answers into b's closing connection
        error = await broken
        assert isinstance(error, Aborted)
        assert error.reason == "the peer was closed"
        for promise in unread:
            with pytest.raises(SessionEnded):
                await promise


@trio_test
async def test_a_connection_that_was_cut_is_not_an_abort() -> None:
    network = MemoryNetwork()
    async with linked_peers("a", "b", network=network, durable="never") as (a, b):
        broken = when_broken(await far(a, b, Echo()))
        network.cut("a", "b")
        error = await broken
        assert isinstance(error, Disconnected)
        assert not isinstance(error, Aborted)


# end(reason)


@trio_test
async def test_end_ends_a_session_with_a_reason() -> None:
    """`session.end(reason)` ends it for good, with `op:abort`; the peers may connect again."""
    network = MemoryNetwork()
    async with linked_peers("a", "b", network=network) as (a, b):
        echo = Echo()
        ref = await far(a, b, echo)
        ours, theirs = between(b, a), between(a, b)
        trace = Trace(theirs)
        owed = E(await far(a, b, Gate())).wait()
        ours.end("enough for today")
        assert ours.ended is not None
        with pytest.raises(SessionEnded, match="enough for today"):
            await owed
        await quiet(a, b)
        assert trace.received("op:abort") == ['<- <op:abort "enough for today">']
        assert isinstance(theirs.ended, Aborted)
        assert theirs.ended.reason == "enough for today"
        with pytest.raises(SessionEnded, match="enough for today"):
            await E(ref).echo(1)
        ours.end("again")  # nothing more happens
        assert ours.ended.reason == "enough for today"
        assert a.sessions == b.sessions == []
        assert network.links_between("a", "b") == []

        again = await far(a, b, echo)
        assert again is not ref
        assert await E(again).echo(1) == 1


# Failing to open


@trio_test
async def test_a_peer_that_cannot_listen_is_not_opened() -> None:
    network = MemoryNetwork()
    async with open_peer([MemoryNetlayer(network, "a")]):
        with pytest.raises(ConnectFailed):
            async with open_peer([MemoryNetlayer(network, "a")]):
                pytest.fail("two peers of one name")
    async with open_peer([MemoryNetlayer(network, "a")]):
        pass


@trio_test
async def test_a_peer_has_one_netlayer_of_a_transport_and_one_at_least() -> None:
    network = MemoryNetwork()
    for netlayers in ([], [MemoryNetlayer(network, "a"), MemoryNetlayer(network, "b")]):
        with pytest.raises(ValueError, match="at least one netlayer, and at most one of each transport"):
            async with open_peer(netlayers):
                pytest.fail("opened")


@trio_test_real
async def test_netlayers_that_listened_already_stop_if_a_later_one_cannot() -> None:
    network = MemoryNetwork()
    with pytest.raises(ConnectFailed):
        async with open_peer([MemoryNetlayer(network, "a"), UnixNetlayer("/nowhere/at/all")]):
            pytest.fail("opened")
    async with open_peer([MemoryNetlayer(network, "a")]) as a:
        assert a.locator().designator == "a"


def test_a_channel_broken_never_leaves_the_package() -> None:
    import ocapn

    assert not hasattr(ocapn, ChannelBroken.__name__)
