"""What storage takes: keys, values, times, pages. All is measured before time or memory is spent on it."""

from __future__ import annotations

import base64
import binascii
from typing import Any, Final

import cbor2

from ocapn.errors import StorageFailed, StorageRefused

#: Entries in one page of `list`.
MAX_PAGE: Final = 1_000
#: Seconds: three thousand years. What is longer is no time to live.
MAX_TTL: Final = 1e11

_INSTEAD: Final[dict[type, str]] = {
    tuple: "; it would come back as a list: keep list(value)",
    bytearray: "; keep bytes(value)",
}


def check_key(key: object, most: int, what: str = "a key") -> str:
    """A key, of 1 to `most` bytes in UTF-8. Raises StorageRefused."""
    if not isinstance(key, str):
        raise StorageRefused(f"{what} is a str, not {type(key).__qualname__}")
    if not key:
        raise StorageRefused(f"{what} may not be empty")
    if len(key) > most or len(_utf8(key, what)) > most:
        raise StorageRefused(f"{what} has at most {most:,} bytes in UTF-8")
    return key


def check_prefix(prefix: object, most: int) -> str:
    """The beginning of keys, which may be empty. Raises StorageRefused."""
    return "" if prefix == "" else check_key(prefix, most, "a prefix")


def check_ttl(ttl: object) -> float | None:
    """Seconds above zero, or None for ever. Raises StorageRefused."""
    if ttl is None:
        return None
    if isinstance(ttl, bool) or not isinstance(ttl, (int, float)):
        raise StorageRefused(f"ttl is a number of seconds or None, not {type(ttl).__qualname__}")
    if not 0 < ttl <= MAX_TTL:  # so neither NaN nor an infinity
        raise StorageRefused("ttl is above zero and finite: a number of seconds that may pass")
    return float(ttl)


def check_limit(limit: object) -> int:
    """How many entries a page may have. Raises StorageRefused."""
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= MAX_PAGE:
        raise StorageRefused(f"limit is 1 to {MAX_PAGE:,}")
    return limit


def cursor_of(key: str) -> str:
    """What to give for going on after a key: it stays right whatever is set and deleted meanwhile."""
    return base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")


def after_cursor(cursor: object, most: int) -> str | None:
    """The key that a cursor stands for. Raises StorageRefused for what is none."""
    if cursor is None:
        return None
    if isinstance(cursor, str) and len(cursor) <= 2 * most and cursor.isascii():
        try:
            key = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            pass
        else:
            if 1 <= len(key) <= most and cursor_of(key) == cursor:
                return key
    raise StorageRefused("that is no cursor: give the one that `list` has returned, or None")


class _TooLarge(Exception):
    pass


class _Refused(Exception):
    pass


def encode(value: object, most: int, depth: int) -> bytes:
    """The bytes of a value: canonical CBOR. Raises StorageRefused, for a value of any size and depth at small cost."""
    try:
        _measure(value, most, depth)
        data: bytes = cbor2.dumps(value, canonical=True)
    except _TooLarge:
        data = bytes(most + 1)
    except _Refused as error:
        raise StorageRefused(str(error)) from None
    if len(data) > most:
        raise StorageRefused(f"the value is too large: it may have {most:,} bytes as it is kept")
    return data


def decode(data: object, depth: int) -> Any:
    """The value of bytes that `encode` made. Raises StorageFailed for all others that are none."""
    if isinstance(data, bytes):
        try:
            value = cbor2.loads(data)
            _measure(value, len(data), depth)
            if cbor2.dumps(value, canonical=True) == data:
                return value
        except Exception:  # whatever a decoder of tags, dates and fractions may think of
            pass
    raise StorageFailed("what was kept is damaged")


def _measure(value: object, room: int, depth: int) -> int:
    """What is left of `room` after the least that the value takes, so that no shared list unfolds without end."""
    kind = type(value)
    if value is None or kind is bool:
        room -= 1
    elif isinstance(value, str) and kind is str:
        room -= 1 + _length(value, room)
    elif isinstance(value, int) and kind is int:
        room -= 1 + (value.bit_length() - 5) // 8
    elif kind is float:
        room -= 3
    elif isinstance(value, bytes) and kind is bytes:
        room -= 1 + len(value)
    elif isinstance(value, (list, dict)) and (kind is list or kind is dict):
        if not depth:
            raise _Refused("the value has too many containers inside each other")
        room -= 1
        if isinstance(value, dict):
            for key in value:
                if type(key) is not str:
                    raise _Refused(f"the keys of a dict are str, not {type(key).__qualname__}")
                room -= 1 + _length(key, room)
        for one in value.values() if isinstance(value, dict) else value:
            room = _measure(one, room, depth - 1)
    else:
        raise _Refused(f"storage keeps no {kind.__qualname__}{_INSTEAD.get(kind, '')}")
    if room < 0:
        raise _TooLarge
    return room


def _length(text: str, room: int) -> int:
    if len(text) > room:
        raise _TooLarge
    return len(_utf8(text, "the value"))


def _utf8(text: str, what: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise StorageRefused(f"{what} has a lone surrogate, which is no text") from None
