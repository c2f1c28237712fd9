"""Netlayers that break one promise each, for the tests of `check_netlayer`.

Each wraps a memory netlayer. `Honest` breaks nothing; unlike the memory netlayer it takes something at `send_now`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio

from ocapn.errors import ConnectFailed, RemoteProtocolError
from ocapn.limits import Limits
from ocapn.model.locators import PeerLocator
from ocapn.netlayers.base import Channel, ChannelBroken, Listener, Netlayer
from ocapn.testing import MakeNetlayer
from tests.netlayers import makers


class Wrapped(Channel):
    """Passes everything on. `dialled` is whether this is the dialler's end."""

    def __init__(self, inner: Channel, limits: Limits, dialled: bool) -> None:
        self.inner = inner
        self.limits = limits
        self.dialled = dialled
        self.authenticated = inner.authenticated
        self.source = inner.source

    async def begin(self) -> None:
        await self.inner.begin()

    async def send(self, messages: list[bytes]) -> None:
        await self.inner.send(messages)

    async def receive(self, most: int) -> list[bytes]:
        return await self.inner.receive(most)

    def set_max_message(self, size: int) -> None:
        self.inner.set_max_message(size)

    async def send_eof(self) -> None:
        await self.inner.send_eof()

    async def aclose(self) -> None:
        await self.inner.aclose()


class WrappedListener(Listener):
    def __init__(self, inner: Listener, netlayer: WrappedNetlayer, limits: Limits) -> None:
        self.inner = inner
        self.netlayer = netlayer
        self.limits = limits
        self.location = inner.location

    async def accept(self) -> Channel:
        return self.netlayer.channel(await self.inner.accept(), self.limits, False)

    async def aclose(self) -> None:
        await self.inner.aclose()


class WrappedNetlayer(Netlayer):
    transport = "memory"
    channel: Callable[[Channel, Limits, bool], Channel] = Wrapped
    listener: Callable[[Listener, WrappedNetlayer, Limits], Listener] = WrappedListener

    def __init__(self, inner: Netlayer) -> None:
        self.inner = inner
        self.location = inner.location

    async def listen(self, limits: Limits) -> Listener | None:
        listener = await self.inner.listen(limits)
        return None if listener is None else self.listener(listener, self, limits)

    async def dial(self, locator: PeerLocator, limits: Limits) -> Channel:
        return self.channel(await self.inner.dial(locator, limits), limits, True)


def made(of: type[WrappedNetlayer], *, authenticates: bool = False) -> MakeNetlayer:
    """What `check_netlayer` takes, for a kind of wrapped netlayer."""
    inner = makers.memory(authenticates=authenticates)

    def make(*, listen: bool) -> Netlayer:
        return of(inner(listen=listen))

    return make


def with_channel(kind: type[Channel]) -> MakeNetlayer:
    class Made(WrappedNetlayer):
        channel = kind

    return made(Made)


def with_listener(kind: type[Listener]) -> MakeNetlayer:
    class Made(WrappedNetlayer):
        listener = kind

    return made(Made)


# Beginning


class BeginHangs(Wrapped):
    async def begin(self) -> None:
        await trio.sleep_forever()


class AcceptsOneByOne(WrappedListener):
    """The next once the one before has begun."""

    before: OneByOne | None = None

    async def accept(self) -> Channel:
        if self.before is not None:
            await self.before.begun.wait()
        self.before = OneByOne(await self.inner.accept(), self.limits, False)
        return self.before


class OneByOne(Wrapped):
    def __init__(self, inner: Channel, limits: Limits, dialled: bool) -> None:
        super().__init__(inner, limits, dialled)
        self.begun = trio.Event()

    async def begin(self) -> None:
        self.begun.set()
        await super().begin()


class BeginBreaksAtCancel(WrappedListener):
    """After a begin that was cancelled nothing is accepted."""

    broken = False

    async def accept(self) -> Channel:
        if self.broken:
            await trio.sleep_forever()
        listener = self

        class Breaks(Wrapped):
            async def begin(self) -> None:
                try:
                    await super().begin()
                except trio.Cancelled:
                    listener.broken = True
                    raise

        return Breaks(await self.inner.accept(), self.limits, False)


class BecomesAnother(WrappedNetlayer):
    def be_again(self, identity: str) -> None:
        self.location = PeerLocator(self.transport, identity + "'")


class HasNoIdentity(WrappedNetlayer):
    identity = None  # type: ignore[assignment]


# Messages


