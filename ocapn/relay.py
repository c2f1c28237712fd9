"""A relay: peers that may not be dialled are reached through it (spec/netlayers.md, Relays).

It reads which peer a connection wants, which stands in clear at the beginning of the noise handshake, and passes on
what follows to that peer and back. It has no key to it: it can delay and end what it passes on, and know who wants
whom.
"""

from __future__ import annotations

import logging
import math
import secrets
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Final, final

import attrs
import trio

from ocapn.crypto import Identity, designator_of, public_key_of
from ocapn.errors import RemoteProtocolError, shown
from ocapn.limits import Limits, positive
from ocapn.model.locators import PeerLocator
from ocapn.netlayers.base import ChannelBroken
from ocapn.netlayers.noise import NoiseChannel, NoiseNetlayer
from ocapn.netlayers.relaying import (
    ALIVE,
    IS_ALIVE,
    REGISTER,
    REGISTERED,
    SILENCE,
    TAKES,
    TOKEN,
    within_silence,
    write_refused,
    write_wanted,
)
from ocapn.netlayers.tcp import tune
from ocapn.noise.handshake import FIRST, wanted
from ocapn.noise.packets import packet

log: Final = logging.getLogger("ocapn.relay")

#: What a registered peer says is read this often, seconds: it has next to nothing to say.
_PACE: Final = 1.0
#: Bytes that are passed on at once.
_PIECE: Final = 1 << 16


@attrs.frozen(kw_only=True)
class RelayLimits:
    """What a relay lets others do. A connection that is over a limit is closed at once."""

    #: Peers that are registered.
    clients: int = attrs.field(default=1_000, validator=positive)
    #: Connections to one registered peer, those it has not taken yet included.
    connections: int = attrs.field(default=1_000, validator=positive)
    #: Of those, how many it has not taken yet.
    waiting: int = attrs.field(default=256, validator=positive)
    #: Connections from one source, registrations included: an address, of IPv6 the first half. Far below `waiting`, so
    #: that a few sources keep nobody from a peer.
    per_source: int = attrs.field(default=64, validator=positive)
    #: Connections in all: each needs two file descriptors once it is passed on.
    total: int = attrs.field(default=10_000, validator=positive)
    #: Bytes a second that are passed on to and from one registered peer, over all its connections.
    rate: int = attrs.field(default=10 << 20, validator=positive)
    #: Seconds until a connection has said what it wants, and until a registered peer has taken one.
    handshake: float = attrs.field(default=10.0, validator=positive)


