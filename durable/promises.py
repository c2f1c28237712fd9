"""What a pending promise waits on, so that it can go on waiting after a restart (spec/baggage.md, Waiting).

Two things settle a promise whose process has died: a peer, over a durable session, or something that is kept in a row
of `turn` (`durable.waiting`). A promise that waits on neither ends with its process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar, final

from ocapn.captp.delivery import PENDING, RemoteVow, Vow, broken
from ocapn.captp.handles import Waiting
from ocapn.captp.node import Node
from ocapn.captp.session import Session
from ocapn.codec.operations import ANSWER, EXPORT
from ocapn.errors import PeerRestarted, SessionLost

T = TypeVar("T")

#: The first member of what a promise is kept as.
BROKEN_WITH: Final = 0
VALUE: Final = 1
_REMOTE: Final = 2
_TURN: Final = 3

_RemoteKey = tuple[bytes, bool, int]  # session id, whether it is an answer, position


@final
class _Watcher(Waiting):
    """Has a row written again when a promise that it names is settled, or waits on something else."""

    __slots__ = ("_again", "vow")
    listens = True

    def __init__(self, vow: Vow, again: Callable[[], None]) -> None:
        self._again: Callable[[], None] | None = again
        self.vow: Vow | None = vow

    @property
    def gone(self) -> bool:
        return self._again is None

    def stop(self) -> None:
        """The row is gone, or does not name the promise any more. What the row was made of is let go, though this may
        stay in the queue of the promise for long."""
        self._again = self.vow = None

    def settle(self, vow: Vow) -> None:
        if self._again is not None:
            self._again()

    def moves(self, vow: Vow) -> None:
        if self._again is not None:
            self.vow = vow
            self._again()


@final
class Promises:
    """The promises of one node, as rows name them. `question` says whether one is kept, by session and position."""

    def __init__(self, node: Node, question: Callable[[bytes, int], bool]) -> None:
        self._node = node
        self._question = question
        self._numbers: dict[Vow, int] = {}
        self._vows: dict[int, Vow] = {}
        self._next = 1
        self._named: list[Vow] | None = None  # promises that the row being packed names
        self._watchers: dict[bytes, list[_Watcher]] = {}  # by the key of the row
        # After a restart, until everything is back:
        self._restored: dict[int, Vow] = {}
        self._remotes: dict[_RemoteKey, RemoteVow] = {}
        self._listening: set[_RemoteKey] = set()

    # Numbers

    def draw(self) -> int:
        """A number that no row has or names."""
        self._next += 1
        return self._next - 1

    def drawn(self, number: int) -> None:
        """A row has or names the number."""
        self._next = max(self._next, number + 1)

    def settled_by(self, vow: Vow, number: int) -> None:
        """What will settle the promise is kept under that number, from now on until `forget`."""
        if self._numbers.get(vow) != number:
            self._numbers[vow] = number
            self._vows[number] = vow
            for item in () if vow.waiting is None else vow.waiting.items:
                item.moves(vow)

    def forget(self, number: int) -> None:
        """What had that number is not kept any more. Rows may still name it: nothing else ever gets it."""
        vow = self._vows.pop(number, None)
        if vow is not None and self._numbers[vow] == number:
            del self._numbers[vow]

    # Packing

    def on(self, vow: Vow) -> list[Any] | None:
        """What a pending promise waits on; None if it ends with this process."""
        end = vow.end()
        if self._named is not None:
            self._named.append(end)
        if isinstance(end, RemoteVow):
            session = end.session
            if session.frames is None or not end.position:  # the session will never be durable
                return None
            return [_REMOTE, session.id, end.kind == ANSWER, end.position]
        number = self._numbers.get(end)
        return None if number is None else [_TURN, number]

    def watched(self, row: bytes, again: Callable[[], None], pack: Callable[[], T]) -> T:
        """What `pack` returns, for a row. `again` is called when a promise in it is not what it was."""
        outer, self._named = self._named, []
        try:
            return pack()
        finally:
            named = dict.fromkeys(vow for vow in self._named if vow.state == PENDING)
            self._named = outer
            watchers = []
            for watcher in self._watchers.pop(row, ()):
                if watcher.vow in named:
                    del named[watcher.vow]
                    watchers.append(watcher)
                else:
                    watcher.stop()
            for vow in named:
                watcher = _Watcher(vow, again)
                vow.watch(watcher)
                watchers.append(watcher)
            if watchers:
                self._watchers[row] = watchers

    @property
    def watching(self) -> bool:
        """Whether any row is to be written again when a promise in it is not what it was."""
        return bool(self._watchers)

    def unwatch(self, row: bytes) -> None:
        """The row is gone, or names no promise any more."""
        for watcher in self._watchers.pop(row, ()):
            watcher.stop()

    # After a restart

    def restore(self, number: int) -> Vow:
        """The promise that what has this number will settle."""
        vow = self._restored.get(number)
        if vow is None:
            self.drawn(number)
            vow = self._restored[number] = Vow(self._node)
            self.settled_by(vow, number)
        return vow

    def listening(self, session_id: bytes, answer: bool, position: int) -> None:
        """A resolver of ours, for that promise of a peer, is with the peer."""
        self._listening.add((session_id, answer, position))

    def promise(self, packed: list[Any] | None, why: str = "the process that owed this was restarted") -> Vow:
        """The promise that waits on what was packed; broken, if that ended with the process."""
        if packed is None:
            return broken(self._node, PeerRestarted(why))
        if packed[0] == _REMOTE:
            return self._remote(*packed[1:]) or broken(self._node, PeerRestarted(why))
        self.drawn(packed[1])
        return self._restored.get(packed[1]) or broken(self._node, PeerRestarted(why))

    def _remote(self, session_id: bytes, answer: bool, position: int) -> Vow | None:
        """A promise that a peer will resolve, as it was."""
        session = self._node.kept_session(session_id)
        if session is None:
            return broken(self._node, SessionLost("the session is over"))
        key = (session_id, answer, position)
        vow = self._remotes.get(key)
        if vow is None:
            tables = session.tables
            if answer:
                known = self._question(session_id, position)
                vow = RemoteVow(session, ANSWER, position)
                if known:
                    # Not as it was kept: the resolver may have been used, and what it was told have waited in a gate.
                    vow.listening = key in self._listening
                    tables.questions[position] = vow
            else:
                slot = tables.imports.get(position)
                known = slot is not None and slot.vow is not None  # else it is owed to the peer, and no more
                if slot is not None and slot.vow is not None:
                    vow = slot.vow
                else:
                    vow = RemoteVow(session, EXPORT, position)
                vow.listening = key in self._listening
            if not known:  # it was given up as a place to send to; its resolver may still be told
                if key not in self._listening:
                    return None
                vow.released = vow.listening = True
            vow.used = True  # for all that is known
            self._remotes[key] = vow
        return vow

    def resolved_by(self, session: Session, answer: bool, position: int) -> RemoteVow:
        """The promise that a resolver of ours is for, if somebody still waits for it."""
        vow = self._remotes.get((session.id, answer, position))
        if vow is None and not answer:
            slot = session.tables.imports.get(position)
            vow = None if slot is None else slot.vow
            if vow is not None:
                vow.listening = vow.used = True
        return vow or session.spent

    def restored(self) -> None:
        """Everything is back."""
        self._restored.clear()
        self._remotes.clear()
        self._listening.clear()
