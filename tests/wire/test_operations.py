"""The records of CapTP: every accepted form, and every refusal with its reason."""

from __future__ import annotations

from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocapn.codec.operations import (
    ANSWER,
    DESCRIPTOR_NAMES,
    DIALECTS,
    EXPORT,
    GET,
    INDEX,
    OBJECT,
    OPERATIONS,
    PASSABLES,
    PROMISE,
    SELECTOR_NAMES,
    UNTAG,
    Abort,
    Deliver,
    Descriptor,
    Envelope,
    Form,
    GcAnswers,
    GcExports,
    Give,
    Listen,
    Receive,
    Select,
    StartSession,
    descriptor_bytes,
    form_of,
    public_key_value,
    read_public_key,
    read_signature,
    signature_value,
    write_abort,
    write_gc_answers,
    write_gc_exports,
    write_listen,
    write_select,
    write_start_session,
)
from ocapn.codec.syrup import Decoder, Encoder, Records, encode
from ocapn.errors import DecodeError, NotPassable, RemoteError
from ocapn.limits import MAX_POSITION, Limits
from ocapn.model.locators import PeerLocator, SturdyRef
from ocapn.model.values import Null, Symbol, Tagged
from tests.support import fields_of

from . import strategies, vectors

LIMITS = Limits()


def record(label: str, *fields: bytes) -> bytes:
    return b"<" + encode(Symbol(label)) + b"".join(fields) + b">"


def read(data: bytes) -> Any:
    return Decoder(LIMITS, OPERATIONS).decode(data)


def read_value(data: bytes) -> Any:
    return Decoder(LIMITS, PASSABLES).decode(data)


def shape(value: object) -> object:
    """An operation or certificate as plain data, to compare."""
    names = fields_of(type(value))
    if not names or isinstance(value, (Descriptor, PeerLocator, SturdyRef, Tagged, Symbol)):
        return [shape(one) for one in value] if isinstance(value, list) else value
    return type(value).__name__, {name: shape(getattr(value, name)) for name in names}


def deliver(
    to: Descriptor,
    args: list[object],
    answer: int = -1,
    resolver: Descriptor | None = None,
    references: bool = False,
    old_form: bool = False,
) -> Deliver:
    return Deliver(to, args, answer, resolver, references, old_form)


KEY: Final = bytes(range(32))
SIGNATURE: Final = bytes(range(100, 164))
PEER: Final = record("ocapn-peer", b"4'unix", b'1"a', b"f")
KEY_BYTES: Final = encode(public_key_value(KEY))
SIGNATURE_BYTES: Final = encode(signature_value(SIGNATURE))
GIVE: Final = record("desc:handoff-give", KEY_BYTES, PEER, b"1:s", b"1:p", b"1:g")
SIGNED_GIVE: Final = record("desc:sig-envelope", GIVE, SIGNATURE_BYTES)
RECEIVE: Final = record("desc:handoff-receive", b"1:s", b"1:p", b"0+", SIGNED_GIVE)
SIGNED_RECEIVE: Final = record("desc:sig-envelope", RECEIVE, SIGNATURE_BYTES)

# The vectors

EXPECTED: dict[str, object] = {
    "deliver-fetch": deliver(
        Descriptor(EXPORT, 0), [Symbol("fetch"), b"swiss-number"], 3, Descriptor(OBJECT, 5)
    ),
    "deliver-no-answer": deliver(Descriptor(EXPORT, 7), ["hello", 1, -1, 0, True, False, 1.5, b"\0\xff"]),
    "deliver-to-answer": deliver(
        Descriptor(ANSWER, 3), [Symbol("make-car"), [Symbol("red"), Symbol("zoomracer")]], 4
    ),
    "deliver-promise-resolver": deliver(
        Descriptor(EXPORT, 1),
        [Descriptor(OBJECT, 2), Descriptor(PROMISE, 3), Descriptor(EXPORT, 4), Descriptor(ANSWER, 5)],
        -1,
        Descriptor(PROMISE, 6),
        references=True,
    ),
    "deliver-only": deliver(Descriptor(EXPORT, 7), ["hello"], old_form=True),
    "listen": Listen(Descriptor(EXPORT, 3), Descriptor(OBJECT, 8), False),
    "listen-wants-partial": Listen(Descriptor(ANSWER, 3), Descriptor(OBJECT, 8), False),
    "get": Select(GET, Descriptor(ANSWER, 3), "name", 9),
    "index": Select(INDEX, Descriptor(EXPORT, 3), 0, 10),
    "untag": Select(UNTAG, Descriptor(ANSWER, 3), "decimal", 11),
    "gc-exports": GcExports([1, 2], [1, 4], False),
    "gc-export-list": GcExports([1, 2], [1, 4], True),
    "gc-export-single": GcExports([1], [4], True),
    "gc-answers": GcAnswers([3], False),
    "gc-answer-list": GcAnswers([3], True),
    "gc-answer-single": GcAnswers([3], True),
    "abort": Abort("session closed"),
    "fulfill": deliver(Descriptor(EXPORT, 5), [Symbol("fulfill"), Descriptor(OBJECT, 2)], references=True),
}


