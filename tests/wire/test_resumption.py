"""The records of durable sessions: their exact bytes, round trips, and every malformed case."""

from __future__ import annotations

from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocapn import Limits
from ocapn.codec.operations import write_abort
from ocapn.codec.resumption import (
    REASONS,
    Claims,
    ResumeAccept,
    ResumeConfirm,
    ResumeRefuse,
    ResumeSession,
    Transcript,
    is_ack,
    is_control,
    is_resume,
    read_ack,
    read_resumption,
    write_ack,
    write_resume_accept,
    write_resume_confirm,
    write_resume_refuse,
    write_resume_session,
)
from ocapn.errors import DecodeError, RemoteProtocolError
from ocapn.limits import MAX_POSITION
from tests.conformance.encoding import Rec, Sym, encode

LIMITS: Final = Limits()
SESSION, NONCE, DIGEST = b"s" * 32, b"n" * 32, b"d" * 32
SIGNATURE: Final = b"r" * 32 + b"S" * 32
CLAIMS: Final = Claims(1, 2, 3, 4, 5, DIGEST)

RESUME: Final = ResumeSession(SESSION, NONCE, {"host": "h", "port": "1"}, CLAIMS, SIGNATURE)
ACCEPT: Final = ResumeAccept(NONCE, 7, False, CLAIMS, SIGNATURE)
CONFIRM: Final = ResumeConfirm(SIGNATURE)
REFUSE: Final = ResumeRefuse(SESSION, NONCE, "ended", 9, SIGNATURE)
UNKNOWN: Final = ResumeRefuse(SESSION, NONCE, "unknown", None, None)

_SIGNED: Final = b"[7'sig-val[5'eddsa[1'r32:%b][1's32:%b]]]" % (b"r" * 32, b"S" * 32)
_CLAIMED: Final = b"[1+2+3+4+5+32:%b]" % DIGEST
#: Each record and its bytes, written by hand.
VECTORS: Final[list[tuple[Any, bytes]]] = [
    (
        RESUME,
        b'<17\'op:resume-session32:%b32:%b{4"host1"h4"port1"1}%b%b>' % (SESSION, NONCE, _CLAIMED, _SIGNED),
    ),
    (ACCEPT, b"<16'op:resume-accept32:%b7+f%b%b>" % (NONCE, _CLAIMED, _SIGNED)),
    (CONFIRM, b"<17'op:resume-confirm%b>" % _SIGNED),
    (REFUSE, b"<16'op:resume-refuse32:%b32:%b5'ended9+%b>" % (SESSION, NONCE, _SIGNED)),
    (UNKNOWN, b"<16'op:resume-refuse32:%b32:%b7'unknownff>" % (SESSION, NONCE)),
]


def written(operation: object) -> bytes:
    match operation:
        case ResumeSession():
            return write_resume_session(operation)
        case ResumeAccept():
            return write_resume_accept(operation)
        case ResumeConfirm():
            return write_resume_confirm(operation)
        case ResumeRefuse():
            return write_resume_refuse(operation)
    raise TypeError(repr(operation))


@pytest.mark.parametrize(("operation", "data"), VECTORS)
def test_exact_bytes(operation: object, data: bytes) -> None:
    assert written(operation) == data
    assert read_resumption(data, LIMITS) == operation


def test_what_is_signed_to_the_byte() -> None:
    transcript = Transcript(SESSION, "memory", b"bind", b"I" * 32, b"R" * 32)
    head = b"32:%b[6'memory4:bind]" % SESSION
    one, other = b"32:" + b"I" * 32, b"32:" + b"R" * 32
    nonce, hints = b"32:" + NONCE, b'{4"host1"h4"port1"1}'
    assert transcript.resume(NONCE, RESUME.hints, CLAIMS) == b"".join(
        [b"<22'ocapn-durable-1:resume", head, nonce, one, other, hints, _CLAIMED, b">"]
    )
    second = Claims(6, 7, 8, 9, 10, bytes(32))
    claimed = b"[6+7+8+9+10+32:%b]" % bytes(32)
    answer = ResumeAccept(b"m" * 32, 7, False, second, SIGNATURE)
    both = nonce + b"32:" + b"m" * 32
    rest = b"7+" + hints + b"f" + _CLAIMED + claimed + b">"
    assert transcript.accept(RESUME, b"m" * 32, 7, False, second) == b"".join(
        [b"<22'ocapn-durable-1:accept", head, both, other, one, rest]
    )
    assert transcript.confirm(RESUME, answer) == b"".join(
        [b"<23'ocapn-durable-1:confirm", head, both, one, other, rest]
    )
    refused = b"<22'ocapn-durable-1:refuse" + head + nonce + other + one
    args = (NONCE, b"R" * 32, b"I" * 32)
    assert transcript.refuse(*args, "retry", None) == refused + b"5'retryf>"
    assert transcript.refuse(*args, "ended", 0) == refused + b"5'ended0+>"


