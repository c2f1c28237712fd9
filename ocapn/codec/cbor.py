"""CBOR: the second codec (spec/wire.md, CBOR). One value, one encoding.

cbor2 makes Python objects of the bytes, and of nothing that the model does not have: other tags, indefinite lengths and
keys that stand twice are refused there. The other rules need no list: what is read is written again on the way, and is
refused unless it comes out as it came in. Records are made with the constructors of `ocapn.codec.operations`.

References in the arguments of a message are taken out of them, into lists beside them, each as an integer: an object or
promise that the sender exports as its position; what the reader has exported, and among the promises an answer, as -1
minus the position.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from struct import Struct as _Packer
from typing import Final, NoReturn, final

import cbor2

from ocapn.codec.base import Reading, Writing
from ocapn.codec.descriptors import ANSWER, DESCRIPTOR_NAMES, EXPORT, OBJECT, PROMISE, Descriptor
from ocapn.codec.messages import SYRUP, Codec
from ocapn.codec.operations import (
    MOST_REASON,
    OPERATIONS,
    PASSABLES,
    SELECTOR_NAMES,
    Envelope,
    Form,
    Give,
    Receive,
    StartSession,
    public_key_value,
    read_signature,
    signature_value,
)
from ocapn.codec.syrup import (
    ANY_RECORD,
    Constructor,
    Record,
    Records,
    WriteOther,
    digits,
    plain,
    refuse,
    within,
)
from ocapn.codec.syrup import Decoder as SyrupDecoder
from ocapn.codec.syrup import decode as decode_syrup
from ocapn.codec.syrup import encode as encode_syrup
from ocapn.errors import DecodeError, NotPassable, RemoteError
from ocapn.limits import MAX_POSITION, Limits
from ocapn.model.locators import PeerLocator, SturdyRef
from ocapn.model.values import Null, NullType, Symbol, Tagged

_DOUBLE: Final = _Packer(">d")
_FLOAT: Final = b"\xfb"
_NAN: Final = bytes.fromhex("7ff8000000000000")
_FALSE, _TRUE, _NULL, _UNDEFINED = b"\xf4", b"\xf5", b"\xf6", b"\xf7"
_ARRAY: Final = 4
_MAP: Final = 5

#: Numbers of tags: integers of either sign, encoded CBOR, records, symbols.
_POSITIVE: Final = 2
_NEGATIVE: Final = 3
_EMBEDDED: Final = 24
_RECORD: Final = 27
_SYMBOL: Final = 280
_POSITIVE_HEAD: Final = b"\xc2"
_NEGATIVE_HEAD: Final = b"\xc3"
_EMBEDDED_HEAD: Final = b"\xd8\x18"
_RECORD_HEAD: Final = b"\xd8\x1b"
_SYMBOL_HEAD: Final = b"\xd9\x01\x18"


_SMALL_HEADS: Final = tuple(bytes((first,)) for first in range(256))


def _head(major: int, count: int) -> bytes:
    """What an array or map begins with."""
    first = major << 5
    if count < 24:
        return _SMALL_HEADS[first | count]
    if count < 1 << 8:
        return bytes((first | 24, count))
    if count < 1 << 16:
        return bytes((first | 25,)) + count.to_bytes(2, "big")
    return bytes((first | 26,)) + count.to_bytes(4, "big")


def _integer(value: int) -> bytes:
    head = _POSITIVE_HEAD
    if value < 0:
        head = _NEGATIVE_HEAD
        value = -1 - value
    return head + cbor2.dumps(value.to_bytes((value.bit_length() + 7) // 8, "big"))


_INTEGERS: Final = tuple(_integer(n) for n in range(1024))


def _float(value: float) -> bytes:
    return _FLOAT + (_NAN if value != value else _DOUBLE.pack(value))


def _embedded(data: bytes) -> bytes:
    return _EMBEDDED_HEAD + cbor2.dumps(data)


# Reading


@final
class _Embedded:
    """CBOR inside CBOR."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


def _refuse_tag(tag: int) -> NoReturn:
    raise ValueError(f"no value of the model has the tag {tag}")


