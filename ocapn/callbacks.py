"""Running what applications give: whatever it raises is told, and ends nothing of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio


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
