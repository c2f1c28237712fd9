"""The packets of a stream: a length of two bytes, most significant first, and so many bytes; encrypted after the
handshake."""

from __future__ import annotations

from typing import Final, final

from ocapn.noise.protocol import MOST, TAG, Cipher, NoiseError

#: Bytes that one encrypted packet carries.
_ROOM: Final = MOST - TAG
#: After so many packets in one direction its key is replaced.
REKEY: Final = 1 << 16


def packet(body: bytes) -> bytes:
    """A packet with up to 65,535 bytes."""
    return len(body).to_bytes(2, "big") + body


@final
class Packets:
    """Both directions of one connection: `send` and `receive` are the ciphers of the two.

    Order is proved by the nonces: what is lost, doubled, exchanged or altered does not open, nor does what follows.
    """

    __slots__ = ("_failed", "_receive", "_rest", "_send")

    def __init__(self, send: Cipher, receive: Cipher) -> None:
        self._send = send
        self._receive = receive
        self._rest = b""
        self._failed = False

    @property
    def pending(self) -> bool:
        """Whether a packet has begun to come, and not ended."""
        return bool(self._rest)

    def seal(self, data: bytes) -> bytes:
        """The packets that carry the bytes."""
        return b"".join(packet(self._sealed(data[at : at + _ROOM])) for at in range(0, len(data), _ROOM))

    def open(self, data: bytes) -> bytes:
        """What the packets carry that `data` completes. Raises NoiseError, after which nothing opens any more."""
        if self._failed:
            raise NoiseError("a packet before did not open")
        data = self._rest + data
        self._failed = True  # unless all is well
        parts = []
        at, end = 0, len(data)
        while end - at >= 2:
            size = data[at] << 8 | data[at + 1]
            if size <= TAG:
                raise NoiseError("a packet that carries nothing")
            if end - at < 2 + size:
                break
            parts.append(self._opened(data[at + 2 : at + 2 + size]))
            at += 2 + size
        self._rest = data[at:]
        self._failed = False
        return b"".join(parts)

    def _sealed(self, clear: bytes) -> bytes:
        sealed = self._send.encrypt(clear)
        if not self._send.nonce % REKEY:
            self._send.rekey()
        return sealed

    def _opened(self, sealed: bytes) -> bytes:
        clear = self._receive.decrypt(sealed)
        if not self._receive.nonce % REKEY:
            self._receive.rekey()
        return clear