@final
class _Tags(dict[int, Callable[[object, bool], object]]):
    """What is made of tags: cbor2 knows many more, some of which are costly, and asks here first."""

    def __missing__(self, tag: int) -> Callable[[object, bool], object]:
        _refuse_tag(tag)


def _unsigned(value: object, immutable: bool) -> int:
    if type(value) is not bytes:
        raise ValueError("an integer is a byte string in the tag 2 or 3")
    return int.from_bytes(value, "big")


def _negative(value: object, immutable: bool) -> int:
    return -1 - _unsigned(value, immutable)


def _tagged(tag: int) -> Callable[[object, bool], object]:
    return lambda value, immutable: cbor2.CBORTag(tag, value)


_TAGS: Final = _Tags(
    {
        _POSITIVE: _unsigned,
        _NEGATIVE: _negative,
        _EMBEDDED: _tagged(_EMBEDDED),
        _RECORD: _tagged(_RECORD),
        _SYMBOL: _tagged(_SYMBOL),
    }
)


def _load(data: bytes, limits: Limits) -> object:
    try:
        return cbor2.loads(
            data,
            semantic_decoders=_TAGS,
            max_depth=2 * limits.nesting + 2,  # a tag is one more, as is what it is on
            allow_indefinite=False,
            allow_duplicate_keys=False,
            strict_hashable_types=True,
        )
    except cbor2.CBORDecodeEOF:
        raise DecodeError("the message ends inside a value", len(data)) from None
    except cbor2.CBORDecodeError as error:
        why = str(error.__cause__ or error).partition("Duplicate map key: ")
        if why[1]:  # what follows is the key, which the peer has chosen
            raise DecodeError("a key stands twice in a struct", 0) from None
        raise DecodeError(f"no CBOR: {why[0][:200]}", 0) from None


@final
class _Labels:
    """What is made of records, by label: of `messages`, in the `fields` of one, and in its `arguments`."""

    __slots__ = ("arguments", "fields", "messages")

    def __init__(
        self,
        messages: Mapping[str, Constructor],
        fields: Mapping[str, Constructor],
        arguments: Mapping[str, Constructor],
    ) -> None:
        self.messages = messages
        self.fields = fields
        self.arguments = arguments


