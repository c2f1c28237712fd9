"""How methods run: who calls, and, of `async` ones, that each is a task and counts against the limits of its caller.

Those may outlive their session. With a baggage a method begins once the message that called it is committed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from types import CoroutineType
from typing import Any, Final, final

import trio

from ocapn.callbacks import caught, run_apart, start_soon
from ocapn.captp.delivery import crossing
from ocapn.captp.node import LATER, Node, Turn
from ocapn.captp.passing import copy_result
from ocapn.captp.receiving import LARGE
from ocapn.captp.session import Session as CoreSession
from ocapn.errors import RemoteError, TooBusy
from ocapn.limits import Limits
from ocapn.references import current_caller, current_node
from ocapn.sessions import Session

#: In place of the id of a session, for methods begun when it had ended.
_LATE: Final = 0


@final
class Turns:
    """Within it (`with`), turns run: what they send is sent by this peer, and between them nobody calls."""

    __slots__ = ("_caller", "_node", "_nodes")

    def __init__(self, node: Node) -> None:
        self._node = node

    def __enter__(self) -> None:
        self._node.quick = False
        self._nodes = current_node.set(self._node)
        self._caller = current_caller.set(None)

    def __exit__(self, *error: object) -> None:
        current_caller.reset(self._caller)
        current_node.reset(self._nodes)


@final
class _Call:
    """Of an `async` method: `key` is what it counts for in `Methods`, `scopes` has that of each running one."""

    __slots__ = ("coroutine", "key", "scopes", "turn")

    def __init__(
        self, coroutine: CoroutineType[Any, Any, object], turn: Turn, key: int, scopes: set[trio.CancelScope]
    ) -> None:
        self.coroutine = coroutine
        self.turn = turn
        self.key = key
        self.scopes = scopes


@final
class Methods:
    """The running `async` methods of a peer.

    `publics` has the sessions that are not over and forgotten; `kept` says whether what happens is committed; `pump`
    is called when the last method has ended, and sends at once what it has left to be sent.
    """

    __slots__ = (
        "_kept",
        "_limits",
        "_node",
        "_nursery",
        "_outliving",
        "_publics",
        "_pump",
        "_running",
        "_scopes",
        "_unbegun",
        "_uncommitted",
    )

    def __init__(
        self,
        node: Node,
        limits: Limits,
        publics: Mapping[CoreSession, Session],
        kept: bool,
        pump: Callable[[], None],
    ) -> None:
        self._node = node
        self._limits = limits
        self._publics = publics
        self._kept = kept
        self._pump = pump
        self._running: dict[int, int] = {}  # methods, by the id of the session that called them
        #: Sessions that have ended, with methods that run on, the oldest first.
        self._outliving: list[tuple[CoreSession, Session]] = []
        self._scopes: set[trio.CancelScope] = set()  # of methods that no session called
        #: Of methods that have not begun, those whose message is not committed yet.
        self._uncommitted: set[_Call] = set()
        #: And the others, in order: for each there is a task, which takes the first, as trio starts tasks in no order.
        self._unbegun: deque[_Call] = deque()
        self._nursery: trio.Nursery | None = None

    def run_in(self, nursery: trio.Nursery) -> None:
        """The nursery that methods run in, before the first is started."""
        self._nursery = nursery

    def cancel(self) -> None:
        """Cancels what runs, and what will."""
        assert self._nursery is not None
        self._nursery.cancel_scope.cancel()

    def close(self) -> None:
        """Nothing runs any more: what has not begun never will."""
        for call in self._uncommitted:
            call.coroutine.close()

    def room(self, source: CoreSession | None) -> bool:
        """Whether methods may be called before those called earlier have begun: not so many that a pass of the loop
        becomes long, nor so many that those which are quick have no time to end before there are too many."""
        unbegun = len(self._uncommitted) + len(self._unbegun)
        running = self._running.get(self._key(source), 0)
        return unbegun < self._limits.slice_turns and running < self._limits.running_methods // 2

    def _key(self, source: CoreSession | None) -> int:
        """What a method counts for. If the session is over, nobody counts what it has running."""
        return id(source) if source is None or source in self._publics else _LATE

    def start(self, coroutine: CoroutineType[Any, Any, object], turn: Turn) -> object:
        """Makes an `async` method a task. Messages to its target wait until it has run its first step."""
        source = turn.source
        key = self._key(source)
        running = self._running.get(key, 0)
        scopes = self._scopes
        if source is not None:
            if key != _LATE:
                scopes = self._publics[source].methods
            if running >= self._limits.running_methods:
                coroutine.close()
                raise TooBusy(f"{running} methods run for this session already")
            if turn.size >= LARGE and not source.keep(turn.size):
                coroutine.close()
                raise TooBusy("too many bytes are kept for methods that run for this session")
        self._running[key] = running + 1
        self._node.hold_back(turn.target)
        call = _Call(coroutine, turn, key, scopes)
        if not self._kept:
            self._begin(call)
        else:  # once the message is committed, so that no restart runs the method again
            self._uncommitted.add(call)
            self._node.event(lambda: self._begin(call))
        return LATER

    def _begin(self, call: _Call) -> None:
        assert self._nursery is not None
        self._uncommitted.discard(call)
        start_soon(self._nursery, self._run_next)
        self._unbegun.append(call)

    async def _run_next(self) -> None:
        call = self._unbegun.popleft()
        with trio.CancelScope() as scope:
            call.scopes.add(scope)
            try:
                await self._run_method(call)
            finally:
                call.scopes.discard(scope)

    async def _run_method(self, call: _Call) -> None:
        # trio runs this task without a break up to the coroutine's first checkpoint, so what is let go here, and the
        # method that the next task takes, is begun only after that first step.
        turn, key = call.turn, call.key
        self._node.go_on(turn.target)
        current_caller.set(turn.source)
        answer = turn.answer

        def failed(error: Exception) -> None:
            if answer is None:
                self._node.log_lost(error, turn.source)
            else:
                answer.break_with(crossing(error))

        try:
            result: object = LATER
            with caught(failed):
                result = copy_result(await call.coroutine, self._limits)
            if answer is not None and result is not LATER:
                answer.resolve(result)
        except BaseException:  # cancelled, maybe in a group
            if answer is not None:
                answer.break_with(RemoteError("the method was cancelled"))
            raise
        finally:
            if turn.source is not None and turn.size >= LARGE:
                turn.source.kept_bytes -= turn.size
            left = self._running[key] - 1
            if left:
                self._running[key] = left
            else:
                del self._running[key]
        if not self._running:  # else others may end in this pass as well: what they leave goes out after it
            assert self._nursery is not None
            run_apart(self._nursery, self._pump)  # what it runs is not to see the context of this method

    def outlive(self, session: CoreSession, public: Session) -> None:
        """Methods run on though their session has ended: as many as one session may have, for all that have."""
        running = self._running
        if id(session) not in running:
            return
        outliving = [one for one in self._outliving if id(one[0]) in running]
        outliving.append((session, public))
        left = sum(running[id(one)] for one, _ in outliving)
        while left > self._limits.running_methods:
            oldest, its = outliving.pop(0)
            left -= running[id(oldest)]
            for scope in its.methods:
                scope.cancel()
        self._outliving = outliving