@final
class _Client:
    """A registered peer: the connection over which it is told of others."""

    def __init__(self, channel: NoiseChannel, most: int) -> None:
        """`most` is how many connections it is told of before it reads that."""
        self.channel = channel
        self.scope = trio.CancelScope()
        self._tell, self._told = trio.open_memory_channel[bytes](most)

    def told(self, message: bytes) -> bool:
        """Whether it can be told one thing more."""
        try:
            self._tell.send_nowait(message)
        except trio.WouldBlock:
            return False
        return True

    async def run(self) -> None:
        """Until the peer is gone."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write, nursery.cancel_scope)
            try:
                while messages := await within_silence(self.channel):
                    if any(message != IS_ALIVE for message in messages):
                        raise RemoteProtocolError("it says what a registered peer does not")
                    await trio.sleep(_PACE)
            except (ChannelBroken, RemoteProtocolError) as error:
                log.info("a registered peer is gone: %s", shown(error))
            nursery.cancel_scope.cancel()

    async def _write(self, both: trio.CancelScope) -> None:
        """Says what there is to say, and now and then that this relay is there."""
        message = REGISTERED
        try:
            while True:
                with trio.move_on_after(SILENCE) as in_time:
                    await self.channel.send([message])
                if in_time.cancelled_caught:
                    raise ChannelBroken("it does not read")
                message = IS_ALIVE
                with trio.move_on_after(ALIVE):
                    message = await self._told.receive()
        except ChannelBroken as error:
            log.info("a registered peer is gone: %s", shown(error))
            both.cancel()


@final
class _Traffic:
    """What is passed on to and from one registered peer, also after it has registered anew."""

    def __init__(self, rate: int) -> None:
        self.connections = 0
        self.waiting = 0
        self._rate = rate
        self._paid = -math.inf  # when all that was passed on may have been

    async def pay(self, size: int) -> None:
        """Waits until so many bytes more may be passed on. What was not used in the last second is there."""
        now = trio.current_time()
        self._paid = max(self._paid, now - 1.0) + size / self._rate
        await trio.sleep_until(self._paid)


@final
class Relay:
    """Passes on connections to peers that have registered.

    It listens at `host` and `port`; port 0 lets the system choose. `identity` is its own key, by which those that
    register know it: drawn at random unless given. `advertise` are addresses (`host:port`, up to 8) where it is found,
    if not where it listens. `allow` has the designators of the peers that may register; by default all may.
    Raises ValueError and BadLocator as `NoiseNetlayer`, and BadLocator for what is no designator.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        identity: Identity | None = None,
        advertise: Collection[str] = (),
        allow: Collection[str] | None = None,
        limits: RelayLimits | None = None,
    ) -> None:
        self._netlayer = NoiseNetlayer(host, port, identity=identity, advertise=tuple(advertise))
        if isinstance(allow, str):
            raise TypeError("allow has designators, and is not one")
        for designator in allow or ():
            public_key_of(designator)
        self._allow = None if allow is None else frozenset(allow)
        self._limits = limits or RelayLimits()
        self._clients: dict[str, _Client] = {}
        self._traffic: dict[str, _Traffic] = {}
        self._sources: Counter[str] = Counter()
        self._total = 0
        #: Connections that wait until the peer that they want has taken them, by token.
        self._tokens: dict[bytes, _Waiting] = {}

    async def run(self, *, task_status: trio.TaskStatus[PeerLocator] = trio.TASK_STATUS_IGNORED) -> None:
        """Relays until it is cancelled; `nursery.start` returns its locator. Raises ConnectFailed."""
        listener = await self._netlayer.bind()
        async with listener, trio.open_nursery() as nursery:
            task_status.started(self._netlayer.location)
            while True:
                try:
                    stream = await listener.accept()
                except OSError as error:
                    log.warning("cannot accept: %s", error)
                    await trio.sleep(0.1)
                    continue
                nursery.start_soon(self._accepted, stream)

    async def _accepted(self, stream: trio.SocketStream) -> None:
        source = tune(stream)
        try:
            with self._counted(source) as counted:
                if not counted:
                    log.info("too many connections from %s, or in all; one is closed", source)
                    return
                first = None
                with trio.move_on_after(self._limits.handshake):
                    first = await _first_packet(stream)
                if first is None:
                    return
                if len(first) == FIRST:
                    await self._wanted(stream, source, first)
                    return
            await self._taken(stream, first[len(TAKES) :])
        except (
            trio.BrokenResourceError,
            trio.ClosedResourceError,
            ChannelBroken,
            RemoteProtocolError,
        ) as error:
            log.info("a connection from %s ended: %s", source, shown(error))
        finally:
            await trio.aclose_forcefully(stream)

    @contextmanager
    def _counted(self, source: str) -> Iterator[bool]:
        """Whether there may be one more from there, which is counted if so."""
        if self._sources[source] >= self._limits.per_source or self._total >= self._limits.total:
            yield False
            return
        self._sources[source] += 1
        self._total += 1
        try:
            yield True
        finally:
            self._sources[source] -= 1
            self._total -= 1
            if not self._sources[source]:
                del self._sources[source]

    async def _wanted(self, stream: trio.SocketStream, source: str, first: bytes) -> None:
        designator = designator_of(wanted(first))
        if designator == self._netlayer.location.designator:
            await self._registers(stream, source, first)
        else:
            await self._pass_on(stream, source, first, designator)

    # Peers that register

    async def _registers(self, stream: trio.SocketStream, source: str, first: bytes) -> None:
        channel = NoiseChannel(stream, Limits(), self._netlayer, source, packet(first))
        with trio.move_on_after(self._limits.handshake) as in_time:
            await channel.begin()
            asked = await channel.receive(1)
        if in_time.cancelled_caught:
            return
        if asked != [REGISTER]:
            await channel.send([channel.codec.abort("this is a relay, and no peer: it has no objects")])
            return
        designator = channel.authenticated
        assert designator is not None
        reason = self._refusal(designator)
        if reason is not None:
            log.info("%s may not register, from %s: %s", designator, source, reason)
            await channel.send([write_refused(reason)])
            return
        before = self._clients.get(designator)
        if before is not None:
            before.scope.cancel()
        client = self._clients[designator] = _Client(channel, self._limits.waiting)
        log.info("%s has registered, from %s", designator, source)
        try:
            with client.scope:
                await client.run()
        finally:
            if self._clients.get(designator) is client:
                del self._clients[designator]
                self._forget(designator)
                log.info("%s is registered no more", designator)

    def _refusal(self, designator: str) -> str | None:
        if self._allow is not None and designator not in self._allow:
            return "this relay is for others"
        if designator not in self._clients and len(self._clients) >= self._limits.clients:
            return "this relay has as many peers as it takes"
        return None

    # Connections that want them

    async def _pass_on(self, stream: trio.SocketStream, source: str, first: bytes, designator: str) -> None:
        client = self._clients.get(designator)
        if client is None:
            log.info("%s wants %s, which is not registered", source, designator)
            return
        traffic = self._traffic.setdefault(designator, _Traffic(self._limits.rate))
        if traffic.connections >= self._limits.connections or traffic.waiting >= self._limits.waiting:
            log.info("%s wants %s, to which there are too many connections", source, designator)
            return
        traffic.connections += 1
        try:
            waiting = _Waiting(stream, packet(first), traffic)
            token = secrets.token_bytes(TOKEN)
            self._tokens[token] = waiting
            traffic.waiting += 1
            try:
                if client.told(write_wanted(token, source)):
                    with trio.move_on_after(self._limits.handshake):
                        await waiting.taken.wait()
            finally:
                traffic.waiting -= 1
                self._tokens.pop(token, None)
            if waiting.taken.is_set():
                await waiting.done.wait()
        finally:
            traffic.connections -= 1
            self._forget(designator)

    def _forget(self, designator: str) -> None:
        """What was passed on counts for as long as the peer is registered, or there is a connection to it."""
        traffic = self._traffic.get(designator)
        if traffic is not None and not traffic.connections and designator not in self._clients:
            del self._traffic[designator]

    async def _taken(self, stream: trio.SocketStream, token: bytes) -> None:
        """The peer takes a connection: what comes on either goes out on the other."""
        waiting = self._tokens.pop(token, None)
        if waiting is None:
            return
        waiting.taken.set()
        try:
            await stream.send_all(waiting.first)
            async with trio.open_nursery() as nursery:
                both = _Both(waiting.traffic, nursery.cancel_scope)
                for one, other in ((stream, waiting.stream), (waiting.stream, stream)):
                    nursery.start_soon(both.copy, one, other)
        finally:
            waiting.done.set()


