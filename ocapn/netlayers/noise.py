"""`noise`: TCP with the Noise protocol, for real networks (spec/netlayers.md).

Each side proves its designator, which is its key; nobody on the way reads, changes, drops or repeats a part of what
they say without that the connection ends.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final, final

import trio

from ocapn.codec.cbor import CODECS
from ocapn.codec.framing import SYRUP as SYRUP_FRAMES
from ocapn.crypto import Identity, designator_of, public_key_of
from ocapn.errors import BadLocator, ConnectFailed, RemoteProtocolError
from ocapn.limits import Limits
from ocapn.model.locators import PeerLocator
from ocapn.netlayers.base import Channel, ChannelBroken, Listener, Netlayer, StreamChannel, unreachable
from ocapn.netlayers.identity import kept, new_identity, to_keep
from ocapn.netlayers.relaying import Registration, RelayedListener
from ocapn.netlayers.tcp import MOST_ADDRESSES, TcpListener, connect, is_every_address, listen, race, tune
from ocapn.noise.handshake import FIRST, NO_CODEC, SECOND, THIRD, NoiseHandshake, wanted
from ocapn.noise.packets import Packets, packet
from ocapn.noise.protocol import KEY, KeyPair, NoiseError

TRANSPORT = "noise"

_ADDRESS: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([^\s:\[\],]{1,253})):([0-9]{1,5})\Z")
_EVERYWHERE: Final = "{} stands for every address of this machine; advertise= says at which others find it"
_NO_COMMON_CODEC: Final = "the two peers have no codec in common"


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of `host:port`, where an IPv6 address stands in brackets. Raises BadLocator."""
    match = _ADDRESS.match(text)
    if match is None or not 0 < int(match[3]) < 65536:
        raise BadLocator(
            f"an address is host:port or [IPv6]:port, with a port from 1 to 65535, not {text[:80]!r}"
        )
    return match[1] or match[2], int(match[3])