@pytest.mark.parametrize("name", [name for name in vectors.OPERATIONS if name != "break"])
def test_a_vector_is_read_into_its_operation(name: str) -> None:
    assert shape(read(vectors.OPERATIONS[name])) == shape(EXPECTED[name])


def test_a_break_carries_an_error() -> None:
    operation = read(vectors.OPERATIONS["break"])
    assert isinstance(operation, Deliver)
    method, error = operation.args
    assert method is Symbol("break")
    assert isinstance(error, RemoteError)
    assert error.message == "No such object"
    assert not operation.references


# Fields

#: One example of each kind of field value.
SAMPLES: Final = {
    "t": b"t",
    "f": b"f",
    "0": b"0+",
    "-1": b"1-",
    "most": b"9223372036854775807+",
    "2^63": b"9223372036854775808+",
    "float": b"D\x3f\xf0\0\0\0\0\0\0",
    "string": b'1"a',
    "symbol": b"4'unix",
    "bytes": b"1:a",
    "no-bytes": b"0:",
    "list": b"[]",
    "positions": b"[0+]",
    "list-of-2^63": b"[9223372036854775808+]",
    "list-of-negative": b"[1-]",
    "list-of-booleans": b"[t]",
    "list-of-strings": b'[1"a]',
    "struct": b"{}",
    "struct-of-strings": b'{1"a1"b}',
    "struct-of-integers": b'{1"a1+}',
    "undefined": b"<4'void>",
    "null": b"<4'null>",
    "tagged": b"<11'desc:tagged1'at>",
    "error": b"<10'desc:error1\"a>",
    "peer": PEER,
    "sturdyref": record("ocapn-sturdyref", PEER, b"1:a"),
    "object": b"<18'desc:import-object0+>",
    "promise": b"<19'desc:import-promise0+>",
    "export": b"<11'desc:export0+>",
    "answer": b"<11'desc:answer0+>",
    "key": KEY_BYTES,
    "signature": SIGNATURE_BYTES,
    "give": GIVE,
    "receive": RECEIVE,
    "signed-give": SIGNED_GIVE,
    "signed-receive": SIGNED_RECEIVE,
}
LISTS: Final = {name for name, data in SAMPLES.items() if data[:1] == b"["}
INTEGERS: Final = {"0", "most"}
TO = (b"<11'desc:export1+>", {"export", "answer"}, "to is a desc:export or a desc:answer")
RECEIVER = (b"<11'desc:answer1+>", {"export", "answer"}, "receiver is a desc:export or a desc:answer")
ARGS = (b"[1+]", LISTS, "args are a list")
RESOLVER_RULE = "a resolver is a desc:import-object or a desc:import-promise"
ANSWER_RULE = "an answer position is "
KEY_RULE = "a public key is ['public-key"
SIGNATURE_RULE = "a signature is ['sig-val"
POSITION_RULE = "a position is "

