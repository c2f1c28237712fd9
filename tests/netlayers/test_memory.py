"""memory: links that are cut, held and delayed, and what that does to what is under way."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from ocapn.errors import ConnectFailed, RemoteProtocolError
from ocapn.limits import Limits
from ocapn.model.locators import PeerLocator
from ocapn.netlayers.base import Channel, ChannelBroken, Listener
from ocapn.netlayers.memory import Link, MemoryNetlayer, MemoryNetwork
from tests.support import trio_test

LIMITS = Limits()


def locator(designator: str) -> PeerLocator:
    return PeerLocator("memory", designator)


async def listening(network: MemoryNetwork, designator: str) -> Listener:
    listener = await MemoryNetlayer(network, designator).listen(LIMITS)
    assert listener is not None
    return listener


async def linked(network: MemoryNetwork, a: str = "a", b: str = "b") -> tuple[Channel, Channel, Link]:
    """`a` dials `b`, which does not listen any more then."""
    listener = await listening(network, b)
    near = await MemoryNetlayer(network, a, listen=False).dial(locator(b), LIMITS)
    far = await listener.accept()
    await listener.aclose()
    return near, far, network.links[-1]


class Arrivals:
    """Messages and when they were received, on channels that are read in the background."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.seen: list[tuple[float, bytes]] = []
        self.start = trio.current_time()

    def read(self, channel: Channel, most: int = 64) -> None:
        async def read() -> None:
            while messages := await channel.receive(most):
                self.seen += [(round(trio.current_time() - self.start, 6), message) for message in messages]

        self.nursery.start_soon(read)


async def settle() -> None:
    """Lets everything run that can, without moving the clock."""
    await trio.testing.wait_all_tasks_blocked()


# Cutting


@trio_test
async def test_a_cut_tells_both_ends_and_loses_what_is_under_way() -> None:
    network = MemoryNetwork()
    near, far, link = await linked(network)
    await near.send([b"one", b"two"])
    await far.send([b"three"])
    assert link.under_way == 3
    link.cut()
    assert link.under_way == 0
    assert not link.alive
    for channel in (near, far):
        with pytest.raises(ChannelBroken):
            await channel.receive(1)
        with pytest.raises(ChannelBroken):
            await channel.send([b"four"])


@trio_test
async def test_a_cut_wakes_who_waits() -> None:
    network = MemoryNetwork(capacity=1)
    near, far, link = await linked(network)
    await near.send([b"fills the link"])
    woken: list[str] = []

    async def broken_receive() -> None:
        with pytest.raises(ChannelBroken):
            await near.receive(1)
        woken.append("receive")

    async def broken_send() -> None:
        with pytest.raises(ChannelBroken):
            await near.send([b"has to wait"])
        woken.append("send")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(broken_receive)
        nursery.start_soon(broken_send)
        await settle()
        assert woken == []
        link.cut()
    assert sorted(woken) == ["receive", "send"]
    await far.aclose()


@trio_test
async def test_a_network_cuts_the_links_between_two_whoever_dialled() -> None:
    network = MemoryNetwork()
    _, _, first = await linked(network, "a", "b")
    _, _, second = await linked(network, "b", "a")
    _, _, other = await linked(network, "a", "c")
    assert network.links_between("a", "b") == network.links_between("b", "a") == [first, second]
    assert network.cut("b", "a") == 2
    assert (first.alive, second.alive, other.alive) == (False, False, True)
    assert network.links == [other]
    assert network.cut("a", "b") == 0


@trio_test
async def test_a_closed_connection_is_no_link_any_more() -> None:
    network = MemoryNetwork()
    near, far, link = await linked(network)
    await near.aclose()
    assert not link.alive
    assert network.links_between("a", "b") == []
    assert await far.receive(1) == []
    _, _, other = await linked(network)
    assert network.links == [other]  # dead ones do not pile up


# Holding


