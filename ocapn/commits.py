"""Commit, then send: what turns have to show waits until what it depends on is on disk.

Each pass of the loop that changes something is a step: a batch of changes, the messages that were sent meanwhile, and
those who are to be told. One task has batches written, as many at once as have come while the last were on their way;
then the steps are shown, in order. A step without changes waits for the steps before it, and for nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, final

import trio

from ocapn.captp.node import Node, TurnResult
from ocapn.captp.outbox import Sealed
from ocapn.captp.port import Keeper
from ocapn.captp.session import Session


@final
class _Step:
    """`sealed`: for each session with something to send, the messages, and the counts of frames as committed then."""

    __slots__ = ("batch", "events", "sealed")

    def __init__(
        self,
        batch: Any | None,
        sealed: list[tuple[Session, Sealed, int, int]],
        events: list[Callable[[], None]],
    ) -> None:
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
        self._work = trio.Event()
        #: Whether a write has failed: nothing is committed or shown any more.
        self.failed = False

    def show(self, result: TurnResult) -> None:
        """Shows what turns have left behind, once it is committed."""
        if self.failed:
            return
        touched = self._node.take_touched()
        sessions = dict.fromkeys([*result.outbound, *touched])
        sealed = []
        for session in sessions:
            messages = session.outbox.seal()
            sealed.append((session, messages, *session.frame_counts))
        touched |= self._node.take_touched()  # sealing sends garbage
        step = _Step(self._keeper.cut(touched), sealed, result.events)
        if step.batch is None and not self._steps:
            self._shown(step)
        else:
            self._steps.append(step)
            self._work.set()

    async def settled(self) -> None:
        """Returns once all that has happened so far is on disk."""
        done = trio.Event()
        self._node.event(done.set)
        self.show(self._node.take())
        await done.wait()

    def finish(self) -> None:
        """The peer has ended: commits what there is left to commit, and shows nothing more. Blocks."""
        self.show(self._node.take())
        batches = [step.batch for step in self._steps if step.batch is not None]
        self._steps.clear()
        if batches:
            self._keeper.write(batches)
            for batch in batches:
                self._keeper.written(batch)

    async def run(self) -> None:
        """Writes for as long as it runs. Raises what `Keeper.write` raises: nothing is shown any more then."""
        while True:
            await self._work.wait()
            self._work = trio.Event()
            while self._steps:
                steps = list(self._steps)
                batches = [step.batch for step in steps if step.batch is not None]
                if batches:
                    await self._write(batches)
                    for batch in batches:
                        self._keeper.written(batch)
                del self._steps[: len(steps)]
                for step in steps:
                    self._shown(step)

    async def _write(self, batches: list[Any]) -> None:
        try:
            if self._keeper.blocks:
                await trio.to_thread.run_sync(self._keeper.write, batches)
            else:
                await trio.lowlevel.checkpoint()
                self._keeper.write(batches)
        except Exception:
            self.failed = True
            raise

    def _shown(self, step: _Step) -> None:
        for session, messages, sent, taken in step.sealed:
            session.committed(sent, taken)
            session.outbox.release(messages)
        for session, *_ in step.sealed:
            self._flush(session)
        for tell in step.events:
            tell()
