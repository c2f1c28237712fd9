"""JSON and the OCapN model, both ways."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given

import ocapn.testing
from ocapn import Null, PeerLocator, RemoteError, SturdyRef, Symbol, Tagged
from ocapn.cli.values import HELP, from_model, json_line, parse_json, readable
from tests.support import trio_test
from tests.wire import strategies

SAME = [
    ("null", Null),
    ("true", True),
    ("1", 1),
    ("-20", -20),
    ("1.0", 1.0),
    ("-0.0", -0.0),
    ("2000.0", 2e3),
    ('"text"', "text"),
    ("[1, [2.5]]", [1, [2.5]]),
    ('{"a": 1, "b": {}}', {"a": 1, "b": {}}),
    ('{"$symbol": "x"}', Symbol("x")),
    ('{"$bytes": "aGk="}', b"hi"),
    ('{"$tagged": ["t", {"$symbol": "x"}]}', Tagged("t", Symbol("x"))),
    ('{"$undefined": true}', None),
    ('{"$float": "nan"}', math.nan),
    ('{"$float": "inf"}', math.inf),
    ('{"$float": "-inf"}', -math.inf),
    ('{"$error": "message"}', RemoteError("message")),
    ('{"$sturdyref": "ocapn://p.unix/s/abc?path=x"}', SturdyRef(PeerLocator("unix", "p"), b"abc")),
    ('{"$peer": "ocapn://p.unix"}', PeerLocator("unix", "p")),
    ('{"$struct": {"$symbol": "x"}}', {"$symbol": "x"}),
    ('{"$struct": {"$a": {"$struct": {"$b": 1}}, "c": null}}', {"$a": {"$b": 1}, "c": Null}),
    (str(10**255), 10**255),
]


@pytest.mark.parametrize(("text", "value"), SAME)
def test_each_value_has_one_json(text: str, value: object) -> None:
    assert ocapn.equal(parse_json(text, "it"), value)
    if "?path" not in text:  # of which the value here has no hints
        assert json_line(value) == text


def test_the_help_tells_of_every_form() -> None:
    for text, _ in SAME:
        for form in json.loads(text) if text.startswith('{"$') else []:
            assert f'{{"{form}": ' in HELP


@given(strategies.passables())
def test_what_is_written_is_read_as_an_equal_value(value: object) -> None:
    assert ocapn.equal(parse_json(json_line(value), "it"), value)
    assert readable(value).isprintable() or not readable(value).isascii()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "Ann",
            "it is not JSON: expecting value at character 1; "
            "a string has quotes, which the shell must leave: '\"Ann\"'",
        ),
        ("[1,", "it is not JSON: expecting value at character 4"),
        ("1 2", "it is not JSON: extra data at character 3"),
        ('{"a": 1, "a": 2}', "it: the key 'a' is there twice"),
        ("NaN", 'it: NaN is not JSON; write {"$float": "nan"}'),
        ("[-Infinity]", 'it: -Infinity is not JSON; write {"$float": "-inf"}'),
        ("1e999", 'it: a number is beyond what a Float64 holds; infinity is written {"$float": "inf"}'),
        ("1" * 5000, "it: an integer has 5000 digits, more than any peer takes"),
        ("[" * 100_000, "it is nested too deep; a message may have 64 levels"),
        ('{"$ref": "x"}', "it: a reference cannot be written in JSON; a sturdyref can, as $sturdyref"),
        (
            '[{"a": {"$foo": 1}}]',
            "it[0]['a']: $foo is no form that is known here; "
            'a struct with a field of that name is written {"$struct": {"$foo": …}}',
        ),
        (
            '{"$symbol": "x", "b": 1}',
            "it: $symbol stands alone in its object; "
            'a struct with a field of that name is written {"$struct": {"$symbol": …}}',
        ),
        ('{"$symbol": 1}', "it: $symbol takes a string"),
        ('{"$symbol": "\\ud800"}', "it: $symbol takes a string without surrogates"),
        ('{"$bytes": "aGk"}', "it: $bytes takes base64, with its padding"),
        ('{"$bytes": "é"}', "it: $bytes takes base64, with its padding"),
        ('{"$bytes": 1}', "it: $bytes takes a string"),
        ('{"$tagged": ["t"]}', "it: $tagged takes a list of a string, the tag, and a value"),
        ('{"$tagged": ["t", {"$foo": 1}]}', "it.value: $foo is no form that is known here"),
        ('{"$undefined": false}', "it: $undefined takes true"),
        ('{"$float": 1}', 'it: $float takes "nan", "inf" or "-inf"'),
        ('{"$error": null}', "it: $error takes a string"),
        ('{"$struct": 1}', "it: $struct takes an object"),
        ('{"$sturdyref": "ocapn://p.unix"}', "it: $sturdyref: this URI names a peer, not an object"),
        ('{"$peer": "http://x"}', "it: $peer: an OCapN URI begins with ocapn://"),
    ],
)
def test_what_is_no_value_is_refused_by_its_place(text: str, said: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text follows
        parse_json(text, "it")
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"),
        (Null, "Null"),
        ("a\x1b'", '"a\\x1b\'"'),
        ([1, 1.0, b"x"], "[1, 1.0, b'x']"),
        ({"a": [Symbol("s")]}, "{'a': [Symbol('s')]}"),
        (Tagged("t", [None]), "Tagged('t', [None])"),
        (SturdyRef(PeerLocator("unix", "p"), b"abc"), "SturdyRef('ocapn://p.unix/s/abc')"),
        (RemoteError("no"), "RemoteError('no')"),
    ],
)
def test_values_for_people_are_in_the_notation_of_python(value: object, text: str) -> None:
    assert readable(value) == text


@trio_test
async def test_references_are_described() -> None:
    async with ocapn.testing.linked_peers("alice", "bob") as (alice, bob):
        ref = await alice.enliven(bob.export(ocapn.target(lambda: None)))
        promise, resolver = ocapn.make_promise()
        assert from_model([ref, promise]) == [
            {"$ref": "Ref 1 of ocapn://bob.memory"},
            {"$ref": "Promise, pending"},
        ]
        assert readable([ref, promise]) == "[<Ref 1 of ocapn://bob.memory>, <Promise, pending>]"
        resolver.break_("two\nlines \x1b[31m")
        assert readable([promise]) == "[<Promise, broken: two\\nlines \\x1b[31m>]"
