"""What the tests share: running a trio test, on a mock clock unless real connections are involved."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import ParamSpec

import pytest
import trio
import trio.testing

P = ParamSpec("P")

#: For tests that put something of their own into the core: what is compiled cannot be changed by a test.
interpreted = pytest.mark.interpreted


def trio_test_within(
    seconds: float,
) -> Callable[[Callable[P, Awaitable[None]]], Callable[P, None]]:
    """Runs an async test on a mock clock that jumps over every wait, so that no test sleeps.

    It may take so many seconds of that clock: a test that waits for what never comes fails, and does not hang.
    """

    def decorate(function: Callable[P, Awaitable[None]]) -> Callable[P, None]:
        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> None:
            async def bounded() -> None:
                with trio.fail_after(seconds):
                    await function(*args, **kwargs)

            trio.run(bounded, clock=trio.testing.MockClock(autojump_threshold=0))

        del run.__wrapped__  # pytest would look through it and see a coroutine
        run.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
        return run

    return decorate


def trio_test(function: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """The same, within two hours of that clock."""
    return trio_test_within(7200)(function)


def trio_test_real(function: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """Runs an async test on the real clock, for tests over sockets; it may take 30 s and no more."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def bounded() -> None:
            with trio.fail_after(30):
                await function(*args, **kwargs)

        trio.run(bounded)

    del run.__wrapped__  # as above
    run.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return run


async def until(is_so: Callable[[], bool]) -> None:
    while not is_so():  # noqa: ASYNC110 - it is for other tasks
        await trio.sleep(0.01)


def fields_of(kind: type) -> tuple[str, ...]:
    """The names of what an instance holds. A compiled class tells them otherwise."""
    slots = getattr(kind, "__mypyc_attrs__", ()) or getattr(kind, "__slots__", ())
    return tuple(name for name in sorted(slots) if not name.startswith("__"))