#: Label -> fields; a field is a good value, the samples that are as good, and the rules (by `|`) for others.
FIELDS: dict[str, list[tuple[bytes, set[str], str]]] = {
    "op:start-session": [
        (b'3"1.0', {"string"}, "the version is a string"),
        (KEY_BYTES, {"key"}, KEY_RULE),
        (PEER, {"peer"}, "the location is an ocapn-peer"),
        (SIGNATURE_BYTES, {"signature"}, SIGNATURE_RULE),
    ],
    "op:deliver": [
        TO,
        ARGS,
        (b"3+", INTEGERS | {"f"}, ANSWER_RULE),
        (b"<18'desc:import-object1+>", {"object", "promise", "f"}, RESOLVER_RULE),
    ],
    "op:deliver-only": [TO, ARGS],
    "op:listen": [
        TO,
        (b"<18'desc:import-object1+>", {"object", "promise"}, RESOLVER_RULE),
        (b"t", {"t", "f"}, "wants-partial is a boolean"),
    ],
    "op:get": [RECEIVER, (b'1"k', {"string"}, "a field's name is a string"), (b"1+", INTEGERS, ANSWER_RULE)],
    "op:index": [RECEIVER, (b"2+", INTEGERS, "an index is "), (b"1+", INTEGERS, ANSWER_RULE)],
    "op:untag": [RECEIVER, (b'1"k', {"string"}, "a tag is a string"), (b"1+", INTEGERS, ANSWER_RULE)],
    "op:gc-exports": [
        (b"[1+]", {"positions"}, "positions are |a position is |positions and "),
        (b"[1+]", {"positions"}, "deltas are |a delta is |positions and "),
    ],
    "op:gc-answers": [(b"[1+]", {"positions", "list"}, "positions are |a position is ")],
    "op:abort": [(b'1"r', {"string"}, "a reason is a string")],
    "void": [],
    "null": [],
    "desc:tagged": [
        (b"1'a", {"symbol", "string"}, "a tag is a symbol or a string"),
        (b"1+", set(SAMPLES), ""),
    ],
    "ocapn-peer": [
        (b"5'onion", {"symbol"}, "a transport is a symbol"),
        (b'1"d', {"string"}, "a designator is a string"),
        (b"f", {"f", "struct", "struct-of-strings"}, "hints are a struct of strings, or f"),
    ],
    "ocapn-sturdyref": [
        (PEER, {"peer"}, "a sturdyref is an ocapn-peer and a byte array"),
        (b"1:s", {"bytes", "no-bytes"}, "a sturdyref is an ocapn-peer and a byte array"),
    ],
    "desc:import-object": [(b"1+", INTEGERS, POSITION_RULE)],
    "desc:import-promise": [(b"1+", INTEGERS, POSITION_RULE)],
    "desc:export": [(b"1+", INTEGERS, POSITION_RULE)],
    "desc:answer": [(b"1+", INTEGERS, POSITION_RULE)],
    "desc:handoff-give": [
        (KEY_BYTES, {"key"}, KEY_RULE),
        (PEER, {"peer"}, "the exporter's location is an ocapn-peer"),
        (b"1:s", {"bytes", "no-bytes"}, "session, gifter-side and gift-id are byte arrays"),
        (b"1:p", {"bytes", "no-bytes"}, "session, gifter-side and gift-id are byte arrays"),
        (b"1:g", {"bytes"}, ""),
    ],
    "desc:handoff-receive": [
        (b"1:s", {"bytes", "no-bytes"}, "receiving-session and receiving-side are byte arrays"),
        (b"1:p", {"bytes", "no-bytes"}, "receiving-session and receiving-side are byte arrays"),
        (b"0+", INTEGERS, "a handoff count is "),
        (SIGNED_GIVE, {"signed-give"}, "the signed give is a desc:sig-envelope of a desc:handoff-give"),
    ],
    "desc:sig-envelope": [
        (GIVE, {"give", "receive"}, "what is signed is a desc:handoff-give or a desc:handoff-receive"),
        (SIGNATURE_BYTES, {"signature"}, SIGNATURE_RULE),
    ],
}
LABELS_READ: Final = [*FIELDS, "op:gc-export", "op:gc-answer", "desc:error"]


def read_any(label: str, *fields: bytes) -> Any:
    return (read if label.startswith("op:") else read_value)(record(label, *fields))


@pytest.mark.parametrize("label", FIELDS)
def test_each_record_has_its_number_of_fields(label: str) -> None:
    good = [field[0] for field in FIELDS[label]]
    allowed = {len(good), 2} if label == "op:listen" else {len(good)}
    for count in range(len(good) + 3):
        fields = (*good, b"f", b"f")[:count]
        if count in allowed:
            read_any(label, *fields)
        else:
            with pytest.raises(DecodeError) as caught:
                read_any(label, *fields)
            assert caught.value.rule.startswith(f"{label}: takes {len(good)} fields")
            assert caught.value.rule.endswith(f"not {count}")
            assert caught.value.offset == 0


@pytest.mark.parametrize(
    ("label", "place"), [(label, place) for label, fields in FIELDS.items() for place in range(len(fields))]
)
def test_each_field_has_its_type(label: str, place: int) -> None:
    fields = [field[0] for field in FIELDS[label]]
    _, allowed, rule = FIELDS[label][place]
    read_any(label, *fields)
    for name, sample in SAMPLES.items():
        fields[place] = sample
        if name in allowed:
            read_any(label, *fields)
            continue
        with pytest.raises(DecodeError) as caught:
            read_any(label, *fields)
        assert caught.value.rule.startswith(tuple(f"{label}: {one}" for one in rule.split("|"))), name


