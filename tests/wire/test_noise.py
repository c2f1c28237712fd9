"""Noise: the published vectors, and what an attacker on the way can do to a handshake and to packets."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.bindings import crypto_aead_chacha20poly1305_ietf_encrypt

from ocapn.crypto import Identity, designator_of, public_key_of
from ocapn.errors import BadLocator
from ocapn.noise import packets
from ocapn.noise.handshake import FIRST, NO_CODEC, SECOND, THIRD, NoiseHandshake, wanted
from ocapn.noise.packets import Packets, packet
from ocapn.noise.protocol import MOST, TAG, Cipher, Exchange, KeyPair, NoiseError

#: `Noise_XX_25519_ChaChaPoly_BLAKE2s` as the projects cacophony and snow have published it: prologue, the initiator's
#: static and ephemeral key, the responder's, the hash of the handshake, and messages, each a payload and what is sent.
VECTORS = {
    "cacophony": (
        "4a6f686e2047616c74",
        "e61ef9919cde45dd5f82166404bd08e38bceb5dfdfded0a34c8df7ed542214d1",
        "893e28b9dc6ca8d611ab664754b8ceb7bac5117349a4439a6b0569da977c464a",
        "4a3acbfdb163dec651dfa3194dece676d437029c62a408b4c5ea9114246e4893",
        "bbdb4cdbd309f1a1f2e1456967fe288cadd6f712d65dc7b7793d5e63da6b375b",
        "6c4c56cf71612f72d05ceb96c0155e6f4ea54a26b504c93de632a2db4a49d200",
        [
            (
                "4c756477696720766f6e204d69736573",
                "ca35def5ae56cec33dc2036731ab14896bc4c75dbb07a61f879f8e3afa4c7944"
                "4c756477696720766f6e204d69736573",
            ),
            (
                "4d757272617920526f746862617264",
                "95ebc60d2b1fa672c1f46a8aa265ef51bfe38e7ccb39ec5be34069f144808843"
                "7c365eb362a1c991b0557fe8a7fb187d99346765d93ec63db6c1b01504ebeec5"
                "5a2298d2dbff80eff034d20595153f63a196a6cead1e11b2bb13e336fa13616d"
                "d3e8b0a070c882ed3f1a78c7c06c93",
            ),
            (
                "462e20412e20486179656b",
                "46c3307de83b014258717d97781c1f50936d8b7d50c0722a1739654d10392d41"
                "5b670c114f79b9a4f80541570f77ce88802efa4220cff733e7b5668ba38059ec"
                "904b4b8eef9448085faf51",
            ),
            ("4361726c204d656e676572", "d5e83adfaac5dc324a68f1862df54549e56d209fba707205f328b2"),
            (
                "4a65616e2d426170746973746520536179",
                "d102c9029b1f55c788f561ba7737afbccef9c9f1bf2f238167fd40ba9c1c134867",
            ),
            (
                "457567656e2042f6686d20766f6e2042617765726b",
                "cb1ce80960382c6d5d5e740ffb724d1432f0310b200fb6f8424120f506092744baa415e155",
            ),
        ],
    ),
    "snow": (
        "5468657265206973206e6f20726967687420616e642077726f6e672e2054686572652773206f6e6c792066756e20616e6420626f72"
        "696e672e",
        "8a3165449030548b6fbea439622cf8eccfda9098360f497381f1fc4b239cc629",
        "868b61a52b9891cb69a723b53834e97cf34a0d65937fcf6ba89a945e22a624e0",
        "4b29748ce2d03e99813d870c67691402a1f5e09cfded4ccb55111a7aa407ed3b",
        "256bdfc5df09e6fc9ff7b31d670a9fbdae5ae5b9f989dba907e77823529c528e",
        None,
        [
            (
                "c0a708f1b57fb2ff42e901cce5871b2a51ff801c067eafcb03d0d7b201340527",
                "063bf5a9800084985cb20a711ff8efb4f355eff3df009e8c26e0ecb7affae336"
                "c0a708f1b57fb2ff42e901cce5871b2a51ff801c067eafcb03d0d7b201340527",
            ),
            (
                "7aa1a8a592db2e6456694064f6564c006f8b2b2481af05036992b088556f3047",
                "36c8607da3294b23a7aa3a6ac9ee0650838c0e1fb8849978896f9903b330d903"
                "5b08d1a88cb80ea36d06c7ed96b3a6c3c648be604bcebfd82f6cbd79763785003d95c4f29c5104d40121c987aef5b4a4"
                "85a59238136e732d12193b6b6aa556ae1cecd4a39e4259bc804fa8d8016e5de4be3c2d6e75a75f5fa0cbff614b8cdd88",
            ),
            (
                "c51d9b0d96e14f167e83c5154b2daff194ef59a9c09ad818c35ee7c5f476c3ef",
                "a5a0d7616374f0a6caff8171c8a6efeebe12a5de59aa9248db14dd9f620b847a"
                "d2d752f065d1275990e1716b6bcf6297646145a5950a99e035d302b46a4d9ed5"
                "a852cda3490454721cd77dc4b38ac42eda2f03048d173d70797b618400149131",
            ),
            (
                "05b9f78b805e8b0cef7230075fe3ccba3058935be39a7d3bc89e3d07f5eeb06a",
                "a081a0816332fba78faca67c86d1e3110576e461825f40c55130778ad39a08a03b96c292bb861cabff6839be8b4e96b2",
            ),
            (
                "0fb0b0a35d88f162ebd9430681ed4e70f8dda8ae2ce170d0a8284d0676207f84",
                "44982688c83a5af167cb3bd3b622993481e4ec1e6944c66ae1b92fcfb934792cecf9228672fdf1a3428d75e1af8f3899",
            ),
        ],
    ),
}


@pytest.mark.parametrize("project", VECTORS)
def test_the_published_vectors(project: str) -> None:
    prologue, *keys, expected, messages = VECTORS[project]
    static_a, ephemeral_a, static_b, ephemeral_b = [KeyPair(bytes.fromhex(key)) for key in keys]
    start = bytes.fromhex(prologue)
    a = Exchange(initiator=True, prologue=start, static=static_a, ephemeral=ephemeral_a)
    b = Exchange(initiator=False, prologue=start, static=static_b, ephemeral=ephemeral_b)
    vectors = [(bytes.fromhex(one), bytes.fromhex(other)) for one, other in messages]
    for number, (payload, message) in enumerate(vectors[:3]):
        writer, reader = (b, a) if number % 2 else (a, b)
        assert writer.write(payload) == message
        assert reader.read(message) == payload
    assert a.done
    assert b.done
    assert a.hash == b.hash
    if expected is not None:
        assert a.hash.hex() == expected
    (a_sends, a_receives), (b_sends, b_receives) = a.ciphers(), b.ciphers()
    for number, (payload, message) in enumerate(vectors[3:]):
        sends, receives = (a_sends, b_receives) if number % 2 else (b_sends, a_receives)
        assert sends.encrypt(payload) == message
        assert receives.decrypt(message) == payload


# The introduction

ALICE, BOB, MALLORY = (Identity(bytes([number]) * 32) for number in (1, 2, 3))


def dialler(
    identity: Identity = ALICE, responder: Identity = BOB, codecs: tuple[int, ...] = (0,), drawn: int = 21
) -> NoiseHandshake:
    return NoiseHandshake(
        identity,
        KeyPair(bytes([11]) * 32),
        KeyPair(bytes([drawn]) * 32),
        responder=responder.public_key,
        codecs=codecs,
    )


def listener(identity: Identity = BOB, codecs: tuple[int, ...] = (0,), drawn: int = 22) -> NoiseHandshake:
    return NoiseHandshake(identity, KeyPair(bytes([12]) * 32), KeyPair(bytes([drawn]) * 32), codecs=codecs)


def introduced(a: NoiseHandshake, b: NoiseHandshake) -> tuple[Packets, Packets]:
    b.finish(a.third(b.second(a.first())))
    return a.packets(), b.packets()


def test_both_know_who_the_other_is_and_have_what_nobody_else_has() -> None:
    a, b = dialler(), listener()
    introduced(a, b)
    assert (a.peer, b.peer) == (BOB.public_key, ALICE.public_key)
    assert a.binding == b.binding
    assert (a.codec, b.codec) == (0, 0)
    again = dialler(), listener(drawn=23)
    introduced(*again)
    assert again[0].binding != a.binding


def test_what_the_two_proofs_sign() -> None:
    """The hash of what was said before and the key that is used here, in a role: it is of no use elsewhere."""
    a, b = dialler(), listener()
    first = a.first()
    before_second = a._exchange.hash
    second = b.second(first)
    before_third = b._exchange.hash
    signed = {}
    for who, role, said, number in (
        (BOB, b"responder", before_second, 12),
        (ALICE, b"initiator", before_third, 11),
    ):
        signed[role] = who.sign(b"ocapn-noise-1" + role + said + KeyPair(bytes([number]) * 32).public)
    payloads: list[bytes] = []
    real = NoiseHandshake._prove

    def noted(self: NoiseHandshake, role: bytes, said: bytes, proof: bytes) -> None:
        payloads.append(proof)
        real(self, role, said, proof)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NoiseHandshake, "_prove", noted)
        b.finish(a.third(second))
    assert payloads == [BOB.public_key + signed[b"responder"], ALICE.public_key + signed[b"initiator"]]


def test_a_key_that_is_replaced_is_made_as_the_framework_says() -> None:
    """The first 32 bytes of 32 zeros, encrypted with the last nonce."""
    cipher = Cipher(bytes(range(32)))
    cipher.rekey()
    nonce = bytes(4) + bytes([255]) * 8
    made = crypto_aead_chacha20poly1305_ietf_encrypt(bytes(32), None, nonce, bytes(range(32)))[:32]
    assert cipher._key == made
    assert packets.REKEY == 65536


def test_the_sizes_of_the_three_messages() -> None:
    a, b = dialler(), listener()
    first = a.first()
    second = b.second(first)
    third = a.third(second)
    assert [len(message) for message in (first, second, third)] == [FIRST, SECOND, THIRD] == [68, 194, 160]
    assert wanted(first) == BOB.public_key


Alter = Callable[[bytes], bytes]


def handshake(alter: dict[int, Alter]) -> None:
    """With an attacker on the way."""
    a, b = dialler(), listener()
    first = alter.get(1, bytes)(a.first())
    second = alter.get(2, bytes)(b.second(first))
    third = alter.get(3, bytes)(a.third(second))
    b.finish(third)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_no_bit_of_a_handshake_may_be_altered(number: int) -> None:
    """Not even the one of a key that X25519 ignores: the hash does not."""
    size = (FIRST, SECOND, THIRD)[number - 1]
    for at in range(size):
        for bit in (1, 2, 4, 8, 16, 32, 64, 128):

            def alter(message: bytes, at: int = at, bit: int = bit) -> bytes:
                return message[:at] + bytes([message[at] ^ bit]) + message[at + 1 :]

            with pytest.raises(NoiseError):
                handshake({number: alter})


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_message_that_is_cut_or_longer(number: int) -> None:
    for length in range((FIRST, SECOND, THIRD)[number - 1]):
        with pytest.raises(NoiseError, match=r"has \d+ bytes, and not"):
            handshake({number: lambda message, length=length: message[:length]})  # type: ignore[misc]
    with pytest.raises(NoiseError, match=r"has \d+ bytes, and not"):
        handshake({number: lambda message: message + b"\0"})


def test_a_message_for_another_peer_is_not_answered() -> None:
    with pytest.raises(NoiseError, match="for another peer"):
        listener(MALLORY).second(dialler().first())


def test_a_relay_that_says_it_was_meant() -> None:
    """It puts its own key in front, answers itself, and is found out."""
    a = dialler()
    first = MALLORY.public_key + a.first()[32:]
    with pytest.raises(NoiseError):
        a.third(listener(MALLORY).second(first))


def test_a_peer_that_answers_in_the_place_of_another() -> None:
    """With the prologue that was meant, and a proof of its own."""
    mallory = listener(MALLORY)
    a = dialler()
    mallory._exchange = Exchange(
        initiator=False,
        prologue=b"ocapn-noise-1" + BOB.public_key,
        static=KeyPair(bytes([13]) * 32),
        ephemeral=KeyPair(bytes([23]) * 32),
    )
    offered = mallory._exchange.read(a.first()[32:])
    assert offered == bytes(4)
    second = mallory._exchange.write(mallory._proof(b"responder") + bytes(2))
    with pytest.raises(NoiseError, match="another peer has answered"):
        a.third(second)


@pytest.mark.parametrize("role", [b"responder", b"initiator"])
def test_a_proof_that_was_made_for_another_connection(role: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is shown by one who has stolen the static key too."""
    proofs: list[bytes] = []
    real = NoiseHandshake._proof

    def stolen(self: NoiseHandshake, whose: bytes) -> bytes:
        if whose != role:
            return real(self, whose)
        proofs.append(real(self, whose))
        return proofs[0]

    monkeypatch.setattr(NoiseHandshake, "_proof", stolen)
    introduced(dialler(), listener())
    with pytest.raises(NoiseError, match="does not prove who it is"):
        introduced(dialler(drawn=25), listener(drawn=24))


