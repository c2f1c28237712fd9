"""Keys, identifiers and certificates, against the vectors of an independent implementation."""

from __future__ import annotations

import pytest

from ocapn.codec.operations import (
    OPERATIONS,
    PASSABLES,
    Envelope,
    Give,
    Receive,
    StartSession,
    public_key_value,
    signature_value,
    write_start_session,
)
from ocapn.codec.syrup import Decoder, Encoder, encode
from ocapn.crypto import (
    SessionKey,
    location_message,
    public_id,
    session_id,
    sign_give,
    sign_receive,
    verify,
    verify_envelope,
)
from ocapn.errors import DecodeError
from ocapn.limits import Limits
from ocapn.model.locators import PeerLocator

from . import vectors

LIMITS = Limits()
HANDSHAKE = vectors.WIRE["handshake"]
HANDOFF = vectors.WIRE["handoff"]
PEOPLE = ["alice", "bob"]


def key_of(seed: int) -> SessionKey:
    return SessionKey(bytes.fromhex(HANDOFF["seeds"][str(seed)]))


def handoff(name: str) -> bytes:
    return bytes.fromhex(HANDOFF[name])


def read_envelope(data: bytes) -> Envelope:
    value = Decoder(LIMITS, PASSABLES).decode(data)
    assert isinstance(value, Envelope)
    return value


# Handshake


@pytest.mark.parametrize("who", PEOPLE)
def test_the_handshake_byte_for_byte(who: str) -> None:
    vector = HANDSHAKE[who]
    key = SessionKey(bytes.fromhex(vector["seed"]))
    location = PeerLocator.parse(vector["location_uri"])
    assert encode(public_key_value(key.public_key)).hex() == vector["public_key_syrup"]
    assert key.public_id.hex() == public_id(key.public_key).hex() == vector["public_id"]
    assert encode(location).hex() == vector["location_syrup"]
    signed = location_message(location)
    assert signed.hex() == vector["signed_payload"]
    signature = key.sign(signed)
    operation = StartSession("1.0", key.public_key, location, signature)
    assert write_start_session(Encoder(LIMITS), operation).hex() == vector["op_start_session"]


@pytest.mark.parametrize("who", PEOPLE)
def test_the_vectors_start_session_is_read_and_verified(who: str) -> None:
    vector = HANDSHAKE[who]
    operation = Decoder(LIMITS, OPERATIONS).decode(bytes.fromhex(vector["op_start_session"]))
    assert isinstance(operation, StartSession)
    assert operation.version == "1.0"
    assert operation.location == PeerLocator.parse(vector["location_uri"])
    assert operation.public_key == SessionKey(bytes.fromhex(vector["seed"])).public_key
    assert verify(operation.public_key, location_message(operation.location), operation.signature)


def test_the_session_id_in_either_order() -> None:
    alice, bob = (bytes.fromhex(HANDSHAKE[who]["public_id"]) for who in PEOPLE)
    assert session_id(alice, bob).hex() == HANDSHAKE["session_id"]
    assert session_id(bob, alice).hex() == HANDSHAKE["session_id"]


def test_a_location_is_signed_as_it_arrived() -> None:
    wire = b'<10\'ocapn-peer4\'unix1"a{4"host1"h2"ip1"i}>'  # hints in text order
    location = Decoder(LIMITS, PASSABLES).decode(wire)
    assert isinstance(location, PeerLocator)
    assert encode(location) != wire
    assert location_message(location) == b"<11'my-location" + wire + b">"


def test_a_start_session_with_any_byte_changed_is_refused() -> None:
    data = bytes.fromhex(HANDSHAKE["alice"]["op_start_session"])
    for place in range(len(data)):
        for change in (0x01, 0x80):
            try:
                operation = Decoder(LIMITS, OPERATIONS).decode(flipped(data, place, change))
            except DecodeError:
                continue
            assert isinstance(operation, StartSession)
            if operation.version == "1.0":  # the version is not signed
                message = location_message(operation.location)
                assert not verify(operation.public_key, message, operation.signature), place


def flipped(data: bytes, place: int, change: int) -> bytes:
    return data[:place] + bytes([data[place] ^ change]) + data[place + 1 :]


# Handoff


def test_the_identifiers_of_the_handoff() -> None:
    assert key_of(3).public_id.hex() == HANDOFF["gifter_side"]
    assert session_id(key_of(3).public_id, key_of(5).public_id).hex() == HANDOFF["gifter_exporter_session_id"]
    sides = {key_of(6).public_id.hex(), key_of(7).public_id.hex()}
    assert HANDOFF["receiving_side"] in sides
    assert (
        session_id(key_of(6).public_id, key_of(7).public_id).hex() == HANDOFF["exporter_receiver_session_id"]
    )


def signed_give() -> bytes:
    return sign_give(
        key_of(3),
        key_of(4).public_key,
        PeerLocator.parse(HANDOFF["exporter_location_uri"]),
        handoff("gifter_exporter_session_id"),
        handoff("gift_id"),
    )


def test_a_give_byte_for_byte() -> None:
    assert signed_give() == handoff("signed_give")
    assert handoff("handoff_give") in handoff("signed_give")