def write_address(host: str, port: int) -> str:
    """What `parse_address` reads."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


_BY_NUMBER: Final = {codec.number: codec for codec in CODECS.values()}


class NoiseNetlayer(Netlayer):
    """A peer that others dial at `host` and `port`; port 0 lets the system choose; `listen=False` only dials.

    `identity` is who it is: drawn at random unless given, and with a baggage the same after a restart.
    `advertise` are the addresses (`host:port`, up to 8) that its locator names, where they are not the one that is
    bound. `codecs` are those that it speaks, the one it likes best first; of those that both sides speak, the one that
    listens chooses. Raises ValueError for more addresses, for no codec or one that is none, and where `host` is every
    address of the machine and `advertise` is empty; BadLocator for what is no address.

    `relays` are locators (or their URIs) of relays, with up to 8 addresses together, through which it can be reached as
    well; with `listen=False` through them alone. Raises ValueError for more, and BadLocator for what is no locator of
    a relay.
    """

    transport = TRANSPORT
    proves = True

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        identity: Identity | None = None,
        advertise: Sequence[str] = (),
        codecs: Sequence[str] = ("syrup", "cbor"),
        relays: Sequence[PeerLocator | str] = (),
        listen: bool = True,
    ) -> None:
        unknown = [name for name in codecs if name not in CODECS]
        if unknown or not codecs:
            raise ValueError(f"codecs are some of {', '.join(CODECS)}, not {', '.join(unknown) or 'none'}")
        if len(advertise) > MOST_ADDRESSES or len(relays) > MOST_ADDRESSES:
            raise ValueError(f"a locator names up to {MOST_ADDRESSES} addresses, and as many relays")
        for address in advertise:
            parse_address(address)
        if listen and not advertise and is_every_address(host):
            raise ValueError(_EVERYWHERE.format(host))
        self._host = host
        self._port = port
        self._advertise = tuple(advertise)
        self._listen = listen
        self._relays = [PeerLocator.parse(relay) if isinstance(relay, str) else relay for relay in relays]
        for relay in self._relays:
            if relay.transport != TRANSPORT:
                raise BadLocator(f"the locator of a relay is one of {TRANSPORT}, not {relay.uri}")
            public_key_of(relay.designator)
            if not _addresses(relay, "addr"):
                raise BadLocator(f"the locator of a relay needs the hint addr, which {relay.uri} has not")
        if len(self._relay_addresses()) > MOST_ADDRESSES:
            raise ValueError(f"the relays have more than {MOST_ADDRESSES} addresses together")
        self._drawn = identity is None
        self._identity = identity or new_identity()
        self._codecs = tuple(CODECS[name].number for name in codecs)
        self._static = KeyPair(secrets.token_bytes(KEY))
        self.location = self._located({})

    def __repr__(self) -> str:
        return f"<NoiseNetlayer {self.location.uri}>"

    @property
    def identity(self) -> str:
        return to_keep(self._identity, drawn=self._drawn)

    def be_again(self, identity: str) -> None:
        self._identity = kept(identity, self._identity, drawn=self._drawn)
        self.location = self._located(self.location.hints)

    def _located(self, hints: Mapping[str, str]) -> PeerLocator:
        return PeerLocator(TRANSPORT, self._identity.designator, hints)

    async def listen(self, limits: Limits) -> Listener | None:
        direct = await self._listen_here(limits) if self._listen else None
        if not self._relays:
            return direct
        self.location = self._located({**self.location.hints, "relay": ",".join(self._relay_addresses())})
        listener = RelayedListener(self.location, direct)
        listener.registrations += [Registration(self, relay, limits, listener.take) for relay in self._relays]
        try:
            await listener.register()
        except BaseException:
            await listener.aclose()
            raise
        return listener

    def _relay_addresses(self) -> list[str]:
        return list(dict.fromkeys(address for relay in self._relays for address in _addresses(relay, "addr")))

    async def _listen_here(self, limits: Limits) -> Listener:
        listener = await self.bind()
        return TcpListener(
            listener, self.location, lambda stream, source: self.accepted(stream, limits, source)
        )

    async def bind(self) -> trio.SocketListener:
        """Listens, after which `location` says where. Raises ConnectFailed."""
        listener = await listen(self._host, self._port)
        bound, self.port = listener.socket.getsockname()[:2]
        if not self._advertise and is_every_address(bound):  # as "0" and "" are too
            await listener.aclose()
            raise ConnectFailed(_EVERYWHERE.format(bound))
        self.location = self._located(
            {"addr": ",".join(self._advertise or (write_address(bound, self.port),))}
        )
        return listener

    def accepted(self, stream: trio.SocketStream, limits: Limits, source: str) -> NoiseChannel:
        """The channel on a connection that wants this peer."""
        return NoiseChannel(stream, limits, self, source)

    @staticmethod
    def places(locator: PeerLocator) -> list[tuple[str, int]]:
        """Hosts and ports at which a peer is, or a relay that has a way to it. Raises BadLocator."""
        addresses = _addresses(locator, "addr") + _addresses(locator, "relay")
        if not addresses:
            raise BadLocator(
                "a noise locator needs the hint addr, or relay: host:port, or several with commas between"
            )
        return [parse_address(address) for address in addresses]

    async def dial(self, locator: PeerLocator, limits: Limits) -> Channel:
        wanted = public_key_of(locator.designator)
        places = self.places(locator)
        try:
            channel = await race(
                [partial(self._reach, place, wanted, limits) for place in places], NoiseChannel.aclose
            )
        except OSError as error:
            raise unreachable(locator, error) from error
        if not channel.agreed:
            await channel.aclose()
            raise ConnectFailed(f"cannot talk to {locator.uri}: {_NO_COMMON_CODEC}", lasting=True)
        return channel

    async def _reach(self, place: tuple[str, int], wanted: bytes, limits: Limits) -> NoiseChannel:
        try:
            stream = await connect(*place)
            tune(stream)
            channel = NoiseChannel(stream, limits, self)
            try:
                await channel.introduce(wanted)
            except BaseException:
                await channel.aclose()
                raise
        except (OSError, ChannelBroken) as error:
            raise ChannelBroken(f"{write_address(*place)}: {error}") from error
        return channel

    def check_wanted(self, first: bytes) -> None:
        """Raises NoiseError for the first message of a handshake that is for another peer."""
        if wanted(first) != self._identity.public_key:
            raise NoiseError("the first message is for another peer")

    def handshake(self, responder: bytes | None = None) -> NoiseHandshake:
        """This peer's side of a new handshake."""
        ephemeral = KeyPair(secrets.token_bytes(KEY))
        return NoiseHandshake(
            self._identity, self._static, ephemeral, responder=responder, codecs=self._codecs
        )


