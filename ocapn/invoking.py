"""A message to an application's object becomes a call of its method, and what that returns becomes the answer.

This module is compiled where the core is (spec/building.md): every message that an application gets goes through it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from types import CoroutineType
from typing import Any, Final, cast, final

from ocapn.captp.handles import LocalTarget, PromiseHandle, RefHandle
from ocapn.captp.node import Turn
from ocapn.captp.passing import copy_result
from ocapn.errors import RemoteError
from ocapn.limits import Limits
from ocapn.references import Target, current_caller

_set_caller: Final = current_caller.set


@final
class Invoker:
    """Calls methods. `start` makes an `async` one a task, and returns LATER."""

    __slots__ = ("_limits", "_start")

    def __init__(
        self, limits: Limits, start: Callable[[CoroutineType[Any, Any, object], Turn], object]
    ) -> None:
        self._limits = limits
        self._start = start

    def starts(self, turn: Turn) -> bool:
        """`Node.starts`."""
        target = turn.target
        if not isinstance(target, Target):
            return False
        try:
            starts: bool = target._ocapn_entry(turn.args).starts
        except RemoteError:
            return False
        return starts

    def invoke(self, turn: Turn) -> object:
        """`Node.invoke`."""
        target = turn.target
        assert isinstance(target, Target)
        args = turn.args
        entry = target._ocapn_entry(args)
        given = len(args) - entry.bound
        if not entry.least <= given <= entry.most:
            entry.check(given)
        _set_caller(turn.source)
        try:  # in a context of its own: what it leaves there is for nobody else
            if entry.bound:
                result = copy_context().run(entry.function, target, *args[1:])
            else:
                result = copy_context().run(entry.function, *args)
        finally:
            _set_caller(None)
        kind = type(result)
        if result is None or kind is int or kind is str or kind is bool:
            return result
        if kind is CoroutineType:
            return self._start(cast("CoroutineType[Any, Any, object]", result), turn)
        if isinstance(result, (PromiseHandle, RefHandle, LocalTarget)):
            return result
        return copy_result(result, self._limits)
