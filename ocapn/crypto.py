"""Keys, signatures, identifiers and certificates (CapTP specification, Cryptography)."""

from __future__ import annotations

import binascii
from base64 import b32decode, b32encode
from hashlib import sha256
from typing import Final, final

from nacl.exceptions import BadSignatureError, CryptoError
from nacl.signing import SigningKey, VerifyKey

from ocapn.codec.operations import (
    Envelope,
    Give,
    Receive,
    public_key_value,
    signature_value,
    write_location,
)
from ocapn.codec.syrup import Encoder, encode
from ocapn.errors import BadLocator
from ocapn.limits import Limits
from ocapn.model.locators import PeerLocator

_LIMITS: Final = Limits()


@final
class SessionKey:
    """The Ed25519 key pair of one session, from 32 random bytes. Never used for a second session."""

    __slots__ = ("_signing", "public_id", "public_key")

    def __init__(self, seed: bytes) -> None:
        self._signing = SigningKey(seed)
        self.public_key = bytes(self._signing.verify_key)
        self.public_id = public_id(self.public_key)

    def sign(self, message: bytes) -> bytes:
        """The signature, 64 bytes."""
        return self._signing.sign(message).signature

    @property
    def seed(self) -> bytes:
        """The secret: for a baggage alone."""
        return self._signing.encode()

    def __repr__(self) -> str:
        return f"SessionKey({self.public_id.hex()[:8]}…)"


#: Bytes of a key, private or public.
KEY: Final = 32
#: Characters of a designator that is a key.
_DESIGNATOR: Final = 52


@final
class Identity:
    """The key of a peer, from 32 secret bytes. Whoever has those is that peer."""

    __slots__ = ("_key", "designator", "public_key")

    def __init__(self, seed: bytes) -> None:
        if len(seed) != KEY:
            raise ValueError(f"the seed of an identity has {KEY} bytes")
        self._key = SigningKey(seed)
        self.public_key = bytes(self._key.verify_key)
        self.designator = designator_of(self.public_key)

    @property
    def seed(self) -> bytes:
        """The secret: for a baggage alone."""
        return self._key.encode()

    def sign(self, message: bytes) -> bytes:
        """The signature, 64 bytes. Of what another peer has chosen nothing is ever signed as it is."""
        return self._key.sign(message).signature

    def __repr__(self) -> str:
        return f"<Identity {self.designator}>"


def designator_of(public_key: bytes) -> str:
    """Base32 in lower case, without padding: 52 characters."""
    return b32encode(public_key).decode().rstrip("=").lower()


def public_key_of(designator: str) -> bytes:
    """The key that a designator writes. Raises BadLocator."""
    if len(designator) == _DESIGNATOR and designator.isascii():
        try:
            key = b32decode(designator.upper() + "====")
        except binascii.Error:
            pass
        else:
            if designator_of(key) == designator:
                return key
    raise BadLocator(f"the designator is no Ed25519 key: {_DESIGNATOR} letters a to z and digits 2 to 7")


def verify(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether `signature` over `message` is by `public_key`; False also for keys of small order."""
    try:
        VerifyKey(public_key).verify(message, signature)
    except (BadSignatureError, CryptoError, ValueError):
        return False
    return True


_KEY_HEAD, _KEY_TAIL = encode(public_key_value(bytes(32))).split(bytes(32))


def encode_public_key(public_key: bytes) -> bytes:
    """The Syrup encoding of a public key of 32 bytes, in its gcrypt form."""
    return _KEY_HEAD + public_key + _KEY_TAIL


def public_id(public_key: bytes) -> bytes:
    """The public identifier of a key: SHA-256 twice over its encoding."""
    return sha256(sha256(encode_public_key(public_key)).digest()).digest()


def session_id(one: bytes, other: bytes) -> bytes:
    """The identifier of the session between two public identifiers, in either order."""
    low, high = sorted((one, other))
    return sha256(sha256(b"prot0" + low + high).digest()).digest()


def location_message(location: PeerLocator) -> bytes:
    """What `op:start-session` signs: the location, as it arrived if it did, in a record of its own."""
    return write_location(location.wire or encode(location))


def sign_give(
    key: SessionKey,
    receiver_key: bytes,
    exporter: PeerLocator,
    session: bytes,
    gift_id: bytes,
    text_order: bool = False,
) -> bytes:
    """The encoded envelope of a `desc:handoff-give`, by the gifter's key in the gifter-exporter session.

    `text_order`: the receiver reads the exporter's hints in the order of their names' text.
    """
    wire = b"<17'desc:handoff-give" + b"".join(
        [
            encode_public_key(receiver_key),
            Encoder(_LIMITS, text_order=text_order).encode(exporter),
            encode(session),
            encode(key.public_id),
            encode(gift_id),
            b">",
        ]
    )
    return _envelope(key, wire)


def sign_receive(key: SessionKey, session: bytes, side: bytes, count: int, give: bytes) -> bytes:
    """The encoded envelope of a `desc:handoff-receive`, by the receiver's key in the gifter-receiver session.

    `session` and `side` are those of the exporter-receiver session; `give` is the signed give as it came.
    """
    wire = b"<20'desc:handoff-receive" + encode(session) + encode(side) + encode(count) + give + b">"
    return _envelope(key, wire)


def _envelope(key: SessionKey, signed: bytes) -> bytes:
    return b"<17'desc:sig-envelope" + signed + encode(signature_value(key.sign(signed))) + b">"


def verify_envelope(envelope: Envelope, public_key: bytes) -> bool:
    """Whether an envelope's signature is by `public_key`, over the bytes that arrived."""
    signed: Give | Receive = envelope.signed
    return verify(public_key, signed.wire, envelope.signature)
