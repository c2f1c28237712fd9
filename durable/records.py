"""Python values as bytes: canonical CBOR (RFC 8949, 4.2.3: shorter keys first) of a few exact types.

None, bool, int of any size, float, str, bytes, list, and dict with str keys. Nothing else, as it would come back as
something else: a tuple as a list, an IntEnum as an int. A dict comes back in the order of its encoded keys, every
NaN as the same one.
"""

from __future__ import annotations

from typing import Any

import cbor2

from durable.errors import BaggageCorrupt, NotStorable

#: Bytes of one encoded value. A larger one is better kept in pieces: it is written whole at each change.
MAX_SIZE = 1 << 20
#: Bytes of a row of the peer's own: more than a message can have, or all fields of an object together.
MAX_ROW = 1 << 29
#: Containers inside containers. A list that holds itself has no end.
MAX_DEPTH = 64

_INSTEAD: dict[type, str] = {
    tuple: "it would come back as a list: store list(value)",
    bytearray: "store bytes(value)",
}


class _TooLarge(Exception):
    pass


class _Refused(Exception):
    def __init__(self, why: str) -> None:
        self.why = why
        self.path = ""


def encode(value: object, *, max_size: int = MAX_SIZE, max_depth: int = MAX_DEPTH) -> bytes:
    """The bytes of a value. Raises NotStorable."""
    try:
        _measure(value, max_size, max_depth)
        data: bytes = cbor2.dumps(value, canonical=True)
        if len(data) > max_size:
            raise _TooLarge
    except _Refused as error:
        raise NotStorable(error.why, f"value{error.path}") from None
    except _TooLarge:
        raise NotStorable(f"too large: more than {max_size:,} bytes") from None
    return data


def encode_row(value: object) -> bytes:
    """As `encode`, of a value that is known to hold nothing else: its types are not looked at. Raises NotStorable."""
    try:
        data: bytes = cbor2.dumps(value, canonical=True)
    except (cbor2.CBOREncodeError, UnicodeEncodeError) as error:
        raise NotStorable(f"{error}") from None
    if len(data) > MAX_ROW:
        raise NotStorable(f"too large: more than {MAX_ROW:,} bytes")
    return data


def encode_flat(value: list[Any]) -> bytes:
    """As `encode_row`, in a fraction of the time: of lists, bool, int, ASCII str and bytes only, each of which has but
    one encoding of the least length."""
    data: bytes = cbor2.dumps(value)
    if len(data) > MAX_ROW:
        raise NotStorable(f"too large: more than {MAX_ROW:,} bytes")
    return data


def decode_row(data: bytes, table: str) -> Any:
    """The value of bytes that `encode_row` made: the digest of its row has shown that it did. Raises BaggageCorrupt."""
    try:
        return cbor2.loads(data)
    except Exception:  # whatever a decoder of tags, dates and fractions may think of
        raise BaggageCorrupt("malformed value", table=table) from None


def decode(
    data: bytes,
    *,
    file: str = "",
    table: str | None = None,
    row: str | None = None,
    max_depth: int = MAX_DEPTH,
) -> Any:
    """The value of bytes that `encode` made; raises BaggageCorrupt, with where they are from, for all others."""
    try:
        value = cbor2.loads(data)
        _measure(value, len(data), max_depth)
        if cbor2.dumps(value, canonical=True) == data:
            return value
    except Exception:  # whatever a decoder of tags, dates and fractions may think of
        pass
    raise BaggageCorrupt("malformed value", file, table, row)


def _measure(value: object, room: int, depth: int) -> int:
    """What is left of `room` after the least that the value takes, so that no shared list unfolds without end."""
    kind = type(value)
    if value is None or kind is bool:
        room -= 1
    elif isinstance(value, str) and kind is str:
        room -= 1 + _length(value)
    elif isinstance(value, int) and kind is int:
        room -= 1 + (value.bit_length() - 5) // 8
    elif kind is float:
        room -= 3
    elif isinstance(value, bytes) and kind is bytes:
        room -= 1 + len(value)
    elif kind is list or kind is dict:
        if not depth:
            raise _Refused("too many containers inside each other")
        room = _measure_items(value, room - 1, depth - 1)
    else:
        raise _Refused(f"cannot keep a {kind.__qualname__}; {_INSTEAD.get(kind, 'see durable.records')}")
    if room < 0:
        raise _TooLarge
    return room


def _measure_items(value: Any, room: int, depth: int) -> int:
    index: object = None
    try:
        if type(value) is list:
            for index, item in enumerate(value):  # noqa: B007  # it is for the error
                room = _measure(item, room, depth)
        else:
            for index, item in value.items():
                if type(index) is not str:
                    kind, index = type(index), None
                    raise _Refused(f"cannot keep a dict key of type {kind.__qualname__}, only str")
                room = _measure(item, room - 1 - _length(index), depth)
    except _Refused as error:
        if index is not None:
            error.path = f"[{index!r}]{error.path}"
        raise
    return room


def _length(text: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise _Refused("a lone surrogate is no text") from None


#: A dict with one key that begins so stands for what CBOR has no form for; any other such key has it twice.
MARK = "\0"


def escaped(key: str) -> str:
    """A key of a dict as it is kept."""
    return MARK + key if key.startswith(MARK) else key


def unescaped(key: str) -> str:
    """The key that `escaped` was given."""
    return key[1:] if key.startswith(MARK) else key


def marked(value: dict[str, Any]) -> str | None:
    """What stands behind the mark, if the dict stands for something else."""
    if len(value) == 1:
        (key,) = value
        if key.startswith(MARK) and not key.startswith(MARK + MARK):
            return key[1:]
    return None


def pack(value: Any) -> Any:
    """A value as it is kept, with the keys of its dicts escaped; what cannot be kept is for `encode` to refuse."""
    if type(value) is list:
        return [pack(one) for one in value]
    if type(value) is dict:
        return {escaped(key) if type(key) is str else key: pack(one) for key, one in value.items()}
    return value


def unpack(value: Any) -> Any:
    """What `pack` has packed. Raises NotStorable for what only a peer can read."""
    if type(value) is list:
        return [unpack(one) for one in value]
    if type(value) is not dict:
        return value
    if marked(value) is not None:
        raise NotStorable("it holds a reference or a durable object: open a peer with the baggage to read it")
    return {unescaped(key): unpack(one) for key, one in value.items()}