def test_a_key_of_small_order_gives_no_secret() -> None:
    first = dialler().first()
    for low in (bytes(32), b"\1" + bytes(31)):
        with pytest.raises(NoiseError, match="no secret"):
            listener().second(first[:32] + low + first[64:])


@pytest.mark.parametrize(
    ("ours", "theirs", "agreed"),
    [
        ((0,), (0,), 0),
        ((0, 1), (1, 0), 1),
        ((1, 0), (0, 1), 0),
        ((0, 1), (1,), 1),
        ((3, 19), (19,), 19),
        ((0, 16), (16,), 16),
    ],
)
def test_the_codec_is_the_one_that_the_listener_likes_best(
    ours: tuple[int, ...], theirs: tuple[int, ...], agreed: int
) -> None:
    a, b = dialler(codecs=ours), listener(codecs=theirs)
    introduced(a, b)
    assert (a.codec, b.codec) == (agreed, agreed)


@pytest.mark.parametrize(("ours", "theirs"), [((0,), (1,)), ((1,), (0, 2, 17, 18)), ((5,), (0, 1))])
def test_no_codec_in_common_is_said(ours: tuple[int, ...], theirs: tuple[int, ...]) -> None:
    a, b = dialler(codecs=ours), listener(codecs=theirs)
    a.third(b.second(a.first()))
    assert (a.codec, b.codec) == (NO_CODEC, NO_CODEC)


