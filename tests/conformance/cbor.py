"""Messages in CBOR, made from spec/wire.md and cbor2 alone: nothing here is from `ocapn`.

The same `Rec`s as in Syrup: what stands beside the arguments of a message is put in its place, and taken out of it.
"""

from __future__ import annotations

from typing import Any

import cbor2

from . import encoding
from .encoding import NULL, VOID, Raw, Rec, Sym

_LABELS = {"desc:tagged": "tag", "ocapn-peer": "peer", "ocapn-sturdyref": "sturdyref"}
_NAMES = {short: label for label, short in _LABELS.items()} | {
    "error": "desc:error",
    **{name: f"desc:{name}" for name in ("import-object", "import-promise", "export", "answer")},
}
_DELIVERIES = ("op:deliver", "op:deliver-only")


def _short(label: str) -> str:
    return _LABELS.get(label, label.removeprefix("op:").removeprefix("desc:"))


class _Beside:
    """The references and errors of the arguments of one message."""

    def __init__(self) -> None:
        self.targets: list[Any] = []
        self.promises: list[Any] = []
        self.errors: list[Any] = []

    def put(self, value: Rec) -> bytes:
        """The marker for it."""
        label, position = value.label, value.fields[0]
        is_promise = label in ("desc:import-promise", "desc:answer")
        of_the_reader = label in ("desc:export", "desc:answer")
        (self.promises if is_promise else self.targets).append(-1 - position if of_the_reader else position)
        return _record(["promise" if is_promise else "target"])


def _head(major: int, count: int) -> bytes:
    return bytes([cbor2.dumps(count)[0] | major << 5]) + cbor2.dumps(count)[1:]


def _record(items: list[Any], beside: _Beside | None = None) -> bytes:
    return b"\xd8\x1b" + _head(4, len(items)) + b"".join(_encode(item, beside) for item in items)


def _embedded(data: bytes) -> Raw:
    return Raw(b"\xd8\x18" + cbor2.dumps(data))


def _encode(value: Any, beside: _Beside | None = None) -> bytes:
    if isinstance(value, Raw):
        return value.data
    if value is True or value is False:
        return cbor2.dumps(value)
    if isinstance(value, int):
        magnitude = value if value >= 0 else -1 - value
        octets = magnitude.to_bytes((magnitude.bit_length() + 7) // 8, "big")
        return (b"\xc2" if value >= 0 else b"\xc3") + cbor2.dumps(octets)
    if isinstance(value, float):
        return b"\xfb" + encoding.encode(value)[1:]
    if isinstance(value, (str, bytes)):
        return cbor2.dumps(value)
    if isinstance(value, Sym):
        return b"\xd9\x01\x18" + cbor2.dumps(value.name)
    if isinstance(value, (list, tuple)):
        return _head(4, len(value)) + b"".join(_encode(item, beside) for item in value)
    if isinstance(value, dict):
        members = (cbor2.dumps(key) + _encode(value[key], beside) for key in sorted(value, key=str.encode))
        return _head(5, len(value)) + b"".join(members)
    assert isinstance(value, Rec), f"no encoding for {value!r}"
    if value == VOID:
        return b"\xf7"
    if value == NULL:
        return b"\xf6"
    label, fields = value.label, list(value.fields)
    if beside is not None and label in (
        "desc:import-object",
        "desc:import-promise",
        "desc:export",
        "desc:answer",
    ):
        return beside.put(value)
    if label == "desc:sig-envelope":
        fields[0] = encoding.encode(fields[0])
    if label == "desc:tagged" and isinstance(fields[0], Sym):
        fields[0] = fields[0].name
    if label in _DELIVERIES and len(fields) > 1:
        inside = _Beside()
        body = _encode(fields[1], inside)
        fields[1:2] = [_embedded(body), inside.targets, inside.promises, inside.errors]
    made = _record([_short(label), *fields], beside)
    if beside is not None and label == "desc:error":
        beside.errors.append(b"")
    return made


def encode(value: Any) -> bytes:
    """The CBOR encoding of a message, or of a value without references."""
    return _encode(value)


def _decode(value: Any, beside: _Beside | None = None) -> Any:
    if value is cbor2.undefined:
        return VOID
    if value is None:
        return NULL
    if isinstance(value, list):
        return [_decode(item, beside) for item in value]
    if isinstance(value, dict):
        return {key: _decode(item, beside) for key, item in value.items()}
    if not isinstance(value, cbor2.CBORTag):
        return value
    if value.tag == 280:
        return Sym(value.value)
    if value.tag == 24:
        return Raw(value.value)
    assert value.tag == 27, f"tag {value.tag}"
    label, *fields = (_decode(item, beside) for item in value.value)
    if label in ("target", "promise"):
        assert not fields
        assert beside is not None, "a marker outside of arguments"
        found = (beside.targets if label == "target" else beside.promises).pop(0)
        if found < 0:
            return Rec("desc:export" if label == "target" else "desc:answer", -1 - found)
        return Rec("desc:import-object" if label == "target" else "desc:import-promise", found)
    if label == "error" and beside is not None:
        assert beside.errors.pop(0) == b""
    if label == "tag":
        fields[0] = Sym(fields[0])
    if label == "sig-envelope":
        fields[0] = encoding.read_one(fields[0])[0]
        return Rec("desc:sig-envelope", *fields)
    return Rec(_NAMES.get(label, label), *fields)


#: Indefinite lengths and such are found out when it is encoded again, by who reads.
_TAGS: Any = {tag: lambda value, _, tag=tag: cbor2.CBORTag(tag, value) for tag in (24, 27, 280)}


def _loads(data: bytes) -> Any:
    return cbor2.loads(data, semantic_decoders=_TAGS)


def read(data: bytes) -> Rec:
    """The message that is encoded."""
    operation = _decode(_loads(data))
    assert isinstance(operation, Rec)
    label, fields = operation.label, list(operation.fields)
    if label in ("deliver", "deliver-only"):
        beside = _Beside()
        body, beside.targets, beside.promises, beside.errors, *rest = fields[1:]
        fields = [fields[0], _decode(_loads(body.data), beside), *rest]
        left = [*beside.targets, *beside.promises, *beside.errors]
        assert not left, "more stands beside than there are markers"
    return Rec(f"op:{label}", *fields)