def test_a_receive_byte_for_byte() -> None:
    session, side = handoff("exporter_receiver_session_id"), handoff("receiving_side")
    assert sign_receive(key_of(4), session, side, 0, signed_give()) == handoff("signed_receive")
    assert handoff("handoff_receive") in handoff("signed_receive")


def test_a_give_is_read_and_verified() -> None:
    envelope = read_envelope(handoff("signed_give"))
    give = envelope.signed
    assert isinstance(give, Give)
    assert give.receiver_key == key_of(4).public_key
    assert give.exporter == PeerLocator.parse(HANDOFF["exporter_location_uri"])
    assert give.session == handoff("gifter_exporter_session_id")
    assert give.gifter_side == handoff("gifter_side")
    assert give.gift_id == handoff("gift_id")
    assert give.wire == handoff("handoff_give")
    assert envelope.wire == handoff("signed_give")
    assert verify_envelope(envelope, key_of(3).public_key)
    assert not verify_envelope(envelope, key_of(4).public_key)


def test_a_receive_is_read_and_verified() -> None:
    envelope = read_envelope(handoff("signed_receive"))
    receive = envelope.signed
    assert isinstance(receive, Receive)
    assert receive.session == handoff("exporter_receiver_session_id")
    assert receive.side == handoff("receiving_side")
    assert receive.count == 0
    assert receive.give.wire == handoff("signed_give")
    assert receive.wire == handoff("handoff_receive")
    assert verify_envelope(envelope, key_of(4).public_key)
    assert verify_envelope(receive.give, key_of(3).public_key)
    assert not verify_envelope(envelope, key_of(3).public_key)


@pytest.mark.parametrize(("name", "seed"), [("signed_give", 3), ("signed_receive", 4)])
def test_a_certificate_with_any_byte_changed_is_refused(name: str, seed: int) -> None:
    data = handoff(name)
    key = key_of(seed).public_key
    assert verify_envelope(read_envelope(data), key)
    survived = 0
    for place in range(len(data)):
        for change in (0x01, 0x80):
            try:
                envelope = read_envelope(flipped(data, place, change))
            except (DecodeError, AssertionError):
                continue
            survived += 1
            assert not verify_envelope(envelope, key), place
    assert survived > 200  # most of the bytes are keys, identifiers and signatures


@pytest.mark.parametrize(
    ("name", "signed", "seed"), [("signed_give", "handoff_give", 3), ("signed_receive", "handoff_receive", 4)]
)
def test_any_byte_of_what_is_signed_and_of_the_signature_counts(name: str, signed: str, seed: int) -> None:
    key = key_of(seed).public_key
    message = handoff(signed)
    signature = read_envelope(handoff(name)).signature
    assert verify(key, message, signature)
    for place in range(len(message)):
        assert not verify(key, flipped(message, place, 0x01), signature), place
    for place in range(64):
        for bit in range(8):
            assert not verify(key, message, flipped(signature, place, 1 << bit)), (place, bit)
    assert not verify(key, message + b"\0", signature)
    assert not verify(key, message[:-1], signature)


# Keys


#: The points of order 1, 2, 4 and 8, and encodings of them that are not reduced.
SMALL_ORDER = [
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "0100000000000000000000000000000000000000000000000000000000000080",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]


@pytest.mark.parametrize("point", SMALL_ORDER)
def test_keys_of_small_order_sign_nothing(point: str) -> None:
    # With such a key A and s = 0, some small R equals -hA for any message: for the point of order 1 it is R = A.
    for r in SMALL_ORDER:
        for message in (b"", b"a", b"b"):
            assert not verify(bytes.fromhex(point), message, bytes.fromhex(r) + bytes(32))


def test_a_signature_is_not_malleable() -> None:
    order = 2**252 + 27742317777372353535851937790883648493
    key = key_of(1)
    signature = key.sign(b"message")
    s = int.from_bytes(signature[32:], "little")
    other = signature[:32] + (s + order).to_bytes(32, "little")
    assert verify(key.public_key, b"message", signature)
    assert not verify(key.public_key, b"message", other)


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_keys_and_signatures_of_another_size_verify_nothing(size: int) -> None:
    key = key_of(1)
    signature = key.sign(b"message")
    assert not verify(bytes(size), b"message", signature)
    assert not verify(key.public_key, b"message", bytes(size))
    assert not verify(key.public_key, b"message", (signature * 2)[: 64 + size] if size else signature[:63])


def test_a_signature_is_over_a_key_in_its_gcrypt_form() -> None:
    key = key_of(1)
    signature = key.sign(b"m")
    value = signature_value(signature)
    assert encode(value) == b"[7'sig-val[5'eddsa[1'r32:%b][1's32:%b]]]" % (signature[:32], signature[32:])


def test_a_session_key_does_not_show_its_secret() -> None:
    seed = bytes.fromhex(HANDOFF["seeds"]["1"])
    key = SessionKey(seed)
    assert seed.hex() not in repr(key)
    assert repr(seed) not in repr(key)
    assert not hasattr(key, "__dict__")