@pytest.mark.parametrize("label", LABELS_READ)
def test_an_error_stands_where_its_record_begins(label: str) -> None:
    if label.startswith("op:"):
        data, offset = record(label, *[b"t"] * 9), 0
    else:
        data, offset = b"[" + record(label, b"t", *[b"t"] * 8) + b"]", 1
    with pytest.raises(DecodeError, match=label) as caught:
        (read if label.startswith("op:") else read_value)(data)
    assert caught.value.offset == offset


@pytest.mark.parametrize("size", range(67))
def test_a_gift_id_has_1_to_64_bytes(size: int) -> None:
    data = record("desc:handoff-give", KEY_BYTES, PEER, b"1:s", b"1:p", encode(bytes(size)))
    if 1 <= size <= 64:
        give = read_value(data)
        assert isinstance(give, Give)
        assert give.gift_id == bytes(size)
    else:
        with pytest.raises(DecodeError, match="a gift id is 1 to 64 bytes"):
            read_value(data)


@pytest.mark.parametrize("label", ["desc:import-object", "desc:import-promise", "desc:export", "desc:answer"])
def test_positions_end_below_2_to_the_63(label: str) -> None:
    assert read_value(record(label, b"%d+" % MAX_POSITION)).position == 2**63 - 1
    for position in (b"%d+" % 2**63, b"%d+" % 2**200, b"1-", b"%d-" % 2**63):
        with pytest.raises(DecodeError, match=f"{label}: a position is an integer from 0 to "):
            read_value(record(label, position))


def test_an_error_s_further_fields_are_ignored() -> None:
    for more in ((), (b"1+",), (b"t", b"[]")):
        error = read_value(record("desc:error", b'4"boom', *more))
        assert isinstance(error, RemoteError)
        assert (error.message, error.value) == ("boom", None)
    for fields in ((), (b"4'boom",), (b"4:boom",), (b"<4'void>", b'4"boom')):
        with pytest.raises(DecodeError, match="desc:error: an error has a message, a string"):
            read_value(record("desc:error", *fields))


def test_a_tag_may_come_as_a_symbol_or_a_string() -> None:
    for tag in (b"1'a", b'1"a'):
        tagged = read_value(record("desc:tagged", tag, b"1+"))
        assert tagged == Tagged("a", 1)
        assert type(tagged.tag) is str


@pytest.mark.parametrize(
    ("transport", "designator", "rule"),
    [
        (b"4'un.x", b'1"d', "a transport is letters, digits"),
        (b"0'", b'1"d', "a transport is letters, digits"),
        (b"4'unix", b'0"', "a designator may not be empty"),
    ],
)
def test_a_locator_that_no_uri_could_write_is_refused(transport: bytes, designator: bytes, rule: str) -> None:
    with pytest.raises(DecodeError, match=f"ocapn-peer: {rule}"):
        read_value(record("ocapn-peer", transport, designator, b"f"))


def test_a_locator_keeps_the_bytes_that_arrived() -> None:
    wire = record("ocapn-peer", b"4'unix", b'1"a', b'{4"memo1"x2"ok1"t}')
    assert read_value(b"[" + wire + b"]")[0].wire == wire
    assert read_value(record("ocapn-sturdyref", wire, b"1:s")).peer.wire == wire
    envelope = read_value(
        record(
            "desc:sig-envelope",
            record("desc:handoff-give", KEY_BYTES, wire, b"1:s", b"1:p", b"1:g"),
            SIGNATURE_BYTES,
        )
    )
    assert envelope.signed.exporter.wire == wire


def test_certificates_keep_the_bytes_that_arrived() -> None:
    envelope = read_value(b"[1+" + SIGNED_RECEIVE + b"]")[1]
    assert isinstance(envelope, Envelope)
    assert isinstance(envelope.signed, Receive)
    assert envelope.wire == SIGNED_RECEIVE
    assert envelope.signed.wire == RECEIVE
    assert envelope.signed.give.wire == SIGNED_GIVE
    assert envelope.signed.give.signed.wire == GIVE
    assert envelope.signature == envelope.signed.give.signature == SIGNATURE


# Forms

TARGET = b"<11'desc:export1+>"
RESOLVER = b"<18'desc:import-object2+>"