def _addresses(locator: PeerLocator, hint: str) -> list[str]:
    given = locator.hints.get(hint)
    addresses = given.split(",") if given else []
    if len(addresses) > MOST_ADDRESSES:
        raise BadLocator(f"a noise locator names up to {MOST_ADDRESSES} addresses, and as many of relays")
    return addresses


@final
class NoiseChannel(StreamChannel):
    """Messages in Syrup frames, and those in encrypted packets."""

    def __init__(
        self,
        stream: trio.SocketStream,
        limits: Limits,
        netlayer: NoiseNetlayer,
        source: str = "",
        early: bytes = b"",
    ) -> None:
        """`early` is what was read from the stream already."""
        super().__init__(stream, limits, SYRUP_FRAMES, source)
        self._netlayer = netlayer
        self._packets: Packets | None = None
        self._early = early  # what has come with a packet of the handshake, or before
        #: Set when the handshake has ended, or the connection.
        self.begun = trio.Event()
        #: Whether the two sides have a codec in common.
        self.agreed = False

    async def introduce(self, wanted: bytes) -> None:
        """Finds the peer that has this key at the other end. Raises ChannelBroken."""
        handshake = self._netlayer.handshake(wanted)
        try:
            await self._say(handshake.first())
            third = handshake.third(await self._hear(SECOND, "nobody there is that peer"))
            if handshake.codec != NO_CODEC:
                await self._say(third)
                self._introduced(handshake)
        except NoiseError as error:
            raise ChannelBroken(str(error)) from error

    async def begin(self) -> None:
        try:
            first = await self._hear(FIRST)
            self._netlayer.check_wanted(first)  # before anything is computed
            handshake = self._netlayer.handshake()
            second = handshake.second(first)
            await self._say(second)
            if handshake.codec == NO_CODEC:
                raise ChannelBroken(_NO_COMMON_CODEC)
            handshake.finish(await self._hear(THIRD))
        except NoiseError as error:
            raise RemoteProtocolError(str(error)) from error
        self._introduced(handshake)

    def _introduced(self, handshake: NoiseHandshake) -> None:
        self.agreed = True
        self.codec = _BY_NUMBER[handshake.codec]
        self.authenticated = designator_of(handshake.peer)
        self.binding = handshake.binding
        self._packets = handshake.packets()
        self.begun.set()
        if self._early:
            self._framer.feed(self._unwrapped(b""))

    async def aclose(self) -> None:
        self.begun.set()
        await super().aclose()

    async def _say(self, message: bytes) -> None:
        try:
            await self._stream.send_all(packet(message))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ChannelBroken("the connection ended in the handshake") from error

    async def _hear(self, size: int, ended: str = "the connection ended in the handshake") -> bytes:
        """A packet of the handshake, which has that size. Raises NoiseError as soon as it has another, ChannelBroken if
        it does not come."""
        data = self._early
        while len(data) < 2 + size:
            if len(data) >= 2 and int.from_bytes(data[:2], "big") != size:
                break
            more = await self._receive_some()
            if not more:
                raise ChannelBroken(ended)
            data += more
        if int.from_bytes(data[:2], "big") != size:
            raise NoiseError("that is no handshake of the noise netlayer")
        self._early = data[2 + size :]
        return data[2 : 2 + size]

    def _wrapped(self, data: bytes) -> bytes:
        assert self._packets is not None
        return self._packets.seal(data)

    def _unwrapped(self, data: bytes) -> bytes:
        assert self._packets is not None
        early, self._early = self._early, b""
        try:
            return self._packets.open(early + data)
        except NoiseError as error:  # by whoever is on the way: the session itself goes on elsewhere
            raise ChannelBroken(str(error)) from error

    @property
    def _within(self) -> bool:
        return self._packets is not None and self._packets.pending