def test_the_offer_of_codecs_may_not_be_made_smaller_on_the_way() -> None:
    a, b = dialler(codecs=(0, 1)), listener(codecs=(1, 0))
    first = a.first()
    assert first[-4:] == b"\0\0\0\1"
    with pytest.raises(NoiseError):
        a.third(b.second(first[:-4] + bytes(4)))


def test_a_codec_that_was_not_offered() -> None:
    a, b = dialler(codecs=(0,)), listener(codecs=(0,))
    first = a.first()
    b._exchange.read(first[32:])
    second = b._exchange.write(b._proof(b"responder") + b"\0\1")
    with pytest.raises(NoiseError, match="not offered"):
        a.third(second)


# Packets


def pair() -> tuple[Packets, Packets]:
    return introduced(dialler(), listener())


@given(data=st.binary(max_size=200_000), cuts=st.lists(st.integers(1, 70_000), max_size=20))
def test_whatever_pieces_packets_come_in(data: bytes, cuts: list[int]) -> None:
    a, b = pair()
    wire = a.seal(data)
    got = b""
    for cut in cuts:
        got += b.open(wire[:cut])
        wire = wire[cut:]
    got += b.open(wire)
    assert got == data
    assert not b.pending


def test_large_data_is_split_over_packets() -> None:
    a, b = pair()
    wire = a.seal(bytes(3 * MOST))
    assert int.from_bytes(wire[:2], "big") == MOST
    assert len(wire) == 3 * MOST + 4 * (2 + TAG)
    assert b.open(wire) == bytes(3 * MOST)