@pytest.mark.parametrize(
    ("data", "old"),
    [
        (record("op:deliver", TARGET, b"[]", b"f", b"f"), False),
        (record("op:deliver", TARGET, b"[]", b"f", RESOLVER), False),
        (record("op:deliver-only", TARGET, b"[]"), True),
        (record("op:gc-exports", b"[]", b"[]"), False),
        (record("op:gc-export", b"[]", b"[]"), True),
        (record("op:gc-export", b"1+", b"1+"), True),
        (record("op:gc-answers", b"[]"), False),
        (record("op:gc-answer", b"[]"), True),
        (record("op:gc-answer", b"1+"), True),
    ],
)
def test_old_forms_are_flagged(data: bytes, old: bool) -> None:
    if b"[][]" in data:  # empty lists are of one length, and of no use
        assert shape(read(data)) == shape(GcExports([], [], old))
    assert read(data).old_form is old


def test_op_listen_with_two_fields_does_not_want_partial_news() -> None:
    for fields, partial in (((), False), ((b"f",), False), ((b"t",), True)):
        operation = read(record("op:listen", TARGET, RESOLVER, *fields))
        assert shape(operation) == shape(Listen(Descriptor(EXPORT, 1), Descriptor(OBJECT, 2), partial))


@pytest.mark.parametrize("label", ["op:gc-exports", "op:gc-export"])
def test_positions_and_deltas_are_of_one_length(label: str) -> None:
    for lists in ((b"[1+]", b"[]"), (b"[]", b"[1+]"), (b"[1+2+]", b"[1+]")):
        with pytest.raises(DecodeError, match=f"{label}: positions and deltas are lists of one length"):
            read(record(label, *lists))


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ((b"1+", b"[1+]"), "a delta is a non-negative integer"),
        ((b"[1+]", b"1+"), "deltas are a list"),
        ((b"1-", b"1+"), "a position is a non-negative integer"),
        ((b"1+", b"1-"), "a delta is a non-negative integer"),
        ((b"t", b"1+"), "a position is a non-negative integer"),
        ((b"%d+" % 2**63, b"1+"), "a position is below 2^63"),
        ((b"1+", b"%d+" % 2**63), "a delta is below 2^63"),
        ((b"[1-]", b"[1+]"), "a position is a non-negative integer"),
        ((b"1+",), "takes 2 fields, not 1"),
        ((b"1+", b"1+", b"1+"), "takes 2 fields, not 3"),
    ],
)
def test_the_oldest_gc_export_is_checked_too(fields: tuple[bytes, ...], rule: str) -> None:
    with pytest.raises(DecodeError) as caught:
        read(record("op:gc-export", *fields))
    assert caught.value.rule == f"op:gc-export: {rule}"


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ((b"1-",), "a position is a non-negative integer"),
        ((b"%d+" % 2**63,), "a position is below 2^63"),
        ((b"f",), "a position is a non-negative integer"),
        ((b"[t]",), "a position is a non-negative integer"),
        ((), "takes 1 fields, not 0"),
        ((b"1+", b"2+"), "takes 1 fields, not 2"),
    ],
)
def test_the_oldest_gc_answer_is_checked_too(fields: tuple[bytes, ...], rule: str) -> None:
    with pytest.raises(DecodeError) as caught:
        read(record("op:gc-answer", *fields))
    assert caught.value.rule == f"op:gc-answer: {rule}"


PLAIN_ARGS = [b"1+", b'{1"a[t]}', b"<4'void>", b"<11'desc:tagged1'a[]>", b"<10'desc:error1\"a>", PEER]
REFERENCE_ARGS = [
    *(SAMPLES[name] for name in ("object", "promise", "export", "answer", "signed-give", "signed-receive")),
    b"[[" + TARGET + b"]]",
    b'{1"a' + RESOLVER + b"}",
    record("desc:tagged", b"1'a", TARGET),
]


@pytest.mark.parametrize("resolver", [b"f", RESOLVER], ids=["no-resolver", "resolver"])
@pytest.mark.parametrize("answer", [b"f", b"3+"], ids=["no-answer", "answer"])
def test_references_tells_whether_the_arguments_hold_any(answer: bytes, resolver: bytes) -> None:
    decoder = Decoder(LIMITS, OPERATIONS)
    for args, references in [
        *((a, False) for a in PLAIN_ARGS),
        *((a, True) for a in REFERENCE_ARGS),
        (b"", False),
    ]:
        operation = decoder.decode(record("op:deliver", TARGET, b"[" + args + b"]", answer, resolver))
        assert isinstance(operation, Deliver)
        assert operation.references is references, args


