"""Syrup: one value, one encoding (Notation specification, concrete representation).

The decoder is a loop with a stack of its own, so nesting cannot exhaust Python's, and it keeps its place when
bytes run out, so a value that arrives in pieces is read once. It builds each record with the constructor that
`Records` names for its label, in the same pass; `ocapn.codec.operations` has those of CapTP.

The module is written to be compiled as it stands: plain classes with slots, no dynamic attributes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from struct import Struct as _Packer
from typing import Final, TypeVar, final

from ocapn.codec.base import Reading, Writing
from ocapn.codec.descriptors import DESCRIPTOR_LABELS, EXPORT, PROMISE, Descriptor, descriptor_bytes
from ocapn.errors import DecodeError, NotPassable, RemoteError
from ocapn.limits import Limits
from ocapn.model.locators import PeerLocator, SturdyRef
from ocapn.model.values import NullType, Symbol, Tagged

_DOUBLE: Final = _Packer(">d")
_NAN: Final = bytes.fromhex("7ff8000000000000")
_LIST: Final = 0
_RECORD: Final = 1
_STRUCT: Final = 2
_TOP: Final = 3
_UNORDERED: Final = 4  # a struct whose keys are not in Syrup's order
#: A length has at most this many digits: 10^18 is beyond any limit on frames.
_LENGTH_DIGITS: Final = 18
#: How an op:deliver begins: its first field is a descriptor.
_DELIVER: Final = b"<10'op:deliver<"


@final
class Record:
    """A record whose label the decoder was given no constructor for. Not a passable value."""

    __slots__ = ("fields", "label")

    def __init__(self, label: Symbol, fields: list[object]) -> None:
        self.label = label
        self.fields = fields

    def __repr__(self) -> str:
        return f"Record({self.label.name!r}, {self.fields!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Record) and self.label is other.label and self.fields == other.fields

    __hash__ = None  # type: ignore[assignment]  # how Python spells "unhashable"


#: Makes an op:deliver of its fields, -1 being no answer, and of how many references it has.
Deliver = Callable[[Descriptor, list[object], int, Descriptor | None, int], object]

#: A constructor gets the record with its label first, and the decoder, whose `raw()` is the record's bytes.
#: It raises DecodeError, or ValueError with the rule that was broken.
Constructor = Callable[[list[object], Reading], object]


@final
class Records:
    """Constructors by label: `messages` for the outermost record, `values` for those inside it.

    `descriptors`: whether `values` makes a Descriptor of each descriptor, and counts it; then the decoder need not ask.
    `deliver`: what `messages` makes of an op:deliver.
    """

    __slots__ = ("deliver", "descriptors", "messages", "values")

    def __init__(
        self,
        messages: dict[Symbol, Constructor] | None,
        values: dict[Symbol, Constructor] | None,
        descriptors: bool = False,
        deliver: Deliver | None = None,
    ) -> None:
        self.messages = messages
        self.values = values
        self.descriptors = descriptors
        self.deliver = deliver


#: Every record as it stands: for tools that print Syrup, not for CapTP.
ANY_RECORD: Final = Records(None, None)

#: Symbols that arrived, by their bytes: saves decoding and interning the common ones. Bounded below.
_symbols: Final[dict[bytes, Symbol]] = {}
_MAX_SYMBOLS: Final = 2048
#: Symbols whose names have more bytes are not kept, so that a peer cannot fill the caches with long ones.
_MAX_SYMBOL_BYTES: Final = 64

#: Keys that come after so many are looked at each time. Of a struct with more, the encoder looks at all.
_MAX_MEMBERS: Final = 16


def _string(text: bytes) -> bytes:
    """The encoding of a string, of its text in UTF-8."""
    return b'%d"%b' % (len(text), text)


_K = TypeVar("_K")
_V = TypeVar("_V")


def _keep(cache: dict[_K, _V], key: _K, value: _V, most: int) -> None:
    """A full cache is begun anew: what is common is soon there again."""
    if len(cache) >= most:
        cache.clear()
    cache[key] = value


def digits(limits: Limits) -> int:
    """How many decimal digits an integer may have: what the limits say, but 4 always, so that small integers
    need no look at them, and no more than Python converts."""
    return max(4, min(limits.integer_digits, sys.get_int_max_str_digits() or limits.integer_digits))


@final
class _Key:
    """A key of structs, and how it is encoded. `next`, if any, is the one that last came after it, in Syrup's order.

    Structs are of few shapes: of most keys the bytes are compared with what is expected, and nothing is made of them.
    """

    __slots__ = ("encoded", "next", "text")

    def __init__(self, text: str, encoded: bytes) -> None:
        self.text = text
        self.encoded = encoded
        self.next: _Key | None = None


#: The common keys, by their text. Bounded as the symbols are.
_known_keys: Final[dict[bytes, _Key]] = {}
#: What stands before the first key of a struct.
_START: Final = _Key("", b"")


def _forget_keys() -> None:
    """No key leads to another any more: one that is forgotten, and that something still holds, would keep them all."""
    for key in list(_known_keys.values()):  # at once: peers may run in several threads
        key.next = None
    _START.next = None
    _known_keys.clear()


_NO_MEMBERS: Final[dict[str, object]] = {}  # nothing is ever put into it


@final
class Decoder(Reading):
    """Decodes values from a buffer that grows (`feed`), or from whole messages (`decode`)."""

    __slots__ = (
        "_base",
        "_buffer",
        "_chunks",
        "_depth_limit",
        "_digit_limit",
        "_expects_key",
        "_failure",
        "_fed",
        "_items",
        "_key",
        "_kind",
        "_last_keys",
        "_lists",
        "_members",
        "_need",
        "_places",
        "_pos",
        "_quick_digits",
        "_record_start",
        "_records",
        "_small_digits",
        "_start",
        "_structs",
        "_text_order_allowed",
    )

    def __init__(
        self, limits: Limits, records: Records = ANY_RECORD, text_order_allowed: bool = True
    ) -> None:
        self._depth_limit = limits.nesting
        self._digit_limit = digits(limits)
        self._quick_digits = min(8, self._digit_limit)
        self._small_digits = min(_LENGTH_DIGITS, self._digit_limit)
        self._records = records
        self._text_order_allowed = text_order_allowed
        self.text_order = False
        self.references = 0
        self._buffer = b""
        self._chunks: list[bytes] = []  # what was fed and is not in the buffer yet
        self._fed = 0  # bytes of those
        self._base = 0  # where the current value begins
        self._pos = 0
        self._need = 1  # how long the buffer must be to go on
        self._start = 0
        self._kind: int = _TOP
        self._items: list[object] = []
        # Of a struct: its members so far, the last key, and whether another comes next or its value does.
        self._members = _NO_MEMBERS
        self._key = _START
        self._expects_key = False
        # Of the containers around: what lists and records hold so far; the members of structs, and their last keys;
        # and of each eight times where it begins, and its kind.
        self._lists: list[list[object]] = []
        self._structs: list[dict[str, object]] = []
        self._last_keys: list[_Key] = []
        self._places: list[int] = []
        self._record_start = 0
        self._failure: DecodeError | None = None

    # Whole messages

    def decode(self, data: bytes) -> object:
        self._buffer = data
        self._base = self._pos = 0
        self.references = 0
        self._kind = _TOP
        items: list[object] = []
        self._items = items
        try:
            make = self._records.deliver
            if make is not None and data[: len(_DELIVER)] == _DELIVER:
                operation = self._deliver(make, items)
                if operation is not None:
                    return operation
                self._pos = 0
                self.references = 0
            if not self._parse():
                if not data:
                    raise DecodeError("there is nothing: a message has at least one byte", 0)
                raise DecodeError("the message ends inside a value", len(data))
            if self._pos != len(data):
                raise DecodeError("bytes are left over after the value", self._pos)
            return items.pop()
        finally:
            # A decoder waits for the next message, and that may be long: it keeps nothing of this one.
            self._buffer = b""
            items.clear()
            if self._places:
                self._items = items
                self._members = _NO_MEMBERS
                self._key = _START
                self._lists, self._structs, self._last_keys, self._places = [], [], [], []

    def _deliver(self, make: Deliver, items: list[object]) -> object | None:
        """An op:deliver, as most messages are, without a look at what it could be else; None if it is not quite so."""
        data = self._buffer
        end = len(data)
        to = self._descriptor(len(_DELIVER), end)
        pos = self._pos
        if to is None or to.kind < EXPORT or self._depth_limit < 2 or pos >= end or data[pos] != 91:
            return None
        self._places.append(_RECORD)  # which this is
        if not self._parse():
            raise DecodeError("the message ends inside a value", end)
        self._places.pop()
        args = items.pop()
        assert isinstance(args, list)
        pos = self._pos
        answer = -1
        if pos < end and data[pos] == 102:
            pos += 1
        else:
            answer = self._small(pos, end)
            if answer < 0:
                return None
            pos = self._pos
        resolver: Descriptor | None = None
        if pos < end and data[pos] == 102:
            pos += 1
        else:
            resolver = self._descriptor(pos + 1, end) if pos < end and data[pos] == 60 else None
            if resolver is None or resolver.kind > PROMISE:
                return None
            pos = self._pos
        if pos != end - 1 or data[pos] != 62:
            return None
        return make(to, args, answer, resolver, self.references)

    # A growing buffer

    def feed(self, data: bytes) -> None:
        """Appends what arrived."""
        base = self._base
        if base and self._pos == base:  # else a value has begun, whose parts know where they are
            self._buffer = self._buffer[base:]
            self._need -= base
            self._base = self._pos = 0
        self._chunks.append(data)
        self._fed += len(data)

    def next_value(self) -> tuple[object, bytes] | None:
        """The next whole value with its bytes, or None until more is fed.

        Raises DecodeError, and from then on the same one: nothing after the malformed bytes is a value.
        """
        if self._failure is not None:
            raise self._failure
        if len(self._buffer) + self._fed < self._need:
            return None
        if self._fed:
            self._buffer = b"".join([self._buffer, *self._chunks])
            self._chunks.clear()
            self._fed = 0
        base = self._base
        if self._kind == _TOP:
            self.references = 0
        try:
            if not self._parse():
                return None
        except DecodeError as error:
            self._failure = failure = DecodeError(error.rule, error.offset - base)
            raise failure from None
        value = self._items.pop()
        raw = self._buffer[base : self._pos]
        if self._pos == len(self._buffer):  # the next may be long in coming: nothing of this one is kept
            self._buffer = b""
            self._pos = 0
        self._base = self._pos
        self._need = self._pos + 1
        return value, raw

    @property
    def pending(self) -> int:
        """Bytes held that are not yet part of a whole value."""
        return len(self._buffer) + self._fed - self._base

    @property
    def needed(self) -> int:
        """How many bytes, from the start of the value, the decoder wants before it can go on."""
        return self._need - self._base

    def raw(self) -> bytes:
        return self._buffer[self._record_start : self._pos]

    # The loop

    def _parse(self) -> bool:
        """Reads on until a value is whole (True) or the buffer ends (False, with the place kept)."""
        buffer = self._buffer
        end = len(buffer)
        pos = self._pos
        items = self._items
        kind = self._kind
        members, self._members = self._members, _NO_MEMBERS  # an error leaves none behind
        key, self._key = self._key, _START
        expects_key = self._expects_key
        lists = self._lists
        places = self._places
        quick = self._quick_digits
        descriptors = self._records.descriptors
        need = 0
        while True:
            if pos >= end:
                need = pos + 1
                break
            if kind == _STRUCT and expects_key:
                expected = key.next
                if expected is not None:
                    stop = pos + len(expected.encoded)
                    if buffer[pos:stop] == expected.encoded:
                        key = expected
                        expects_key = False
                        pos = stop
                        continue
            start = pos
            c = buffer[pos]
            pos += 1
            if 48 <= c <= 57:  # a number: an integer, or the length of what follows
                n = c - 48
                d = 0
                while pos < end:
                    d = buffer[pos]
                    if 48 <= d <= 57:
                        n = n * 10 + d - 48
                        pos += 1
                        if pos - start > 8:
                            break
                    else:
                        break
                if pos - start > quick:
                    pos = self._long_number(start, pos, end)
                    if pos < end:
                        d = buffer[pos]
                        if d == 43 or d == 45:
                            if pos - start > self._digit_limit:
                                raise DecodeError(self._too_many_digits(), start)
                        elif pos - start > _LENGTH_DIGITS:
                            raise DecodeError("a length beyond every limit", start)
                        n = int(buffer[start:pos])
                if pos >= end:
                    pos = start
                    need = end + 1
                    break
                if c == 48 and pos - start > 1:
                    raise DecodeError("a number begins with a zero that is not needed", start)
                pos += 1
                if d == 43:  # +
                    value: object = n
                elif d == 45:  # -
                    if n == 0:
                        raise DecodeError("zero has no negative form", start)
                    value = -n
                else:
                    stop = pos + n
                    if d != 34 and d != 39 and d != 58:
                        raise DecodeError("a number is followed by + - \" ' or :", pos - 1)
                    if stop > end:
                        pos = start
                        need = stop
                        break
                    if d == 34:  # "
                        if kind == _STRUCT and expects_key:
                            raw = buffer[pos:stop]
                            known = _known_keys.get(raw)
                            after = self._new_key(raw, start) if known is None else known
                            if key.encoded < after.encoded:
                                if n <= _MAX_SYMBOL_BYTES and len(members) < _MAX_MEMBERS:
                                    key.next = after
                                key = after
                                expects_key = False
                            else:
                                kind = _UNORDERED
                                items = [part for member in members.items() for part in member]
                                items.append(after.text)
                            pos = stop
                            continue
                        try:
                            value = buffer[pos:stop].decode()
                        except UnicodeDecodeError:
                            raise DecodeError("a string is not well-formed UTF-8", start) from None
                    elif d == 39:  # '
                        raw = buffer[pos:stop]
                        symbol = _symbols.get(raw)
                        value = self._symbol(raw, start) if symbol is None else symbol
                    else:  # :
                        value = buffer[pos:stop]
                    pos = stop
            elif c == 60 or c == 91 or c == 123:  # < [ {
                if len(places) >= self._depth_limit:
                    raise DecodeError(f"nested more than {self._depth_limit} deep", start)
                descriptor = self._descriptor(pos, end) if descriptors and c == 60 and kind != _TOP else None
                if descriptor is None:
                    if kind == _STRUCT and expects_key:
                        raise DecodeError("a struct's key is a string", start)
                    places.append(self._start << 3 | kind)
                    self._start = start
                    if kind == _STRUCT:
                        self._structs.append(members)
                        self._last_keys.append(key)
                    else:
                        lists.append(items)
                    if c == 123:
                        kind = _STRUCT
                        members = {}
                        key = _START
                        expects_key = True
                    else:
                        kind = _RECORD if c == 60 else _LIST
                        items = []
                    continue
                value = descriptor
                pos = self._pos
            elif c == 62 or c == 93 or c == 125:  # > ] }
                if kind == _TOP or (c == 62) != (kind == _RECORD) or (c == 93) != (kind == _LIST):
                    raise DecodeError("closes what is not open", start)
                if kind == _LIST:
                    value = items
                elif kind == _RECORD:
                    self._pos = pos
                    self._record_start = self._start
                    value = self._construct(items, len(places) == 1)
                elif kind == _STRUCT:
                    if not expects_key:
                        raise DecodeError("a struct ends after a key that has no value", start)
                    value = members
                else:
                    if len(items) & 1:
                        raise DecodeError("a struct ends after a key that has no value", start)
                    value = self._struct_in_text_order(items, self._start)
                start = self._start
                place = places.pop()
                kind = place & 7
                self._start = place >> 3
                if kind == _STRUCT:
                    members = self._structs.pop()
                    key = self._last_keys.pop()
                    expects_key = False
                else:
                    items = lists.pop()
            elif c == 116:  # t
                value = True
            elif c == 102:  # f
                value = False
            elif c == 68:  # D
                stop = pos + 8
                if stop > end:
                    pos = start
                    need = stop
                    break
                raw = buffer[pos:stop]
                number = _DOUBLE.unpack(raw)[0]
                if raw[0] & 127 == 127 and number != number and raw != _NAN:  # NaNs begin with 7f or ff
                    raise DecodeError("a NaN is 7ff8000000000000 and nothing else", start)
                value = number
                pos = stop
            elif c == 35:  # #
                raise DecodeError("sets are not in the OCapN model", start)
            elif c == 70:  # F
                raise DecodeError("single floats are not in the OCapN model", start)
            else:
                raise DecodeError(f"no value begins with byte 0x{c:02x}", start)
            if kind == _STRUCT:
                if expects_key:
                    raise DecodeError("a struct's key is a string", start)
                members[key.text] = value
                expects_key = True
                continue
            if kind == _UNORDERED and not len(items) & 1 and type(value) is not str:
                raise DecodeError("a struct's key is a string", start)
            items.append(value)
            if kind == _TOP:
                self._pos = pos
                self._items = items
                self._kind = _TOP
                return True
        self._pos = pos
        self._need = need
        self._items = items
        self._kind = kind
        self._members = members
        self._key = key
        self._expects_key = expects_key
        return False

    def _descriptor(self, pos: int, end: int) -> Descriptor | None:
        """The descriptor whose label begins at `pos`, if it is a common one and whole; then `_pos` is behind it."""
        if pos + 25 > end:
            return None
        buffer = self._buffer
        n = buffer[pos + 1]
        first = pos + (14 if n == 49 else 21 if n == 56 else 22)
        kind = DESCRIPTOR_LABELS.get(buffer[pos:first], -1)
        if kind < 0:
            return None
        n = self._small(first, end)
        if n < 0 or self._pos >= end or buffer[self._pos] != 62:
            return None
        self.references += 1
        self._pos += 1
        return Descriptor(kind, n)

    def _small(self, first: int, end: int) -> int:
        """The integer that begins at `first`, if it has no minus and no more digits than every position may have; then
        `_pos` is behind it. Else -1."""
        buffer = self._buffer
        pos = first
        most = min(first + self._small_digits, end - 1)
        n = 0
        while pos < most:
            d = buffer[pos]
            if not 48 <= d <= 57:
                break
            n = n * 10 + d - 48
            pos += 1
        if pos == first or buffer[pos] != 43 or (buffer[first] == 48 and pos > first + 1):
            return -1
        self._pos = pos + 1
        return n

    def _too_many_digits(self) -> str:
        return f"an integer of more than {self._digit_limit} digits"

    def _long_number(self, start: int, pos: int, end: int) -> int:
        """Where a number of many digits ends; raises DecodeError beyond the limit, before it is converted."""
        buffer = self._buffer
        limit = start + max(self._digit_limit, _LENGTH_DIGITS)
        while pos < end and 48 <= buffer[pos] <= 57:
            pos += 1
            if pos > limit:
                raise DecodeError(self._too_many_digits(), start)
        return pos

    def _symbol(self, raw: bytes, start: int) -> Symbol:
        try:
            symbol = Symbol(raw.decode())
        except UnicodeDecodeError:
            raise DecodeError("a symbol is not well-formed UTF-8", start) from None
        if len(raw) <= _MAX_SYMBOL_BYTES:
            _keep(_symbols, raw, symbol, _MAX_SYMBOLS)
        return symbol

    def _new_key(self, raw: bytes, start: int) -> _Key:
        try:
            key = _Key(raw.decode(), _string(raw))
        except UnicodeDecodeError:
            raise DecodeError("a string is not well-formed UTF-8", start) from None
        if len(raw) <= _MAX_SYMBOL_BYTES:
            if len(_known_keys) >= _MAX_SYMBOLS:
                _forget_keys()
            _known_keys[raw] = key
        return key

    def _construct(self, items: list[object], outermost: bool) -> object:
        start = self._record_start
        label = items[0] if items else None
        if type(label) is not Symbol:
            raise DecodeError("a record begins with a symbol, its label", start)
        known = self._records.messages if outermost else self._records.values
        if known is None:
            return Record(label, items[1:])
        make = known.get(label)
        if make is None:
            what = "value" if known is self._records.values else "operation"
            raise DecodeError(f"no {what} is called {label.name[:40]!r}", start)
        try:
            return make(items, self)
        except DecodeError:
            raise
        except ValueError as error:
            raise DecodeError(f"{label.name}: {str(error)[:200]}", start) from None

    def _struct_in_text_order(self, items: list[object], start: int) -> dict[str, object]:
        """A struct from keys and values in turn, which are not in Syrup's order."""
        syrup_order = text_order = True
        last_encoded = last_text = b""
        last_length = -1
        result: dict[str, object] = {}
        for i in range(0, len(items), 2):
            key = items[i]
            assert type(key) is str
            text = key.encode()
            if last_length >= 0:
                encoded = _string(text)
                syrup_order = syrup_order and last_encoded < encoded
                text_order = text_order and last_text < text
                if not syrup_order and not (text_order and self._text_order_allowed):
                    if key in result:
                        raise DecodeError(f"the key {key[:40]!r} stands twice in a struct", start)
                    raise DecodeError("the keys of a struct are not in order", start)
                last_encoded = encoded
            else:
                last_encoded = _string(text)
            last_length = len(text)
            last_text = text
            result[key] = items[i + 1]
        self.text_order = True
        return result


