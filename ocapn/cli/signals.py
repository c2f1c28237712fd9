"""SIGINT and SIGTERM: the first leaves in order, a second one at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from types import FrameType, TracebackType
from typing import Any, Final, TypeVar, final

import trio

from ocapn.cli.exits import Stopped

T = TypeVar("T")

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
#: Two signals closer than this are one: timeout(1) sends its signal to the process and then to its group.
_ONE: Final = 0.1


@final
class Signals:
    """Installed around a command. Outside the event loop the first signal raises Stopped; inside it cancels all.

    Handlers are Python's, not trio's: a method that blocks the loop cannot keep a second signal from working.
    """

    def __init__(self) -> None:
        self._previous: dict[signal.Signals, Any] = {}
        self._received = 0
        self._when = 0.0
        self._in_loop = False
        self._cancel: Callable[[], None] | None = None

    def __enter__(self) -> Signals:
        self._received = 0
        if threading.current_thread() is threading.main_thread():
            for signum in _SIGNALS:
                if signal.getsignal(signum) == signal.SIG_IGN:
                    continue  # as shells have it for what runs in the background, and nohup
                self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        for signum, handler in self._previous.items():
            # Once a signal has ended the command, a late twin of it must not change how the process ends.
            signal.signal(signum, signal.SIG_IGN if self._received else handler)
        self._previous.clear()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._received:
            if now - self._when >= _ONE:
                os._exit(128 + signum)
            return
        self._received = signum
        self._when = now
        if not self._in_loop:
            raise Stopped(signum)
        if self._cancel is not None:
            self._cancel()

    def run(self, function: Callable[[], Awaitable[T]]) -> T:
        """Runs an async function to its end. Raises Stopped if a signal ended it."""
        self._in_loop = True
        try:
            result = trio.run(self._main, function)
        except BaseException as error:
            if self._received:
                raise Stopped(self._received) from error
            raise
        finally:
            self._in_loop = False
            self._cancel = None
        if self._received or result is None:
            raise Stopped(self._received)
        return result[0]

    async def _main(self, function: Callable[[], Awaitable[T]]) -> tuple[T] | None:
        token = trio.lowlevel.current_trio_token()
        with trio.CancelScope() as scope:
            self._cancel = lambda: token.run_sync_soon(scope.cancel)
            if self._received:  # before there was anything to cancel
                scope.cancel()
            return (await function(),)
        return None


#: The process has one set of signal handlers.
SIGNALS: Final = Signals()