def test_references_tells_it_of_the_old_form_too() -> None:
    for args, references in [*((a, False) for a in PLAIN_ARGS), *((a, True) for a in REFERENCE_ARGS)]:
        assert read(record("op:deliver-only", TARGET, b"[" + args + b"]")).references is references, args


# Where records may stand


@pytest.mark.parametrize("label", [label for label in LABELS_READ if label.startswith("op:")])
def test_an_operation_stands_outermost_only(label: str) -> None:
    data = record(label, *[field[0] for field in FIELDS.get(label, [])])
    for outside in (
        b"[%b]",
        b'{1"a%b}',
        b"<10'op:deliver<11'desc:export1+>[%b]ff>",
        b"<11'desc:tagged1'a%b>",
    ):
        reader = read if b"op:" in outside else read_value
        with pytest.raises(DecodeError, match=f"no value is called '{label}'"):
            reader(outside % data)
    with pytest.raises(DecodeError, match=f"no value is called '{label}'"):
        read_value(data)


@pytest.mark.parametrize("label", [label for label in LABELS_READ if not label.startswith("op:")])
def test_a_value_is_no_operation(label: str) -> None:
    data = record(label, *[field[0] for field in FIELDS.get(label, [(b'1"a', set(), "")])])
    read_value(data)
    with pytest.raises(DecodeError, match=f"no operation is called '{label}'") as caught:
        read(data)
    assert caught.value.offset == 0


@pytest.mark.parametrize("label", ["op:bogus", "op:Deliver", "", "x" * 1000, "desc:bogus", "my-location"])
def test_unknown_records_are_refused_by_their_name(label: str) -> None:
    with pytest.raises(DecodeError) as caught:
        read(record(label))
    assert caught.value.rule == f"no operation is called {label[:40]!r}"
    with pytest.raises(DecodeError) as caught:
        read_value(b"[1+" + record(label) + b"]")
    assert caught.value.rule == f"no value is called {label[:40]!r}"
    assert caught.value.offset == 3


# Keys and signatures

Q = b"[1'q32:" + KEY + b"]"


def test_keys_and_signatures_are_read_in_their_form() -> None:
    assert read_public_key(public_key_value(KEY)) == KEY
    assert read_signature(signature_value(SIGNATURE)) == SIGNATURE
    assert KEY_BYTES == b"[10'public-key[3'ecc[5'curve7'Ed25519][5'flags5'eddsa]" + Q + b"]]"
    r, s = SIGNATURE[:32], SIGNATURE[32:]
    assert encode(signature_value(r + s)) == b"[7'sig-val[5'eddsa[1'r32:" + r + b"][1's32:" + s + b"]]]"


@pytest.mark.parametrize(
    "key",
    [
        KEY_BYTES.replace(b"10'public-key", b'10"public-key'),
        KEY_BYTES.replace(b"10'public-key", b"11'private-key"),
        KEY_BYTES.replace(b"3'ecc", b"3'rsa"),
        KEY_BYTES.replace(b"7'Ed25519", b"7'ed25519"),
        KEY_BYTES.replace(b"7'Ed25519", b'7"Ed25519'),
        KEY_BYTES.replace(b"5'eddsa", b"5'ecdsa"),
        KEY_BYTES.replace(b"[5'flags5'eddsa]", b""),
        KEY_BYTES.replace(Q, Q + Q),
        KEY_BYTES.replace(b"[1'q32:", b"[1'r32:"),
        KEY_BYTES.replace(b"32:" + KEY, b"31:" + KEY[:31]),
        KEY_BYTES.replace(b"32:" + KEY, b"33:" + KEY + b"\0"),
        KEY_BYTES.replace(b"32:" + KEY, b'32"' + KEY),
        KEY_BYTES.replace(b"[5'curve7'Ed25519][5'flags5'eddsa]", b"[5'flags5'eddsa][5'curve7'Ed25519]"),
        KEY_BYTES[:-1] + b"1+]",
        b"<10'public-key>",
        b"32:" + KEY,
    ],
)
def test_a_key_in_another_form_is_refused(key: bytes) -> None:
    assert key != KEY_BYTES
    with pytest.raises(DecodeError, match=r"a public key is|no value is called"):
        read(record("op:start-session", b'3"1.0', key, PEER, SIGNATURE_BYTES))


