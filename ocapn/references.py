"""What an application exports, and what it holds of others (semantics.md).

A `Target` is an object that messages can be sent to; only what is marked `@method` can be called. A `Ref` is
somebody else's target. Where messages come from and go to is for the layers below and above.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextvars import ContextVar
from inspect import CO_COROUTINE, Parameter, signature
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, final, overload

import trio

from ocapn.captp.handles import LocalTarget, RefHandle
from ocapn.errors import RemoteError
from ocapn.model.values import Symbol

if TYPE_CHECKING:
    from ocapn.captp.node import Node
    from ocapn.captp.session import Session

#: The peer that sends to local objects are made on: set in the body of `open_peer` and in running methods.
current_node: ContextVar[Node] = ContextVar("ocapn.current_node")
#: The session that called the running method; None in one that was called locally, and in tasks of the library.
current_caller: ContextVar[Session | None] = ContextVar("ocapn.current_caller", default=None)

_F = TypeVar("_F", bound=Callable[..., Any])
_MARK = "__ocapn_method__"


@overload
def method(function: _F, /) -> _F: ...
@overload
def method(*, name: str) -> Callable[[_F], _F]: ...
def method(function: _F | None = None, /, *, name: str | None = None) -> _F | Callable[[_F], _F]:
    """Marks a method of a `Target` as callable from outside, under its own name or under `name`.

    A method takes positional arguments. What it returns, or the promise it returns, is the answer; what it
    raises breaks the answer. An `async` method runs as a task of the peer.
    """

    def mark(function: _F) -> _F:
        if not callable(function):
            raise TypeError("@method marks functions; put it below @staticmethod and the like")
        setattr(function, _MARK, function.__name__ if name is None else name)
        return function

    return mark if function is None else mark(function)


class _Entry:
    """A callable with the number of arguments that it takes: of a `bound` one without `self`, and the method's name.

    Of one that `starts`, a call makes a coroutine and runs nothing yet.
    """

    __slots__ = ("bound", "function", "least", "most", "name", "starts")

    def __init__(self, name: str, function: Callable[..., object], bound: bool) -> None:
        self.name = name
        self.function = function
        self.bound = bound
        code = getattr(function, "__code__", None)
        self.starts = bool(getattr(code, "co_flags", 0) & CO_COROUTINE)
        self.least = 0
        self.most: float = 0
        try:
            parameters = list(signature(function).parameters.values())
        except (TypeError, ValueError):  # a builtin that does not tell
            self.most = float("inf")
            return
        for parameter in parameters[1:] if bound else parameters:
            if parameter.kind is Parameter.VAR_POSITIONAL:
                self.most = float("inf")
            elif parameter.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD):
                self.most += 1
                self.least += parameter.default is Parameter.empty
            elif parameter.kind is Parameter.KEYWORD_ONLY and parameter.default is Parameter.empty:
                raise TypeError(
                    f"{name}: messages have no keyword arguments, and {parameter.name} has no default"
                )

    def check(self, given: int) -> None:
        """Raises RemoteError if that many arguments do not fit."""
        if self.least <= given <= self.most:
            return
        plural = self.least if self.most == float("inf") else self.most
        takes = f"{self.least}" if self.least == self.most else f"{self.least} to {self.most}"
        if self.most == float("inf"):
            takes = f"at least {self.least}"
        raise RemoteError(f"{self.name} takes {takes} argument{'s' * (plural != 1)}, {given} given")


class Target(LocalTarget):
    """Base of objects that can be exported. Only methods marked `@ocapn.method` can be called from outside.

    A method that overrides a marked one must be marked itself, or it is out of reach.
    """

    __slots__ = ()
    _ocapn_methods: ClassVar[dict[str, _Entry]] = {}

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        entries: dict[str, _Entry] = {}
        seen: set[str] = set()
        for base in cls.__mro__:
            for attribute, value in vars(base).items():
                if attribute in seen:
                    continue
                seen.add(attribute)
                name = getattr(value, _MARK, None)
                if isinstance(name, str) and callable(value):
                    entries.setdefault(name, _Entry(name, value, bound=True))
        cls._ocapn_methods = entries

    def _ocapn_entry(self, args: list[object]) -> _Entry:
        """What a message calls. Raises RemoteError if it names no method."""
        name = args[0] if args else None
        method_name = name.name if isinstance(name, Symbol) else name
        entry = self._ocapn_methods.get(method_name) if isinstance(method_name, str) else None
        if entry is None:
            if isinstance(method_name, str):
                raise RemoteError(f"no method is called {method_name[:100]!r}")
            raise RemoteError("a message to this object begins with the name of a method")
        return entry


@final
class _FunctionTarget(Target):
    __slots__ = ("_entry",)

    def __init__(self, function: Callable[..., object]) -> None:
        self._entry = _Entry(getattr(function, "__name__", "the function"), function, bound=False)

    def _ocapn_entry(self, args: list[object]) -> _Entry:
        return self._entry

    def __repr__(self) -> str:
        return f"<target {self._entry.name}>"


def target(function: Callable[..., object]) -> Target:
    """A target that passes each message to `function`: `E(t)(1, 2)` calls `function(1, 2)`.

    A named message, `E(t).name(1)`, comes as `function(Symbol("name"), 1)`. Also usable as a decorator.
    """
    if not callable(function):
        raise TypeError(f"target wraps a callable, not {type(function).__name__}")
    return _FunctionTarget(function)


@final
class Ref(RefHandle):
    """A reference to an object of another peer. One object per target and session, as long as it is held.

    Send with `E(ref)`. Dropping the last reference to it releases it on the wire. `await ref` is the ref itself,
    so that code may await what is a reference or a promise of one.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        slot = self._import
        state = "" if slot.session.ended is None else ", broken"
        return f"<Ref {slot.position} of {slot.session.location.uri}{state}>"

    def __await__(self) -> Generator[Any, Any, Ref]:
        yield from trio.lowlevel.checkpoint().__await__()
        return self