@final
class Decoder(Reading):
    """Decodes whole messages, or the arguments of one, which `depth` containers are around."""

    __slots__ = (
        "_depth",
        "_digit_bound",
        "_inner",
        "_labels",
        "_mark",
        "_outermost",
        "_parts",
        "errors",
        "limits",
        "promises",
        "targets",
    )

    def __init__(self, limits: Limits, labels: _Labels, *, arguments: bool = False, depth: int = 0) -> None:
        self.limits = limits
        self._labels = labels
        self._outermost = labels.arguments if arguments else labels.messages
        self._inner = labels.arguments if arguments else labels.fields
        self._depth = depth
        self._digit_bound: int = 10 ** digits(limits)
        self._parts: list[bytes] = []
        self._mark = 0
        self.references = 0
        self.text_order = False
        #: For the markers in arguments, the first last.
        self.targets: list[object] = []
        self.promises: list[object] = []
        self.errors: list[object] = []

    def decode(self, data: bytes) -> object:
        self.references = 0
        parts: list[bytes] = []
        self._parts = parts
        try:
            value = self._value(_load(data, self.limits), self._depth)
            written = b"".join(parts)
        finally:
            self._parts = []
        if written != data:
            same = zip(written, data, strict=False)
            at = next((i for i, (one, other) in enumerate(same) if one != other), len(written))
            raise DecodeError("that is not the one encoding of its value", at)
        return value

    def raw(self) -> bytes:
        return b"".join(self._parts[self._mark :])

    def _error(self, rule: str) -> DecodeError:
        return DecodeError(rule, sum(map(len, self._parts)))

    def _value(self, raw: object, depth: int) -> object:
        kind = type(raw)
        parts = self._parts
        if kind is str or kind is bytes:
            parts.append(cbor2.dumps(raw))
        elif isinstance(raw, int) and kind is int:
            if not -self._digit_bound < raw < self._digit_bound:
                raise self._error(f"an integer of more than {digits(self.limits)} digits")
            parts.append(_INTEGERS[raw] if 0 <= raw < 1024 else _integer(raw))
        elif isinstance(raw, list):
            self._check_depth(depth)
            parts.append(_head(_ARRAY, len(raw)))
            depth += 1
            for i, one in enumerate(raw):  # it was made for us, and is changed in place
                raw[i] = self._value(one, depth)
        elif isinstance(raw, bool):
            parts.append(_TRUE if raw else _FALSE)
        elif isinstance(raw, float):
            parts.append(_float(raw))
        elif raw is None or raw is cbor2.undefined:
            self._check_depth(depth)  # as in Syrup, where these are records
            parts.append(_NULL if raw is None else _UNDEFINED)
            return Null if raw is None else None
        elif isinstance(raw, cbor2.CBORTag):
            return self._tag(raw.tag, raw.value, depth)
        elif isinstance(raw, Mapping):
            self._check_depth(depth)
            return self._struct(raw, depth)
        else:
            raise self._error("a simple value that the model does not have")
        return raw

    def _check_depth(self, depth: int) -> None:
        if depth >= self.limits.nesting:
            raise self._error(f"nested more than {self.limits.nesting} deep")

    def _struct(self, raw: Mapping[object, object], depth: int) -> dict[str, object]:
        parts = self._parts
        parts.append(_head(_MAP, len(raw)))
        found: dict[str, object] = {}
        for key in raw:
            if type(key) is not str:
                raise self._error("a struct's key is a string")
        for key in sorted(raw, key=lambda key: str(key).encode()):
            parts.append(cbor2.dumps(key))
            found[str(key)] = self._value(raw[key], depth + 1)
        return found

    def _tag(self, tag: int, value: object, depth: int) -> object:
        parts = self._parts
        if tag == _SYMBOL:
            if type(value) is not str:
                raise self._error("a symbol is a string in the tag 280")
            parts += [_SYMBOL_HEAD, cbor2.dumps(value)]
            return Symbol(value)
        if tag == _EMBEDDED:
            if type(value) is not bytes:
                raise self._error("encoded CBOR is a byte string in the tag 24")
            parts.append(_embedded(value))
            if self._inner is self._labels.arguments or depth != self._depth + 1:
                raise self._error("encoded CBOR is no value")
            return _Embedded(value)
        if not isinstance(value, list):
            raise self._error("a record is an array in the tag 27")
        self._check_depth(depth)
        mark = len(parts)
        parts += [_RECORD_HEAD, _head(_ARRAY, len(value))]
        items = [self._value(one, depth + 1) for one in value]
        label = items[0] if items else None
        if type(label) is not str:
            raise self._error("a record begins with a string, its label")
        known = self._inner if depth > self._depth else self._outermost
        make = known.get(label)
        if make is None:
            what = f"operation is called {'op:' + label[:40]!r}"
            if known is not self._labels.messages:
                what = f"value is called {label[:40]!r} here"
            raise self._error(f"no {what}")
        self._mark = mark
        try:
            return make(items, self)
        except DecodeError:
            raise
        except ValueError as error:
            raise self._error(f"{label}: {str(error)[:200]}") from None

    def arguments(self, body: object, targets: object, promises: object, errors: object) -> list[object]:
        """The arguments of a message, with the references that stand beside them. Raises ValueError."""
        if type(body) is not _Embedded:
            raise ValueError("arguments are encoded CBOR, an array in it")
        lists = (targets, promises, errors)
        if not all(type(one) is list for one in lists):
            raise ValueError("targets, promises and errors are lists")
        inside = Decoder(self.limits, self._labels, arguments=True, depth=self._depth + 1)
        inside.targets, inside.promises, inside.errors = [one[::-1] for one in lists]  # type: ignore[index]
        try:
            args = inside.decode(body.data)
        except DecodeError as error:
            raise ValueError(f"arguments, at byte {error.offset}: {error.rule}") from None
        if type(args) is not list:
            raise ValueError("arguments are encoded CBOR, an array in it")
        if inside.targets or inside.promises or inside.errors:
            raise ValueError("more stands beside the arguments than there are markers in them")
        self.references += inside.references
        return args

    def take(self, beside: list[object], what: str) -> object:
        """What stands beside the arguments for the next marker in them. Raises ValueError."""
        if not beside:
            raise ValueError(f"there are more markers in the arguments than {what} beside them")
        return beside.pop()