# Encoding

_INTEGERS: Final = tuple(b"%d+" % n for n in range(1024))
_STRING_HEADS: Final = tuple(b'%d"' % n for n in range(1024))
_BYTES_HEADS: Final = tuple(b"%d:" % n for n in range(1024))
_SYMBOL_BYTES: Final[dict[Symbol, bytes]] = {}
#: Keys of structs, as they are encoded. Bounded as those are.
_ENCODED_KEYS: Final[dict[str, bytes]] = {}
#: The keys of structs that were sent, to the same in Syrup's order with how they are encoded. Bounded likewise.
_SHAPES: Final[dict[tuple[object, ...], list[tuple[bytes, object]]]] = {}
_MAX_SHAPES: Final = 512

#: Encodes what is not plain data (a reference, a CapTP record) at the end of `parts`; may raise NotPassable.
WriteOther = Callable[[Writing, object], None]


def refuse(encoder: Writing, value: object) -> None:
    raise NotPassable(f"a {type(value).__name__} cannot be passed")


@final
class Encoder(Writing):
    """Encodes values as Syrup, in canonical form. One may be used for any number of values.

    `parts` collects the encoding; `write_other` gets every value that is not plain data. A failed `write`
    leaves `parts` as far as it came: callers take `mark = len(parts)` and cut back to it. While `write_other`
    runs, `depth` is the number of containers around its value; there is room for one more within.
    """

    __slots__ = (
        "_depth_limit",
        "_digit_bound",
        "_digit_limit",
        "depth",
        "parts",
        "write_other",
    )

    def __init__(self, limits: Limits, write_other: WriteOther = refuse, text_order: bool = False) -> None:
        self.parts: list[bytes] = []
        self.write_other = write_other
        self.text_order = text_order
        self._depth_limit = limits.nesting
        self._digit_limit = digits(limits)
        self._digit_bound: int = 10**self._digit_limit
        self.depth = 0

    def encode(self, value: object) -> bytes:
        parts: list[bytes] = []
        self.parts = parts
        self.write(value, 0)
        self.parts = []
        return b"".join(parts)

    def arguments(self, args: list[object]) -> bytes:
        self.parts = parts = [b"["]
        for arg in args:
            self.write(arg, 2)  # inside op:deliver and the list of arguments
        parts.append(b"]")
        return b"".join(parts)

    def reference(self, kind: int, position: int) -> None:
        self.parts.append(descriptor_bytes(kind, position))

    def certificate(self, wire: bytes) -> None:
        self.parts.append(wire)

    def write(self, value: object, depth: int) -> None:
        """Appends the encoding of `value`, which stands inside `depth` containers."""
        # What `assert isinstance` says of the type is known: it is there for the compiler, which is told no other way.
        kind = type(value)
        parts = self.parts
        if kind is str:
            assert isinstance(value, str)
            try:
                data = value.encode()
            except UnicodeEncodeError:
                raise NotPassable("a string with a surrogate is not text") from None
            n = len(data)
            parts.append(_STRING_HEADS[n] if n < 1024 else b'%d"' % n)
            parts.append(data)
        elif kind is int:
            assert isinstance(value, int)
            if 0 <= value < 1024:
                parts.append(_INTEGERS[value])
            else:
                self._integer(value)
        elif kind is bytes:
            assert isinstance(value, bytes)
            n = len(value)
            parts.append(_BYTES_HEADS[n] if n < 1024 else b"%d:" % n)
            parts.append(value)
        elif kind is list:
            assert isinstance(value, list)
            if depth >= self._depth_limit:
                raise self._too_deep()
            parts.append(b"[")
            index = 0
            try:
                for item in value:
                    self.write(item, depth + 1)
                    index += 1
            except NotPassable as error:
                raise within(error, f"[{index}]") from None
            parts.append(b"]")
        elif kind is dict:
            assert isinstance(value, dict)
            self._struct(value, depth)
        elif kind is bool:
            parts.append(b"t" if value else b"f")
        elif kind is Symbol:
            assert isinstance(value, Symbol)
            known = _SYMBOL_BYTES.get(value)
            parts.append(self._symbol(value) if known is None else known)
        elif value is None:
            if depth >= self._depth_limit:
                raise self._too_deep()
            parts.append(b"<4'void>")
        elif kind is float:
            assert isinstance(value, float)
            parts.append(b"D")
            parts.append(_NAN if value != value else _DOUBLE.pack(value))
        elif kind is Record:
            assert isinstance(value, Record)
            if depth >= self._depth_limit:
                raise self._too_deep()
            parts.append(b"<")
            self.write(value.label, depth + 1)
            for field in value.fields:
                self.write(field, depth + 1)
            parts.append(b">")
        else:
            self._rare(value, depth)

    def _integer(self, value: int) -> None:
        if not -self._digit_bound < value < self._digit_bound:
            raise NotPassable(f"an integer of more than {self._digit_limit} digits")
        self.parts.append(b"%d+" % value if value >= 0 else b"%d-" % -value)

    def _too_deep(self) -> NotPassable:
        return NotPassable(f"nested more than {self._depth_limit} deep")

    def _symbol(self, value: Symbol) -> bytes:
        data = value.name.encode()
        encoded = b"%d'%b" % (len(data), data)
        if len(data) <= _MAX_SYMBOL_BYTES:
            _keep(_SYMBOL_BYTES, value, encoded, _MAX_SYMBOLS)
        return encoded

    def _struct(self, value: dict[object, object], depth: int) -> None:
        if depth >= self._depth_limit:
            raise self._too_deep()
        parts = self.parts
        parts.append(b"{")
        for encoded, key in self._members(value):
            parts.append(encoded)
            try:
                self.write(value[key], depth + 1)
            except NotPassable as error:
                raise within(error, f"[{_text(encoded).decode()!r}]") from None
        parts.append(b"}")

    def _members(self, value: dict[object, object]) -> list[tuple[bytes, object]]:
        """The keys of a struct as they are encoded, in order, and as they are."""
        common = len(value) <= _MAX_MEMBERS and not self.text_order
        shape: tuple[object, ...] = ()
        if common:
            shape = tuple(value)
            for key in shape:
                if type(key) is not str:  # it may have an == of its own
                    common = False
                    break
            else:
                found = _SHAPES.get(shape)
                if found is not None:
                    return found
        members: dict[bytes, object] = {}
        for key in value:
            known = _ENCODED_KEYS.get(key) if type(key) is str else None
            encoded = self._key(key) if known is None else known
            members[encoded] = key
            common = common and len(encoded) <= _MAX_SYMBOL_BYTES
        if len(members) < len(value):
            raise NotPassable("two keys of a struct have the same text")
        keys = list(members)
        if self.text_order:
            keys.sort(key=_text)
        else:
            keys.sort()
        ordered = [(encoded, members[encoded]) for encoded in keys]
        if common:
            _keep(_SHAPES, shape, ordered, _MAX_SHAPES)
        return ordered

    def _key(self, key: object) -> bytes:
        if not isinstance(key, str):
            raise NotPassable(f"a struct's keys are strings, not {type(key).__name__}")
        try:
            text = str.__str__(key)
            data = text.encode()
        except UnicodeEncodeError:
            raise NotPassable("a key with a surrogate is not text") from None
        encoded = _string(data)
        if len(data) <= _MAX_SYMBOL_BYTES:
            _keep(_ENCODED_KEYS, text, encoded, _MAX_SYMBOLS)
        return encoded

    def record(self, label: bytes, *fields: object, depth: int = 0) -> None:
        """Appends a record; `label` is the encoded label."""
        if depth >= self._depth_limit:
            raise self._too_deep()
        self.parts.append(b"<" + label)
        for field in fields:
            self.write(field, depth + 1)
        self.parts.append(b">")

    def _rare(self, value: object, depth: int) -> None:
        if isinstance(value, (str, int, float, bytes, list, tuple, dict, bytearray, memoryview)):
            self.write(plain(value), depth)
        elif depth >= self._depth_limit:  # all that follow are records
            raise self._too_deep()
        elif isinstance(value, NullType):
            self.parts.append(b"<4'null>")
        elif isinstance(value, Tagged):
            try:
                tag = Symbol(value.tag)
            except (TypeError, UnicodeEncodeError):
                raise NotPassable("a tag is a str without surrogates") from None
            try:
                self.record(b"11'desc:tagged", tag, value.value, depth=depth)
            except NotPassable as error:
                raise within(error, ".value") from None
        elif isinstance(value, RemoteError):
            if not isinstance(value.message, str):
                raise NotPassable(f"an error's message is a str, not {type(value.message).__name__}")
            self.record(b"10'desc:error", value.message, depth=depth)
        elif isinstance(value, SturdyRef):
            self.record(b"15'ocapn-sturdyref", value.peer, value.swiss, depth=depth)
        elif isinstance(value, PeerLocator):
            hints = dict(value.hints) or False
            self.record(b"10'ocapn-peer", Symbol(value.transport), value.designator, hints, depth=depth)
        else:
            self.depth = depth
            self.write_other(self, value)


def _text(encoded: bytes) -> bytes:
    """That of an encoded string."""
    return encoded[encoded.index(b'"') + 1 :]


def within(error: NotPassable, step: str) -> NotPassable:
    return NotPassable(error.why, step + error.path)


def plain(value: object) -> object:
    """An instance of a subclass of str, int, float, bytes, list, tuple or dict, as the type itself.

    What the subclass overrides does not count: a member of a `class Colour(str, Enum)` is its text.
    """
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, dict):
        return dict(value)
    if isinstance(value, (list, tuple)):
        return list(value)
    assert isinstance(value, (bytes, bytearray, memoryview))
    try:
        return bytes(memoryview(value))
    except ValueError:
        raise NotPassable("a memoryview that was released has no bytes") from None


def encode(value: object, limits: Limits | None = None) -> bytes:
    """The Syrup encoding of plain data. Raises NotPassable."""
    return Encoder(limits or _DEFAULT).encode(value)


def decode(data: bytes, limits: Limits | None = None, records: Records = ANY_RECORD) -> object:
    """The one value that `data` encodes. Raises DecodeError."""
    return Decoder(limits or _DEFAULT, records).decode(data)


_DEFAULT: Final = Limits()
