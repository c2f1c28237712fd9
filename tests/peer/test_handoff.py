"""Third-party handoffs, as applications see them: three peers, and references that go from one to another."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import trio

from ocapn import (
    Aborted,
    ConnectFailed,
    E,
    Limits,
    MemoryNetlayer,
    MemoryNetwork,
    Peer,
    PeerLocator,
    Promise,
    Ref,
    RemoteError,
    SessionEnded,
    Symbol,
    Target,
    is_settled,
    make_promise,
    method,
    open_peer,
    send_only,
)
from ocapn.netlayers.base import Channel, Listener, Netlayer
from ocapn.netlayers.memory import Link
from ocapn.testing import linked_peers, quiet
from tests.peer.support import Box, Echo, Gate, Recorder, Trace, between, far, settle
from tests.support import trio_test

# In these tests `gifter` has a reference to an object of `exporter` and sends it to `receiver`.


def link(network: MemoryNetwork, a: str, b: str) -> Link:
    (found,) = network.links_between(a, b)
    return found


def hold(network: MemoryNetwork, sender: str, receiver: str) -> Link:
    """Holds what `sender` sends to `receiver`, but not the other direction."""
    found = link(network, sender, receiver)
    found.hold(a_to_b=found.a == sender, b_to_a=found.b == sender)
    return found


class Answers(Target):
    """Gives what it was made with."""

    def __init__(self, value: object) -> None:
        self.value = value

    @method
    def sync(self) -> object:
        return self.value

    @method
    async def task(self) -> object:
        return [{"x": self.value}]


@trio_test
async def test_a_reference_that_is_sent_to_a_third_peer_becomes_one_to_its_own() -> None:
    async with linked_peers("exporter", "receiver", "gifter") as (exporter, receiver, gifter):
        echo, box = Echo(), Box()
        gift = await far(exporter, gifter, echo)
        await E(await far(receiver, gifter, box)).put(gift)
        assert type(box.content) is Promise  # until it is withdrawn
        got = await box.content
        assert type(got) is Ref
        assert await far(exporter, receiver, echo) is got
        traces = [Trace(session) for session in gifter.sessions]
        assert await E(got).echo("from peer to peer") == "from peer to peer"
        assert [trace.lines for trace in traces] == [[], []]
        gifter.sessions[0].end()
        gifter.sessions[0].end()
        await settle()
        assert await E(got).echo("without the gifter") == "without the gifter"


@trio_test
async def test_references_are_handed_over_wherever_they_stand() -> None:
    async with linked_peers("exporter", "gifter", "receiver") as (exporter, gifter, receiver):
        echo = Echo()
        gift = await far(exporter, gifter, echo)
        expected = await far(exporter, receiver, echo)
        answers = await far(gifter, receiver, Answers(gift))
        assert await E(answers).sync() is expected
        assert await (await E(answers).task())[0]["x"] is expected
        relay = await far(gifter, receiver, Echo())
        assert await E(relay).echo(expected) is expected  # to the gifter, and back
        swapped = await E(relay).echo([expected, {"y": expected}])
        assert [await swapped[0], await swapped[1]["y"]] == [expected, expected]


@pytest.mark.parametrize("first", ["deposit", "withdrawal"])
def test_deposit_and_withdrawal_come_in_either_order(first: str) -> None:
    @trio_test
    async def run() -> None:
        network = MemoryNetwork()
        async with linked_peers("exporter", "receiver", "gifter", network=network) as peers:
            exporter, receiver, gifter = peers
            recorder, box = Recorder(), Box()
            gift = await far(exporter, gifter, recorder)
            remote_box = await far(receiver, gifter, box)
            await receiver.connect(exporter.locator())
            await quiet(*peers)
            late = "receiver" if first == "deposit" else "gifter"
            held = hold(network, late, "exporter")
            await E(remote_box).put(gift)
            sent = [E(box.content).note(number) for number in range(3)]
            await trio.sleep(1)
            counted = between(exporter, gifter if first == "deposit" else receiver).stats()
            assert counted["gifts_waiting"] == (first == "deposit")
            assert counted["withdrawals_waiting"] == (first == "withdrawal")
            assert not is_settled(box.content)
            assert recorder.seen == []
            held.release()
            for promise in sent:
                await promise
            assert recorder.seen == [0, 1, 2]
            assert type(await box.content) is Ref
            assert not between(exporter, gifter).stats()["gifts_waiting"]
            assert not between(exporter, receiver).stats()["withdrawals_waiting"]

    run()


@trio_test
async def test_a_gift_is_kept_though_the_gifter_drops_its_reference_at_once() -> None:
    network = MemoryNetwork()
    async with linked_peers("exporter", "receiver", "gifter", network=network) as peers:
        exporter, receiver, gifter = peers
        box = Box()
        gift = await far(exporter, gifter, Echo())
        remote_box = await far(receiver, gifter, box)
        await receiver.connect(exporter.locator())
        held = hold(network, "receiver", "exporter")
        await E(remote_box).put(gift)
        del gift
        await quiet(*peers)
        assert between(exporter, gifter).stats()["exports"] == 0
        held.release()
        assert await E(box.content).echo("kept") == "kept"


@trio_test
async def test_gifts_of_one_object_become_one_reference() -> None:
    async with linked_peers("exporter", "receiver", "gifter") as (exporter, receiver, gifter):
        box = Box()
        gift = await far(exporter, gifter, Echo())
        remote_box = await far(receiver, gifter, box)
        await E(remote_box).put([gift] * 3)
        refs = [await promise for promise in box.content]
        await E(remote_box).put(gift)
        assert [await box.content, *refs] == [refs[0]] * 4
        assert len({id(ref) for ref in refs}) == 1


@trio_test
async def test_a_reference_goes_on_from_peer_to_peer() -> None:
    async with linked_peers("a", "b", "c", "d") as (a, b, c, d):
        echo = Echo()
        on_d = Box()
        at_b = await far(a, b, echo)
        at_c = await E(await far(b, c, Answers(at_b))).sync()
        await E(await far(d, c, on_d)).put(at_c)
        assert await on_d.content is await far(a, d, echo)


@trio_test
async def test_a_promise_that_is_not_handed_over_yet_can_be_passed_on() -> None:
    async with linked_peers("a", "b", "c", "d") as (a, b, c, d):
        echo = Echo()

        class PassesOn(Target):
            def __init__(self, to: object) -> None:
                self.to = to

            @method
            def put(self, content: object) -> None:
                assert type(content) is Promise
                assert not is_settled(content)
                send_only(self.to).put(content)

        on_d = Box()
        passes_on = PassesOn(await far(d, c, on_d))
        await E(await far(c, b, passes_on)).put(await far(a, b, echo))
        await quiet(a, b, c, d)
        assert await on_d.content is await far(a, d, echo)


# Receiver and exporter on one peer


@trio_test
async def test_a_reference_that_is_sent_to_its_own_peer_is_the_object() -> None:
    async with linked_peers("a", "b") as (a, b):
        echo, box = Echo(), Box()
        await E(await far(a, b, box)).put(await far(a, b, echo))
        assert box.content is echo


class Second(Netlayer):
    """A second transport, so that two peers can have two sessions."""

    transport = "second"

    def __init__(self, network: MemoryNetwork, designator: str) -> None:
        self.inner = MemoryNetlayer(network, designator)
        self.location = PeerLocator("second", designator)

    async def listen(self, limits: Limits) -> Listener | None:
        listener = await self.inner.listen(limits)
        assert listener is not None
        listener.location = self.location
        return listener

    async def dial(self, locator: PeerLocator, limits: Limits) -> Channel:
        return await self.inner.dial(locator, limits)


@pytest.mark.parametrize("first", ["deposit", "give"])
def test_a_gift_to_the_peer_that_exports_it_by_another_session_is_the_object(first: str) -> None:
    @trio_test
    async def run() -> None:
        one, other = MemoryNetwork(), MemoryNetwork()
        async with (
            open_peer([MemoryNetlayer(one, "a"), Second(other, "a")]) as a,
            open_peer([MemoryNetlayer(one, "b"), Second(other, "b")]) as b,
        ):
            echo, box = Echo(), Box()
            gift = await far(a, b, echo)
            session = await b.connect(a.locator("second"))
            assert session.netlayer == "second"
            assert len(a.sessions) == len(b.sessions) == 2
            sturdyref = a.export(box)
            remote_box = await b.enliven(type(sturdyref)(a.locator("second"), sturdyref.swiss))
            await quiet(a, b)
            held = hold(one if first == "give" else other, "b", "a")
            put = E(remote_box).put([gift])
            await trio.sleep(1)
            if first == "give":
                assert not is_settled(box.content[0])
            else:
                assert box.content is None
            held.release()
            await put
            assert await box.content[0] is echo

    run()


# What can go wrong


async def _gift(exporter: Peer, receiver: Peer, gifter: Peer) -> tuple[Any, Box, Any]:
    """The gift, at the gifter; a box, and the gifter's reference to it."""
    box = Box()
    return await far(exporter, gifter, Echo()), box, await far(receiver, gifter, box)


