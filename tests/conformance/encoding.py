"""Syrup, keys, certificates and descriptors, made from the specifications alone: nothing here is from `ocapn`."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from nacl.signing import SigningKey, VerifyKey

# Syrup


@dataclass(frozen=True)
class Sym:
    name: str


@dataclass(frozen=True, init=False)
class Rec:
    """A record: its label, a symbol, and its fields."""

    label: str
    fields: tuple[Any, ...]

    def __init__(self, label: str, *fields: Any) -> None:
        object.__setattr__(self, "label", label)
        object.__setattr__(self, "fields", fields)


@dataclass(frozen=True)
class Raw:
    """Bytes that stand for their own encoding."""

    data: bytes


VOID = Rec("void")
NULL = Rec("null")


def encode(value: Any, text_order: bool = False) -> bytes:
    """The Syrup encoding; `text_order` sorts the keys of structs by their text."""
    if value is True or value is False:
        return b"t" if value else b"f"
    if isinstance(value, int):
        return b"%d+" % value if value >= 0 else b"%d-" % -value
    if isinstance(value, float):
        return b"D" + struct.pack(">d", value)
    if isinstance(value, bytes):
        return b"%d:%b" % (len(value), value)
    if isinstance(value, str):
        return b'%d"%b' % (len(value.encode()), value.encode())
    if isinstance(value, Sym):
        return b"%d'%b" % (len(value.name.encode()), value.name.encode())
    if isinstance(value, Raw):
        return value.data
    if isinstance(value, (list, tuple)):
        return b"[%b]" % b"".join(encode(item, text_order) for item in value)
    if isinstance(value, Rec):
        fields = (encode(item, text_order) for item in value.fields)
        return b"<%b%b>" % (encode(Sym(value.label)), b"".join(fields))
    if isinstance(value, dict):
        keys = sorted(value, key=str.encode if text_order else encode)
        return b"{%b}" % b"".join(encode(key) + encode(value[key], text_order) for key in keys)
    raise TypeError(f"no encoding for {value!r}")


class Incomplete(Exception):
    """The bytes end inside a value."""


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        if self.at + count > len(self.data):
            raise Incomplete
        self.at += count
        return self.data[self.at - count : self.at]

    def until(self, end: bytes) -> Iterator[Any]:
        while (head := self.take(1)) != end:
            self.at -= len(head)
            yield self.value()

    def value(self) -> Any:
        head = self.take(1)
        if head in b"tf":
            return head == b"t"
        if head == b"D":
            return struct.unpack(">d", self.take(8))[0]
        if head == b"[":
            return list(self.until(b"]"))
        if head == b"{":
            items = list(self.until(b"}"))
            return dict(zip(items[::2], items[1::2], strict=True))
        if head == b"<":
            label, *fields = self.until(b">")
            assert isinstance(label, Sym), f"a record is labelled {label!r}"
            return Rec(label.name, *fields)
        digits = b""
        while head.isdigit():
            digits += head
            head = self.take(1)
        assert digits, f"{head!r} begins no value"
        number = int(digits)
        if head in b"+-":
            return number if head == b"+" else -number
        body = self.take(number)
        if head == b":":
            return body
        if head == b'"':
            return body.decode()
        assert head == b"'", f"{head!r} after {number}"
        return Sym(body.decode())


def read_one(data: bytes) -> tuple[Any, int]:
    """The first value in `data`, and where it ends. Raises Incomplete."""
    reader = _Reader(data)
    value = reader.value()
    return value, reader.at


# Keys, identifiers, locators


def public_key(key: bytes) -> list[Any]:
    curve = [Sym("curve"), Sym("Ed25519")]
    return [Sym("public-key"), [Sym("ecc"), curve, [Sym("flags"), Sym("eddsa")], [Sym("q"), key]]]


def signature(key: SigningKey, message: bytes) -> list[Any]:
    made = key.sign(message).signature
    return [Sym("sig-val"), [Sym("eddsa"), [Sym("r"), made[:32]], [Sym("s"), made[32:]]]]


def verify(key: bytes, message: bytes, sig_val: Any) -> None:
    """Raises if `sig_val` is not the signature of `message` by `key`."""
    name, (scheme, (r_name, r), (s_name, s)) = sig_val
    assert [name, scheme, r_name, s_name] == [Sym("sig-val"), Sym("eddsa"), Sym("r"), Sym("s")]
    VerifyKey(key).verify(message, r + s)


def twice_hashed(data: bytes) -> bytes:
    return sha256(sha256(data).digest()).digest()


def public_id(key: bytes) -> bytes:
    return twice_hashed(encode(public_key(key)))


def session_id(one: bytes, other: bytes) -> bytes:
    """Of the session between two public identifiers."""
    return twice_hashed(b"prot0" + min(one, other) + max(one, other))


def make_key(wanted: Callable[[bytes], bool] = lambda identifier: True) -> SigningKey:
    """A new key whose public identifier is as wanted."""
    while True:
        key = SigningKey.generate()
        if wanted(public_id(bytes(key.verify_key))):
            return key


def locator(designator: str, hints: dict[str, str]) -> Rec:
    return Rec("ocapn-peer", Sym("tcp-testing-only"), designator, hints)


def locator_of(uri: str) -> Rec:
    """The locator that a tcp-testing-only URI writes."""
    parts = urlsplit(uri)
    designator, _, transport = parts.netloc.rpartition(".")
    assert transport == "tcp-testing-only"
    return locator(unquote(designator), dict(parse_qsl(parts.query, strict_parsing=True)))


# Descriptors and operations, as the receiver sees them


def obj(position: int) -> Rec:
    return Rec("desc:import-object", position)


def promise(position: int) -> Rec:
    return Rec("desc:import-promise", position)


def export(position: int) -> Rec:
    return Rec("desc:export", position)


def answer(position: int) -> Rec:
    return Rec("desc:answer", position)


BOOTSTRAP = export(0)


def envelope(key: SigningKey, signed: Rec, text_order: bool = False) -> Rec:
    return Rec("desc:sig-envelope", signed, signature(key, encode(signed, text_order)))


def own(descriptor: Any) -> Rec:
    """How we address what came as desc:import-object or desc:import-promise."""
    assert isinstance(descriptor, Rec), f"{descriptor} is no reference"
    assert descriptor.label in ("desc:import-object", "desc:import-promise"), f"{descriptor} is not theirs"
    return export(descriptor.fields[0])


def descriptors(value: Any) -> Iterator[Rec]:
    """Every descriptor in a value. What certificates hold counts for nobody."""
    if isinstance(value, Rec):
        if value.label in ("desc:import-object", "desc:import-promise", "desc:export", "desc:answer"):
            yield value
        elif value.label != "desc:sig-envelope":
            for item in value.fields:
                yield from descriptors(item)
    elif isinstance(value, list):
        for item in value:
            yield from descriptors(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from descriptors(item)
