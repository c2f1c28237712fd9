"""`check_netlayer`: what `ocapn.netlayers.base` promises of a netlayer, promise by promise."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import trio.testing

from ocapn.errors import BadLocator, ConnectFailed, RemoteProtocolError
from ocapn.limits import Limits
from ocapn.model.locators import PeerLocator
from ocapn.netlayers.base import Channel, ChannelBroken
from ocapn.testing.stage import (
    ROUNDS,
    Case,
    MakeNetlayer,
    Stage,
    both,
    checkpoints,
    difference,
    leaf,
    require,
)

_Check = Callable[[Stage], Awaitable[None]]
_PROMISES: Final[list[tuple[str, _Check]]] = []


def _promise(text: str) -> Callable[[_Check], _Check]:
    def note(check: _Check) -> _Check:
        _PROMISES.append((text, check))
        return check

    return note


def _each_way(check: Callable[[Stage, Channel, Channel], Awaitable[None]]) -> _Check:
    """Runs a check of one end (`a`) and the other (`b`) twice: the first is the dialler's, then the listener's."""

    async def run(stage: Stage) -> None:
        near, far = await stage.pair()
        await check(stage, near, far)
        near, far = await stage.pair()
        await check(stage, far, near)

    return run


@_promise("after listen, `location` is final and names the transport")
async def _location(stage: Stage) -> None:
    listener = stage.listener
    given = listener.location
    uri = given.uri
    for netlayer in (stage.here, stage.there):
        require(
            netlayer.location.transport == netlayer.transport,
            f"the location names the transport {netlayer.location.transport}, the netlayer {netlayer.transport}",
        )
    require(
        stage.there.location.uri == uri,
        f"the netlayer's location is {stage.there.location.uri}, its listener's {uri}",
    )
    await stage.pair()
    for now in (listener.location.uri, stage.there.location.uri):
        require(now == uri, f"it was {uri}, and changed to {now}")
    parsed = PeerLocator.parse(uri)
    require(parsed == given and parsed.hints == given.hints, f"its URI {uri} does not say all of it")
    async with stage.accepting():
        await stage.dial(parsed)


@_promise("dial and accept give the two ends of one connection")
async def _ends(stage: Stage) -> None:
    first, second = await stage.pair(), await stage.pair()
    for near, far in (second, first):
        await stage.carry(near, far, stage.messages(2))
        await stage.carry(far, near, stage.messages(2))
        for channel in (near, far):
            require(isinstance(channel, Channel), f"{type(channel).__name__} is no Channel")
            require(isinstance(channel.source, str), f"`source` is {channel.source!r}, which is no str")
    other = stage.case.make(listen=True)  # one that listens dials too
    await stage.listen(other)
    async with stage.accepting():
        await stage.dial(netlayer=other)


@_promise("`authenticated` is what was proved of the other side's designator, or None")
async def _authenticated(stage: Stage) -> None:
    near, far = await stage.pair()
    for side, proved, other in (
        ("dialled", near.authenticated, stage.listener.location.designator),
        ("accepted", far.authenticated, stage.here.location.designator),
    ):
        require(
            proved is None or proved == other,
            f"a channel that was {side} gives {proved!r}, and the other side is {other!r}",
        )
    stranger = stage.case.make(listen=False).location.designator
    locator = PeerLocator(stage.here.transport, stranger, stage.listener.location.hints)
    async with stage.accepting():
        channel = await stage.try_dial(locator, ConnectFailed, BadLocator)
    require(
        channel is None or channel.authenticated is None,
        f"a dial to {stranger!r}, which does not listen, gave a channel on which it is authenticated",
    )


@_promise("accept does not wait for begin, which may be cancelled")
async def _begin(stage: Stage) -> None:
    async def dial() -> None:
        await stage.dial()

    async with trio.open_nursery() as nursery:
        channels = []
        for _ in range(2):
            nursery.start_soon(dial)
            channels.append(await stage.later("what was dialled is accepted", stage._accept))
        for channel in reversed(channels):
            await stage.begin(channel)

    async def give_up() -> None:
        with contextlib.suppress(ConnectFailed):  # the other side closes before it has begun
            await stage.dial()

    for count in range(ROUNDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(give_up)
            channel = await stage.later("what was dialled is accepted", stage._accept)
            await _cancelled(count, channel.begin)
            await stage.close(channel)
    await stage.pair()


@_promise("be_again with its own identity makes it no other peer")
async def _again(stage: Stage) -> None:
    netlayer = stage.case.make(listen=False)
    require(isinstance(netlayer.identity, str), f"`identity` is {netlayer.identity!r}, which is no str")
    before = netlayer.location
    netlayer.be_again(netlayer.identity)
    require(netlayer.location == before, f"it was {before.uri}, and is {netlayer.location.uri}")


@_promise("messages arrive whole and in order, both ways")
async def _in_order(stage: Stage) -> None:
    near, far = await stage.pair()
    for sender, receiver in ((near, far), (far, near)):
        await stage.carry(sender, receiver, stage.messages(3, 16), batch=1)
        await stage.carry(sender, receiver, stage.messages(50))
        await stage.carry(sender, receiver, stage.messages(50), batch=7)
        await stage.carry(sender, receiver, stage.messages(200, 5000), batch=200)
    forth, back = stage.messages(300, 3000), stage.messages(300, 3000)
    async with trio.open_nursery() as nursery:  # both at once, more than a transport buffers
        nursery.start_soon(stage.carry, near, far, forth)
        nursery.start_soon(stage.carry, far, near, back)


@_promise("receive(most) gives one to `most` messages")
@_each_way
async def _most(stage: Stage, a: Channel, b: Channel) -> None:
    for most in (1, 2, 3, 64):
        await stage.carry(a, b, stage.messages(20), most=most)


@_promise("receive waits while nothing has been sent, and may be cancelled")
async def _waits(stage: Stage) -> None:
    near, far = await stage.pair()
    for receiver in (near, far, near):
        with trio.move_on_after(0.01):
            messages = await receiver.receive(1)
            raise AssertionError(f"it returned {len(messages)} messages")
    await stage.carry(near, far, stage.messages(2))
    await stage.carry(far, near, stage.messages(2))


@_promise("what send_now says it took arrives whole, before what follows")
@_each_way
async def _send_now(stage: Stage, a: Channel, b: Channel) -> None:
    b.set_max_message(stage.limits.frame)
    batch = stage.messages(5)
    taken = _take_now(a, batch)
    if a.unsent:
        await both(lambda: stage.send(a, []), lambda: stage.expect(b, batch[:taken]))
    else:
        await stage.expect(b, batch[:taken])
    await stage.carry(a, b, batch[taken:])
    for complete_first in (True, False):
        await _jam(stage, a, b, complete_first)


def _take_now(sender: Channel, batch: list[bytes]) -> int:
    taken = sender.send_now(batch)
    require(0 <= taken <= len(batch), f"send_now took {taken} of {len(batch)} messages")
    return taken


async def _jam(stage: Stage, sender: Channel, receiver: Channel, complete_first: bool) -> None:
    """Sends without waiting until no more is taken, or 16 MiB are; then sends on, and has all received."""
    size = min(stage.limits.frame, 1 << 16)
    expected: list[bytes] = []
    following = stage.messages(3)
    for _ in range(128):
        batch = stage.messages(2, size)
        taken = _take_now(sender, batch)
        expected += batch[:taken]
        if taken < len(batch) or sender.unsent:
            break
    if not sender.unsent:  # then all of it is on its way
        await stage.expect(receiver, expected)
        expected = []
    elif not complete_first:  # there may be room again, and the rest comes first all the same
        with trio.move_on_after(0.01):
            while len(expected) > 1:
                await stage.expect(receiver, expected[:1], most=1)
                del expected[0]
        batch = stage.messages(2)
        expected += batch[: _take_now(sender, batch)]

    async def send_on() -> None:
        if complete_first and sender.unsent:
            await stage.send(sender, [])
            require(not sender.unsent, "`unsent` is still true after a send")
        await stage.send(sender, following)
        require(not sender.unsent, "`unsent` is still true after a send")

    await both(send_on, lambda: stage.expect(receiver, expected + following))


@_promise("messages up to the limit arrive, larger ones are refused with RemoteProtocolError")
@_each_way
async def _first_limit(stage: Stage, a: Channel, b: Channel) -> None:
    await _limited(stage, a, b, stage.limits.unauthenticated_frame)


@_promise(
    "set_max_message: messages up to the limit arrive, larger ones are refused with RemoteProtocolError"
)
@_each_way
async def _limit(stage: Stage, a: Channel, b: Channel) -> None:
    b.set_max_message(stage.limits.frame)
    await stage.carry(a, b, stage.messages(2, stage.limits.frame))
    b.set_max_message(100)
    await _limited(stage, a, b, 100)


@_promise("set_max_message: messages over a large limit are refused with RemoteProtocolError")
@_each_way
async def _large_limit(stage: Stage, a: Channel, b: Channel) -> None:
    b.set_max_message(stage.limits.frame)
    await _limited(stage, a, b, stage.limits.frame)


async def _limited(stage: Stage, sender: Channel, receiver: Channel, limit: int) -> None:
    await stage.carry(sender, receiver, stage.messages(2, limit))
    await _refused(stage, sender, receiver, limit)


async def _refused(stage: Stage, sender: Channel, receiver: Channel, limit: int) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.push, sender, stage.messages(1, limit + 1))
        try:
            messages = await stage.receive(receiver, 1)
        except RemoteProtocolError:
            nursery.cancel_scope.cancel()
            return
        except ChannelBroken:
            raise AssertionError("a message over the limit gave ChannelBroken") from None
        raise AssertionError(
            f"the limit is {limit} bytes, and receive gave {[len(message) for message in messages]} bytes"
        )


@_promise("a limit that is raised counts for the next message, also if that has arrived already")
@_each_way
async def _limit_raised(stage: Stage, a: Channel, b: Channel) -> None:
    first, large = stage.messages(1, 100), stage.messages(2, stage.limits.frame)

    async def expect() -> None:
        await stage.expect(b, first, most=1)
        await checkpoints(5)
        b.set_max_message(stage.limits.frame)
        await stage.expect(b, large)

    await both(lambda: stage.send(a, first + large), expect)


@_promise("send_eof ends one direction, after what was sent before; the other goes on")
@_each_way
async def _eof(stage: Stage, a: Channel, b: Channel) -> None:
    await _last_words(stage, a, b)
    await stage.carry(b, a, stage.messages(5), batch=2)
    await stage.carry(b, a, stage.messages(100, 5000), batch=100)
    await _last_words(stage, b, a)


async def _last_words(stage: Stage, ending: Channel, other: Channel) -> None:
    messages = stage.messages(5)

    async def send() -> None:
        await stage.send(ending, messages)
        await stage.soon("send_eof returns", ending.send_eof)

    async def expect() -> None:
        await stage.expect(other, messages, most=1)
        await stage.expect_end(other)

    await both(send, expect)


@_promise("drain receives until the other side has sent all")
@_each_way
async def _drain(stage: Stage, a: Channel, b: Channel) -> None:
    drained = False

    async def send() -> None:
        for _ in range(20):
            await stage.send(a, stage.messages(10, stage.limits.unauthenticated_frame))
        require(not drained, "it returned before the end")
        await stage.soon("send_eof returns", a.send_eof)

    async def drain() -> None:
        nonlocal drained
        await stage.soon("it returns at the end", b.drain)
        drained = True

    await both(send, drain)


@_promise("after aclose, the other side sees the end or ChannelBroken")
@_each_way
async def _close(stage: Stage, a: Channel, b: Channel) -> None:
    async def close() -> None:
        await checkpoints(3)  # the other side is waiting by then
        await stage.close(a)

    await both(close, lambda: stage.expect_end(b, broken=True))
    await _to_nobody(stage, b)


@_promise("after aclose with messages unread, the other side sees the end or ChannelBroken")
@_each_way
async def _close_unread(stage: Stage, a: Channel, b: Channel) -> None:
    async def close() -> None:
        await checkpoints(3)
        await stage.close(a)  # many transports reset the connection now

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.push, b, stage.messages(3))
        await both(close, lambda: stage.expect_end(b, broken=True))
    await _to_nobody(stage, b)


async def _to_nobody(stage: Stage, channel: Channel) -> None:
    """Sends to a side that has gone. There may be no error yet, but no other than ChannelBroken."""
    for _ in range(20):
        await stage.push(channel, stage.messages(1, 5000))
        with contextlib.suppress(ChannelBroken):
            _take_now(channel, stage.messages(1))


@_promise("a receive that is cancelled loses nothing")
@_each_way
async def _cancelled_receive(stage: Stage, a: Channel, b: Channel) -> None:
    b.set_max_message(stage.limits.frame)
    got: list[bytes] = []

    async def receive() -> None:
        got.extend(await b.receive(1))

    for count in range(8 * ROUNDS):
        large = count % ROUNDS == 0  # arrives in pieces
        expected = stage.messages(2, stage.limits.frame if large else 0)
        got.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.send, a, expected)
            for more in range(5 if large else 1):
                await _cancelled(count % 8 + more, receive)
            for i, message in enumerate(got):
                require(message == expected[i], difference(message, i, expected))
            await stage.expect(b, expected[len(got) :])


async def _cancelled(count: int, function: Callable[[], Awaitable[object]]) -> None:
    """Runs `function` and cancels it after `count` passes of the loop."""

    async def run() -> None:
        with scope:
            await function()

    scope = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await checkpoints(count)
        scope.cancel()


@_promise("an accept that is cancelled loses no connection")
async def _cancelled_accept(stage: Stage) -> None:
    accepted: list[Channel] = []
    dialled: list[Channel] = []

    async def accept() -> None:
        accepted.append(await stage._accept())

    async def dial(message: bytes) -> None:
        dialled.append(await stage.dial())
        await stage.push(dialled[-1], [message])

    for count in range(8 * ROUNDS):
        message = stage.message(16)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dial, message)
            for more in range(3):
                if not accepted:
                    await _cancelled(count % 8 + more, accept)
            if not accepted:
                await stage.soon("what was dialled during a cancelled accept is accepted later", accept)
            await stage.begin(accepted[-1])
            await stage.expect(accepted[-1], [message])
        for channel in (dialled.pop(), accepted.pop()):
            await stage.close(channel)


@_promise("a dial that is cancelled leaves nothing behind")
async def _cancelled_dial(stage: Stage) -> None:
    token = stage.message(16)
    found = trio.Event()
    accepting = trio.CancelScope()

    dialled: list[Channel] = []

    async def dial() -> None:
        dialled.append(await stage.dial())

    async def look_at(channel: Channel) -> None:
        try:
            await stage.begin(channel)
            messages = await stage.soon("its connection is closed", channel.receive, 1)
        except (ChannelBroken, RemoteProtocolError):
            return
        if messages == [token]:
            found.set()

    async def look() -> None:
        async with trio.open_nursery() as looking:
            with accepting:
                while True:
                    looking.start_soon(look_at, await stage._accept())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        for count in range(12 * ROUNDS):
            await _cancelled(count % 12, dial)
            if dialled:
                await stage.close(dialled.pop())
        await stage.push(await stage.dial(), [token])
        await stage.soon("another dial works", found.wait)
        accepting.cancel()


@_promise("many channels at once do not disturb each other")
async def _many(stage: Stage) -> None:
    count = stage.case.channels
    hellos = {stage.message(16 + i): i for i in range(count)}
    near: dict[int, Channel] = {}
    far: dict[int, Channel] = {}

    async def dial(hello: bytes, i: int) -> None:
        near[i] = await stage.dial()
        await stage.push(near[i], [hello])

    async def hear(channel: Channel) -> None:
        (hello,) = await stage.receive(channel, 1) or [b""]
        require(hellos.get(hello) not in (None, *far), "a channel gave what was not sent on it")
        far[hellos[hello]] = channel

    async with trio.open_nursery() as nursery:
        for hello, i in hellos.items():
            nursery.start_soon(dial, hello, i)
        for _ in range(count):
            nursery.start_soon(hear, await stage.accept())
    for i in range(0, count, 4):
        await stage.close(near[i])
    async with trio.open_nursery() as nursery:
        for i in range(count):
            if i % 4:
                nursery.start_soon(stage.carry, near[i], far[i], stage.messages(20))
                nursery.start_soon(stage.carry, far[i], near[i], stage.messages(20))
            else:
                nursery.start_soon(stage.expect_end, far[i], True)


@_promise("dial raises ConnectFailed where nobody listens")
async def _nobody(stage: Stage) -> None:
    await stage.pair()
    closed = stage.listener.location
    await stage.aclose()
    for locator in (closed, *stage.case.nobody):
        channel = await stage.try_dial(locator, ConnectFailed)
        require(channel is None, f"a dial to {locator.uri} gave a channel")


@_promise("dial raises BadLocator or ConnectFailed for a malformed locator")
async def _malformed(stage: Stage) -> None:
    good = stage.listener.location
    damaged = [PeerLocator(good.transport, good.designator)]
    for name in good.hints:
        others = {key: value for key, value in good.hints.items() if key != name}
        damaged.append(PeerLocator(good.transport, good.designator, others))
        for value in ("", "\0", "x" * 5000):
            damaged.append(PeerLocator(good.transport, good.designator, {**others, name: value}))
    async with stage.accepting():
        for locator in stage.case.malformed:
            channel = await stage.try_dial(locator, BadLocator, ConnectFailed)
            require(channel is None, f"a dial to {locator.uri} gave a channel")
        for locator in damaged:
            channel = await stage.try_dial(locator, BadLocator, ConnectFailed)
            if channel is not None:  # a hint may be more than this netlayer needs
                await stage.close(channel)


@_promise("aclose of a listener gives back what listen took")
async def _listen_again(stage: Stage) -> None:
    channels = await stage.pair()
    await stage.close(stage.listener)
    await stage.carry(*channels, stage.messages(2))
    for _ in range(2):
        before = stage.there.location
        try:
            stage.listener = await stage.listen(stage.there)
        except ConnectFailed as error:
            raise AssertionError(f"the same netlayer cannot listen again: {error}") from error
        require(stage.there.location == before, f"{before.uri} listens again as {stage.there.location.uri}")
        await stage.pair()
        await stage.close(stage.listener)


@_promise("aclose of a listener ends the connections that wait to be accepted")
async def _never_accepted(stage: Stage) -> None:
    async def dial() -> None:
        with contextlib.suppress(ConnectFailed):  # a dial may need the other side's accept
            await stage.expect_end(await stage.dial(), broken=True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(dial)
        await trio.sleep(0.05)
        await stage.close(stage.listener)


async def check_netlayer(
    make: MakeNetlayer,
    *,
    limits: Limits | None = None,
    malformed: Iterable[PeerLocator] = (),
    nobody: Iterable[PeerLocator] = (),
    channels: int = 20,
    patience: float = 10.0,
) -> None:
    """Checks that a netlayer keeps what `ocapn.netlayers.base` promises. Run it in the tests of your own netlayer:

        async def test_contract() -> None:
            await check_netlayer(lambda *, listen: MyNetlayer(port=0 if listen else None))

    Raises AssertionError, whose text names the promise that was broken, and how. Dials only what it listens on
    itself, `malformed` and `nobody`. Its messages are Syrup records, and on each channel the dialler speaks first.

    `malformed` are locators that no dial can use: each must raise BadLocator or ConnectFailed. The check makes some
    of its own by damaging the hints of a good one. `nobody` are well-formed locators where nobody listens: each must
    raise ConnectFailed, as must the place of a listener that was closed. `limits` are given to the netlayer; their
    `frame` is also the size of the largest message. Raises ValueError if `unauthenticated_frame` is less than 5,000,
    or `frame` not more than that: too little to check with. `channels` is how many are opened at once.

    What does not happen within `patience` seconds (twice that where the other side may be to blame) counts as broken,
    and so does a promise that takes eight times as long. Use the real clock for real sockets.

    Not checked, for want of a way to send half a message: `limits.frame_progress`.
    """
    limits = limits or Limits()
    if not 5000 <= limits.unauthenticated_frame < limits.frame:
        raise ValueError("check_netlayer needs limits of 5000 <= unauthenticated_frame < frame")
    case = Case(make, limits, list(malformed), list(nobody), channels, patience)
    for promise, check in _PROMISES:
        try:
            with trio.fail_after(8 * patience):
                async with case.stage() as stage:
                    await check(stage)
        except trio.TooSlowError:
            raise AssertionError(f"{promise}: this took more than {8 * patience:g} s") from None
        except Exception as error:
            cause = leaf(error)
            if isinstance(cause, AssertionError):
                raise AssertionError(f"{promise}: {cause}") from cause.__cause__
            raise AssertionError(f"{promise}: {type(cause).__name__} was raised: {cause}") from cause