def stream() -> tuple[list[bytes], Packets]:
    a, b = pair()
    return [a.seal(b"message %d" % number) for number in range(3)], b


@pytest.mark.parametrize("order", [(0, 0), (1,), (0, 2), (0, 1, 0), (0, 1, 2, 1)])
def test_packets_that_are_lost_doubled_or_in_another_order(order: tuple[int, ...]) -> None:
    wire, b = stream()
    for number in order[:-1]:
        assert b.open(wire[number]) == b"message %d" % number
    with pytest.raises(NoiseError, match="altered"):
        b.open(wire[order[-1]])


def test_no_bit_of_a_packet_may_be_altered() -> None:
    for at in range(2, 2 + 9 + TAG):
        wire, b = stream()
        with pytest.raises(NoiseError, match="altered"):
            b.open(wire[0][:at] + bytes([wire[0][at] ^ 1]) + wire[0][at + 1 :])


def test_what_one_side_said_is_not_taken_back_from_the_other() -> None:
    a, _ = pair()
    with pytest.raises(NoiseError):
        a.open(a.seal(b"said"))


@pytest.mark.parametrize("size", [0, 1, TAG])
def test_a_packet_that_carries_nothing(size: int) -> None:
    _, b = pair()
    with pytest.raises(NoiseError, match="carries nothing"):
        b.open(packet(bytes(size)))


