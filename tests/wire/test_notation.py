"""Syrup for the eyes."""

from __future__ import annotations

import json
import math
import re

import pytest
from hypothesis import example, given

from ocapn.codec.notation import notation
from ocapn.codec.operations import EXPORT, PASSABLES, Descriptor
from ocapn.codec.syrup import Decoder, Record, encode
from ocapn.errors import DecodeError, NotPassable, RemoteError
from ocapn.limits import Limits
from ocapn.model.locators import PeerLocator, SturdyRef
from ocapn.model.values import Null, Symbol, Tagged

from . import strategies, vectors

SWISS = b"swiss-number"
HEX = SWISS.hex()

# Reading it back, by the grammar of the specification and what is added for the strings it does not cover.

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<float>[+-]?(?:\d+\.\d*|inf(?![\w:-]))|nan(?![\w:-]))
      | (?P<integer>[+-]?(?:0|[1-9]\d*))
      | (?P<boolean>[tf](?![\w:-]))
      | '(?P<symbol>[A-Za-z][A-Za-z0-9:-]*)
      | '(?P<quoted>"(?:[^"\\]|\\.)*")
      | (?P<string>"(?:[^"\\]|\\.)*")
      | :(?P<bytes>(?:[0-9a-f]{2})*)
      | (?P<name>[A-Za-z][A-Za-z0-9-]*(?::[A-Za-z0-9-]+)*)
      | (?P<mark>[\[\]<>{},])
    )""",
    re.VERBOSE,
)


class Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.place = 0

    def token(self) -> tuple[str, str]:
        found = _TOKEN.match(self.text, self.place)
        assert found is not None, self.text[self.place :]
        self.place = found.end()
        assert found.lastgroup is not None
        return found.lastgroup, found[found.lastgroup]

    def peek(self, mark: str) -> bool:
        rest = self.text[self.place :].lstrip()
        return rest.startswith(mark)

    def value(self) -> object:
        kind, text = self.token()
        match kind:
            case "float":
                return float(text)
            case "integer":
                return int(text)
            case "boolean":
                return text == "t"
            case "symbol":
                return Symbol(text)
            case "quoted":
                return Symbol(json.loads(text))
            case "string":
                return json.loads(text)
            case "bytes":
                return bytes.fromhex(text)
            case "mark" if text == "[":
                return self.members("]")
            case "mark" if text == "<":
                if re.match(r"\s*(?:[tf]|inf|nan)(?![\w:-])|\s*[^A-Za-z]", self.text[self.place :]):
                    label = self.value()
                else:
                    found = re.compile(r"\s*([A-Za-z][A-Za-z0-9:-]*)").match(self.text, self.place)
                    assert found is not None
                    self.place = found.end()
                    label = Symbol(found[1])
                assert isinstance(label, Symbol)
                return Record(label, self.members(">"))
            case "mark" if text == "{":
                struct: dict[str, object] = {}
                while not self.peek("}"):
                    if struct:
                        assert self.token() == ("mark", ",")
                    kind, key = self.token()
                    assert kind in ("name", "string"), kind
                    assert self.peek(":")
                    self.place = self.text.index(":", self.place) + 1
                    struct[json.loads(key) if kind == "string" else key] = self.value()
                self.token()
                return struct
        raise AssertionError(f"{kind} {text!r}")

    def members(self, closer: str) -> list[object]:
        found: list[object] = []
        while not self.peek(closer):
            found.append(self.value())
        self.token()
        return found


@given(strategies.syrup_values())
@example(
    {"t": True, "f": False, "inf": math.inf, "nan": 0, "a:": 1, "a:b": 1, "é": 1, "": 0, "1": 1, "a-b": 0}
)
@example(
    [Record(Symbol(name), [Symbol(name)]) for name in ("t", "f", "inf", "nan", "", "1", "a b", "a:b", "a:")]
)
@example([1e300, 5e-324, -0.0, 0.1, 1e16, 123456789.125, -1e22])
@example(['"', "\\", "\x7f", "\n", "熊", "\U0001f600", "\\u0041"])
def test_the_notation_reads_back(value: object) -> None:
    text = notation(encode(value), secrets=True)
    assert text.isascii()
    assert text.isprintable()
    reader = Reader(text)
    assert encode(reader.value()) == encode(value)
    assert reader.place == len(text)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"t", "t"),
        (b"f", "f"),
        (b"42+", "42"),
        (b"1-", "-1"),
        (b"0+", "0"),
        (b"D" + bytes.fromhex("3ff8000000000000"), "1.5"),
        (b"D" + bytes.fromhex("8000000000000000"), "-0.0"),
        (b"D" + bytes.fromhex("7ff0000000000000"), "inf"),
        (b"D" + bytes.fromhex("fff0000000000000"), "-inf"),
        (b"D" + bytes.fromhex("7ff8000000000000"), "nan"),
        (b"D" + bytes.fromhex("4480f0cf064dd592"), "10000000000000000000000.0"),
        (b'5"twine', '"twine"'),
        (b'0"', '""'),
        (b'3"a"b', r'"a\"b"'),
        (b'3"a\nb', r'"a\nb"'),
        (b'1"\x7f', r'"\u007f"'),
        ('6"björn'.encode(), r'"bj\u00f6rn"'),
        (b"12'fleur-de-lis", "'fleur-de-lis"),
        (b"3'a b", '\'"a b"'),
        (b"0'", '\'""'),
        (b"1'1", '\'"1"'),
        (b"8:\xb0\xb5\xc0\xff\xee\xfa\xca\xde", ":b0b5c0ffeefacade"),
        (b"0:", ":"),
        (b"[]", "[]"),
        (b"[1+2+3+]", "[1 2 3]"),
        (b"{}", "{}"),
        (b'{1"a10+1"b2+}', "{ a: 10, b: 2 }"),
        (b'{1"1t3"a-bt}', '{ "1": t, a-b: t }'),
        (b"<3'foo1+2+3+>", "<foo 1 2 3>"),
        (b"<4'void>", "<void>"),
        (b"<1't1+>", "<'t 1>"),
        (
            b"<10'op:deliver<11'desc:export5+>[5'greet3\"Ann]3+f>",
            '<op:deliver <desc:export 5> [\'greet "Ann"] 3 f>',
        ),
    ],
)
def test_each_kind_of_value(data: bytes, text: str) -> None:
    assert notation(data) == text


def test_the_specification_s_examples_of_records_and_operations() -> None:
    assert notation(vectors.OPERATIONS["gc-exports"]) == "<op:gc-exports [1 2] [1 4]>"
    assert notation(vectors.OPERATIONS["break"]) == (
        '<op:deliver <desc:export 5> [\'break <desc:error "No such object">] f f>'
    )
    assert notation(vectors.PASSABLES["peer"]) == (
        '<ocapn-peer \'tcp-testing-only "alice-designator" { host: "127.0.0.1", port: "22045" }>'
    )


def test_structs_are_shown_in_the_order_that_arrived() -> None:
    assert notation(vectors.PASSABLES["struct-text-order"]) == '{ memo: "x", ok: t }'
    assert notation(vectors.PASSABLES["struct-syrup-order"]) == '{ ok: t, memo: "x" }'


def test_values_are_shown_as_they_are_encoded() -> None:
    value = [
        None,
        Null,
        Tagged("a", 1),
        RemoteError("no"),
        PeerLocator("unix", "a"),
        Symbol("s"),
        {"k": (1,)},
    ]
    assert notation(value) == notation(encode(value))
    assert notation(value) == (
        '[<void> <null> <desc:tagged \'a 1> <desc:error "no"> <ocapn-peer \'unix "a" f> \'s { k: [1] }]'
    )
    assert notation([Descriptor(EXPORT, 5)]) == "[<desc:export 5>]"
    give = bytes.fromhex(vectors.WIRE["handoff"]["signed_give"])
    assert notation(Decoder(Limits(), PASSABLES).decode(give)) == notation(give)
    with pytest.raises(NotPassable, match="a object has no notation"):
        notation(object())


def test_malformed_bytes_have_no_notation() -> None:
    for data in vectors.MALFORMED.values():
        with pytest.raises(DecodeError):
            notation(data)


def test_a_value_over_the_limits_of_a_session_is_shown() -> None:
    assert notation(b"[" * 200 + b"]" * 200) == "[" * 200 + "]" * 200
    assert notation(b"9" * 4000 + b"+") == "9" * 4000


# Secrets


@pytest.mark.parametrize(
    ("data", "hidden"),
    [
        (encode([Symbol("fetch"), SWISS]), f"['fetch :…({len(SWISS)} bytes)]"),
        (encode(["fetch", SWISS]), f'["fetch" :…({len(SWISS)} bytes)]'),
        (encode(["fetch", SWISS.decode()]), f'["fetch" :…({len(SWISS)} bytes)]'),
        (encode([Symbol("deposit-gift"), SWISS, 1]), f"['deposit-gift :…({len(SWISS)} bytes) 1]"),
        (
            encode(SturdyRef(PeerLocator("unix", "a"), SWISS)),
            f'<ocapn-sturdyref <ocapn-peer \'unix "a" f> :…({len(SWISS)} bytes)>',
        ),
        (
            encode({"deep": [[Symbol("fetch"), SWISS]]}),
            f"{{ deep: [['fetch :…({len(SWISS)} bytes)]] }}",
        ),
    ],
)
def test_secrets_are_left_out_unless_they_are_asked_for(data: bytes, hidden: str) -> None:
    assert notation(data) == hidden
    shown = notation(data, secrets=True)
    assert HEX in shown or SWISS.decode() in shown
    assert "…" not in shown


def test_gift_ids_in_certificates_are_left_out() -> None:
    handoff = vectors.WIRE["handoff"]
    gift_id = handoff["gift_id"]
    for name in ("handoff_give", "signed_give", "handoff_receive", "signed_receive"):
        data = bytes.fromhex(handoff[name])
        assert gift_id not in notation(data)
        assert ":…(32 bytes)>" in notation(data)
        assert f":{gift_id}>" in notation(data, secrets=True)
        assert handoff["gifter_side"] in notation(data)


def test_the_first_delivery_of_the_vectors() -> None:
    data = vectors.OPERATIONS["deliver-fetch"]
    start, end = "<op:deliver <desc:export 0> ['fetch ", "] 3 <desc:import-object 5>>"
    assert notation(data) == f"{start}:…(12 bytes){end}"
    assert notation(data, secrets=True) == f"{start}:{HEX}{end}"


def test_what_is_no_secret_is_shown() -> None:
    for value, text in [
        ([Symbol("fetch"), b"cat!"], "['fetch :63617421]"),
        ([Symbol("fetch")], "['fetch]"),
        ([Symbol("fetch"), 12345678], "['fetch 12345678]"),
        ([Symbol("greet"), SWISS], f"['greet :{HEX}]"),
        ([Symbol("deposit-gift"), b"id", SWISS], f"['deposit-gift :6964 :{HEX}]"),
        ([SWISS, Symbol("fetch")], f"[:{HEX} 'fetch]"),
    ]:
        assert notation(value) == text
