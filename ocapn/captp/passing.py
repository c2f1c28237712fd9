"""What may be passed, and the copy that a message between objects of one peer makes of it (Model specification).

The encoder has the same rules; when it refuses a value, `check_passable` says where the value stands.
"""

from __future__ import annotations

import io
from types import (
    BuiltinFunctionType,
    BuiltinMethodType,
    CoroutineType,
    FunctionType,
    GeneratorType,
    MethodType,
    ModuleType,
)
from typing import Final

from ocapn.captp.handles import LocalTarget, PromiseHandle, RefHandle
from ocapn.codec.operations import Envelope
from ocapn.codec.syrup import plain
from ocapn.errors import NotPassable, RemoteError
from ocapn.limits import Limits
from ocapn.model.locators import PeerLocator, SturdyRef
from ocapn.model.values import NullType, Symbol, Tagged

#: An argument, or a result on its way to a resolver, stands in a list that stands in op:deliver.
_INSIDE = 2

_ATOMS = frozenset({bool, type(None), float, bytes, Symbol, NullType})
#: Those that are no records on the wire, and so count for nothing in the nesting.
_FLAT = frozenset({bool, float, bytes, Symbol})
#: Integers below it are compared without being made objects, where this is compiled.
_SHORT: Final = 1 << 60


def copy_passable(value: object, limits: Limits, path: str = "", depth: int = 0) -> object:
    """A copy of `value` as its receiver gets it: containers are new, references and atoms are themselves.

    Raises NotPassable, with the path from `path` to what cannot be passed.
    """
    kind = type(value)
    if kind is str:
        if not value.isascii():  # type: ignore[attr-defined]
            _check_text(value, path)
        return value
    if kind is int:
        if not -(1 << 63) <= value < 1 << 63:  # type: ignore[operator]
            bound: int = 10**limits.integer_digits
            if not -bound < value < bound:  # type: ignore[operator]
                raise NotPassable(f"an integer of more than {limits.integer_digits} digits", path)
        return value
    if kind in _ATOMS or isinstance(value, (LocalTarget, RefHandle, PromiseHandle)):
        if kind not in _FLAT:
            _check_depth(depth + 1, limits, path)
        return value
    if kind is list or kind is tuple or kind is dict or kind is Tagged:
        depth += 1
        _check_depth(depth, limits, path)
        if kind is dict:
            assert isinstance(value, dict)
            copy: dict[str, object] = {}
            for key, member in value.items():
                if not isinstance(key, str):
                    raise NotPassable(f"a struct's keys are strings, not {type(key).__name__}", path)
                _check_text(key, path)
                copy[str.__str__(key)] = copy_passable(member, limits, f"{path}[{key!r}]", depth)
            return copy
        if isinstance(value, Tagged):
            _check_text(value.tag, path)
            return Tagged(value.tag, copy_passable(value.value, limits, f"{path}.value", depth))
        assert isinstance(value, (list, tuple))
        return [copy_passable(member, limits, f"{path}[{i}]", depth) for i, member in enumerate(value)]
    if isinstance(value, (str, int, float, bytes, list, tuple, dict, bytearray, memoryview)):
        return copy_passable(plain(value), limits, path, depth)
    if isinstance(value, RemoteError):
        if not isinstance(value.message, str):
            raise NotPassable(f"an error's message is a str, not {type(value.message).__name__}", path)
        _check_text(value.message, path)
        _check_depth(depth + 1, limits, path)
        return value
    if isinstance(value, (SturdyRef, PeerLocator, Envelope)):
        if isinstance(value, SturdyRef):  # a record that holds a record that holds a struct
            depth += 2 + bool(value.peer.hints)
        elif isinstance(value, PeerLocator):
            depth += 1 + bool(value.hints)
        _check_depth(depth, limits, path)
        return value
    raise NotPassable(f"{describe(value)} cannot be passed", path)


class _Uncommon(Exception):
    """A value that `_copy` leaves to `copy_passable`."""


def _copy(value: object, depth: int) -> object:
    """`copy_passable` for what is common and right, without keeping a path."""
    kind = type(value)
    if kind is str:
        assert isinstance(value, str)
        if value.isascii():
            return value
    elif kind is int:
        assert isinstance(value, int)
        if -_SHORT < value < _SHORT or -(1 << 63) <= value < 1 << 63:
            return value
    elif kind is bool or kind is bytes or kind is Symbol or kind is float:
        return value
    elif depth > 0:
        if kind is list or kind is tuple:
            return [_copy(member, depth - 1) for member in value]  # type: ignore[attr-defined]
        if kind is dict:
            assert isinstance(value, dict)
            copy: dict[str, object] = {}
            for key, member in value.items():
                if type(key) is not str or not key.isascii():
                    raise _Uncommon
                copy[key] = _copy(member, depth - 1)
            return copy
        if value is None or kind is NullType or isinstance(value, (LocalTarget, RefHandle, PromiseHandle)):
            return value
    raise _Uncommon


def copy_result(value: object, limits: Limits) -> object:
    """The copy of what a method returns, or of what a promise became. Raises NotPassable."""
    try:
        return _copy(value, limits.nesting - _INSIDE)
    except _Uncommon:
        return copy_passable(value, limits, "the result", _INSIDE)


def copy_args(args: list[object], limits: Limits) -> list[object]:
    """The arguments of a message, copied. Raises NotPassable with a path that begins at `args`."""
    try:
        return [_copy(arg, limits.nesting - _INSIDE) for arg in args]
    except _Uncommon:
        pass
    return [copy_passable(arg, limits, f"args[{i}]", _INSIDE) for i, arg in enumerate(args)]


def _check_text(text: object, path: str) -> None:
    assert isinstance(text, str)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise NotPassable("a string with a surrogate is not text", path) from None


def _check_depth(depth: int, limits: Limits, path: str) -> None:
    """`depth` counts the containers around the value, itself included: lists, structs, and all records."""
    if depth > limits.nesting:
        raise NotPassable(f"nested more than {limits.nesting} deep", _short(path))


def _short(path: str) -> str:
    return path if len(path) <= 80 else path[:40] + "…"


def describe(value: object) -> str:
    """What a value is, for people."""
    if isinstance(value, io.IOBase):
        return "an open file"
    if isinstance(value, (FunctionType, BuiltinFunctionType, MethodType, BuiltinMethodType)):
        return "a function (wrap it with ocapn.target)"
    if isinstance(value, CoroutineType):
        return "a coroutine (await it first)"
    if isinstance(value, GeneratorType):
        return "a generator (make a list of it)"
    if isinstance(value, ModuleType):
        return "a module"
    if isinstance(value, (set, frozenset)):
        return "a set (make a list of it)"
    if isinstance(value, BaseException):
        return f"an exception ({type(value).__name__}; raise it, or pass a RemoteError)"
    if isinstance(value, type):
        return f"a class ({value.__name__})"
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