@trio_test
async def test_an_exporter_that_cannot_be_reached_breaks_the_promise() -> None:
    network = MemoryNetwork()
    async with (
        linked_peers("receiver", "gifter", network=network) as (receiver, gifter),
        open_peer([MemoryNetlayer(network, "exporter", listen=False)]) as exporter,
    ):
        box, remote_echoes = Box(), Box()
        await E(await far(gifter, exporter, remote_echoes)).put(Echo())
        gift = remote_echoes.content
        send_only(await far(receiver, gifter, box)).put(gift)
        await quiet(receiver, gifter)
        for _ in range(2):
            with pytest.raises(ConnectFailed, match="nobody listens there"):
                await box.content
        with pytest.raises(ConnectFailed):
            await E(box.content).echo(1)
        # The gifter still has it.
        assert await E(gift).echo(1) == 1


@trio_test
async def test_an_exporter_that_is_gone_breaks_the_promise() -> None:
    network = MemoryNetwork()
    async with linked_peers("receiver", "gifter", network=network) as (receiver, gifter):
        async with open_peer([MemoryNetlayer(network, "exporter")]) as exporter:
            gift, box, remote_box = await _gift(exporter, receiver, gifter)
            held = hold(network, "gifter", "receiver")
            send_only(remote_box).put([gift])
        await trio.sleep(1)
        held.release()
        await quiet(receiver, gifter)
        with pytest.raises(ConnectFailed):
            await box.content[0]

        # A reference that is broken already arrives as a promise that is.
        await E(remote_box).put([gift])
        with pytest.raises(RemoteError, match="the peer was closed"):
            await box.content[0]


