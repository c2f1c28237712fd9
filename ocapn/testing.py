"""For tests of applications and netlayers: linked peers in memory, and a check of what a netlayer promises."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, Protocol, TypeVar, TypeVarTuple, final

import trio.testing

from ocapn.errors import BadLocator, ConnectFailed, RemoteProtocolError
from ocapn.limits import Limits
from ocapn.model.locators import PeerLocator
from ocapn.netlayers.base import Channel, ChannelBroken, Listener, Netlayer
from ocapn.netlayers.memory import MemoryNetlayer, MemoryNetwork
from ocapn.peer import Peer, open_peer

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_ALL_BYTES: Final = bytes(range(256)) * 2
#: How often something is cancelled after each number of passes of the loop, whose tasks run in random order.
_ROUNDS: Final = 10


@asynccontextmanager
async def linked_peers(
    *names: str,
    network: MemoryNetwork | None = None,
    limits: Limits | None = None,
    dialect: str | None = None,
) -> AsyncIterator[list[Peer]]:
    """Peers in one process over a `MemoryNetwork`, one for each designator in `names`."""
    network = network or MemoryNetwork()
    async with AsyncExitStack() as stack:
        peers = []
        for name in names:
            netlayer = MemoryNetlayer(network, name)
            peers.append(
                await stack.enter_async_context(open_peer([netlayer], limits=limits, dialect=dialect))
            )
        yield peers


async def quiet(*peers: Peer) -> None:
    """Waits until nothing moves any more, garbage included, and checks the peers' invariants."""
    for _ in range(3):  # a release can free what held another reference
        gc.collect()
        await trio.sleep(0.05)  # garbage is told of in batches, a little later
        await trio.testing.wait_all_tasks_blocked()
    for peer in peers:
        peer.check()


class MakeNetlayer(Protocol):
    """Makes the netlayer of a new peer at each call: another designator, another place to listen."""

    def __call__(self, *, listen: bool) -> Netlayer:
        """One that listens, or (`listen=False`) one that only dials."""


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
    case = _Case(make, limits, list(malformed), list(nobody), channels, patience)
    for promise, check in _PROMISES:
        try:
            with trio.fail_after(8 * patience):
                async with case.stage() as stage:
                    await check(stage)
        except trio.TooSlowError:
            raise AssertionError(f"{promise}: this took more than {8 * patience:g} s") from None
        except Exception as error:
            cause = _leaf(error)
            if isinstance(cause, AssertionError):
                raise AssertionError(f"{promise}: {cause}") from cause.__cause__
            raise AssertionError(f"{promise}: {type(cause).__name__} was raised: {cause}") from cause


def _leaf(error: Exception) -> Exception:
    """The exception that says most about a failure in a nursery."""
    if not isinstance(error, ExceptionGroup):
        return error
    leaves = [_leaf(part) for part in error.exceptions]
    return next((leaf for leaf in leaves if isinstance(leaf, AssertionError)), leaves[0])


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise AssertionError(otherwise)