@trio_test
async def test_held_links_deliver_nothing_until_release() -> None:
    network = MemoryNetwork()
    near, far, link = await linked(network)
    async with trio.open_nursery() as nursery:
        arrivals = Arrivals(nursery)
        arrivals.read(near)
        arrivals.read(far)
        link.hold()
        await near.send([b"forth", b"and more"])
        await far.send([b"back"])
        await near.send_eof()
        await far.send_eof()
        await trio.sleep(100)
        assert arrivals.seen == []
        assert link.under_way == 3
        link.release()
    assert sorted(arrivals.seen) == [(100, b"and more"), (100, b"back"), (100, b"forth")]


@pytest.mark.parametrize("forth_held", [False, True])
@trio_test
async def test_one_direction_is_held_alone(forth_held: bool) -> None:
    network = MemoryNetwork()
    near, far, link = await linked(network)
    link.hold(a_to_b=forth_held, b_to_a=not forth_held)
    await near.send([b"forth"])
    await far.send([b"back"])
    free, held = (near, far) if forth_held else (far, near)
    assert await free.receive(1) == [b"back" if forth_held else b"forth"]
    with trio.move_on_after(100) as waiting:
        await held.receive(1)
    assert waiting.cancelled_caught
    link.release()
    assert await held.receive(1) == [b"forth" if forth_held else b"back"]


@pytest.mark.parametrize("forth_first", [False, True])
@trio_test
async def test_holding_one_direction_after_the_other_holds_both(forth_first: bool) -> None:
    network = MemoryNetwork()
    near, far, link = await linked(network)
    link.hold(a_to_b=forth_first, b_to_a=not forth_first)
    link.hold(a_to_b=not forth_first, b_to_a=forth_first)
    await near.send([b"forth"])
    await far.send([b"back"])
    for channel in (near, far):
        with trio.move_on_after(100) as waiting:
            await channel.receive(1)
        assert waiting.cancelled_caught


@trio_test
async def test_a_hold_stops_what_is_delayed_already() -> None:
    network = MemoryNetwork(delay=lambda a, b: 10)
    near, far, link = await linked(network)
    async with trio.open_nursery() as nursery:
        arrivals = Arrivals(nursery)
        arrivals.read(far)
        await near.send([b"late"])
        await near.send_eof()
        await trio.sleep(5)
        link.hold()
        await trio.sleep(45)
        assert arrivals.seen == []
        link.release()
    assert arrivals.seen == [(50, b"late")]


@trio_test
async def test_a_held_link_can_be_cut() -> None:
    network = MemoryNetwork()
    near, far, link = await linked(network)
    link.hold()
    await near.send([b"lost"])
    link.cut()
    link.release()
    with pytest.raises(ChannelBroken):
        await far.receive(1)


# Delays and order


@trio_test
async def test_a_delay_is_that_of_the_direction() -> None:
    network = MemoryNetwork(delay=lambda a, b: {"ab": 3.0, "ba": 5.0}[a + b])
    near, far, _ = await linked(network)
    async with trio.open_nursery() as nursery:
        arrivals = Arrivals(nursery)
        arrivals.read(near)
        arrivals.read(far)
        await near.send([b"forth"])
        await far.send([b"back"])
        await trio.sleep(1)
        await near.send([b"later"])
        await near.send_eof()
        await far.send_eof()
    assert arrivals.seen == [(3, b"forth"), (4, b"later"), (5, b"back")]


@trio_test
async def test_order_within_a_direction_is_kept_whatever_the_delays() -> None:
    delays = iter([5.0, 1.0, 0.0, 7.0, 2.0])
    network = MemoryNetwork(delay=lambda a, b: next(delays))
    near, far, _ = await linked(network)
    async with trio.open_nursery() as nursery:
        arrivals = Arrivals(nursery)
        arrivals.read(far)
        await near.send([b"1", b"2"])
        await near.send([b"3", b"4", b"5"])
        await near.send_eof()
    assert arrivals.seen == [(5, b"1"), (5, b"2"), (5, b"3"), (7, b"4"), (7, b"5")]


