"""Messages for the eyes: the OCapN abstract notation (Notation specification)."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Final

from ocapn.codec.base import Writing
from ocapn.codec.cbor import as_records as read_cbor
from ocapn.codec.operations import Descriptor, Envelope
from ocapn.codec.syrup import ANY_RECORD, Decoder, Encoder, Record
from ocapn.errors import NotPassable
from ocapn.limits import Limits
from ocapn.model.values import NullType, Symbol

#: Above those of a session: what is printed was within the limits of some other peer. Printing recurses.
_LIMITS: Final = Limits(nesting=200, integer_digits=4096)
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9:-]*\Z")
#: Names that stand for another value where they are written bare.
_TAKEN: Final = frozenset({"t", "f", "inf", "nan"})
_COVERED: Final = re.compile(r"[ -!#-\[\]-~]*\Z")
#: By label or method name, which field or argument is a secret: whoever knows it may have the object.
_SECRET_FIELDS: Final = {"ocapn-sturdyref": 1, "desc:handoff-give": 4}
_SECRET_ARGUMENTS: Final = frozenset({"fetch", "deposit-gift"})
#: What tags begin with, and in Syrup nothing does: a message in CBOR is a record, and that has one.
_CBOR: Final = b"\xd8"
#: Secrets this short protect nothing and are printed: they make examples readable.
_SHORT: Final = 4


def notation(data: bytes | object, *, secrets: bool = False) -> str:
    """`data` in the abstract notation: `<op:deliver <desc:export 5> ['greet "Ann"] 3 f>`.

    Bytes are read as the Syrup encoding of one value, or as a message in CBOR; anything else is a value: plain data,
    a record, a descriptor or a certificate. Without `secrets`, swiss numbers and gift ids of more than 4 bytes are
    left out and only their length is told. Where the notation has no way to write a string or a symbol, it is in JSON
    escapes. Raises DecodeError and NotPassable.
    """
    if not isinstance(data, bytes):
        data = Encoder(_LIMITS, _write_wire).encode(data)
    if data.startswith(_CBOR):
        return _Printer(secrets).value(read_cbor(data, _LIMITS))
    return _Printer(secrets).value(Decoder(_LIMITS, ANY_RECORD).decode(data))


def _write_wire(encoder: Writing, value: object) -> None:
    if isinstance(value, Descriptor):
        encoder.reference(value.kind, value.position)
    elif isinstance(value, Envelope):
        encoder.certificate(value.wire)
    else:
        raise NotPassable(f"a {type(value).__name__} has no notation")


class _Printer:
    def __init__(self, secrets: bool) -> None:
        self._secrets = secrets

    def value(self, value: object) -> str:
        match value:
            case None:
                return "<void>"
            case NullType():
                return "<null>"
            case bool():
                return "t" if value else "f"
            case int():
                return str(value)
            case float():
                return _float(value)
            case str():
                return _string(value)
            case bytes():
                return ":" + value.hex()
            case Symbol():
                return "'" + (value.name if _NAME.match(value.name) else _json(value.name))
            case Descriptor():
                return repr(value)
            case Record():
                return self._record(value)
            case list():
                return self._list(value)
            case dict():
                return self._struct(value)
        raise AssertionError(f"the decoder made a {type(value).__name__}")

    def _record(self, record: Record) -> str:
        name = record.label.name
        label = name if _NAME.match(name) and name not in _TAKEN else self.value(record.label)
        fields = self._members(record.fields, _SECRET_FIELDS.get(name, -1))
        return f"<{' '.join([label, *fields])}>"

    def _list(self, members: list[object]) -> str:
        method = members[0] if members else None
        name = method.name if isinstance(method, Symbol) else method
        secret = 1 if isinstance(name, str) and name in _SECRET_ARGUMENTS else -1
        return f"[{' '.join(self._members(members, secret))}]"

    def _members(self, members: list[object], secret: int) -> list[str]:
        texts = [self.value(member) for member in members]
        if not self._secrets and 0 <= secret < len(members):
            hidden = members[secret]
            # Some peers write swiss numbers as strings.
            octets = hidden.encode() if isinstance(hidden, str) else hidden
            if isinstance(octets, bytes) and len(octets) > _SHORT:
                texts[secret] = f":…({len(octets)} bytes)"
        return texts

    def _struct(self, struct: dict[str, object]) -> str:
        if not struct:
            return "{}"
        fields = [f"{_key(key)}: {self.value(value)}" for key, value in struct.items()]
        return f"{{ {', '.join(fields)} }}"


def _float(value: float) -> str:
    if value != value:
        return "nan"
    if value in (float("inf"), float("-inf")):
        return "inf" if value > 0 else "-inf"
    text = format(Decimal(repr(value)), "f")  # the notation has no exponents
    return text if "." in text else text + ".0"


def _string(text: str) -> str:
    return f'"{text}"' if _COVERED.match(text) else _json(text)


def _json(text: str) -> str:
    return json.dumps(text).replace("\x7f", "\\u007f")


def _key(key: str) -> str:
    # A name may hold colons, but before the colon of a field they would be hard to tell apart.
    return key if _NAME.match(key) and ":" not in key and key not in _TAKEN else _string(key)