counts = st.one_of(st.integers(0, 300), st.integers(0, MAX_POSITION), st.just(MAX_POSITION))
bytes32 = st.binary(min_size=32, max_size=32)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
hints = st.one_of(st.just(False), st.dictionaries(texts, texts, max_size=4))
claimed = st.builds(Claims, counts, counts, counts, counts, counts, bytes32)
signatures = st.binary(min_size=64, max_size=64)
records = st.one_of(
    st.builds(ResumeSession, bytes32, bytes32, hints, claimed, signatures),
    st.builds(ResumeAccept, bytes32, counts, hints, claimed, signatures),
    st.builds(ResumeConfirm, signatures),
    st.builds(
        ResumeRefuse,
        bytes32,
        bytes32,
        st.sampled_from(REASONS),
        st.one_of(st.none(), counts),
        st.one_of(st.none(), signatures),
    ),
)


@given(records)
def test_round_trips(operation: object) -> None:
    data = written(operation)
    assert read_resumption(data, LIMITS) == operation
    assert is_resume(data) == isinstance(operation, ResumeSession)
    assert not is_ack(data)
    assert not is_control(data)


@given(records, st.data())
def test_bytes_that_were_changed_are_refused_or_say_something_else(
    operation: object, data: st.DataObject
) -> None:
    """There is one encoding of a record, and nothing but an error of this package comes of anything else."""
    message = bytearray(written(operation))
    at = data.draw(st.integers(0, len(message) - 1))
    message[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    try:
        found = read_resumption(bytes(message), LIMITS)
    except DecodeError:
        return
    assert written(found) == message
    assert (found == operation) == (message == written(operation))


# Malformed

_SIG: Final[list[Any]] = [Sym("sig-val"), [Sym("eddsa"), [Sym("r"), b"r" * 32], [Sym("s"), b"S" * 32]]]
_GOOD_CLAIMS: Final = [1, 2, 3, 4, 5, DIGEST]
GOOD: Final[dict[str, list[Any]]] = {
    "op:resume-session": [SESSION, NONCE, {"host": "h"}, _GOOD_CLAIMS, _SIG],
    "op:resume-accept": [NONCE, 7, False, _GOOD_CLAIMS, _SIG],
    "op:resume-confirm": [_SIG],
    "op:resume-refuse": [SESSION, NONCE, Sym("ended"), 9, _SIG],
}
_NO_BYTES32: Final = [b"", b"x" * 31, b"x" * 33, "x" * 32, Sym("x" * 32), 1, False, [], [b"x" * 32], {}]
_NO_COUNT: Final = [-1, 2**63, 10**255, True, 1.0, "1", b"1", Sym("1"), [1], {}]
_NO_HINTS: Final = [
    True,
    0,
    "",
    b"",
    [],
    [False],
    Sym("f"),
    {"a": 1},
    {"a": b"b"},
    {"a": Sym("b")},
    {"a": False},
]
_NO_SIGNATURE: Final = [
    *(True, 0, b"", b"x" * 64, "", [], {}),
    _SIG[1],
    [Sym("sig-val")],
    [*_SIG, 1],
    [Sym("sig"), _SIG[1]],
    [Sym("sig-val"), [Sym("rsa"), *_SIG[1][1:]]],
    [Sym("sig-val"), [Sym("eddsa"), _SIG[1][2], _SIG[1][1]]],
    [Sym("sig-val"), [Sym("eddsa"), _SIG[1][1]]],
    [Sym("sig-val"), [Sym("eddsa"), [Sym("r"), b"r" * 31], [Sym("s"), b"S" * 33]]],
    [Sym("sig-val"), [Sym("eddsa"), [Sym("r"), b"r" * 32], [Sym("s"), "S" * 32]]],
]
_NO_CLAIMS: Final[list[Any]] = [
    *(False, 0, {}, b"", [], _GOOD_CLAIMS[:5], [*_GOOD_CLAIMS, 6], [_GOOD_CLAIMS]),
    *(
        [*_GOOD_CLAIMS[:at], wrong, *_GOOD_CLAIMS[at + 1 :]]
        for at in range(5)
        for wrong in [*_NO_COUNT, False]
    ),
    *([*_GOOD_CLAIMS[:5], wrong] for wrong in _NO_BYTES32),
]
_NO_REASON: Final = [
    "ended",
    b"ended",
    Sym("Ended"),
    Sym("end"),
    Sym(""),
    Sym("unknown-reason"),
    False,
    0,
    [],
]
WRONG: Final[dict[str, list[list[Any]]]] = {
    "op:resume-session": [_NO_BYTES32, _NO_BYTES32, _NO_HINTS, _NO_CLAIMS, [False, *_NO_SIGNATURE]],
    "op:resume-accept": [_NO_BYTES32, [False, *_NO_COUNT], _NO_HINTS, _NO_CLAIMS, [False, *_NO_SIGNATURE]],
    "op:resume-confirm": [[False, *_NO_SIGNATURE]],
    "op:resume-refuse": [_NO_BYTES32, _NO_BYTES32, _NO_REASON, _NO_COUNT, _NO_SIGNATURE],
}


@pytest.mark.parametrize("label", list(GOOD))
def test_the_examples_are_well_formed(label: str) -> None:
    read_resumption(encode(Rec(label, *GOOD[label])), LIMITS)


MALFORMED: Final = [
    (label, at, wrong) for label, fields in WRONG.items() for at, some in enumerate(fields) for wrong in some
]


@pytest.mark.parametrize(("label", "at"), [(label, at) for label in WRONG for at in range(len(WRONG[label]))])
def test_a_field_that_is_malformed(label: str, at: int) -> None:
    for wrong in WRONG[label][at]:
        fields = list(GOOD[label])
        fields[at] = wrong
        with pytest.raises(DecodeError):
            read_resumption(encode(Rec(label, *fields)), LIMITS)


@pytest.mark.parametrize("label", list(GOOD))
def test_too_few_fields_and_too_many(label: str) -> None:
    good = GOOD[label]
    for fields in ([], good[:-1], good[1:], [*good, False], [*good, _SIG], [*good, *good]):
        with pytest.raises(DecodeError, match="takes"):
            read_resumption(encode(Rec(label, *fields)), LIMITS)


@pytest.mark.parametrize("label", list(GOOD))
def test_bytes_that_are_no_record(label: str) -> None:
    whole = encode(Rec(label, *GOOD[label]))
    for data in (b"", whole[:-1], whole + b"f", whole + whole, b"[" + whole + b"]", whole[1:]):
        with pytest.raises(DecodeError):
            read_resumption(data, LIMITS)


def test_other_operations_are_none_of_these() -> None:
    for data in (
        write_abort("no"),
        write_ack(1),
        b"<10'op:deliver<11'desc:export0+>[]ff>",
        b"<9'op:resume>",
        b"<22'ocapn-durable-1:resume>",
    ):
        with pytest.raises(DecodeError):
            read_resumption(data, LIMITS)
    for data in (b"t", b"[]", b"1+"):  # no records at all
        assert not isinstance(
            read_resumption(data, LIMITS), (ResumeSession, ResumeAccept, ResumeConfirm, ResumeRefuse)
        )


def test_a_record_inside_a_record() -> None:
    inner = Rec("op:resume-confirm", _SIG)
    with pytest.raises(DecodeError):
        read_resumption(encode(Rec("op:resume-confirm", inner)), LIMITS)


def test_hints_out_of_order_or_twice() -> None:
    for hints in (b'{4"port1"14"host1"h}', b'{4"host1"h4"host1"h}', b'{4"host}', b'{4"host1"h'):
        data = b"<16'op:resume-accept32:%b7+%b%b%b>" % (NONCE, hints, _CLAIMED, _SIGNED)
        with pytest.raises(DecodeError):
            read_resumption(data, LIMITS)


def test_limits_hold() -> None:
    deep = b"[" * 65 + b"]" * 65
    with pytest.raises(DecodeError):
        read_resumption(b"<17'op:resume-confirm%b>" % deep, LIMITS)
    with pytest.raises(DecodeError):
        read_resumption(
            b"<16'op:resume-accept32:%b%b+f%b%b>" % (NONCE, b"9" * 300, _CLAIMED, _SIGNED), LIMITS
        )


# op:ack


@pytest.mark.parametrize("number", [0, 1, 9, 10, 64, 10**18, MAX_POSITION])
def test_acks(number: int) -> None:
    data = write_ack(number)
    assert data == encode(Rec("op:ack", number))
    assert is_ack(data)
    assert read_ack(data) == number


@pytest.mark.parametrize(
    "data",
    [
        b"<6'op:ack>",
        b"<6'op:ack01+>",
        b"<6'op:ack-1+>",
        b"<6'op:ack1->",
        b"<6'op:ack0->",
        b"<6'op:ack1+",
        b"<6'op:ack1+>>",
        b"<6'op:ack1+2+>",
        b"<6'op:ack1+>\n",
        b"<6'op:ack1>",
        b"<6'op:ackf>",
        b"<6'op:ackt>",
        b"<6'op:ackD\x3f\xf0\x00\x00\x00\x00\x00\x00>",
        b"<6'op:ack1\"1>",
        b"<6'op:ack 1+>",
        b"<6'op:ack\xd9\xa1+>",
        b"<6'op:ack10000000000000000000+>",
        b"<6'op:ack" + b"9" * 5000 + b"+>",
    ],
)
def test_an_ack_that_is_malformed(data: bytes) -> None:
    assert is_ack(data)
    with pytest.raises(RemoteProtocolError, match="op:ack"):
        read_ack(data)


@pytest.mark.parametrize("data", [b"<7'op:acks1+>", b"<5'op:ac1+>", b"6'op:ack", b"", b"<8'op:abort2\"no>"])
def test_what_is_no_ack(data: bytes) -> None:
    assert not is_ack(data)


def test_what_is_no_frame() -> None:
    assert is_control(write_abort(""))
    assert is_control(write_abort("a reason"))
    assert is_control(write_ack(1))
    for data in (b"", b"<", b"<1", b"<6", b"<6'", b"<6'op:ac"):
        assert not is_control(data)
    assert not is_control(b"<10'op:deliver<11'desc:export0+>[8'op:abort]ff>")