@trio_test
async def test_a_gift_that_can_no_longer_come_breaks_the_promise() -> None:
    """The gifter's session with the exporter ended before the deposit."""
    network = MemoryNetwork()
    async with linked_peers("exporter", "receiver", "gifter", network=network, durable="never") as peers:
        exporter, receiver, gifter = peers
        gift, box, remote_box = await _gift(exporter, receiver, gifter)
        hold(network, "gifter", "exporter")
        await E(remote_box).put(gift)
        sent = E(box.content).echo(1)
        await trio.sleep(1)
        assert between(exporter, receiver).stats()["withdrawals_waiting"] == 1
        network.cut("gifter", "exporter")
        for promise in (box.content, sent):
            with pytest.raises(RemoteError, match="can no longer come: its session has ended"):
                await promise
        assert between(exporter, receiver).stats()["withdrawals_waiting"] == 0


@pytest.mark.parametrize("after", [1, 590, 700])
def test_a_gift_outlives_its_gifter_for_a_while(after: float) -> None:
    """A gift that was deposited waits for the gift's life (600 s), also when the gifter has gone."""

    @trio_test
    async def run() -> None:
        network = MemoryNetwork()
        async with linked_peers("exporter", "receiver", network=network, durable="never") as (
            exporter,
            receiver,
        ):
            await receiver.connect(exporter.locator())
            async with open_peer([MemoryNetlayer(network, "gifter")], durable="never") as gifter:
                gift, box, remote_box = await _gift(exporter, receiver, gifter)
                held = hold(network, "receiver", "exporter")
                await E(remote_box).put(gift)
                await trio.sleep(1)
            await trio.sleep(after)
            held.release()
            if after < 600:
                assert await E(box.content).echo("in time") == "in time"
            else:
                with pytest.raises(RemoteError, match="no session between gifter and exporter has that id"):
                    await box.content

    run()


@trio_test
async def test_a_withdrawal_waits_for_the_gifts_life_and_no_longer() -> None:
    network = MemoryNetwork()
    async with linked_peers("exporter", "receiver", "gifter", network=network, durable="never") as peers:
        gift, box, remote_box = await _gift(*peers)
        held = hold(network, "gifter", "exporter")
        await E(remote_box).put(gift)
        await trio.sleep(580)
        assert not is_settled(box.content)
        await trio.sleep(50)
        with pytest.raises(RemoteError, match="did not come in time"):
            await box.content
        held.release()
        await quiet(*peers)


@trio_test
async def test_gifts_of_a_session_are_limited() -> None:
    network = MemoryNetwork()
    limits = Limits(gifts=3)
    async with linked_peers("exporter", "receiver", "gifter", network=network, limits=limits) as peers:
        exporter, receiver, _gifter = peers
        gift, box, remote_box = await _gift(*peers)
        await receiver.connect(exporter.locator())
        held = hold(network, "gifter", "exporter")
        await E(remote_box).put([gift] * 5)
        await trio.sleep(1)
        refused = [promise for promise in box.content if is_settled(promise)]
        assert len(refused) == 2
        for promise in refused:
            with pytest.raises(RemoteError, match="3 withdrawals wait already, the limit of a session"):
                await promise
        held.release()
        got = [await promise for promise in box.content if promise not in refused]
        assert len(got) == 3
        await quiet(*peers)
        assert between(exporter, receiver).ended is None