async def _both(first: Callable[[], Awaitable[object]], second: Callable[[], Awaitable[T]]) -> T:
    """Runs both at the same time; gives what the second returns."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(first)
        return await second()


async def _checkpoints(count: int) -> None:
    for _ in range(count):
        await trio.lowlevel.checkpoint()


@final
class _Case:
    """The arguments of `check_netlayer`."""

    def __init__(
        self,
        make: MakeNetlayer,
        limits: Limits,
        malformed: list[PeerLocator],
        nobody: list[PeerLocator],
        channels: int,
        patience: float,
    ) -> None:
        self.make = make
        self.limits = limits
        self.malformed = malformed
        self.nobody = nobody
        self.channels = channels
        self.patience = patience

    @asynccontextmanager
    async def stage(self) -> AsyncIterator[_Stage]:
        stage = _Stage(self)
        try:
            await stage.open()
            yield stage
        except BaseException:
            with (
                trio.CancelScope(shield=True),
                trio.move_on_after(self.patience),
                contextlib.suppress(Exception),
            ):
                await stage.aclose()
            raise
        await stage.aclose()


@final
class _Stage:
    """For one promise: a peer that listens, one that dials, and the channels between them."""

    there: Netlayer
    here: Netlayer
    listener: Listener

    def __init__(self, case: _Case) -> None:
        self.case = case
        self.limits = case.limits
        self._listeners: list[Listener] = []
        self._channels: list[Channel] = []
        self._number = 0

    async def open(self) -> None:
        self.there = self.case.make(listen=True)
        self.listener = await self.listen(self.there)
        self.here = self.case.make(listen=False)
        only_dials = await self.soon("listen returns", self.here.listen, self.limits)
        if only_dials is not None:
            self._listeners.append(only_dials)
        _require(only_dials is None, "listen gave a listener for a netlayer that was made with listen=False")
        _require(
            self.here.location != self.there.location,
            "the argument `make` gave two netlayers of one designator; each call has to make another peer",
        )

    async def listen(self, netlayer: Netlayer) -> Listener:
        listener = await self.soon("listen returns", netlayer.listen, self.limits)
        if listener is None:
            raise AssertionError("listen gave None for a netlayer that was made with listen=True")
        self._listeners.append(listener)
        return listener

    async def aclose(self) -> None:
        for channel in list(self._channels):
            await self.close(channel)
        for listener in list(self._listeners):
            await self.close(listener)

    async def close(self, closable: Channel | Listener) -> None:
        if isinstance(closable, Channel):
            self._channels.remove(closable)
        else:
            self._listeners.remove(closable)
        await self.soon("aclose closes at once", closable.aclose)

    async def soon(self, expected: str, function: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
        """Waits for `function(*args)`, but not too long. `expected` says what ought to happen."""
        return await self._within(self.case.patience, expected, function, *args)

    async def later(self, expected: str, function: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
        """As `soon`, with time for what this waits for to fail first, so that the error names the cause."""
        return await self._within(2 * self.case.patience, expected, function, *args)

    async def _within(
        self, seconds: float, expected: str, function: Callable[[*Ts], Awaitable[T]], *args: *Ts
    ) -> T:
        with trio.move_on_after(seconds):
            return await function(*args)
        raise AssertionError(f"{expected}, but nothing happened for {seconds:g} s")

    # Channels

    async def dial(self, locator: PeerLocator | None = None, netlayer: Netlayer | None = None) -> Channel:
        locator = locator or self.listener.location
        channel = await self.soon("dial returns", (netlayer or self.here).dial, locator, self.limits)
        self._channels.append(channel)
        return channel

    async def try_dial(self, locator: PeerLocator, *due: type[Exception]) -> Channel | None:
        """Dials where that ought to raise one of `due`: None if it does."""
        try:
            return await self.dial(locator)
        except AssertionError:
            raise
        except Exception as error:
            if isinstance(error, due):
                return None
            raise AssertionError(
                f"a dial to {locator.uri[:200]} raised {type(error).__name__}: {error}"
            ) from error

    async def accept(self) -> Channel:
        return await self.later("what was dialled is accepted", self._accept)

    async def _accept(self) -> Channel:
        while True:
            try:
                channel = await self.listener.accept()
            except OSError:  # a trouble that passes
                await trio.sleep(0.01)
                continue
            self._channels.append(channel)
            return channel

    async def pair(self) -> tuple[Channel, Channel]:
        """The dialler's end of a new connection and the listener's, over which the dialler has spoken."""
        near: list[Channel] = []

        async def dial() -> None:
            near.append(await self.dial())

        far = await _both(dial, self.accept)
        await self.carry(near[0], far, self.messages(1), most=1)
        return near[0], far

    @asynccontextmanager
    async def accepting(self) -> AsyncIterator[None]:
        """Accepts whatever comes, for as long as the block: some dials finish only then."""

        async def accept() -> None:
            while True:
                await self._accept()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            yield
            nursery.cancel_scope.cancel()

    # Messages

    def message(self, size: int) -> bytes:
        """A Syrup record of exactly `size` bytes (16 at least) that is not like any before it."""
        self._number += 1
        head = b"<1'm%d+" % self._number
        room = size - len(head) - 1
        length = room - len(b"%d:" % room)
        pattern = _ALL_BYTES[self._number % 256 :][:256]
        body = b"%d:%b" % (length, (pattern * (length // 256 + 1))[:length])
        return b"%b%b%b>" % (head, body, b"t" * (room - len(body)))

    def messages(self, count: int, size: int = 0) -> list[bytes]:
        """New messages of `size` bytes, or of various sizes."""
        return [self.message(size or 16 + i * 397 % 1500) for i in range(count)]

    async def receive(self, channel: Channel, most: int = 64) -> list[bytes]:
        """What `channel.receive` gives, which is at most `most`."""
        messages = await self.soon("receive gives what was sent", channel.receive, most)
        _require(len(messages) <= most, f"receive({most}) gave {len(messages)} messages")
        return messages

    async def expect(self, receiver: Channel, expected: list[bytes], most: int = 64) -> None:
        """Receives these messages, and no others."""
        got: list[bytes] = []
        while len(got) < len(expected):
            if not (some := await self.receive(receiver, most)):
                raise AssertionError(
                    f"the end came after {len(got)} of {len(expected)} messages, and nobody had ended the channel"
                )
            for message in some:
                _require(len(got) < len(expected), "a message came that was not sent")
                if message != expected[len(got)]:
                    raise AssertionError(_difference(message, len(got), expected))
                got.append(message)

    async def expect_end(self, receiver: Channel, broken: bool = False) -> None:
        """Receives the end and nothing else. `broken`: or the news that the connection failed."""
        try:
            messages = await self.soon("the other side sees the end", receiver.receive, 64)
        except ChannelBroken:
            if broken:
                return
            raise AssertionError("the other side saw ChannelBroken where a proper end was due") from None
        _require(messages == [], "a message came that was not sent, or was received before")

    async def carry(
        self, sender: Channel, receiver: Channel, messages: list[bytes], *, most: int = 64, batch: int = 64
    ) -> None:
        """Sends the messages, `batch` at once, and receives them at the same time."""

        async def send() -> None:
            for start in range(0, len(messages), batch):
                await self.send(sender, messages[start : start + batch])

        async def expect() -> None:
            await self.expect(receiver, messages, most)

        await _both(send, expect)

    async def send(self, channel: Channel, messages: list[bytes]) -> None:
        await self.later("send returns once the other side reads", channel.send, messages)

    async def push(self, channel: Channel, messages: list[bytes]) -> None:
        """Sends to a side that may have gone, or goes."""
        with contextlib.suppress(ChannelBroken):
            await self.send(channel, messages)


def _difference(message: bytes, index: int, expected: list[bytes]) -> str:
    of = f"message {index + 1} of {len(expected)}"
    if message in expected[:index]:
        return f"message {expected.index(message) + 1} of {len(expected)} came twice"
    if message in expected:
        return f"in the place of {of} came message {expected.index(message) + 1}: lost, or out of order"
    if message.startswith(expected[index]):
        return f"{of} came with more behind it: messages were merged"
    return f"{of} was not what was sent: {len(message)} bytes came for {len(expected[index])}"


_Check = Callable[[_Stage], Awaitable[None]]
_PROMISES: Final[list[tuple[str, _Check]]] = []


def _promise(text: str) -> Callable[[_Check], _Check]:
    def note(check: _Check) -> _Check:
        _PROMISES.append((text, check))
        return check

    return note


def _each_way(check: Callable[[_Stage, Channel, Channel], Awaitable[None]]) -> _Check:
    """Runs a check of one end (`a`) and the other (`b`) twice: the first is the dialler's, then the listener's."""

    async def run(stage: _Stage) -> None:
        near, far = await stage.pair()
        await check(stage, near, far)
        near, far = await stage.pair()
        await check(stage, far, near)

    return run


@_promise("after listen, `location` is final and names the transport")
async def _location(stage: _Stage) -> None:
    listener = stage.listener
    given = listener.location
    uri = given.uri
    for netlayer in (stage.here, stage.there):
        _require(
            netlayer.location.transport == netlayer.transport,
            f"the location names the transport {netlayer.location.transport}, the netlayer {netlayer.transport}",
        )
    _require(
        stage.there.location.uri == uri,
        f"the netlayer's location is {stage.there.location.uri}, its listener's {uri}",
    )
    await stage.pair()
    for now in (listener.location.uri, stage.there.location.uri):
        _require(now == uri, f"it was {uri}, and changed to {now}")
    parsed = PeerLocator.parse(uri)
    _require(parsed == given and parsed.hints == given.hints, f"its URI {uri} does not say all of it")
    async with stage.accepting():
        await stage.dial(parsed)


@_promise("dial and accept give the two ends of one connection")
async def _ends(stage: _Stage) -> None:
    first, second = await stage.pair(), await stage.pair()
    for near, far in (second, first):
        await stage.carry(near, far, stage.messages(2))
        await stage.carry(far, near, stage.messages(2))
        for channel in (near, far):
            _require(isinstance(channel, Channel), f"{type(channel).__name__} is no Channel")
            _require(isinstance(channel.source, str), f"`source` is {channel.source!r}, which is no str")
    other = stage.case.make(listen=True)  # one that listens dials too
    await stage.listen(other)
    async with stage.accepting():
        await stage.dial(netlayer=other)


@_promise("`authenticated` is what was proved of the other side's designator, or None")
async def _authenticated(stage: _Stage) -> None:
    near, far = await stage.pair()
    for side, proved, other in (
        ("dialled", near.authenticated, stage.listener.location.designator),
        ("accepted", far.authenticated, stage.here.location.designator),
    ):
        _require(
            proved is None or proved == other,
            f"a channel that was {side} gives {proved!r}, and the other side is {other!r}",
        )
    stranger = stage.case.make(listen=False).location.designator
    locator = PeerLocator(stage.here.transport, stranger, stage.listener.location.hints)
    async with stage.accepting():
        channel = await stage.try_dial(locator, ConnectFailed, BadLocator)
    _require(
        channel is None or channel.authenticated is None,
        f"a dial to {stranger!r}, which does not listen, gave a channel on which it is authenticated",
    )


@_promise("messages arrive whole and in order, both ways")
async def _in_order(stage: _Stage) -> None:
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
async def _most(stage: _Stage, a: Channel, b: Channel) -> None:
    for most in (1, 2, 3, 64):
        await stage.carry(a, b, stage.messages(20), most=most)


@_promise("receive waits while nothing has been sent, and may be cancelled")
async def _waits(stage: _Stage) -> None:
    near, far = await stage.pair()
    for receiver in (near, far, near):
        with trio.move_on_after(0.01):
            messages = await receiver.receive(1)
            raise AssertionError(f"it returned {len(messages)} messages")
    await stage.carry(near, far, stage.messages(2))
    await stage.carry(far, near, stage.messages(2))


@_promise("what send_now says it took arrives whole, before what follows")
@_each_way
async def _send_now(stage: _Stage, a: Channel, b: Channel) -> None:
    b.set_max_message(stage.limits.frame)
    batch = stage.messages(5)
    taken = _take_now(a, batch)
    if a.unsent:
        await _both(lambda: stage.send(a, []), lambda: stage.expect(b, batch[:taken]))
    else:
        await stage.expect(b, batch[:taken])
    await stage.carry(a, b, batch[taken:])
    for complete_first in (True, False):
        await _jam(stage, a, b, complete_first)


def _take_now(sender: Channel, batch: list[bytes]) -> int:
    taken = sender.send_now(batch)
    _require(0 <= taken <= len(batch), f"send_now took {taken} of {len(batch)} messages")
    return taken


async def _jam(stage: _Stage, sender: Channel, receiver: Channel, complete_first: bool) -> None:
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
            _require(not sender.unsent, "`unsent` is still true after a send")
        await stage.send(sender, following)
        _require(not sender.unsent, "`unsent` is still true after a send")

    await _both(send_on, lambda: stage.expect(receiver, expected + following))


@_promise("messages up to the limit arrive, larger ones are refused with RemoteProtocolError")
@_each_way
async def _first_limit(stage: _Stage, a: Channel, b: Channel) -> None:
    await _limited(stage, a, b, stage.limits.unauthenticated_frame)


@_promise(
    "set_max_message: messages up to the limit arrive, larger ones are refused with RemoteProtocolError"
)
@_each_way
async def _limit(stage: _Stage, a: Channel, b: Channel) -> None:
    b.set_max_message(stage.limits.frame)
    await stage.carry(a, b, stage.messages(2, stage.limits.frame))
    b.set_max_message(100)
    await _limited(stage, a, b, 100)


@_promise("set_max_message: messages over a large limit are refused with RemoteProtocolError")
@_each_way
async def _large_limit(stage: _Stage, a: Channel, b: Channel) -> None:
    b.set_max_message(stage.limits.frame)
    await _limited(stage, a, b, stage.limits.frame)


async def _limited(stage: _Stage, sender: Channel, receiver: Channel, limit: int) -> None:
    await stage.carry(sender, receiver, stage.messages(2, limit))
    await _refused(stage, sender, receiver, limit)


async def _refused(stage: _Stage, sender: Channel, receiver: Channel, limit: int) -> None:
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
async def _limit_raised(stage: _Stage, a: Channel, b: Channel) -> None:
    first, large = stage.messages(1, 100), stage.messages(2, stage.limits.frame)

    async def expect() -> None:
        await stage.expect(b, first, most=1)
        await _checkpoints(5)
        b.set_max_message(stage.limits.frame)
        await stage.expect(b, large)

    await _both(lambda: stage.send(a, first + large), expect)


@_promise("send_eof ends one direction, after what was sent before; the other goes on")
@_each_way
async def _eof(stage: _Stage, a: Channel, b: Channel) -> None:
    await _last_words(stage, a, b)
    await stage.carry(b, a, stage.messages(5), batch=2)
    await stage.carry(b, a, stage.messages(100, 5000), batch=100)
    await _last_words(stage, b, a)


async def _last_words(stage: _Stage, ending: Channel, other: Channel) -> None:
    messages = stage.messages(5)

    async def send() -> None:
        await stage.send(ending, messages)
        await stage.soon("send_eof returns", ending.send_eof)

    async def expect() -> None:
        await stage.expect(other, messages, most=1)
        await stage.expect_end(other)

    await _both(send, expect)


@_promise("drain receives until the other side has sent all")
@_each_way
async def _drain(stage: _Stage, a: Channel, b: Channel) -> None:
    drained = False

    async def send() -> None:
        for _ in range(20):
            await stage.send(a, stage.messages(10, stage.limits.unauthenticated_frame))
        _require(not drained, "it returned before the end")
        await stage.soon("send_eof returns", a.send_eof)

    async def drain() -> None:
        nonlocal drained
        await stage.soon("it returns at the end", b.drain)
        drained = True

    await _both(send, drain)


@_promise("after aclose, the other side sees the end or ChannelBroken")
@_each_way
async def _close(stage: _Stage, a: Channel, b: Channel) -> None:
    async def close() -> None:
        await _checkpoints(3)  # the other side is waiting by then
        await stage.close(a)

    await _both(close, lambda: stage.expect_end(b, broken=True))
    await _to_nobody(stage, b)


@_promise("after aclose with messages unread, the other side sees the end or ChannelBroken")
@_each_way
async def _close_unread(stage: _Stage, a: Channel, b: Channel) -> None:
    async def close() -> None:
        await _checkpoints(3)
        await stage.close(a)  # many transports reset the connection now

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.push, b, stage.messages(3))
        await _both(close, lambda: stage.expect_end(b, broken=True))
    await _to_nobody(stage, b)


async def _to_nobody(stage: _Stage, channel: Channel) -> None:
    """Sends to a side that has gone. There may be no error yet, but no other than ChannelBroken."""
    for _ in range(20):
        await stage.push(channel, stage.messages(1, 5000))
        with contextlib.suppress(ChannelBroken):
            _take_now(channel, stage.messages(1))


@_promise("a receive that is cancelled loses nothing")
@_each_way
async def _cancelled_receive(stage: _Stage, a: Channel, b: Channel) -> None:
    b.set_max_message(stage.limits.frame)
    got: list[bytes] = []

    async def receive() -> None:
        got.extend(await b.receive(1))

    for count in range(8 * _ROUNDS):
        large = count % _ROUNDS == 0  # arrives in pieces
        expected = stage.messages(2, stage.limits.frame if large else 0)
        got.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.send, a, expected)
            for more in range(5 if large else 1):
                await _cancelled(count % 8 + more, receive)
            for i, message in enumerate(got):
                _require(message == expected[i], _difference(message, i, expected))
            await stage.expect(b, expected[len(got) :])


async def _cancelled(count: int, function: Callable[[], Awaitable[object]]) -> None:
    """Runs `function` and cancels it after `count` passes of the loop."""

    async def run() -> None:
        with scope:
            await function()

    scope = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await _checkpoints(count)
        scope.cancel()


@_promise("an accept that is cancelled loses no connection")
async def _cancelled_accept(stage: _Stage) -> None:
    accepted: list[Channel] = []
    dialled: list[Channel] = []

    async def accept() -> None:
        accepted.append(await stage._accept())

    async def dial(message: bytes) -> None:
        dialled.append(await stage.dial())
        await stage.push(dialled[-1], [message])

    for count in range(8 * _ROUNDS):
        message = stage.message(16)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dial, message)
            for more in range(3):
                if not accepted:
                    await _cancelled(count % 8 + more, accept)
            if not accepted:
                await stage.soon("what was dialled during a cancelled accept is accepted later", accept)
            await stage.expect(accepted[-1], [message])
        for channel in (dialled.pop(), accepted.pop()):
            await stage.close(channel)


@_promise("a dial that is cancelled leaves nothing behind")
async def _cancelled_dial(stage: _Stage) -> None:
    token = stage.message(16)
    found = trio.Event()
    accepting = trio.CancelScope()

    dialled: list[Channel] = []

    async def dial() -> None:
        dialled.append(await stage.dial())

    async def look_at(channel: Channel) -> None:
        try:
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
        for count in range(12 * _ROUNDS):
            await _cancelled(count % 12, dial)
            if dialled:
                await stage.close(dialled.pop())
        await stage.push(await stage.dial(), [token])
        await stage.soon("another dial works", found.wait)
        accepting.cancel()


@_promise("many channels at once do not disturb each other")
async def _many(stage: _Stage) -> None:
    count = stage.case.channels
    hellos = {stage.message(16 + i): i for i in range(count)}
    near: dict[int, Channel] = {}
    far: dict[int, Channel] = {}

    async def dial(hello: bytes, i: int) -> None:
        near[i] = await stage.dial()
        await stage.push(near[i], [hello])

    async def hear(channel: Channel) -> None:
        (hello,) = await stage.receive(channel, 1) or [b""]
        _require(hellos.get(hello) not in (None, *far), "a channel gave what was not sent on it")
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
async def _nobody(stage: _Stage) -> None:
    await stage.pair()
    closed = stage.listener.location
    await stage.aclose()
    for locator in (closed, *stage.case.nobody):
        channel = await stage.try_dial(locator, ConnectFailed)
        _require(channel is None, f"a dial to {locator.uri} gave a channel")


@_promise("dial raises BadLocator or ConnectFailed for a malformed locator")
async def _malformed(stage: _Stage) -> None:
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
            _require(channel is None, f"a dial to {locator.uri} gave a channel")
        for locator in damaged:
            channel = await stage.try_dial(locator, BadLocator, ConnectFailed)
            if channel is not None:  # a hint may be more than this netlayer needs
                await stage.close(channel)


@_promise("aclose of a listener gives back what listen took")
async def _listen_again(stage: _Stage) -> None:
    channels = await stage.pair()
    await stage.close(stage.listener)
    await stage.carry(*channels, stage.messages(2))
    for _ in range(2):
        before = stage.there.location
        try:
            stage.listener = await stage.listen(stage.there)
        except ConnectFailed as error:
            raise AssertionError(f"the same netlayer cannot listen again: {error}") from error
        _require(stage.there.location == before, f"{before.uri} listens again as {stage.there.location.uri}")
        await stage.pair()
        await stage.close(stage.listener)


@_promise("aclose of a listener ends the connections that wait to be accepted")
async def _never_accepted(stage: _Stage) -> None:
    async def dial() -> None:
        with contextlib.suppress(ConnectFailed):  # a dial may need the other side's accept
            await stage.expect_end(await stage.dial(), broken=True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(dial)
        await trio.sleep(0.05)
        await stage.close(stage.listener)