def _short(label: Symbol) -> str:
    """A label here."""
    name = label.name
    if name == "desc:tagged":
        return "tag"
    return name.removeprefix("op:").removeprefix("desc:").removeprefix("ocapn-")


def _of(records: Mapping[Symbol, Constructor] | None) -> dict[str, Constructor]:
    assert records is not None
    return {_short(label): make for label, make in records.items()}


_ENVELOPE: Final = "sig-envelope"
_OPERATIONS: Final = _of(OPERATIONS.messages)
_VALUES: Final = _of(OPERATIONS.values)


def _with_arguments(make: Constructor, count: int) -> Constructor:
    """A constructor of a message with arguments: it has three fields more than in Syrup, `count` in all."""

    def made(items: list[object], reading: Reading) -> object:
        assert isinstance(reading, Decoder)
        if len(items) != count + 1:
            raise ValueError(f"takes {count} fields, not {len(items) - 1}")
        return make([*items[:2], reading.arguments(*items[2:6]), *items[6:]], reading)

    return made


def _marker(name: str, imported: int, owned: int) -> Constructor:
    """`imported` is what a position stands for, `owned` what -1 minus a position does."""

    def made(items: list[object], reading: Reading) -> object:
        assert isinstance(reading, Decoder)
        if len(items) != 1:
            raise ValueError("a marker has no fields")
        found = reading.take(reading.targets if imported == OBJECT else reading.promises, name)
        if type(found) is not int or not -MAX_POSITION - 1 <= found <= MAX_POSITION:
            raise ValueError("what stands beside the arguments is the position of a reference")
        reading.references += 1
        return Descriptor(imported, found) if found >= 0 else Descriptor(owned, -1 - found)

    return made


def _error(make: Constructor) -> Constructor:
    def made(items: list[object], reading: Reading) -> object:
        assert isinstance(reading, Decoder)
        if type(reading.take(reading.errors, "errors")) is not bytes:
            raise ValueError("what stands beside the arguments for an error is a byte string")
        return make(items, reading)

    return made


def _tag(items: list[object], reading: Reading) -> object:
    if len(items) > 1 and type(items[1]) is Symbol:
        raise ValueError("a tag is a string")
    return _VALUES["tag"](items, reading)


def _certificate(items: list[object], reading: Reading, records: Records) -> tuple[object, bytes, bytes]:
    """What is signed, its bytes, and the signature."""
    assert isinstance(reading, Decoder)
    if len(items) != 3 or type(items[1]) is not bytes:
        raise ValueError("takes what is signed, in Syrup, and the signature")
    signature = read_signature(items[2])
    try:
        return SyrupDecoder(reading.limits, records).decode(items[1]), items[1], signature
    except DecodeError as error:
        raise ValueError(f"what is signed, at byte {error.offset}: {error.rule}") from None


def _envelope(items: list[object], reading: Reading) -> object:
    signed, data, signature = _certificate(items, reading, PASSABLES)
    if not isinstance(signed, (Give, Receive)):
        raise ValueError("what is signed is a desc:handoff-give or a desc:handoff-receive")
    reading.references += 1
    return Envelope(signed, signature, _envelope_bytes(data, signature))


_DESCRIPTORS: Final = ("import-object", "import-promise", "export", "answer")
_MARKERS: Final = {
    "target": _marker("targets", OBJECT, EXPORT),
    "promise": _marker("promises", PROMISE, ANSWER),
}
#: Of values in which there are no references.
_PLAIN: Final = {name: _VALUES[name] for name in ("error", "peer", "sturdyref")} | {"tag": _tag}
_SESSION: Final = _Labels(
    _OPERATIONS
    | {
        "deliver": _with_arguments(_OPERATIONS["deliver"], 7),
        "deliver-only": _with_arguments(_OPERATIONS["deliver-only"], 5),
    },
    {name: _VALUES[name] for name in (*_DESCRIPTORS, "peer")},
    _PLAIN | {"error": _error(_VALUES["error"]), _ENVELOPE: _envelope} | _MARKERS,
)


