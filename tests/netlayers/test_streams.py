"""StreamChannel over a stream in memory: messages that arrive in drips, and ends in the wrong place."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from ocapn.errors import RemoteProtocolError
from ocapn.limits import Limits
from ocapn.netlayers.base import Channel, ChannelBroken, StreamChannel
from tests.support import trio_test

MESSAGE = b"<1'a1+>"
SYRUP, BARE, NETSTRING = b"7:" + MESSAGE, MESSAGE, b"7:" + MESSAGE + b","
FRAMED = [
    pytest.param(SYRUP, id="syrup"),
    pytest.param(BARE, id="none"),
    pytest.param(NETSTRING, id="netstring"),
]

Stream = trio.StapledStream[trio.testing.MemorySendStream, trio.testing.MemoryReceiveStream]


def channel_and_stream(frame_progress: float = 30.0) -> tuple[Channel, Stream]:
    """An accepted channel, and the bytes' other end."""
    ours, theirs = trio.testing.memory_stream_pair()
    return StreamChannel(ours, Limits(frame_progress=frame_progress), None), theirs


async def drip(stream: Stream, data: bytes, every: float) -> None:
    """Sends a byte at once, and another every so many seconds."""
    for i in range(len(data)):
        if i:
            await trio.sleep(every)
        await stream.send_all(data[i : i + 1])


@pytest.mark.parametrize("framed", FRAMED)
@trio_test
async def test_a_message_that_drips_is_refused_after_frame_progress(framed: bytes) -> None:
    channel, stream = channel_and_stream()
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(drip, stream, framed, 29.0)  # each byte on its own would be in time
        with pytest.raises(RemoteProtocolError, match=r"^a message took more than 30 s to arrive$"):
            await channel.receive(1)
        nursery.cancel_scope.cancel()
    assert trio.current_time() - start == 30


@pytest.mark.parametrize("framed", FRAMED)
@trio_test
async def test_a_message_that_stops_half_way_is_refused(framed: bytes) -> None:
    channel, stream = channel_and_stream(frame_progress=7.5)
    start = trio.current_time()
    await stream.send_all(framed[:5])
    with pytest.raises(RemoteProtocolError, match=r"^a message took more than 7\.5 s to arrive$"):
        await channel.receive(1)
    assert trio.current_time() - start == 7.5


@pytest.mark.parametrize("framed", FRAMED)
@trio_test
async def test_messages_that_drip_fast_enough_arrive_each_with_its_own_time(framed: bytes) -> None:
    channel, stream = channel_and_stream()
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(drip, stream, framed * 10, 2.5)
        for _ in range(10):
            assert await channel.receive(1) == [MESSAGE]
    assert trio.current_time() - start > 2.5 * (len(framed) * 10 - 2)  # far more than 30 s, all in all


@trio_test
async def test_silence_between_messages_is_no_message_that_drips() -> None:
    channel, stream = channel_and_stream()
    start = trio.current_time()

    async def send() -> None:
        for _ in range(3):
            await trio.sleep(1000)
            await stream.send_all(SYRUP)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        for i in range(3):
            assert await channel.receive(1) == [MESSAGE]
            assert trio.current_time() - start == 1000 * (i + 1)


@trio_test
async def test_the_time_counts_from_the_first_byte_and_not_from_the_wait_for_it() -> None:
    channel, stream = channel_and_stream()

    async def send() -> None:
        await trio.sleep(29)
        await drip(stream, SYRUP, 3)  # takes 24 s

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        assert await channel.receive(1) == [MESSAGE]


@trio_test
async def test_a_receive_that_is_cancelled_does_not_set_the_clock_back() -> None:
    channel, stream = channel_and_stream()
    start = trio.current_time()
    await stream.send_all(SYRUP[:3])
    for _ in range(4):
        with trio.move_on_after(7):
            await channel.receive(1)
            raise AssertionError("a message came of which three bytes were sent")
    with pytest.raises(RemoteProtocolError, match="took more than 30 s"):
        await channel.receive(1)
    assert trio.current_time() - start == 30


@trio_test
async def test_a_receive_that_is_cancelled_half_way_loses_nothing() -> None:
    channel, stream = channel_and_stream()
    received: list[bytes] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(drip, stream, SYRUP * 3, 1.0)
        while len(received) < 3:
            with trio.move_on_after(0.3):
                received += await channel.receive(1)
    assert received == [MESSAGE] * 3


@trio_test
async def test_whole_messages_come_before_the_one_that_drips() -> None:
    channel, stream = channel_and_stream()
    await stream.send_all(SYRUP * 2 + SYRUP[:4])
    assert await channel.receive(64) == [MESSAGE] * 2
    start = trio.current_time()
    with pytest.raises(RemoteProtocolError, match="took more than 30 s"):
        await channel.receive(64)
    assert trio.current_time() - start == 30


@pytest.mark.parametrize("framed", FRAMED)
@trio_test
async def test_an_end_between_messages_is_an_end_and_inside_one_is_a_failure(framed: bytes) -> None:
    for cut in range(len(framed)):
        channel, stream = channel_and_stream()
        await stream.send_all(framed + framed[:cut])
        await stream.send_eof()
        assert await channel.receive(64) == [MESSAGE]
        if cut:
            with pytest.raises(ChannelBroken, match=r"^the connection ended inside a message$"):
                await channel.receive(64)
        else:
            assert await channel.receive(64) == []


@trio_test
async def test_what_is_no_message_is_refused_and_drained() -> None:
    channel, stream = channel_and_stream()
    await stream.send_all(b"GET / HTTP/1.1\r\n\r\n")
    for _ in range(2):
        with pytest.raises(RemoteProtocolError, match="a frame begins with its length"):
            await channel.receive(1)
    await stream.send_all(b"Host: example.com\r\n" * 1000)
    await stream.send_eof()
    await channel.drain()
    with pytest.raises(RemoteProtocolError):  # it has read all, and learnt nothing better
        await channel.receive(1)


@trio_test
async def test_after_aclose_nothing_goes_either_way() -> None:
    channel, stream = channel_and_stream()
    await stream.send_all(SYRUP)
    await channel.aclose()
    with pytest.raises(ChannelBroken):
        await channel.send([MESSAGE])
    with pytest.raises(ChannelBroken):
        await channel.receive(1)
    assert channel.send_now([MESSAGE]) == 0


@trio_test
async def test_nothing_is_sent_after_the_end() -> None:
    channel, stream = channel_and_stream()
    await channel.send_eof()
    assert await stream.receive_some() == b""
    with pytest.raises(ChannelBroken):
        await channel.send([MESSAGE])


@pytest.mark.parametrize("framed", FRAMED)
@trio_test
async def test_others_have_their_turn_between_two_batches_of_what_came_at_once(framed: bytes) -> None:
    channel, stream = channel_and_stream()
    passes = 0

    async def others() -> None:
        nonlocal passes
        while True:
            await trio.lowlevel.checkpoint()
            passes += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        await stream.send_all(framed * 8)
        before = passes
        for _ in range(4):
            assert await channel.receive(2) == [MESSAGE] * 2
        assert passes - before >= 3  # of the first or the last pass, they may be first or last
        nursery.cancel_scope.cancel()


@trio_test
async def test_a_batch_that_is_not_received_because_of_a_cancellation_is_not_lost() -> None:
    channel, stream = channel_and_stream()
    await stream.send_all(SYRUP * 2)
    assert await channel.receive(1) == [MESSAGE]
    with trio.CancelScope() as scope:
        scope.cancel()
        await channel.receive(1)
    assert scope.cancelled_caught
    assert await channel.receive(1) == [MESSAGE]