@pytest.mark.parametrize(
    "signature",
    [
        SIGNATURE_BYTES.replace(b"7'sig-val", b'7"sig-val'),
        SIGNATURE_BYTES.replace(b"5'eddsa", b"5'ecdsa"),
        SIGNATURE_BYTES.replace(b"1'r", b"1's"),
        SIGNATURE_BYTES.replace(b"1's", b"1'r"),
        SIGNATURE_BYTES.replace(b"[1'r32:" + SIGNATURE[:32] + b"]", b""),
        SIGNATURE_BYTES.replace(b"32:" + SIGNATURE[32:], b"31:" + SIGNATURE[33:]),
        SIGNATURE_BYTES.replace(b"32:" + SIGNATURE[32:], b"33:" + SIGNATURE[31:]),
        SIGNATURE_BYTES[:-1] + b"t]",
        b"64:" + SIGNATURE,
    ],
)
def test_a_signature_in_another_form_is_refused(signature: bytes) -> None:
    assert signature != SIGNATURE_BYTES
    with pytest.raises(DecodeError, match="a signature is"):
        read(record("op:start-session", b'3"1.0', KEY_BYTES, PEER, signature))


# Writing


def test_what_is_written_is_read_back() -> None:
    encoder = Encoder(LIMITS)
    old = Form(old_gc=True)
    to = descriptor_bytes(ANSWER, 3)
    for data, name in [
        (write_abort("session closed"), "abort"),
        (write_gc_exports([1, 2], [1, 4], Form()), "gc-exports"),
        (write_gc_exports([1, 2], [1, 4], old), "gc-export-list"),
        (write_gc_answers([3], Form()), "gc-answers"),
        (write_gc_answers([3], old), "gc-answer-list"),
        (write_listen(to, 8), "listen-wants-partial"),
        (write_select(encoder, GET, to, "name", 9), "get"),
        (write_select(encoder, INDEX, descriptor_bytes(EXPORT, 3), 0, 10), "index"),
        (write_select(encoder, UNTAG, to, "decimal", 11), "untag"),
    ]:
        assert data == vectors.OPERATIONS[name], name


def test_a_start_session_is_read_back() -> None:
    location = PeerLocator("unix", "a", {"memo": "x", "ok": "y"})
    for text_order in (False, True):
        operation = StartSession("1.0", KEY, location, SIGNATURE)
        data = write_start_session(Encoder(LIMITS, text_order=text_order), operation)
        found = read(data)
        assert shape(found) == shape(operation)
        assert dict(found.location.hints) == dict(location.hints)
        assert (b'{4"memo' in data) is text_order


def test_a_reason_is_written_whatever_it_holds() -> None:
    assert read(write_abort("bad \ud800 熊")).reason == "bad ? 熊"


def test_a_field_s_name_that_is_not_text_is_refused() -> None:
    with pytest.raises(NotPassable, match="a string with a surrogate"):
        write_select(Encoder(LIMITS), GET, descriptor_bytes(EXPORT, 1), "\ud800", 1)


@pytest.mark.parametrize("kind", [OBJECT, PROMISE, EXPORT, ANSWER])
def test_descriptors_are_read_back(kind: int) -> None:
    for position in (0, 1, 1023, 1024, MAX_POSITION):
        found = read_value(descriptor_bytes(kind, position))
        assert found == Descriptor(kind, position)
        assert hash(found) == hash(Descriptor(kind, position))
        assert str(position) in repr(found)
    assert Descriptor(kind, 1) != Descriptor(kind, 2)
    assert Descriptor(kind, 1) != Descriptor((kind + 1) % 4, 1)


#: As OPERATIONS, without what the decoder knows of descriptors and op:deliver by itself.
ASKS: Final = Records(OPERATIONS.messages, OPERATIONS.values)


def outcome(data: bytes, records: Records, limits: Limits) -> tuple[str, int]:
    decoder = Decoder(limits, records)
    try:
        return str(shape(decoder.decode(data))), decoder.references
    except DecodeError as error:
        return error.rule, error.offset


