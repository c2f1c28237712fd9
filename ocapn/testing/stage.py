"""Where a check of a netlayer plays: its listeners, dials and channels, with every wait bounded."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, Protocol, TypeVar, TypeVarTuple, final

import trio.testing

from ocapn.errors import RemoteProtocolError
from ocapn.limits import Limits
from ocapn.model.locators import PeerLocator
from ocapn.netlayers.base import Channel, ChannelBroken, Listener, Netlayer

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_ALL_BYTES: Final = bytes(range(256)) * 2
#: How often something is cancelled after each number of passes of the loop, whose tasks run in random order.
ROUNDS: Final = 10


class MakeNetlayer(Protocol):
    """Makes the netlayer of a new peer at each call: another designator, another place to listen."""

    def __call__(self, *, listen: bool) -> Netlayer:
        """One that listens, or (`listen=False`) one that only dials."""


def leaf(error: Exception) -> Exception:
    """The exception that says most about a failure in a nursery."""
    if not isinstance(error, ExceptionGroup):
        return error
    leaves = [leaf(part) for part in error.exceptions]
    return next((leaf for leaf in leaves if isinstance(leaf, AssertionError)), leaves[0])


def require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise AssertionError(otherwise)


async def both(first: Callable[[], Awaitable[object]], second: Callable[[], Awaitable[T]]) -> T:
    """Runs both at the same time; gives what the second returns."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(first)
        return await second()


async def checkpoints(count: int) -> None:
    for _ in range(count):
        await trio.lowlevel.checkpoint()


@final
class Case:
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
    async def stage(self) -> AsyncIterator[Stage]:
        async with trio.open_nursery() as nursery:
            stage = Stage(self, nursery)
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
            nursery.cancel_scope.cancel()


@final
class Stage:
    """For one promise: a peer that listens, one that dials, and the channels between them."""

    there: Netlayer
    here: Netlayer
    listener: Listener

    def __init__(self, case: Case, nursery: trio.Nursery) -> None:
        self.case = case
        self._nursery = nursery
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
        require(only_dials is None, "listen gave a listener for a netlayer that was made with listen=False")
        require(
            self.here.location != self.there.location,
            "the argument `make` gave two netlayers of one designator; each call has to make another peer",
        )

    async def listen(self, netlayer: Netlayer) -> Listener:
        listener = await self.soon("listen returns", netlayer.listen, self.limits)
        if listener is None:
            raise AssertionError("listen gave None for a netlayer that was made with listen=True")
        self._listeners.append(listener)
        self._nursery.start_soon(listener.run)
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
        channel = await self.later("what was dialled is accepted", self._accept)
        await self.begin(channel)
        return channel

    async def begin(self, channel: Channel) -> None:
        await self.later("begin returns once the other side has dialled", channel.begin)

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

        far = await both(dial, self.accept)
        await self.carry(near[0], far, self.messages(1), most=1)
        return near[0], far

    @asynccontextmanager
    async def accepting(self) -> AsyncIterator[None]:
        """Accepts whatever comes, for as long as the block: some dials finish only then."""

        async def begin(channel: Channel) -> None:
            try:
                await self.begin(channel)
            except (ChannelBroken, RemoteProtocolError):  # who dialled may want another peer
                await self.close(channel)

        async def accept() -> None:
            while True:
                nursery.start_soon(begin, await self._accept())

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
        require(len(messages) <= most, f"receive({most}) gave {len(messages)} messages")
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
                require(len(got) < len(expected), "a message came that was not sent")
                if message != expected[len(got)]:
                    raise AssertionError(difference(message, len(got), expected))
                got.append(message)

    async def expect_end(self, receiver: Channel, broken: bool = False) -> None:
        """Receives the end and nothing else. `broken`: or the news that the connection failed."""
        try:
            messages = await self.soon("the other side sees the end", receiver.receive, 64)
        except ChannelBroken:
            if broken:
                return
            raise AssertionError("the other side saw ChannelBroken where a proper end was due") from None
        require(messages == [], "a message came that was not sent, or was received before")

    async def carry(
        self, sender: Channel, receiver: Channel, messages: list[bytes], *, most: int = 64, batch: int = 64
    ) -> None:
        """Sends the messages, `batch` at once, and receives them at the same time."""

        async def send() -> None:
            for start in range(0, len(messages), batch):
                await self.send(sender, messages[start : start + batch])

        async def expect() -> None:
            await self.expect(receiver, messages, most)

        await both(send, expect)

    async def send(self, channel: Channel, messages: list[bytes]) -> None:
        await self.later("send returns once the other side reads", channel.send, messages)

    async def push(self, channel: Channel, messages: list[bytes]) -> None:
        """Sends to a side that may have gone, or goes."""
        with contextlib.suppress(ChannelBroken):
            await self.send(channel, messages)


def difference(message: bytes, index: int, expected: list[bytes]) -> str:
    of = f"message {index + 1} of {len(expected)}"
    if message in expected[:index]:
        return f"message {expected.index(message) + 1} of {len(expected)} came twice"
    if message in expected:
        return f"in the place of {of} came message {expected.index(message) + 1}: lost, or out of order"
    if message.startswith(expected[index]):
        return f"{of} came with more behind it: messages were merged"
    return f"{of} was not what was sent: {len(message)} bytes came for {len(expected[index])}"
