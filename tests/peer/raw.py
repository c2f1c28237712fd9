"""A peer by hand: connections over a `MemoryNetwork` on which a test says what is sent."""

from __future__ import annotations

from typing import Self

from ocapn import Limits, MemoryNetlayer, MemoryNetwork, PeerLocator
from ocapn.captp.handshake import VERSION
from ocapn.codec.operations import StartSession, write_abort, write_start_session
from ocapn.codec.syrup import Encoder
from ocapn.crypto import SessionKey, location_message
from ocapn.netlayers.base import Channel

LIMITS = Limits(unauthenticated_frame=1 << 20)


def hello(
    location: PeerLocator,
    key: SessionKey,
    *,
    version: str = VERSION,
    signer: SessionKey | None = None,
    wire_key: bytes | None = None,
) -> bytes:
    """An op:start-session, right in all that is not said otherwise."""
    signature = (signer or key).sign(location_message(location))
    return write_start_session(
        Encoder(LIMITS), StartSession(version, wire_key or key.public_key, location, signature)
    )


def abort(reason: str) -> bytes:
    return write_abort(reason)


class Raw:
    """One connection by hand."""

    def __init__(self, channel: Channel, location: PeerLocator, seed: int = 0) -> None:
        self.channel = channel
        self.location = location
        self.key = SessionKey(bytes([seed]) * 32)

    @classmethod
    async def dial(cls, network: MemoryNetwork, name: str, to: PeerLocator, seed: int = 0) -> Self:
        netlayer = MemoryNetlayer(network, name, listen=False)
        return cls(await netlayer.dial(to, LIMITS), netlayer.location, seed)

    async def send(self, *messages: bytes) -> None:
        await self.channel.send(list(messages))

    async def hello(self) -> None:
        await self.send(hello(self.location, self.key))

    async def receive(self) -> list[bytes]:
        """All there is until the other side ends the connection."""
        received: list[bytes] = []
        while messages := await self.channel.receive(64):
            received += messages
        return received