class Drops(Wrapped):
    """Loses the fifth message of a batch."""

    async def send(self, messages: list[bytes]) -> None:
        await self.inner.send(messages[:4] + messages[5:])


class Reorders(Wrapped):
    async def send(self, messages: list[bytes]) -> None:
        await self.inner.send(messages[:10] + messages[10:][::-1])


class Merges(Wrapped):
    async def send(self, messages: list[bytes]) -> None:
        await self.inner.send([b"".join(messages[:2]), *messages[2:]] if messages else [])


class Repeats(Wrapped):
    async def send(self, messages: list[bytes]) -> None:
        await self.inner.send(messages + messages[-1:] if len(messages) > 5 else messages)


class RepeatsTheLast(Wrapped):
    """Sends the last message again before the end: nothing follows by which it could be told."""

    last: bytes = b""

    async def send(self, messages: list[bytes]) -> None:
        await self.inner.send(messages)
        self.last = messages[-1]

    async def send_eof(self) -> None:
        await self.inner.send([self.last])
        await self.inner.send_eof()


class Truncates(Wrapped):
    async def receive(self, most: int) -> list[bytes]:
        return [message[:4096] for message in await self.inner.receive(most)]


class HalfDuplex(Wrapped):
    """Sends or receives, one at a time."""

    def __init__(self, inner: Channel, limits: Limits, dialled: bool) -> None:
        super().__init__(inner, limits, dialled)
        self.lock = trio.Lock()

    async def send(self, messages: list[bytes]) -> None:
        async with self.lock:
            await self.inner.send(messages)

    async def receive(self, most: int) -> list[bytes]:
        async with self.lock:
            return await self.inner.receive(most)


class IgnoresMost(Wrapped):
    async def receive(self, most: int) -> list[bytes]:
        return await self.inner.receive(max(most, 2))


class ReturnsEmpty(Wrapped):
    """Returns an empty list where it should wait."""

    async def receive(self, most: int) -> list[bytes]:
        with trio.move_on_after(0.001):
            return await self.inner.receive(most)
        return []


# send_now


class Honest(Wrapped):
    """Takes two messages without waiting, and keeps them for the next `send`."""

    def __init__(self, inner: Channel, limits: Limits, dialled: bool) -> None:
        super().__init__(inner, limits, dialled)
        self.kept: list[bytes] = []

    def send_now(self, messages: list[bytes]) -> int:
        self.kept += messages[:2]
        return len(messages[:2])

    @property
    def unsent(self) -> bool:
        return bool(self.kept)

    async def send(self, messages: list[bytes]) -> None:
        kept, self.kept = self.kept, []
        await self.inner.send(kept + messages)


class ForgetsNow(Honest):
    def send_now(self, messages: list[bytes]) -> int:
        super().send_now(messages[:1])
        return len(messages[:2])


class SendsNowLate(Honest):
    async def send(self, messages: list[bytes]) -> None:
        kept, self.kept = self.kept, []
        await self.inner.send(messages + kept)


class TakesTooMany(Honest):
    def send_now(self, messages: list[bytes]) -> int:
        super().send_now(messages)
        return len(messages) + 1


class HidesUnsent(Honest):
    """Keeps what it took and does not say so: it would wait until something else is sent."""

    @property
    def unsent(self) -> bool:
        return False


class StaysUnsent(Honest):
    @property
    def unsent(self) -> bool:
        return True


class IgnoresEmptySend(Honest):
    """Completes what send_now took only if there is more to send."""

    async def send(self, messages: list[bytes]) -> None:
        if messages:
            await super().send(messages)