@final
class _Waiting:
    """A connection that wants a peer, with what it has said first."""

    def __init__(self, stream: trio.SocketStream, first: bytes, traffic: _Traffic) -> None:
        self.stream = stream
        self.first = first
        self.traffic = traffic
        self.taken = trio.Event()
        self.done = trio.Event()


@final
class _Both:
    """The two ways of one connection that is passed on. If either breaks, so does the whole.

    Once one side has said that it says no more, the other may go on, but may not be silent for long, nor may what it
    says wait for long until it is read: who closes its connection seems to have said no more, and hears nothing, so
    that the other could keep its place for ever.
    """

    def __init__(self, traffic: _Traffic, scope: trio.CancelScope) -> None:
        self._traffic = traffic
        self._scope = scope
        self._half = False
        self._paying = 0

    async def copy(self, one: trio.SocketStream, other: trio.SocketStream) -> None:
        """Until `one` says no more."""
        try:
            while data := await one.receive_some(_PIECE):
                self._paying += 1
                self._moved()
                await self._traffic.pay(len(data))
                self._paying -= 1
                self._moved()
                await other.send_all(data)
                self._moved()
            await other.send_eof()
            self._half = True
            self._moved()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._scope.cancel()

    def _moved(self) -> None:
        waits = self._half and not self._paying  # to pay may take long, and is nobody's silence
        self._scope.deadline = trio.current_time() + SILENCE if waits else math.inf


async def _first_packet(stream: trio.SocketStream) -> bytes | None:
    """A first message of noise, or what a peer takes a connection with; None for anything else."""
    size = int.from_bytes(await _read(stream, 2), "big")
    if size not in (FIRST, len(TAKES) + TOKEN):
        return None
    first = await _read(stream, size)
    return first if size == FIRST or first.startswith(TAKES) else None


async def _read(stream: trio.SocketStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = await stream.receive_some(size - len(data))
        if not more:
            raise ChannelBroken("it said nothing that is meant for a relay")
        data += more
    return data
