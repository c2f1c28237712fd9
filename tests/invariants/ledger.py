"""What one side of a durable session has sent and taken, counted from its frames, over all its lives: I7 and I8."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from hashlib import sha256
from weakref import ref as weakref

from ocapn.captp.frames import Frames
from ocapn.captp.session import Session
from tests.invariants.wire import Effect, effect

Report = Callable[[str], None]


class Ledger:
    """One life of one side. `committed`: up to which frame of ours this side has on disk; None if it has no disk.

    A session that comes from a baggage goes on with the ledger of the life that wrote it, up to the frames that were
    committed. If none is known, as when the frames were forged, there is nothing to compare with: `unknown`.
    """

    def __init__(
        self, session: Session, frames: Frames, report: Report, committed: Callable[[], int | None]
    ) -> None:
        self.frames = frames
        self.id = session.id
        self.name = f"the session of {session.node.own[:1] or 'a peer'} with {session.location.designator}"
        self.unknown = False
        self.settled_at: int | None = None  # frames numbered before: no commit holds them
        self.attached_at = 1  # the first frame on the present connection
        self._session = weakref(session)
        self._report = report
        self._committed = committed
        self.sent_digests = {0: frames.acked_digest}
        self.taken_digests = {0: frames.taken_digest}
        self._sent: dict[int, Effect] = {}
        self._taken: dict[int, Effect] = {}
        self._clear()

    def _clear(self) -> None:
        self._given: Counter[int] = Counter()
        self._ever: set[int] = set()
        self._held: Counter[int] = Counter()
        self._asked: set[int] = set()
        self._released: dict[int, int] = {}
        self._answers: set[int] = set()
        self._counts: set[int] = set()
        self._slots: dict[int, int] = {}

    @property
    def session(self) -> Session | None:
        return self._session()

    # As it happens

    def number(self, message: bytes) -> None:
        """A frame of ours was numbered."""
        frames = self.frames
        number = frames.sent
        self.sent_digests[number] = frames.kept[-1][1]
        if self.unknown:
            return
        found = effect(message)
        if found is not None:
            self._sent[number] = found
            self._look(found, number)
            self._add_sent(found, number)

    def take(self, message: bytes) -> None:
        """A frame of theirs was taken."""
        number = self.frames.taken
        self.taken_digests[number] = self.frames.taken_digest
        if self.unknown:
            return
        found = effect(message)
        if found is not None:
            self._taken[number] = found
            self._look_taken(found)
            self._add_taken(found)

    def restore(self, others: Iterable[Ledger]) -> None:
        """The frames come from a baggage; `others` are the ledgers of this side, the newest first."""
        frames = self.frames
        self.settled_at = 0
        for old in others:
            if (
                not old.unknown
                and old.sent_digests.get(frames.sent) == frames.sent_digest
                and old.taken_digests.get(frames.taken) == frames.taken_digest
            ):
                break
        else:
            self.unknown = True
            self.sent_digests = {frames.sent: frames.sent_digest}
            return
        self.sent_digests = {n: one for n, one in old.sent_digests.items() if n <= frames.sent}
        self.taken_digests = {n: one for n, one in old.taken_digests.items() if n <= frames.taken}
        self._sent = {number: one for number, one in old._sent.items() if number <= frames.sent}
        self._taken = {number: one for number, one in old._taken.items() if number <= frames.taken}
        self._clear()
        for number, found in self._sent.items():
            self._add_sent(found, number)
        for found in self._taken.values():
            self._add_taken(found)

    def _add_sent(self, found: Effect, number: int) -> None:
        self._given.update(found.given)
        self._ever.update(found.given)
        for position, delta in found.returned:
            self._held[position] -= delta
        if found.asked >= 0:
            self._asked.add(found.asked)
        for position in found.released:
            self._asked.discard(position)
            self._released[position] = number
        self._counts.update(count for session, count in found.counts if session == self.id)

    def _add_taken(self, found: Effect) -> None:
        self._held.update(found.given)
        for position, delta in found.returned:
            self._given[position] -= delta
        if found.asked >= 0:
            self._answers.add(found.asked)
        self._answers.difference_update(found.released)

    def _look(self, found: Effect, number: int) -> None:
        """What is wrong with a frame that is about to be added."""
        session = self.session
        exports = {} if session is None else session.tables.exports
        for position in found.given:
            if position in self._ever and self._given[position] <= 0:
                self._say("I8", f"export {position} was freed, and is sent again")
            slot = exports.get(position)
            if slot is not None:
                if self._given[position] > 0 and self._slots.get(position, id(slot)) != id(slot):
                    self._say("I8", f"export {position} is another than the one that was sent before")
                self._slots[position] = id(slot)
        for position, delta in found.returned:
            if delta > self._held[position]:
                held = self._held[position]
                self._say("I7", f"import {position} came {held} times, and is returned {delta} times")
        if found.asked >= 0:
            if found.asked in self._asked:
                self._say("I8", f"answer {found.asked} is asked for again, and was not released")
            released = self._released.get(found.asked)
            committed = self._committed()
            if released is not None and committed is not None and released > committed:
                self._say("I8", f"answer {found.asked} is asked for again, and its release is not committed")
        for for_session, count in found.counts:
            if for_session == self.id and count in self._counts:
                self._say("I8", f"handoff count {count} is used again")

    def _look_taken(self, found: Effect) -> None:
        """What the peer may return, the tables must have: else it is held to have broken the protocol."""
        session = self.session
        if session is None or session.ended is not None:
            return
        for position, delta in found.returned:
            slot = session.tables.exports.get(position)
            count = 0 if slot is None else slot.count
            if count < delta <= self._given[position]:
                given = self._given[position]
                self._say("I7", f"the peer holds export {position} {given} times, the tables say {count}")

    def frames_differ(self, number: int, message: bytes) -> bool:
        """Whether a message is another than our frame of that number."""
        before = self.sent_digests.get(number - 1)
        return before is not None and sha256(before + message).digest() != self.sent_digests.get(number)

    # At rest

    def check(self) -> None:
        """Compares the tables of the session, if it lives, with what the frames say. Not in the middle of a message."""
        session = self.session
        if session is None or self.unknown or session.ended is not None or session.frames is not self.frames:
            return
        tables, outbox = session.tables, session.outbox
        exports = {position: slot.count for position, slot in tables.exports.items()}
        self._compare("I7", "references that were sent and not returned", exports, +self._given)
        held: Counter[int] = Counter({position: slot.count for position, slot in tables.imports.items()})
        held.update(outbox._exports)
        held.update({position: twice // 2 for position, twice in tables._resolvers.items()})
        self._compare("I7", "references that came and were not returned", +held, +self._held)
        below = [position for position, count in self._given.items() if count < 0]
        if below:
            self._say("I7", f"exports {below} were returned more often than they were sent")
        questions = tables.questions.keys() | outbox._answers.keys()
        self._compare("I8", "answers that were asked for and not released", questions, self._asked)
        self._compare("I8", "answers that are owed", set(tables.answers), self._answers)

    def _compare(self, name: str, what: str, kept: object, counted: object) -> None:
        if kept != counted:
            self._say(name, f"{what}: the tables say {kept}, the frames {counted}")

    def _say(self, name: str, what: str) -> None:
        self._report(f"{name}: {self.name}: {what}")