class TearsNow(Honest):
    """What did not go out whole at send_now is begun anew."""

    def send_now(self, messages: list[bytes]) -> int:
        self.kept = [message[: len(message) // 2] for message in messages[:1]]
        return 0


# Limits


class Unlimited(Wrapped):
    def __init__(self, inner: Channel, limits: Limits, dialled: bool) -> None:
        super().__init__(inner, limits, dialled)
        inner.set_max_message(1 << 40)

    def set_max_message(self, size: int) -> None:
        pass


class UnlimitedAtFirst(Wrapped):
    def __init__(self, inner: Channel, limits: Limits, dialled: bool) -> None:
        super().__init__(inner, limits, dialled)
        inner.set_max_message(1 << 40)


class UnlimitedAtLast(Wrapped):
    def set_max_message(self, size: int) -> None:
        self.inner.set_max_message(size if size < self.limits.frame else 1 << 40)


class LimitedForever(Wrapped):
    """Never allows more than at first."""

    def set_max_message(self, size: int) -> None:
        self.inner.set_max_message(min(size, self.limits.unauthenticated_frame))


class NeverLowers(Wrapped):
    def set_max_message(self, size: int) -> None:
        self.inner.set_max_message(max(size, self.limits.unauthenticated_frame))


class OffByOne(Wrapped):
    def set_max_message(self, size: int) -> None:
        self.inner.set_max_message(size - 1)


class RefusesWrongly(Wrapped):
    """Breaks the connection where it should say what is wrong."""

    async def receive(self, most: int) -> list[bytes]:
        try:
            return await self.inner.receive(most)
        except RemoteProtocolError as error:
            raise ChannelBroken(str(error)) from error


class ReadsAhead(Wrapped):
    """Reads more than it is asked for, and holds it to the limit of that moment."""

    def __init__(self, inner: Channel, limits: Limits, dialled: bool) -> None:
        super().__init__(inner, limits, dialled)
        self.limit = limits.unauthenticated_frame
        self.waiting: list[bytes] = []
        self.failure: RemoteProtocolError | None = None
        inner.set_max_message(1 << 40)

    def set_max_message(self, size: int) -> None:
        self.limit = size

    async def receive(self, most: int) -> list[bytes]:
        if not self.waiting:
            if self.failure is not None:
                raise self.failure
            for message in await self.inner.receive(64):
                if len(message) > self.limit:
                    self.failure = RemoteProtocolError("too long")
                    break
                self.waiting.append(message)
            if not self.waiting and self.failure is not None:
                raise self.failure
        messages, self.waiting = self.waiting[:most], self.waiting[most:]
        return messages


# The end


class LosesEof(Wrapped):
    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()


class EofOvertakes(Wrapped):
    """The end overtakes what was sent before."""

    async def receive(self, most: int) -> list[bytes]:
        messages = await self.inner.receive(most)
        return [] if self.inner._in.eof else messages  # type: ignore[attr-defined]


class EofClosesBoth(Wrapped):
    async def send_eof(self) -> None:
        await self.inner.send_eof()
        self.inner._in.eof = True  # type: ignore[attr-defined]


class EofBreaks(Wrapped):
    """The other side sees a broken connection where the end was announced."""

    async def receive(self, most: int) -> list[bytes]:
        messages = await self.inner.receive(most)
        if not messages:
            raise ChannelBroken("reset")
        return messages


class DrainsNothing(Wrapped):
    async def drain(self) -> None:
        await trio.lowlevel.checkpoint()


class DrainHangs(Wrapped):
    async def drain(self) -> None:
        await trio.sleep_forever()


class LosesClose(Wrapped):
    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class CloseHangs(Wrapped):
    async def aclose(self) -> None:
        await trio.sleep_forever()


class BreaksWithOSError(Wrapped):
    """Lets the operating system's exceptions through."""

    async def send(self, messages: list[bytes]) -> None:
        try:
            await self.inner.send(messages)
        except ChannelBroken as error:
            raise BrokenPipeError("broken pipe") from error


class ResetsWithOSError(Wrapped):
    """As above, when it receives from a side that closed with messages unread."""

    sent = False

    async def send(self, messages: list[bytes]) -> None:
        self.sent = len(messages) == 3
        await self.inner.send(messages)

    async def receive(self, most: int) -> list[bytes]:
        messages = await self.inner.receive(most)
        if not messages and self.sent:
            raise ConnectionResetError("connection reset")
        return messages


class BreaksNowWithOSError(Wrapped):
    def send_now(self, messages: list[bytes]) -> int:
        if self.inner._out.broken:  # type: ignore[attr-defined]
            raise BrokenPipeError("broken pipe")
        return 0


# Cancellation


class LosesAtCancel(Wrapped):
    """Waits once more, with the messages in its hand."""

    async def receive(self, most: int) -> list[bytes]:
        messages = await self.inner.receive(most)
        await trio.lowlevel.checkpoint()
        return messages


class BreaksAtCancel(Wrapped):
    async def receive(self, most: int) -> list[bytes]:
        try:
            return await self.inner.receive(most)
        except trio.Cancelled:
            self.inner._in.broken = True  # type: ignore[attr-defined]
            raise


class AcceptLosesAtCancel(WrappedListener):
    async def accept(self) -> Channel:
        channel = await super().accept()
        await trio.lowlevel.checkpoint()
        return channel


class AcceptClosesAtCancel(WrappedListener):
    async def accept(self) -> Channel:
        channel = await super().accept()
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await channel.aclose()
            raise
        return channel


class DialLeaks(WrappedNetlayer):
    """A dial that is cancelled leaves its connection open."""

    async def dial(self, locator: PeerLocator, limits: Limits) -> Channel:
        channel = await super().dial(locator, limits)
        await trio.lowlevel.checkpoint()
        return channel


class DialBreaksAtCancel(WrappedNetlayer):
    """After a dial that was cancelled, none works."""

    dialling = False

    async def dial(self, locator: PeerLocator, limits: Limits) -> Channel:
        if self.dialling:
            raise ConnectFailed("busy")
        self.dialling = True
        channel = await super().dial(locator, limits)
        self.dialling = False
        return channel


# Several channels


class OnlySixteen(WrappedNetlayer):
    """Has room for sixteen channels at once."""

    opened = 0

    async def dial(self, locator: PeerLocator, limits: Limits) -> Channel:
        await trio.lowlevel.checkpoint()
        self.opened += 1
        netlayer = self

        class Counted(Wrapped):
            async def aclose(self) -> None:
                netlayer.opened -= 1
                await self.inner.aclose()

        if self.opened > 16:
            self.opened -= 1
            await trio.sleep_forever()
        try:
            return Counted(await self.inner.dial(locator, limits), limits, True)
        except BaseException:
            self.opened -= 1
            raise


class OneCloseClosesAll(WrappedNetlayer):
    def __init__(self, inner: Netlayer) -> None:
        super().__init__(inner)
        self.channels: list[Channel] = []

    async def dial(self, locator: PeerLocator, limits: Limits) -> Channel:
        netlayer = self
        inner = await self.inner.dial(locator, limits)
        self.channels.append(inner)

        class Fateful(Wrapped):
            async def aclose(self) -> None:
                closing = list(netlayer.channels) if len(netlayer.channels) > 10 else [self.inner]
                netlayer.channels.remove(self.inner)
                for channel in closing:
                    await channel.aclose()

        return Fateful(inner, limits, True)


# Who is there


class ProvesAnother(Wrapped):
    def __init__(self, inner: Channel, limits: Limits, dialled: bool) -> None:
        super().__init__(inner, limits, dialled)
        if dialled:
            self.authenticated = "somebody"


class ProvesAnotherDialler(Wrapped):
    def __init__(self, inner: Channel, limits: Limits, dialled: bool) -> None:
        super().__init__(inner, limits, dialled)
        if not dialled:
            self.authenticated = "somebody"


class SaysTrue(Wrapped):
    def __init__(self, inner: Channel, limits: Limits, dialled: bool) -> None:
        super().__init__(inner, limits, dialled)
        self.authenticated: Any = True


class Believes(WrappedNetlayer):
    """Takes the designator that was dialled for proved, whoever answers."""

    places: dict[str, PeerLocator] = {}  # noqa: RUF012  # shared on purpose

    def __init__(self, inner: Netlayer) -> None:
        super().__init__(inner)
        self.location = PeerLocator("memory", inner.location.designator, {"at": inner.location.designator})

    async def listen(self, limits: Limits) -> Listener | None:
        listener = await super().listen(limits)
        if listener is not None:
            listener.location = self.location
        return listener

    async def dial(self, locator: PeerLocator, limits: Limits) -> Channel:
        try:
            place = PeerLocator("memory", locator.hints["at"])
        except (KeyError, ValueError):
            raise ConnectFailed("the hint `at` says where") from None
        channel = await super().dial(place, limits)
        channel.authenticated = locator.designator
        return channel


class BadSource(Wrapped):
    def __init__(self, inner: Channel, limits: Limits, dialled: bool) -> None:
        super().__init__(inner, limits, dialled)
        if dialled:
            self.source: Any = None


class CrossesChannels(WrappedNetlayer):
    """The second channel that is dialled is the first once more."""

    first: Channel | None = None

    async def dial(self, locator: PeerLocator, limits: Limits) -> Channel:
        channel = await super().dial(locator, limits)
        if self.first is None:
            self.first = channel
            return channel
        return self.first


# Locations, listening and dialling


class LocationMoves(WrappedNetlayer):
    async def listen(self, limits: Limits) -> Listener | None:
        listener = await super().listen(limits)
        self.location = PeerLocator("memory", self.location.designator, {"new": "hint"})
        return listener


class LocationMovesLater(WrappedListener):
    async def accept(self) -> Channel:
        channel = await super().accept()
        self.location = PeerLocator("memory", self.location.designator, {"seen": "1"})
        return channel


class WrongTransport(WrappedNetlayer):
    transport = "carrier-pigeon"


class ListensAnyway(WrappedNetlayer):
    async def listen(self, limits: Limits) -> Listener | None:
        return await super().listen(limits) or WrappedListener(_Nothing(), self, limits)


class _Nothing(Listener):
    location = PeerLocator("memory", "nothing")

    async def accept(self) -> Channel:
        await trio.sleep_forever()
        raise AssertionError

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class NeverListens(WrappedNetlayer):
    async def listen(self, limits: Limits) -> Listener | None:
        await trio.lowlevel.checkpoint()
        return None


class AcceptHangs(WrappedListener):
    async def accept(self) -> Channel:
        await trio.sleep_forever()
        raise AssertionError


class DialHangs(WrappedNetlayer):
    async def dial(self, locator: PeerLocator, limits: Limits) -> Channel:
        await trio.sleep_forever()
        raise AssertionError


class DialRaisesOSError(WrappedNetlayer):
    async def dial(self, locator: PeerLocator, limits: Limits) -> Channel:
        try:
            return await super().dial(locator, limits)
        except ConnectFailed as error:
            raise ConnectionRefusedError("connection refused") from error


class DialSucceedsLater(WrappedNetlayer):
    """Gives a channel before it knows whether anybody is there."""

    async def dial(self, locator: PeerLocator, limits: Limits) -> Channel:
        try:
            return await super().dial(locator, limits)
        except ConnectFailed:
            return _Dead()


class _Dead(Channel):
    async def send(self, messages: list[bytes]) -> None:
        raise ChannelBroken("nobody is there")

    async def receive(self, most: int) -> list[bytes]:
        raise ChannelBroken("nobody is there")

    def set_max_message(self, size: int) -> None:
        pass

    async def send_eof(self) -> None:
        raise ChannelBroken("nobody is there")

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class NeedsHint(WrappedNetlayer):
    """Dials by a hint, whose absence is a KeyError."""

    def __init__(self, inner: Netlayer) -> None:
        super().__init__(inner)
        self.location = PeerLocator("memory", inner.location.designator, {"number": "7"})

    async def listen(self, limits: Limits) -> Listener | None:
        listener = await super().listen(limits)
        if listener is not None:
            listener.location = self.location
        return listener

    async def dial(self, locator: PeerLocator, limits: Limits) -> Channel:
        if locator.hints["number"] != "7":
            raise ConnectFailed("the number is 7")
        return await super().dial(locator, limits)


class NeedsNumber(NeedsHint):
    """Dials by a hint that has to be a number, and says ValueError otherwise."""

    async def dial(self, locator: PeerLocator, limits: Limits) -> Channel:
        if "number" not in locator.hints or int(locator.hints["number"]) != 7:
            raise ConnectFailed("the number is 7")
        return await super().dial(locator, limits)


class _KeepingListener(WrappedListener):
    async def aclose(self) -> None:
        await self.inner.aclose()
        network = self.netlayer.inner.network  # type: ignore[attr-defined]
        taken = {*getattr(network, "taken", ()), self.location.designator}
        network.taken = taken


class KeepsItsPlace(WrappedNetlayer):
    """Gives nothing back: its place stays taken, though nobody is there."""

    listener = _KeepingListener

    async def listen(self, limits: Limits) -> Listener | None:
        if self.location.designator in getattr(self.inner.network, "taken", ()):  # type: ignore[attr-defined]
            raise ConnectFailed("address already in use")
        return await super().listen(limits)


class StillListens(WrappedListener):
    """`aclose` does nothing."""

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class AbandonsWaiting(WrappedListener):
    """Connections that nobody accepted are forgotten, and stay open."""

    async def aclose(self) -> None:
        with trio.move_on_after(0.001):
            while True:
                await self.inner.accept()
        await self.inner.aclose()


class ClosesAccepted(WrappedListener):
    """Takes the connections that it accepted with it."""

    def __init__(self, inner: Listener, netlayer: WrappedNetlayer, limits: Limits) -> None:
        super().__init__(inner, netlayer, limits)
        self.accepted: list[Channel] = []

    async def accept(self) -> Channel:
        channel = await super().accept()
        self.accepted.append(channel)
        return channel

    async def aclose(self) -> None:
        for channel in self.accepted:
            await channel.aclose()
        await self.inner.aclose()