@trio_test
async def test_links_overtake_each_other() -> None:
    network = MemoryNetwork(delay=lambda a, b: 10.0 if a == "slow" else 1.0)
    slow, behind, _ = await linked(network, "slow", "b")
    fast, ahead, _ = await linked(network, "fast", "b")
    async with trio.open_nursery() as nursery:
        arrivals = Arrivals(nursery)
        arrivals.read(behind)
        arrivals.read(ahead)
        await slow.send([b"sent first"])
        await fast.send([b"sent second"])
        await slow.send_eof()
        await fast.send_eof()
    assert arrivals.seen == [(1, b"sent second"), (10, b"sent first")]


@trio_test
async def test_two_links_between_the_same_peers_overtake_each_other() -> None:
    delays = iter([10.0, 1.0])
    network = MemoryNetwork(delay=lambda a, b: next(delays))
    first, behind, _ = await linked(network)
    second, ahead, _ = await linked(network)
    async with trio.open_nursery() as nursery:
        arrivals = Arrivals(nursery)
        arrivals.read(behind)
        arrivals.read(ahead)
        await first.send([b"sent first"])
        await second.send([b"sent second"])
        await first.send_eof()
        await second.send_eof()
    assert arrivals.seen == [(1, b"sent second"), (10, b"sent first")]


@trio_test
async def test_the_end_does_not_overtake_what_is_delayed() -> None:
    network = MemoryNetwork(delay=lambda a, b: 10)
    near, far, _ = await linked(network)
    start = trio.current_time()
    await near.send([b"late"])
    await near.send_eof()
    assert await far.receive(64) == [b"late"]
    assert trio.current_time() - start == 10
    assert await far.receive(64) == []


@trio_test
async def test_nothing_is_sent_after_the_end() -> None:
    near, _, _ = await linked(MemoryNetwork())
    await near.send_eof()
    with pytest.raises(ChannelBroken):
        await near.send([b"more"])


# Capacity


@pytest.mark.parametrize("receiver_waits", [False, True])
@trio_test
async def test_senders_wait_for_room(receiver_waits: bool) -> None:
    network = MemoryNetwork(capacity=2)
    near, far, link = await linked(network)
    messages = [b"%d" % i for i in range(10)]
    received: list[bytes] = []

    async def send() -> None:
        await near.send(messages)
        received.append(b"sent")

    async def receive() -> None:
        while len(received) < 9:
            received.extend(await far.receive(1))

    async with trio.open_nursery() as nursery:
        if (
            receiver_waits
        ):  # before anything is there: the sender has to wake it, with a batch larger than the link
            nursery.start_soon(receive)
            await settle()
        nursery.start_soon(send)
        await settle()
        if not receiver_waits:
            assert link.under_way == 2
            assert await far.receive(1) == [b"0"]
            await settle()
            assert link.under_way == 2
            received.append(b"0")
            nursery.start_soon(receive)
    while messages[len(received) - (b"sent" in received) :]:
        received.extend(await far.receive(1))
    assert [message for message in received if message != b"sent"] == messages
    assert received.index(b"sent") >= 8  # all but the two that the link holds were taken by then


@trio_test
async def test_each_direction_has_its_capacity() -> None:
    near, far, link = await linked(MemoryNetwork(capacity=1))
    await near.send([b"forth"])
    await far.send([b"back"])
    assert link.under_way == 2
    with trio.move_on_after(100) as waiting:
        await near.send([b"too many"])
    assert waiting.cancelled_caught
    assert await far.receive(64) == [b"forth"]


@trio_test
async def test_a_sender_that_waits_learns_that_the_other_side_has_closed() -> None:
    near, far, _ = await linked(MemoryNetwork(capacity=1))
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            with pytest.raises(ChannelBroken):
                await near.send([b"one", b"two"])

        nursery.start_soon(send)
        await settle()
        await far.aclose()


