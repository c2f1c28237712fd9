"""Commit, then send: what turns have to show waits until what it depends on is on disk.

Each pass of the loop that changes something is a step: a batch of changes, the messages that were sent meanwhile, and
those who are to be told. Batches are written one after the other, as many at once as have come while the last were on
their way; then the steps are shown, in order. A step without changes waits for the steps before it, and for nothing
else. No task stands between a step and its write, nor between the write and what is shown: every pass of the loop that
one would take is time that a call waits.
"""

from __future__ import annotations

import contextvars
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, Final, final

import trio

from ocapn.captp.node import Node, TurnResult
from ocapn.captp.outbox import Sealed
from ocapn.captp.port import Keeper
from ocapn.captp.session import Session
from ocapn.promise import waited

#: So soon a thread that computes gives way to another while batches are written, seconds.
_GIVES_WAY: Final = 0.0001


@final
class _Hurry:
    """While batches are written, threads give way to each other sooner (`sys.setswitchinterval`).

    A write calls the operating system a few times, and after each call waits for the interpreter, which a busy loop
    lets go of every 5 ms only: messages would wait tens of milliseconds for a commit that takes one. For the process,
    whose switch interval is what it was once nobody writes.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._writers = 0
        self._usual = self._ours = 0.0

    def begin(self) -> None:
        """A write is about to begin, in another thread."""
        with self._lock:
            self._writers += 1
            if self._writers == 1:
                self._usual = sys.getswitchinterval()
                _set_interval(min(self._usual, _GIVES_WAY))
                self._ours = sys.getswitchinterval()

    def end(self) -> None:
        """It is done."""
        with self._lock:
            self._writers -= 1
            if not self._writers and sys.getswitchinterval() == self._ours:
                _set_interval(self._usual)

    def forget(self) -> None:
        """This is a process that was forked while others wrote: they do not write here."""
        self._lock = threading.Lock()
        if self._writers:
            self._writers = 0
            _set_interval(self._usual)


def _set_interval(seconds: float) -> None:
    """Python cuts it down to whole microseconds: what it has given would come back as less."""
    sys.setswitchinterval(seconds + 0.5e-6)


_hurry: Final = _Hurry()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_hurry.forget)


@final
class _Step:
    """`sealed`: for each session with something to send, the messages, and the counts of frames as committed then."""

    __slots__ = ("batch", "events", "number", "sealed")

    def __init__(
        self,
        number: int,
        batch: Any | None,
        sealed: list[tuple[Session, Sealed, int, int]],
        events: list[Callable[[], None]],
    ) -> None:
        self.number = number
        self.batch = batch
        self.sealed = sealed
        self.events = events


@final
class Commits:
    """`flush` sends what a session may send."""

    def __init__(self, node: Node, keeper: Keeper, flush: Callable[[Session], None]) -> None:
        self._node = node
        self._keeper: Final = keeper
        self._flush = flush
        self._steps: list[_Step] = []
        self._writing: list[_Step] = []  # those whose batches are on their way
        self._token: trio.lowlevel.TrioToken | None = None  # while `run` runs
        self._context = contextvars.copy_context()
        self._idle = trio.Event()
        self._stopped = trio.Event()
        node.step += 1  # what changes from now on is to be committed
        node.once_committed = self._once_committed

    @property
    def failed(self) -> bool:
        """Whether the keeper has failed: nothing is committed or shown any more."""
        return self._node.failure is not None

    @property
    def writing(self) -> bool:
        """Whether what is shown now would wait for others to be on disk."""
        return bool(self._writing)

    def show(self, result: TurnResult) -> None:
        """Shows what turns have left behind, once it is committed. Raises what `Keeper.cut` raises."""
        if self.failed:
            return
        number = self._node.step
        self._node.step += 1
        touched = self._node.take_touched()
        sessions = dict.fromkeys([*result.outbound, *touched])
        sealed = []
        for session in sessions:
            messages = session.outbox.seal()
            sealed.append((session, messages, *session.frame_counts))
        touched |= self._node.take_touched()  # sealing sends garbage
        step = _Step(number, self._cut(touched), sealed, result.events)
        if step.batch is None and not self._steps and not self._writing:
            self._shown(step)
        else:
            self._steps.append(step)
            self._begin()

    def _once_committed(self, number: int, tell: Callable[[], None]) -> None:
        for step in (*self._writing, *self._steps):
            if step.number == number:
                step.events.append(tell)
                return
        self._node.event(tell)

    def ready(self) -> None:
        """To be called before what is to be shown is taken. Raises RuntimeError inside a transaction."""
        if not self.failed:
            self._keeper.ready()

    def _cut(self, sessions: set[Session]) -> Any | None:
        try:
            return self._keeper.cut(sessions)
        except Exception as error:  # what was taken to be shown is lost with it
            self._stop(error)
            raise

    def _stop(self, error: BaseException) -> None:
        """Nothing is committed or shown any more."""
        self._node.fail(error)
        self._stopped.set()

    async def settled(self) -> None:
        """Returns once all that has happened so far is on disk. Raises why it never will be."""
        done = trio.Event()
        self.ready()
        self._node.event(done.set)
        self.show(self._node.take())
        await waited(self._node, done)

    def finish(self) -> None:
        """The peer has ended: commits what there is left to commit, which nobody is shown. Blocks."""
        self.ready()
        self.show(self._node.take())
        batches = [step.batch for step in self._steps if step.batch is not None]
        self._steps.clear()
        if batches:
            try:
                self._keeper.write(batches)
            except Exception as error:
                self._node.fail(error)
                raise
            for batch in batches:
                self._keeper.written(batch)
        self._node.committed = self._node.step  # also of what nobody is shown any more

    async def run(self) -> None:
        """Writes for as long as it runs. Raises what `Keeper.write` raises: nothing is shown any more then."""
        self._token = trio.lowlevel.current_trio_token()
        self._context = contextvars.copy_context()  # tasks that are begun inherit it
        try:
            self._begin()
            await self._stopped.wait()
            assert self._node.failure is not None
            raise self._node.failure
        finally:
            self._token = None
            if self._writing:  # in a thread, which does not stop
                self._idle = trio.Event()
                with trio.CancelScope(shield=True):
                    await self._idle.wait()

    def _begin(self) -> None:
        """Has all steps there are written, unless others are on their way."""
        token = self._token
        if self._writing or not self._steps or token is None or self.failed:
            return
        steps, self._steps = self._steps, []
        batches = [step.batch for step in steps if step.batch is not None]
        run = self._context.run
        if self._keeper.blocks and batches:
            _hurry.begin()
            try:
                trio.lowlevel.start_thread_soon(
                    lambda: self._write_in_thread(batches),
                    lambda failed: token.run_sync_soon(run, self._written, failed.unwrap()),
                )
            except BaseException as error:
                _hurry.end()
                if not isinstance(error, RuntimeError):
                    raise
                self._stop(error)  # the system has no thread for us
                return
        else:
            token.run_sync_soon(lambda: run(self._written, self._write(batches)))
        self._writing = steps

    def _write_in_thread(self, batches: list[Any]) -> BaseException | None:
        try:
            return self._write(batches)
        finally:
            _hurry.end()

    def _write(self, batches: list[Any]) -> BaseException | None:
        """In any thread. Why it failed, if it did."""
        try:
            if batches:
                self._keeper.write(batches)
        except BaseException as error:  # whoever waits for the thread has to be told
            return error
        return None

    def _written(self, failed: BaseException | None) -> None:
        """What was on its way is on disk, or never will be. On the loop, in no task: nothing may leave from here."""
        steps, self._writing = self._writing, []
        try:
            if failed is not None:
                raise failed
            for step in steps:
                if step.batch is not None:
                    self._keeper.written(step.batch)
            for step in steps:
                self._shown(step)
            self._begin()
        except BaseException as error:
            self._stop(error)
        if not self._writing:
            self._idle.set()

    def _shown(self, step: _Step) -> None:
        self._node.committed = step.number
        for session, messages, sent, taken in step.sealed:
            session.committed(sent, taken)
            session.outbox.release(messages)
        for session, *_ in step.sealed:
            self._flush(session)
        for tell in step.events:
            tell()