def test_keys_are_replaced_on_both_sides_after_so_many_packets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packets, "REKEY", 3)
    a, b = pair()
    keys = set()
    for number in range(10):
        assert b.open(a.seal(b"%d" % number)) == b"%d" % number
        assert a.open(b.seal(b"%d" % number)) == b"%d" % number
        assert a._send._key == b._receive._key
        keys.add(a._send._key)
    assert len(keys) == 4
    assert a._send.nonce == 10


def test_no_nonce_is_used_twice() -> None:
    cipher = Cipher(bytes(32))
    cipher.nonce = 2**64 - 2
    cipher.encrypt(b"the last")
    for _ in range(2):
        with pytest.raises(NoiseError, match="no nonce is left"):
            cipher.encrypt(b"one more")
        with pytest.raises(NoiseError, match="no nonce is left"):
            cipher.decrypt(bytes(TAG))


# Designators


@given(st.binary(min_size=32, max_size=32))
def test_a_designator_is_a_key(key: bytes) -> None:
    assert public_key_of(designator_of(key)) == key
    assert len(designator_of(key)) == 52


@pytest.mark.parametrize(
    "designator",
    ["", "a", 51 * "a", 53 * "a", 52 * "A", 51 * "a" + "b", 51 * "a" + "1", 51 * "a" + "=", 51 * "a" + "é"],
)
def test_a_designator_that_is_no_key(designator: str) -> None:
    with pytest.raises(BadLocator, match="no Ed25519 key"):
        public_key_of(designator)


def test_an_identity_shows_its_designator_alone() -> None:
    identity = Identity(bytes(range(32)))
    assert repr(identity) == f"<Identity {identity.designator}>"
    assert identity.seed == bytes(range(32))
    with pytest.raises(ValueError, match="32 bytes"):
        Identity(bytes(31))
