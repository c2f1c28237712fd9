"""The values of the OCapN model that Python has no type for, and pass-invariant equality."""

from __future__ import annotations

import struct
from threading import Lock
from typing import Final, final
from weakref import WeakValueDictionary

from ocapn.errors import RemoteError
from ocapn.model.locators import PeerLocator, SturdyRef

_symbols: WeakValueDictionary[str, Symbol] = WeakValueDictionary()
_symbols_lock = Lock()


@final
class Symbol:
    """A symbol: a name that is not a string (Model specification, Symbol).

    Symbols of one name are one object, so `is`, `==` and dictionary look-ups are all cheap.
    """

    __slots__ = ("__weakref__", "name")
    name: str

    def __new__(cls, name: str) -> Symbol:
        found = _symbols.get(name)
        if found is not None:
            return found
        if not isinstance(name, str):
            raise TypeError(f"a symbol's name is a str, not {type(name).__name__}")
        name = str.__str__(name)  # a subclass may have a __str__ that says something else
        name.encode("utf-8")  # raises UnicodeEncodeError on surrogates, which OCapN text cannot hold
        with _symbols_lock:
            found = _symbols.get(name)
            if found is None:
                found = object.__new__(cls)
                object.__setattr__(found, "name", name)
                _symbols[name] = found
        return found

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a Symbol cannot be changed")

    def __repr__(self) -> str:
        return f"Symbol({self.name!r})"

    def __reduce__(self) -> tuple[type[Symbol], tuple[str]]:
        return Symbol, (self.name,)

    def __copy__(self) -> Symbol:
        return self

    def __deepcopy__(self, memo: object) -> Symbol:
        return self


@final
class NullType:
    """The type of `Null`, the null of JSON; Undefined is `None` (Model specification, Null)."""

    __slots__ = ()
    _instance: NullType | None = None

    def __new__(cls) -> NullType:
        if cls._instance is None:
            cls._instance = object.__new__(cls)
        return cls._instance

    def __repr__(self) -> str:
        return "Null"

    def __bool__(self) -> bool:
        return False

    def __reduce__(self) -> str:
        return "Null"

    def __copy__(self) -> NullType:
        return self

    def __deepcopy__(self, memo: object) -> NullType:
        return self


Null: Final = NullType()


@final
class Tagged:
    """A value with a tag that says how to read it (Model specification, Tagged).

    Equality is pass-invariant, and a Tagged is not hashable, as its value may be a list or a dict.
    """

    __slots__ = ("tag", "value")
    __hash__ = None  # type: ignore[assignment]  # how Python spells "unhashable"
    tag: str
    value: object

    def __init__(self, tag: str, value: object) -> None:
        if not isinstance(tag, str):
            raise TypeError(f"a tag is a str, not {type(tag).__name__}")
        self.tag = tag
        self.value = value

    def __repr__(self) -> str:
        return f"Tagged({self.tag!r}, {self.value!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tagged) and equal(self, other)


_double = struct.Struct(">d")


def equal(left: object, right: object) -> bool:
    """Pass-invariant equality of two values (Model specification, Pass Invariant Equality).

    `True` is not `1`, `1` is not `1.0`, `0.0` is not `-0.0`, NaN equals NaN, a list equals a tuple of equal
    members, structs compare without regard to order, references by identity.
    """
    if left is right:
        return True
    if isinstance(left, bool) or isinstance(right, bool):
        return False  # the two booleans are single objects
    if isinstance(left, int):
        return isinstance(right, int) and left == right
    if isinstance(left, float):
        if not isinstance(right, float):
            return False
        return (left != left and right != right) or _double.pack(left) == _double.pack(right)
    if isinstance(left, (list, tuple)):
        return (
            isinstance(right, (list, tuple))
            and len(left) == len(right)
            and all(equal(mine, theirs) for mine, theirs in zip(left, right, strict=True))
        )
    if isinstance(left, dict):
        return (
            isinstance(right, dict)
            and left.keys() == right.keys()
            and all(equal(value, right[key]) for key, value in left.items())
        )
    if isinstance(left, Tagged):
        return isinstance(right, Tagged) and left.tag == right.tag and equal(left.value, right.value)
    if isinstance(left, RemoteError):
        return isinstance(right, RemoteError) and left.message == right.message
    if isinstance(left, (str, bytes)):
        return isinstance(right, str if isinstance(left, str) else bytes) and left == right
    if isinstance(left, (PeerLocator, SturdyRef)):
        return left == right
    return False  # references, symbols and Null are equal only to themselves, whatever their class says