def decode(data: bytes, limits: Limits) -> object:
    """The one value that `data` encodes, in which there are no references. Raises DecodeError."""
    return Decoder(limits, _Labels({}, {}, _PLAIN), arguments=True).decode(data)


# Messages for the eyes


def _as_record(label: Symbol) -> Constructor:
    def made(items: list[object], reading: Reading) -> object:
        if any(type(item) is _Embedded for item in items):
            raise ValueError("encoded CBOR is no value")
        return Record(label, items[1:])

    return made


def _as_tagged(items: list[object], reading: Reading) -> object:
    tag, *others = items[1:] or [""]
    return Record(Symbol("desc:tagged"), [Symbol(tag) if type(tag) is str else tag, *others])


def _as_envelope(items: list[object], reading: Reading) -> object:
    signed, _, signature = _certificate(items, reading, ANY_RECORD)
    return Record(Symbol("desc:sig-envelope"), [signed, signature_value(signature)])


def _all_as_records() -> _Labels:
    assert OPERATIONS.messages is not None
    assert OPERATIONS.values is not None
    messages = {_short(label): _as_record(label) for label in OPERATIONS.messages}
    values = {_short(label): _as_record(label) for label in OPERATIONS.values}
    return _Labels(
        messages
        | {
            "deliver": _with_arguments(messages["deliver"], 7),
            "deliver-only": _with_arguments(messages["deliver-only"], 5),
        },
        values,
        values | {"error": _error(values["error"]), "tag": _as_tagged, _ENVELOPE: _as_envelope} | _MARKERS,
    )


_RECORDS: Final = _all_as_records()


def as_records(data: bytes, limits: Limits) -> object:
    """A message with a `Record` for each record, labelled as in Syrup, its arguments whole. Raises DecodeError."""
    return Decoder(limits, _RECORDS).decode(data)


# Writing