@given(
    st.lists(
        st.sampled_from(
            [
                *(descriptor_bytes(kind, n) for kind in range(4) for n in (0, 7, 12_345_678, 123_456_789)),
                *(
                    b"<%d'%b%b>" % (len(n), n.encode(), m)
                    for n in DESCRIPTOR_NAMES
                    for m in (b"00+", b"01+", b"1-", b"")
                ),
                b"[",
                b"]",
                b"{",
                b"}",
                b'1"a',
                b"<4'void>",
                b"1+",
                b"f",
            ]
        ),
        max_size=8,
    ),
    st.integers(min_value=0, max_value=200),
    st.integers(min_value=0, max_value=255),
    st.booleans(),
    st.tuples(
        st.sampled_from([*(descriptor_bytes(kind, 5) for kind in range(4)), b"f", b"<4'void>"]),
        st.sampled_from(
            [
                b"1+",
                b"f",
                b"0+",
                b"01+",
                b"12345678+",
                b"%d+" % MAX_POSITION,
                b"123456789012345678+",
                b"1-",
                b"t",
                b"1+1+",
                b"",
            ]
        ),
        st.sampled_from(
            [RESOLVER, *(descriptor_bytes(kind, 6) for kind in range(4)), b"f", b"t", b"ff", b""]
        ),
    ),
    st.sampled_from([b"", b">", b"f"]),
    st.sampled_from(
        [Limits(), Limits(nesting=1), Limits(nesting=2), Limits(nesting=3), Limits(integer_digits=4)]
    ),
)
def test_what_is_common_is_read_as_other_records_are(
    parts: list[bytes],
    place: int,
    byte: int,
    damage: bool,
    fields: tuple[bytes, bytes, bytes],
    more: bytes,
    limits: Limits,
) -> None:
    to, answer, resolver = fields
    data = record("op:deliver", to, b"[%b]" % b"".join(parts), answer, resolver) + more
    if damage and place < len(data):
        data = data[:place] + bytes([byte]) + data[place + 1 :]
    assert outcome(data, OPERATIONS, limits) == outcome(data, ASKS, limits)
    for cut in range(len(data) - 30, len(data)):
        assert outcome(data[:cut], OPERATIONS, limits) == outcome(data[:cut], ASKS, limits)


def test_a_position_has_no_more_digits_than_other_integers() -> None:
    data = record(
        "op:deliver", descriptor_bytes(EXPORT, 5), b"[%b]" % descriptor_bytes(EXPORT, 123_456), b"ff"
    )
    few = Limits(integer_digits=5)
    assert (
        outcome(data, OPERATIONS, few) == outcome(data, ASKS, few) == ("an integer of more than 5 digits", 48)
    )
    assert Decoder(Limits(integer_digits=6), OPERATIONS).decode(data)


@pytest.mark.parametrize("kind", [OBJECT, PROMISE, EXPORT, ANSWER])
def test_a_descriptor_is_no_operation(kind: int) -> None:
    with pytest.raises(DecodeError, match="no operation is called"):
        read(descriptor_bytes(kind, 123_456))


def test_selectors_have_their_names() -> None:
    assert [SELECTOR_NAMES[kind] for kind in (GET, INDEX, UNTAG)] == ["op:get", "op:index", "op:untag"]


@pytest.mark.parametrize(
    ("dialect", "old_deliver", "old_gc"),
    [
        (None, False, False),
        ("2026-02", False, False),
        ("2026-02-singular-gc", False, True),
        ("2026-01", True, True),
    ],
)
def test_dialects_say_which_forms_to_write(dialect: str | None, old_deliver: bool, old_gc: bool) -> None:
    form = form_of(dialect)
    assert (form.old_deliver, form.old_gc, form.text_order) == (old_deliver, old_gc, False)


def test_an_unknown_dialect_is_refused() -> None:
    with pytest.raises(ValueError, match="no dialect is called '2025'; there are " + ", ".join(DIALECTS)):
        form_of("2025")


def damaged() -> st.SearchStrategy[bytes]:
    handshake, handoff = vectors.WIRE["handshake"], vectors.WIRE["handoff"]
    certificate = bytes.fromhex(handoff["signed_receive"])
    whole = [
        *vectors.OPERATIONS.values(),
        bytes.fromhex(handshake["alice"]["op_start_session"]),
        record("op:deliver", TARGET, b"[13'withdraw-gift" + certificate + b"]", b"1+", RESOLVER),
    ]
    return strategies.mangled(st.sampled_from(whole))


@given(damaged())
def test_a_damaged_operation_is_refused_or_read_with_all_its_fields(data: bytes) -> None:
    try:
        operation = read(data)
    except DecodeError:
        return
    if data[:1] == b"<":
        assert isinstance(operation, (StartSession, Deliver, Listen, Select, GcExports, GcAnswers, Abort))
        shape(operation)
    else:
        assert encode(operation) == data


def test_undefined_and_null_are_what_python_has_for_them() -> None:
    assert read_value(b"[<4'void><4'null>]") == [None, Null]
