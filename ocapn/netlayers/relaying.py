"""Being reached through a relay: what a peer and a relay say to each other, and the peer's side (spec/netlayers.md).

A peer that may not be dialled keeps a connection to a relay. The relay tells over it of each connection that wants the
peer, with a token, and the peer dials the relay once more with that: from there on the two connections are one, on
which the peer is the one that was dialled. The relay passes on bytes, and has no key to anything in them.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Final, final

import trio

from ocapn.codec.syrup import Record, decode, encode
from ocapn.errors import ConnectFailed, DecodeError, RemoteProtocolError, shown
from ocapn.limits import Limits
from ocapn.model.locators import PeerLocator
from ocapn.model.values import Symbol
from ocapn.netlayers.backoff import Backoff
from ocapn.netlayers.base import Channel, ChannelBroken, Listener
from ocapn.netlayers.tcp import connect, race, tune
from ocapn.noise.packets import packet

if TYPE_CHECKING:
    from ocapn.netlayers.noise import NoiseNetlayer

log: Final = logging.getLogger("ocapn.netlayer")

#: Bytes of what a relay names a connection with, and what goes before them where the peer takes it.
TOKEN: Final = 32
TAKES: Final = b"ocapn-relay-1"

#: Each side says this often that it is there, and takes the other for gone after so long; seconds.
ALIVE: Final = 20.0
SILENCE: Final = 60.0
#: Connections that a relay has told of and whose handshake has not ended; more are left to it.
#: Far above what a peer lets one source have (`Limits.unauthenticated_per_source`), so that a few keep nobody out.
MOST_WAITING: Final = 256
#: Characters of where a connection comes from, as the relay says.
_MOST_SOURCE: Final = 100

_REGISTER: Final = Symbol("relay:register")
_REGISTERED: Final = Symbol("relay:registered")
_REFUSED: Final = Symbol("relay:refused")
_WANTED: Final = Symbol("relay:wanted")
_ALIVE: Final = Symbol("relay:alive")

REGISTER: Final = encode(Record(_REGISTER, []))
REGISTERED: Final = encode(Record(_REGISTERED, []))
IS_ALIVE: Final = encode(Record(_ALIVE, []))


def write_refused(reason: str) -> bytes:
    return encode(Record(_REFUSED, [reason]))


def write_wanted(token: bytes, source: str) -> bytes:
    return encode(Record(_WANTED, [token, source]))


def _read(message: bytes) -> Record:
    try:
        record = decode(message)
    except DecodeError as error:
        raise RemoteProtocolError(f"the relay says what is no record: {error}") from error
    if not isinstance(record, Record):
        raise RemoteProtocolError("the relay says what is no record")
    return record


@final
class Registration:
    """Keeps a peer registered with one relay, and hands over each connection that comes through it."""

    def __init__(
        self,
        netlayer: NoiseNetlayer,
        relay: PeerLocator,
        limits: Limits,
        take: Callable[[Channel], Awaitable[None]],
    ) -> None:
        self._netlayer = netlayer
        self._relay = relay
        self._limits = limits
        self._take = take
        self._channel: Channel | None = None
        self._waiting = 0

    async def register(self) -> None:
        """Raises ConnectFailed."""
        with trio.move_on_after(self._limits.handshake):
            channel = await self._netlayer.dial(self._relay, self._limits)
            try:
                await self._ask(channel)
            except BaseException:
                await channel.aclose()
                raise
            self._channel = channel
            return
        raise ConnectFailed(
            f"the relay {self._relay.uri} does not answer within {self._limits.handshake:g} s"
        )

    async def _ask(self, channel: Channel) -> None:
        try:
            await channel.send([REGISTER])
            answers = await channel.receive(1)
            answer = _read(answers[0]) if answers else Record(_REFUSED, ["it ended the connection"])
        except (ChannelBroken, RemoteProtocolError) as error:
            raise ConnectFailed(f"no registration with the relay {self._relay.uri}: {error}") from error
        match answer:
            case Record(label=label, fields=[]) if label is _REGISTERED:
                return
            case Record(label=label, fields=[str(reason)]) if label is _REFUSED:
                why = shown(reason)
            case _:
                why = "it is no relay"
        raise ConnectFailed(f"no registration with the relay {self._relay.uri}: {why}")

    async def run(self) -> None:
        """Registers again whenever the connection is gone."""
        backoff = Backoff()
        while True:
            channel = self._channel
            if channel is not None:
                backoff.there()
                try:
                    why = await self._serve(channel)
                finally:
                    await self.aclose()
                backoff.lost()
                log.warning("the relay %s is gone: %s", self._relay.uri, shown(why))
            await backoff.wait()
            try:
                await self.register()
            except ConnectFailed as error:
                log.info("%s", shown(error))
            else:
                log.info("the relay %s is there again", self._relay.uri)

    async def _serve(self, channel: Channel) -> str:
        """Until the connection is gone: why."""
        why = "the connection was closed"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_say_alive, channel)
            try:
                while messages := await within_silence(channel):
                    for message in messages:
                        self._told(message, nursery)
            except (ChannelBroken, RemoteProtocolError) as error:
                why = str(error)
            nursery.cancel_scope.cancel()
        return why

    def _told(self, message: bytes, nursery: trio.Nursery) -> None:
        match _read(message):
            case Record(label=label, fields=[]) if label is _ALIVE:
                pass
            case Record(label=label, fields=[bytes(token), str(source)]) if label is _WANTED:
                if len(token) == TOKEN and self._waiting < MOST_WAITING:
                    self._waiting += 1
                    nursery.start_soon(self._fetch, token, shown(source[:_MOST_SOURCE]))
            case _:
                raise RemoteProtocolError("the relay says what a relay does not")

    async def _fetch(self, token: bytes, source: str) -> None:
        """Takes a connection that the relay has told of."""
        try:
            with trio.move_on_after(self._limits.handshake):
                stream = await self._dial(packet(TAKES + token))
                # What a relay says of sources counts for that relay alone, so that it shuts nobody out elsewhere.
                source = f"{source} through the relay {self._relay.designator}"
                channel = self._netlayer.accepted(stream, self._limits, source)
                await self._take(channel)
                await channel.begun.wait()  # until then it counts: a relay may say any source
        except (OSError, trio.BrokenResourceError) as error:
            log.info("the relay %s had a connection that was not taken: %s", self._relay.uri, shown(error))
        finally:
            self._waiting -= 1

    async def _dial(self, first: bytes) -> trio.SocketStream:
        places = [partial(connect, *place) for place in self._netlayer.places(self._relay)]
        stream = await race(places, trio.SocketStream.aclose)
        try:
            tune(stream)
            await stream.send_all(first)
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return stream

    async def aclose(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            with trio.CancelScope(shield=True):
                await channel.aclose()


async def _say_alive(channel: Channel) -> None:
    """Says it now and then, until the connection fails: who receives will hear of that."""
    try:
        while True:
            await trio.sleep(ALIVE)
            await channel.send([IS_ALIVE])
    except ChannelBroken:
        pass


@final
class RelayedListener(Listener):
    """Accepts what comes through relays, and at `direct` if there is such a listener."""

    def __init__(self, location: PeerLocator, direct: Listener | None) -> None:
        self.location = location
        self.registrations: list[Registration] = []
        self._direct = direct
        self._give, self._taken = trio.open_memory_channel[Channel | OSError](0)
        self._closed = trio.CancelScope()

    async def register(self) -> None:
        """At all relays; one that is not there is tried again by `run`. Raises ConnectFailed if none is, and there is
        no other way to this peer."""
        failures: list[ConnectFailed] = []

        async def register(registration: Registration) -> None:
            try:
                await registration.register()
            except ConnectFailed as error:
                failures.append(error)

        async with trio.open_nursery() as nursery:
            for registration in self.registrations:
                nursery.start_soon(register, registration)
        if len(failures) == len(self.registrations) and self._direct is None:
            raise failures[0]
        for failure in failures:
            log.warning("%s", shown(failure))

    async def take(self, channel: Channel | OSError) -> None:
        """Hands it to who accepts."""
        try:
            await self._give.send(channel)
        except BaseException as error:
            if isinstance(channel, Channel):
                with trio.CancelScope(shield=True):
                    await channel.aclose()
            if not isinstance(error, trio.BrokenResourceError):  # nobody accepts any more
                raise

    async def accept(self) -> Channel:
        channel = await self._taken.receive()
        if isinstance(channel, OSError):
            raise channel
        return channel

    async def run(self) -> None:
        with self._closed:
            async with trio.open_nursery() as nursery:
                if self._direct is not None:
                    nursery.start_soon(self._accept, self._direct)
                for registration in self.registrations:
                    nursery.start_soon(registration.run)

    async def _accept(self, direct: Listener) -> None:
        while True:
            try:
                channel: Channel | OSError = await direct.accept()
            except OSError as error:
                channel = error
            await self.take(channel)

    async def aclose(self) -> None:
        self._closed.cancel()
        self._taken.close()
        with trio.CancelScope(shield=True):
            for registration in self.registrations:
                await registration.aclose()
            if self._direct is not None:
                await self._direct.aclose()


async def within_silence(channel: Channel) -> list[bytes]:
    """What the other side says next, an empty list at its end. Raises ChannelBroken, RemoteProtocolError."""
    with trio.move_on_after(SILENCE):
        return await channel.receive(64)
    raise ChannelBroken(f"nothing was heard for {SILENCE:g} s")