# Limits


@trio_test
async def test_what_precedes_a_message_that_is_too_long_is_received() -> None:
    near, far, _ = await linked(MemoryNetwork())
    far.set_max_message(3)
    await near.send([b"one", b"four", b"two"])
    assert await far.receive(64) == [b"one"]
    for _ in range(2):
        with pytest.raises(RemoteProtocolError, match="a message of more than 3 bytes"):
            await far.receive(64)


# Listening and dialling


@trio_test
async def test_a_designator_in_use_is_an_error_that_names_it() -> None:
    network = MemoryNetwork()
    first = await listening(network, "a")
    with pytest.raises(ConnectFailed, match=r"^the memory network has a peer called 'a' already$"):
        await MemoryNetlayer(network, "a").listen(LIMITS)
    await listening(MemoryNetwork(), "a")  # another network is another matter
    await first.aclose()
    await listening(network, "a")


@trio_test
async def test_where_nobody_listens_a_dial_says_so() -> None:
    network = MemoryNetwork()
    with pytest.raises(ConnectFailed, match=r"^cannot reach ocapn://b\.memory: nobody listens there$"):
        await MemoryNetlayer(network, "a").dial(locator("b"), LIMITS)
    assert network.links == []


@trio_test
async def test_one_that_does_not_listen_has_a_location_all_the_same() -> None:
    network = MemoryNetwork()
    netlayer = MemoryNetlayer(network, "a", listen=False)
    assert await netlayer.listen(LIMITS) is None
    assert netlayer.location == locator("a")
    with pytest.raises(ConnectFailed, match="nobody listens there"):
        await MemoryNetlayer(network, "b").dial(locator("a"), LIMITS)


@trio_test
async def test_a_listener_closed_twice_does_not_end_the_next_ones_listening() -> None:
    network = MemoryNetwork()
    first = await listening(network, "b")
    await first.aclose()
    second = await listening(network, "b")
    await first.aclose()
    await MemoryNetlayer(network, "a").dial(locator("b"), LIMITS)
    assert (await second.accept()).source == "a"


@trio_test
async def test_connections_not_yet_accepted_end_with_the_listener() -> None:
    network = MemoryNetwork()
    listener = await listening(network, "b")
    near = await MemoryNetlayer(network, "a").dial(locator("b"), LIMITS)
    await near.send([b"hello"])
    await listener.aclose()
    assert await near.receive(1) == []
    with pytest.raises(ChannelBroken):
        await near.send([b"hello?"])
    assert network.links_between("a", "b") == []


@trio_test
async def test_a_listener_that_does_not_accept_is_full_some_day(monkeypatch: pytest.MonkeyPatch) -> None:
    backlog = trio.open_memory_channel[Channel](2)
    small = {Channel: lambda size: backlog}
    with monkeypatch.context() as patched:
        patched.setattr(trio, "open_memory_channel", small)
        network = MemoryNetwork()
        listener = await listening(network, "b")
    dialler = MemoryNetlayer(network, "a")
    for _ in range(2):
        await dialler.dial(locator("b"), LIMITS)
    with pytest.raises(ConnectFailed, match="too many connections wait there to be accepted"):
        await dialler.dial(locator("b"), LIMITS)
    assert len(network.links_between("a", "b")) == 2
    await listener.accept()
    await dialler.dial(locator("b"), LIMITS)


@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize("theirs", [False, True])
@trio_test
async def test_each_side_proves_the_other_if_it_is_told_to(ours: bool, theirs: bool) -> None:
    network = MemoryNetwork()
    listener = await MemoryNetlayer(network, "b", authenticates=theirs).listen(LIMITS)
    assert listener is not None
    near = await MemoryNetlayer(network, "a", authenticates=ours).dial(locator("b"), LIMITS)
    far = await listener.accept()
    assert near.authenticated == ("b" if ours else None)
    assert far.authenticated == ("a" if theirs else None)
    assert far.source == "a"