@final
class Encoder(Writing):
    """Encodes values, in canonical form. `write_other` gets every value that is not plain data."""

    __slots__ = (
        "_depth_limit",
        "_digit_bound",
        "_digit_limit",
        "_errors",
        "_parts",
        "_promises",
        "_targets",
        "_write_other",
    )

    def __init__(self, limits: Limits, write_other: WriteOther = refuse) -> None:
        self.text_order = False
        self._depth_limit = limits.nesting
        self._digit_limit = digits(limits)
        self._digit_bound: int = 10**self._digit_limit
        self._write_other = write_other
        self._parts: list[bytes] = []
        self._begin()

    def _begin(self) -> None:
        self._parts = []
        #: What stands beside the arguments.
        self._targets: list[bytes] = []
        self._promises: list[bytes] = []
        self._errors: list[bytes] = []

    def encode(self, value: object) -> bytes:
        self._begin()
        self._write(value, 0)
        return b"".join(self._parts)

    def arguments(self, args: list[object]) -> bytes:
        self._begin()
        self._parts.append(_head(_ARRAY, len(args)))
        for arg in args:
            self._write(arg, 2)  # inside the message and the list of arguments
        parts = [_embedded(b"".join(self._parts))]
        for beside in (self._targets, self._promises, self._errors):
            parts += [_head(_ARRAY, len(beside)), *beside]
        self._begin()
        return b"".join(parts)

    def reference(self, kind: int, position: int) -> None:
        if kind in (OBJECT, EXPORT):
            self._parts.append(_TARGET_MARKER)
            self._targets.append(_integer(position if kind == OBJECT else -1 - position))
        else:
            self._parts.append(_PROMISE_MARKER)
            self._promises.append(_integer(position if kind == PROMISE else -1 - position))

    def certificate(self, wire: bytes) -> None:
        signed, signature = wire[len(_ENVELOPE_HEAD) : -_SIGNATURE_TAIL], wire[-_SIGNATURE_TAIL:-1]
        self._record(_ENVELOPE, [signed, signature_value(read_signature(decode_syrup(signature)))], 0)

    def _write(self, value: object, depth: int) -> None:
        kind = type(value)
        parts = self._parts
        if kind is str or kind is bytes:
            parts.append(self._string(value))
        elif value is None:
            self._check_depth(depth)  # as in Syrup, where it is a record
            parts.append(_UNDEFINED)
        elif isinstance(value, bool):
            parts.append(_TRUE if value else _FALSE)
        elif kind is int:
            self._integer(value)  # type: ignore[arg-type]
        elif isinstance(value, Symbol):
            parts += [_SYMBOL_HEAD, self._string(value.name)]
        elif kind is list or kind is tuple:
            assert isinstance(value, (list, tuple))
            self._check_depth(depth)
            parts.append(_head(_ARRAY, len(value)))
            index = 0
            try:
                for item in value:
                    self._write(item, depth + 1)
                    index += 1
            except NotPassable as error:
                raise within(error, f"[{index}]") from None
        elif kind is dict:
            self._struct(value, depth)  # type: ignore[arg-type]
        elif kind is float:
            parts.append(_float(value))  # type: ignore[arg-type]
        elif isinstance(value, (str, int, float, bytes, list, tuple, dict, bytearray, memoryview)):
            self._write(plain(value), depth)
        elif isinstance(value, NullType):
            self._check_depth(depth)
            parts.append(_NULL)
        else:
            self._rare(value, depth)

    def _check_depth(self, depth: int) -> None:
        if depth >= self._depth_limit:
            raise NotPassable(f"nested more than {self._depth_limit} deep")

    def _string(self, value: object) -> bytes:
        try:
            return cbor2.dumps(value)
        except UnicodeEncodeError:
            raise NotPassable("a string with a surrogate is not text") from None

    def _integer(self, value: int) -> None:
        if 0 <= value < 1024:
            self._parts.append(_INTEGERS[value])
        elif -self._digit_bound < value < self._digit_bound:
            self._parts.append(_integer(value))
        else:
            raise NotPassable(f"an integer of more than {self._digit_limit} digits")

    def _struct(self, value: dict[object, object], depth: int) -> None:
        self._check_depth(depth)
        keyed: dict[bytes, object] = {}
        for key, member in value.items():
            if not isinstance(key, str):
                raise NotPassable(f"a struct's keys are strings, not {type(key).__name__}")
            try:
                text = str.encode(key)
            except UnicodeEncodeError:
                raise NotPassable("a key with a surrogate is not text") from None
            if text in keyed:  # subclasses of str may have an == of their own
                raise NotPassable("two keys of a struct have the same text")
            keyed[text] = member
        self._parts.append(_head(_MAP, len(keyed)))
        for text in sorted(keyed):
            self._parts.append(cbor2.dumps(text.decode()))
            try:
                self._write(keyed[text], depth + 1)
            except NotPassable as error:
                raise within(error, f"[{text.decode()!r}]") from None

    def _record(self, label: str, fields: list[object], depth: int) -> None:
        self._check_depth(depth)
        self._parts += [_RECORD_HEAD, _head(_ARRAY, len(fields) + 1), cbor2.dumps(label)]
        for field in fields:
            self._write(field, depth + 1)

    def _rare(self, value: object, depth: int) -> None:
        if isinstance(value, Tagged):
            if not isinstance(value.tag, str):
                raise NotPassable("a tag is a str without surrogates")
            try:
                self._record("tag", [plain(value.tag), value.value], depth)
            except NotPassable as error:
                raise within(error, ".value") from None
        elif isinstance(value, RemoteError):
            if not isinstance(value.message, str):
                raise NotPassable(f"an error's message is a str, not {type(value.message).__name__}")
            self._record("error", [value.message], depth)
            self._errors.append(_NO_BYTES)
        elif isinstance(value, SturdyRef):
            self._record("sturdyref", [value.peer, value.swiss], depth)
        elif isinstance(value, PeerLocator):
            fields = [Symbol(value.transport), value.designator, dict(value.hints) or False]
            self._record("peer", fields, depth)
        else:
            self._check_depth(depth)  # what follows is a record
            self._write_other(self, value)


