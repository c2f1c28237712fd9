"""Two peers that prove to each other who they are, and agree on a codec (spec/netlayers.md, noise).

The dialler's `NoiseHandshake` writes the first message, the listener's the second, the dialler's the third. Each is a
packet of the stream. What raises NoiseError ends the connection.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, final

from ocapn.crypto import KEY, Identity, verify
from ocapn.noise.packets import Packets
from ocapn.noise.protocol import TAG, Exchange, KeyPair, NoiseError

_LABEL: Final = b"ocapn-noise-1"
_SIGNATURE: Final = 64
_CODECS: Final = 4
_CODEC: Final = 2
#: The number of the codec that the two sides do not have in common.
NO_CODEC: Final = 0xFFFF
SYRUP: Final = 0

#: Bytes of the three messages: they have no other.
FIRST: Final = KEY + KEY + _CODECS
SECOND: Final = KEY + KEY + TAG + KEY + _SIGNATURE + _CODEC + TAG
THIRD: Final = KEY + TAG + KEY + _SIGNATURE + TAG


def wanted(first: bytes) -> bytes:
    """The key of the peer that a first message is for, in clear: for whoever passes it on. Raises NoiseError."""
    if len(first) != FIRST:
        raise NoiseError(f"a first message has {FIRST} bytes, and not {len(first)}")
    return first[:KEY]


@final
class NoiseHandshake:
    """One side of a handshake. `ephemeral` is drawn for this alone.

    `responder` is the key of the peer that is dialled; None where that is this one. `codecs` are the numbers of those
    that this side has, the one it likes best first.
    """

    __slots__ = ("_codecs", "_exchange", "_identity", "_responder", "codec", "peer")

    def __init__(
        self,
        identity: Identity,
        static: KeyPair,
        ephemeral: KeyPair,
        *,
        responder: bytes | None = None,
        codecs: Sequence[int] = (SYRUP,),
    ) -> None:
        self._identity = identity
        self._responder = responder
        self._codecs = codecs
        #: The key that the other side has proved to have.
        self.peer = b""
        #: The number of the codec that both have.
        self.codec = NO_CODEC
        self._exchange = Exchange(
            initiator=responder is not None,
            prologue=_LABEL + (responder or identity.public_key),
            static=static,
            ephemeral=ephemeral,
        )

    def first(self) -> bytes:
        """The dialler's first message."""
        assert self._responder is not None
        lowest = min(self._codecs)
        others = sum(1 << (codec - lowest - 1) for codec in self._codecs if codec != lowest)
        return self._responder + self._exchange.write(lowest.to_bytes(2, "big") + others.to_bytes(2, "big"))

    def second(self, first: bytes) -> bytes:
        """The listener's answer. It says so if there is no codec in common; `codec` is NO_CODEC then."""
        if wanted(first) != self._identity.public_key:
            raise NoiseError("the first message is for another peer")
        offered = self._exchange.read(first[KEY:])
        lowest, others = int.from_bytes(offered[:2], "big"), int.from_bytes(offered[2:], "big")
        for codec in self._codecs:
            if codec == lowest or (lowest < codec <= lowest + 16 and others >> (codec - lowest - 1) & 1):
                self.codec = codec
                break
        return self._exchange.write(self._proof(b"responder") + self.codec.to_bytes(2, "big"))

    def third(self, second: bytes) -> bytes:
        """The dialler's last message."""
        assert self._responder is not None
        if len(second) != SECOND:
            raise NoiseError(f"a second message has {SECOND} bytes, and not {len(second)}")
        said = self._exchange.hash
        payload = self._exchange.read(second)
        self._prove(b"responder", said, payload[:-_CODEC])
        if self.peer != self._responder:
            raise NoiseError("another peer has answered than the one that was dialled")
        codec = int.from_bytes(payload[-_CODEC:], "big")
        if codec != NO_CODEC and codec not in self._codecs:
            raise NoiseError("the peer has chosen a codec that was not offered")
        self.codec = codec
        return self._exchange.write(self._proof(b"initiator"))

    def finish(self, third: bytes) -> None:
        """The listener has the dialler's last message."""
        if len(third) != THIRD:
            raise NoiseError(f"a third message has {THIRD} bytes, and not {len(third)}")
        said = self._exchange.hash
        self._prove(b"initiator", said, self._exchange.read(third))

    @property
    def binding(self) -> bytes:
        """What no other connection has: the hash of the handshake."""
        assert self._exchange.done
        return self._exchange.hash

    def packets(self) -> Packets:
        """What follows, encrypted."""
        return Packets(*self._exchange.ciphers())

    def _proof(self, role: bytes) -> bytes:
        """That who has this side's static key here, in this connection, is this peer."""
        signed = _LABEL + role + self._exchange.hash + self._exchange.static.public
        return self._identity.public_key + self._identity.sign(signed)

    def _prove(self, role: bytes, said: bytes, proof: bytes) -> None:
        key, signature = proof[:KEY], proof[KEY:]
        if not verify(key, _LABEL + role + said + self._exchange.remote_static, signature):
            raise NoiseError("the other side does not prove who it is")
        self.peer = key
