"""Running what applications give: whatever it raises is told, and ends nothing of ours; nobody sees its context."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVarTuple

import trio

_Args = TypeVarTuple("_Args")


def run_apart(nursery: trio.Nursery, function: Callable[[], object]) -> None:
    """Calls the function in a context like that of the nursery's task, whatever the present one is."""
    nursery.parent_task.context.copy().run(function)


def start_soon(nursery: trio.Nursery, function: Callable[[*_Args], Awaitable[object]], *args: *_Args) -> None:
    """Begins a task likewise, whoever it is that wants it."""
    run_apart(nursery, lambda: nursery.start_soon(function, *args))


@contextmanager
def caught(tell: Callable[[Exception], None]) -> Iterator[None]:
    """What the block raises is told, and no more; that it was cancelled goes on, alone.

    A nursery of the application's that is cancelled, and of which a task fails on its way out, raises both in a group.
    """
    try:
        yield
    except Exception as error:
        tell(error)
    except BaseExceptionGroup as group:
        cancelled, errors = group.split(trio.Cancelled)
        if cancelled is None or not isinstance(errors, ExceptionGroup):
            raise
        tell(errors)
        raise cancelled from None
