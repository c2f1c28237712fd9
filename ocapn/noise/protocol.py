"""The Noise protocol `Noise_XX_25519_ChaChaPoly_BLAKE2s` (The Noise Protocol Framework, revision 34), without I/O.

Keys are passed in. What the two sides prove to each other with it is for `ocapn.noise.handshake`.
"""

from __future__ import annotations

import hmac
from hashlib import blake2s
from typing import Final, final

from nacl.bindings import (
    crypto_aead_chacha20poly1305_ietf_decrypt,
    crypto_aead_chacha20poly1305_ietf_encrypt,
    crypto_scalarmult,
    crypto_scalarmult_base,
)
from nacl.exceptions import CryptoError
from nacl.exceptions import RuntimeError as NaclRuntimeError

NAME: Final = b"Noise_XX_25519_ChaChaPoly_BLAKE2s"
#: Bytes of a key, of an authenticator, and of the longest message.
KEY: Final = 32
TAG: Final = 16
MOST: Final = 65535
#: The nonce that is for rekeying alone (section 5.1).
_LAST: Final = 2**64 - 1
_PATTERN: Final = (("e",), ("e", "ee", "s", "es"), ("s", "se"))


class NoiseError(Exception):
    """A message that is none of this connection: altered, replayed, out of order, cut, or of another."""


@final
class Cipher:
    """A key and the nonce of the next message (section 5.1, CipherState). No nonce is used twice: after the last, it
    raises NoiseError."""

    __slots__ = ("_key", "nonce")

    def __init__(self, key: bytes) -> None:
        self._key = key
        self.nonce = 0

    def encrypt(self, plaintext: bytes, about: bytes | None = None) -> bytes:
        sealed: bytes = crypto_aead_chacha20poly1305_ietf_encrypt(plaintext, about, self._next(), self._key)
        return sealed

    def decrypt(self, sealed: bytes, about: bytes | None = None) -> bytes:
        """Raises NoiseError."""
        try:
            clear: bytes = crypto_aead_chacha20poly1305_ietf_decrypt(sealed, about, self._next(), self._key)
        except CryptoError:
            raise NoiseError("a message was altered, or is not of this connection") from None
        return clear

    def rekey(self) -> None:
        """Another key, made of this one, which is forgotten; nonces go on (section 11.3)."""
        nonce = bytes(4) + _LAST.to_bytes(8, "little")
        self._key = crypto_aead_chacha20poly1305_ietf_encrypt(bytes(KEY), None, nonce, self._key)[:KEY]

    def _next(self) -> bytes:
        nonce = self.nonce
        if nonce >= _LAST:
            raise NoiseError("no nonce is left")
        self.nonce = nonce + 1
        return b"\0\0\0\0" + nonce.to_bytes(8, "little")


@final
class KeyPair:
    """An X25519 key, from 32 secret bytes."""

    __slots__ = ("private", "public")

    def __init__(self, private: bytes) -> None:
        self.private = private
        self.public = crypto_scalarmult_base(private)


@final
class Exchange:
    """One handshake, from the side of the initiator or of the responder (section 5.3, HandshakeState).

    `write` and `read` are called in turn, the initiator's `write` first; after three messages `ciphers` are there.
    Whoever calls one that is not due has a fault, which raises AssertionError.
    """

    __slots__ = (
        "_cipher",
        "_ephemeral",
        "_initiator",
        "_key",
        "_remote_ephemeral",
        "_step",
        "hash",
        "remote_static",
        "static",
    )

    def __init__(self, *, initiator: bool, prologue: bytes, static: KeyPair, ephemeral: KeyPair) -> None:
        """`ephemeral` is random, and was never used before."""
        self._initiator = initiator
        self.static = static
        self._ephemeral = ephemeral
        self._remote_ephemeral = b""
        #: The other side's, once it has come.
        self.remote_static = b""
        self._step = 0
        self._cipher: Cipher | None = None
        # The name of the protocol is longer than a hash.
        self._key = blake2s(NAME).digest()
        #: Of all that was said so far; after the last message it is the binding of the channel (section 11.2).
        self.hash = self._key
        self._mix_hash(prologue)

    @property
    def done(self) -> bool:
        return self._step == len(_PATTERN)

    def write(self, payload: bytes) -> bytes:
        """The next message, which carries `payload`."""
        parts = []
        for token in self._turn(writing=True):
            if token == "e":
                self._mix_hash(self._ephemeral.public)
                parts.append(self._ephemeral.public)
            elif token == "s":
                parts.append(self._seal(self.static.public))
            else:
                self._agree(token)
        parts.append(self._seal(payload))
        return b"".join(parts)

    def read(self, message: bytes) -> bytes:
        """The payload of a message. Raises NoiseError, after which the exchange is over."""
        for token in self._turn(writing=False):
            if token == "e":
                self._remote_ephemeral, message = _split(message, KEY)
                self._mix_hash(self._remote_ephemeral)
            elif token == "s":
                sealed, message = _split(message, KEY + TAG)
                self.remote_static = self._open(sealed)
            else:
                self._agree(token)
        return self._open(message)

    def ciphers(self) -> tuple[Cipher, Cipher]:
        """For what this side sends, and for what it receives."""
        assert self.done
        first, second = (Cipher(key) for key in _derive(self._key, b""))
        return (first, second) if self._initiator else (second, first)

    def _turn(self, *, writing: bool) -> tuple[str, ...]:
        assert not self.done
        assert writing == (self._initiator == (self._step % 2 == 0))
        self._step += 1
        return _PATTERN[self._step - 1]

    def _agree(self, token: str) -> None:
        """A secret of two keys: the first letter says which of the initiator's, the second which of the responder's."""
        ours, theirs = (token[0], token[1]) if self._initiator else (token[1], token[0])
        private = (self._ephemeral if ours == "e" else self.static).private
        public = self._remote_ephemeral if theirs == "e" else self.remote_static
        try:
            secret = crypto_scalarmult(private, public)
        except NaclRuntimeError:  # of a key of small order, which would give a secret that anybody knows
            raise NoiseError("a key that gives no secret") from None
        self._key, key = _derive(self._key, secret)
        self._cipher = Cipher(key)

    def _mix_hash(self, data: bytes) -> None:
        self.hash = blake2s(self.hash + data).digest()

    def _seal(self, clear: bytes) -> bytes:
        sealed = clear if self._cipher is None else self._cipher.encrypt(clear, self.hash)
        self._mix_hash(sealed)
        return sealed

    def _open(self, sealed: bytes) -> bytes:
        clear = sealed if self._cipher is None else self._cipher.decrypt(sealed, self.hash)
        self._mix_hash(sealed)
        return clear


def _split(message: bytes, size: int) -> tuple[bytes, bytes]:
    if len(message) < size:
        raise NoiseError("a message of the handshake is cut")
    return message[:size], message[size:]


def _derive(chaining: bytes, secret: bytes) -> tuple[bytes, bytes]:
    """Two keys (section 4.3, HKDF)."""
    key = hmac.digest(chaining, secret, "blake2s")
    first = hmac.digest(key, b"\1", "blake2s")
    return first, hmac.digest(key, first + b"\2", "blake2s")