def _record(label: str, *fields: bytes) -> bytes:
    return b"".join([_RECORD_HEAD, _head(_ARRAY, len(fields) + 1), cbor2.dumps(label), *fields])


_DESCRIPTOR_HEADS: Final = tuple(_record(_short(Symbol(name)), b"") for name in DESCRIPTOR_NAMES)


def _descriptor(kind: int, position: int) -> bytes:
    return _DESCRIPTOR_HEADS[kind] + (_INTEGERS[position] if position < 1024 else _integer(position))


def _position_or_false(kind: int, position: int) -> bytes:
    """A field for a resolver, or for an answer; -1 is none."""
    if position < 0:
        return _FALSE
    return _integer(position) if kind == ANSWER else _descriptor(kind, position)


_TARGET_MARKER: Final = _record("target")
_PROMISE_MARKER: Final = _record("promise")
_NO_BYTES: Final = b"\x40"
_ENVELOPE_HEAD: Final = b"<17'desc:sig-envelope"
#: Bytes of the signature and the end of an envelope in Syrup.
_SIGNATURE_TAIL: Final = len(encode_syrup(signature_value(bytes(64)))) + 1
_DELIVER: Final = _record("deliver", *[b""] * 7)
_DELIVER_ONLY: Final = _record("deliver-only", *[b""] * 5)
_LISTEN: Final = _record("listen", *[b""] * 3)
_SELECTORS: Final = tuple(_record(_short(Symbol(name)), *[b""] * 3) for name in SELECTOR_NAMES)


def _envelope_bytes(signed: bytes, signature: bytes) -> bytes:
    """An envelope in Syrup."""
    return _ENVELOPE_HEAD + signed + encode_syrup(signature_value(signature)) + b">"


def _integers(values: list[int]) -> bytes:
    return _head(_ARRAY, len(values)) + b"".join(map(_integer, values))


@final
class CborCodec(Codec):
    number = 1
    name = "cbor"

    def decoder(self, limits: Limits) -> Reading:
        return Decoder(limits, _SESSION)

    def encoder(self, limits: Limits, write_other: WriteOther = refuse, text_order: bool = False) -> Writing:
        return Encoder(limits, write_other)

    def descriptor(self, kind: int, position: int) -> bytes:
        return _descriptor(kind, position)

    def deliver(self, to: bytes, args: bytes, answer: int, resolver: int) -> bytes:
        ends = (_position_or_false(ANSWER, answer), _position_or_false(OBJECT, resolver))
        return b"".join((_DELIVER, to, args, *ends))

    def deliver_only(self, to: bytes, args: bytes) -> bytes:
        return _DELIVER_ONLY + to + args

    def listen(self, to: bytes, resolver: int) -> bytes:
        return _LISTEN + to + _descriptor(OBJECT, resolver) + _FALSE

    def select(self, encoder: Writing, kind: int, to: bytes, key: str | int, answer: int) -> bytes:
        return _SELECTORS[kind] + to + encoder.encode(key) + _integer(answer)

    def gc_exports(self, positions: list[int], deltas: list[int], form: Form) -> bytes:
        label = "gc-export" if form.old_gc else "gc-exports"
        return _record(label, _integers(positions), _integers(deltas))

    def gc_answers(self, positions: list[int], form: Form) -> bytes:
        return _record("gc-answer" if form.old_gc else "gc-answers", _integers(positions))

    def abort(self, reason: str) -> bytes:
        return _record("abort", cbor2.dumps(reason[:MOST_REASON].encode("utf-8", "replace").decode()))

    def start_session(self, encoder: Writing, operation: StartSession) -> bytes:
        fields = (
            operation.version,
            public_key_value(operation.public_key),
            operation.location,
            signature_value(operation.signature),
        )
        return _record("start-session", *[encoder.encode(field) for field in fields])

    def location_message(self, location: bytes) -> bytes:
        return _record("my-location", location)


CBOR: Final = CborCodec()
#: Those that there are, by name.
CODECS: Final[Mapping[str, Codec]] = {codec.name: codec for codec in (SYRUP, CBOR)}