@trio_test
async def test_a_receiver_that_loses_interest_leaves_nothing_behind() -> None:
    network = MemoryNetwork()
    async with linked_peers("exporter", "receiver", "gifter", network=network) as peers:
        _exporter, _receiver, _gifter = peers
        gift, box, remote_box = await _gift(*peers)
        held = hold(network, "gifter", "exporter")
        await E(remote_box).put(gift)
        await trio.sleep(1)
        box.content = None
        await quiet(*peers)
        held.release()
        await quiet(*peers)
        del gift, remote_box
        await quiet(*peers)
        for one, other in itertools.permutations(peers, 2):
            stats = between(one, other).stats()
            assert not any(
                stats[name] for name in ("exports", "imports", "questions", "answers", "resolvers")
            )
            assert not stats["gifts_waiting"]
            assert not stats["withdrawals_waiting"]


# Promises


@pytest.mark.parametrize("home", ["exporter", "gifter", "receiver"])
def test_a_promise_that_is_sent_to_a_third_peer_becomes_what_it_becomes(home: str) -> None:
    """The gift of a promise, which is kept later: with an object of any of the three."""

    @trio_test
    async def run() -> None:
        async with linked_peers("exporter", "receiver", "gifter") as peers:
            exporter, receiver, gifter = peers
            named = dict(zip(("exporter", "receiver", "gifter"), peers, strict=True))
            recorder, box, gate = Recorder(), Box(), Gate()
            reference = recorder if home == "gifter" else await far(named[home], gifter, recorder)
            promise = E(await far(exporter, gifter, gate)).wait(reference)  # a promise of the exporter's
            await E(await far(receiver, gifter, box)).put([promise])
            sent = [E(box.content[0]).note(number) for number in range(3)]
            await trio.sleep(1)
            assert not is_settled(box.content[0])
            gate.opened.set()
            got = await box.content[0]
            sent.append(E(got).note(3))
            for answer in sent:
                await answer
            assert recorder.seen == [0, 1, 2, 3]
            if home == "receiver":
                assert got is recorder
            else:
                assert type(got) is Ref
                assert await far(named[home], receiver, recorder) is got
            assert await promise is reference

    run()


@trio_test
async def test_a_promise_that_breaks_breaks_for_the_third_peer() -> None:
    async with linked_peers("exporter", "receiver", "gifter") as (_exporter, receiver, gifter):
        box = Box()
        promise, resolver = make_promise()
        await E(await far(receiver, gifter, box)).put([promise])
        resolver.break_("nothing to give")
        with pytest.raises(RemoteError, match="nothing to give"):
            await box.content[0]


# Meeting


@trio_test
async def test_both_may_be_handed_to_each_other_at_once() -> None:
    """Exporter and receiver dial each other at the same time: crossed hellos, and both gifts arrive."""
    for delay in (0.0, 0.1, 1.0):
        network = MemoryNetwork(delay=lambda a, b, delay=delay: delay)  # type: ignore[misc]
        async with linked_peers("one", "other", "gifter", network=network) as (one, other, gifter):
            boxes = Box(), Box()
            remote = [await far(one, gifter, boxes[0]), await far(other, gifter, boxes[1])]
            await trio.sleep(5)
            E(remote[0]).put([remote[1]])
            E(remote[1]).put([remote[0]])
            await trio.sleep(5 + 10 * delay)
            (others_box,), (ones_box,) = boxes[0].content, boxes[1].content
            await E(others_box).put([Symbol("from one")])
            await E(ones_box).put([Symbol("from other")])
            assert boxes[1].content == [Symbol("from one")]
            assert boxes[0].content == [Symbol("from other")]
            assert len(one.sessions) == len(other.sessions) == 2


@trio_test
async def test_a_handoff_ends_with_the_session_to_the_exporter() -> None:
    network = MemoryNetwork()
    async with linked_peers("exporter", "receiver", "gifter", network=network, durable="never") as peers:
        exporter, receiver, _gifter = peers
        gift, box, remote_box = await _gift(*peers)
        await E(remote_box).put(gift)
        got = await box.content
        between(exporter, receiver).end("enough of you")
        with pytest.raises(Aborted, match="enough of you"):
            await E(got).echo(1)
        network.cut("gifter", "receiver")
        await settle()
        with pytest.raises(SessionEnded):
            await E(remote_box).put(1)
        assert await E(gift).echo("the gifter has it still") == "the gifter has it still"
