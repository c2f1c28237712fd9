"""A message to an application's object becomes a call of its method, and what that returns becomes the answer.

This module is compiled where the core is (spec/building.md): every message that an application gets goes through it.
"""

from __future__ import annotations

from collections.abc import Callable
from types import CoroutineType
from typing import Any, Final, cast, final

from ocapn.captp.handles import LocalTarget, PromiseHandle, RefHandle
from ocapn.captp.node import Turn
from ocapn.captp.passing import copy_result
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
        return isinstance(target, Target) and target._ocapn_starts(turn.args)

    def invoke(self, turn: Turn) -> object:
        """`Node.invoke`."""
        target = turn.target
        assert isinstance(target, Target)
        _set_caller(turn.source)
        try:
            result = target._ocapn_call(turn.args)
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
