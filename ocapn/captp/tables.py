"""The four tables of a session, and their counts (CapTP specification, op:gc-exports, op:gc-answers).

    exports    what the peer may name: objects, promises and resolvers of ours, by positions we chose
    imports    what the peer exported and somebody here still holds, by positions the peer chose
    questions  answers that we asked for and have not released, by positions we chose
    answers    answers that the peer asked for and has not released, by positions the peer chose

Invariants (`check`): an export's count is how often it was sent less what the peer returned, and above zero; an
import's count is how often it came since the last return; positions of exports and questions are never used
twice and are below the next one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final
from weakref import ref as weakref

from ocapn.captp.delivery import RemoteVow, Vow
from ocapn.captp.handles import LocalTarget, PromiseHandle, RefHandle
from ocapn.codec.operations import ANSWER, EXPORT
from ocapn.errors import RemoteProtocolError, TooBusy
from ocapn.limits import MAX_POSITION, Limits

if TYPE_CHECKING:
    from collections.abc import Callable

    from ocapn.captp.session import Session

#: What stands in the exports table: a target of ours, a promise (by its handle), or a question, which is there
#: as the resolver of its own answer.
Exported = LocalTarget | PromiseHandle | RemoteVow

#: Positions by kind: "export", "import", "question", "answer", "resolver".
Touched = dict[str, set[int]]


def nothing_touched() -> Touched:
    """No positions of any kind."""
    return {"export": set(), "import": set(), "question": set(), "answer": set(), "resolver": set()}


class Import:
    """An object or promise that the peer exported. `vow` is set for a promise."""

    __slots__ = ("_handle", "_recipient", "count", "position", "session", "vow")

    def __init__(self, session: Session, position: int, promise: bool) -> None:
        self.session = session
        self.position = position
        self._recipient = b""
        self.count = 0
        self.vow = RemoteVow(session, EXPORT, position) if promise else None
        self._handle: weakref[RefHandle] | None = None

    @property
    def recipient(self) -> bytes:
        """Its descriptor, encoded, once somebody sends to it."""
        if not self._recipient:
            self._recipient = self.session.codec.descriptor(EXPORT, self.position)
        return self._recipient

    def handle(self) -> RefHandle | PromiseHandle:
        """The application's end: one object as long as somebody holds it."""
        if self.vow is not None:
            return self.vow.handle()
        handle = None if self._handle is None else self._handle()
        if handle is None:
            handle = self.session.node.make_ref(self)
            self._handle = weakref(handle)
        return handle

    @property
    def held(self) -> bool:
        if self.vow is not None:
            return self.vow.held
        return self._handle is not None and self._handle() is not None

    def release(self) -> None:
        """The handle was finalised: returns the object, unless a new handle was made since, or it is kept."""
        session = self.session
        if not self.held and session.tables.imports.get(self.position) is self:
            keeper = session.node.keeper
            if keeper is None or not keeper.holds(self):
                session.release_import(self.position)


@final
class Late:
    """A durable object that is found when it is first asked for. `number` is its own among those of the baggage."""

    __slots__ = ("_find", "number")

    def __init__(self, number: int, find: Callable[[int], Any]) -> None:
        self.number = number
        self._find = find

    def find(self) -> Any:
        return self._find(self.number)


@final
class Export:
    """Something of ours that the peer holds `count` times."""

    __slots__ = ("count", "held", "key", "position", "promise")

    def __init__(self, position: int, held: Exported | Late, key: int, promise: bool) -> None:
        self.position = position
        self.held = held
        self.key = key  # identity under which it was exported, 0 for a resolver
        self.promise = promise
        self.count = 0

    @property
    def value(self) -> Exported:
        held = self.held
        if isinstance(held, Late):
            return held.find()  # type: ignore[no-any-return]  # an object of the application
        return held

    @property
    def resolves(self) -> RemoteVow | None:
        """The promise that this resolves, if it is a resolver."""
        held = self.held
        return held if isinstance(held, RemoteVow) else None

    def __str__(self) -> str:
        """What is exported, for people."""
        value = self.held
        if isinstance(value, Late):
            return f"durable object {value.number}"  # which is not loaded for this
        if isinstance(value, RemoteVow):
            if not value.position:
                return "resolver, used"
            return f"resolver of answer {value.position}" if value.kind == ANSWER else "resolver of a promise"
        if isinstance(value, PromiseHandle):
            return f"promise, {value._vow.status}"
        return type(value).__name__


class Tables:
    """Slots and counts of one session. Methods that take what the peer sent raise RemoteProtocolError."""

    __slots__ = (
        "_export_of",
        "_limits",
        "_resolvers",
        "_telling",
        "answers",
        "exports",
        "imports",
        "next_export",
        "next_question",
        "questions",
        "touched",
    )

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.exports: dict[int, Export] = {}
        self._export_of: dict[int, Export] = {}
        self.imports: dict[int, Import] = {}
        self.questions: dict[int, RemoteVow] = {}
        self.answers: dict[int, Vow] = {}
        #: Resolvers of the peer that are still to be told: position to twice the count, plus one for a promise.
        self._resolvers: dict[int, int] = {}
        self._telling = 0  # how often they are to be told
        self.next_export = 1  # 0 is the bootstrap object
        self.next_question = 1  # deployed peers refuse answer 0 in places
        #: With a baggage: what has changed since the last batch, positions by kind.
        self.touched: Touched | None = None

    def touch(self, kind: str, position: int) -> None:
        """Something has changed: of an "export", "import", "resolver", "answer" or "question"."""
        if self.touched is not None:
            self.touched[kind].add(position)

    @property
    def slots(self) -> int:
        return len(self.exports) + len(self.imports) + self._telling

    # Exports

    def export(self, value: LocalTarget | PromiseHandle, key: int) -> Export:
        """The slot under which `value` is exported; its count is the caller's to raise."""
        slot = self._export_of.get(key)
        if slot is None:
            slot = self._new_export(value, key, isinstance(value, PromiseHandle))
            self._export_of[key] = slot
        self.touch("export", slot.position)
        return slot

    def export_resolver(self, vow: RemoteVow) -> Export:
        """A slot for the resolver of an answer that the peer is about to be asked for, sent once."""
        slot = self._new_export(vow, 0, False)
        slot.count = 1
        return slot

    def _new_export(self, value: Exported, key: int, promise: bool) -> Export:
        if self.slots >= self._limits.slots:
            raise TooBusy(f"the session holds {self._limits.slots} references, its limit")
        position = self.next_export
        self.next_export = position + 1
        self.touch("export", position)
        slot = self.exports[position] = Export(position, value, key, promise)
        return slot

    def drop_export(self, slot: Export, count: int) -> None:
        """Takes `count` off the slot's count; at zero it is freed."""
        slot.count -= count
        self.touch("export", slot.position)
        if slot.count <= 0:
            del self.exports[slot.position]
            if slot.key:
                del self._export_of[slot.key]

    def returned(self, positions: list[int], deltas: list[int]) -> None:
        """The peer returned what it held (op:gc-exports)."""
        for position, delta in zip(positions, deltas, strict=True):
            if position == 0:
                continue  # the bootstrap object is never freed
            slot = self.exports.get(position)
            if slot is None:
                raise RemoteProtocolError(f"gc of export {position}, which was never exported or is freed")
            if delta < 1 or delta > slot.count:
                raise RemoteProtocolError(
                    f"gc of export {position} by {delta}, which the peer holds {slot.count} times"
                )
            self.drop_export(slot, delta)

    def restore_export(self, position: int, value: Exported, key: int, promise: bool) -> Export:
        """A slot as it was when the process ended; its count is the caller's to set. `key` as in Export."""
        slot = self.exports[position] = Export(position, value, key, promise)
        if key:
            self._export_of[key] = slot
        return slot

    def known_as(self, slot: Export, key: int) -> None:
        """What a slot exports has an identity now, `key` as in Export."""
        slot.key = key
        self._export_of[key] = slot

    def restore_resolver(self, position: int, twice: int) -> None:
        """Resolvers of the peer that were still to be told when the process ended, as `_resolvers` has them."""
        self._resolvers[position] = twice
        self._telling += twice // 2

    def touch_all(self) -> None:
        """All that there is counts as changed."""
        self.touched = {
            "export": set(self.exports),
            "import": set(self.imports),
            "question": set(self.questions),
            "answer": set(self.answers),
            "resolver": set(self._resolvers),
        }

    def resolvers(self, position: int) -> int:
        """The entry for a resolver of the peer, 0 if it has none: twice the count, plus one for a promise."""
        return self._resolvers.get(position, 0)

    # Imports

    def import_slot(self, session: Session, position: int, promise: bool) -> Import:
        """The slot for what arrived as desc:import-object or -promise, counted."""
        slot = self.imports.get(position)
        if slot is None:
            if self.slots >= self._limits.slots:
                raise RemoteProtocolError(f"more than {self._limits.slots} references in one session")
            slot = self.imports[position] = Import(session, position, promise)
            known = self._resolvers.get(position)
            if known is not None and known & 1 != promise:
                raise RemoteProtocolError(f"import {position} was sent as an object and as a promise")
        elif (slot.vow is not None) != promise:
            raise RemoteProtocolError(f"import {position} was sent as an object and as a promise")
        if slot.count >= MAX_POSITION:
            raise RemoteProtocolError(f"import {position} was sent 2^63 times")
        slot.count += 1
        self.touch("import", position)
        return slot

    def import_resolver(self, position: int, promise: bool) -> None:
        """Counts a resolver that arrived as resolve-me: used once, then returned, never held by anybody."""
        resolvers = self._resolvers
        known = resolvers.get(position)
        slot = self.imports.get(position)
        if (known is not None and known & 1 != promise) or (
            slot is not None and (slot.vow is not None) != promise
        ):
            raise RemoteProtocolError(f"import {position} was sent as an object and as a promise")
        if self.slots >= self._limits.slots:
            raise RemoteProtocolError(f"more than {self._limits.slots} references in one session")
        self._telling += 1
        self.touch("resolver", position)
        resolvers[position] = (int(promise) if known is None else known) + 2

    def resolver_used(self, position: int) -> None:
        self._telling -= 1
        self.touch("resolver", position)
        left = self._resolvers[position] - 2
        if left >= 2:
            self._resolvers[position] = left
        else:
            del self._resolvers[position]

    # Answers

    def answer(self, position: int, vow: Vow) -> None:
        """The peer asks for an answer at `position`."""
        if position in self.answers:
            raise RemoteProtocolError(f"answer {position} is asked for twice")
        if len(self.answers) >= self._limits.answers:
            raise RemoteProtocolError(f"more than {self._limits.answers} answers held in one session")
        self.answers[position] = vow
        self.touch("answer", position)

    def answers_released(self, positions: list[int]) -> None:
        """The peer gave up answers (op:gc-answers)."""
        for position in positions:
            self.touch("answer", position)
            if self.answers.pop(position, None) is None:
                raise RemoteProtocolError(
                    f"gc of answer {position}, which was never asked for or is released"
                )

    def check(self) -> None:
        """Raises AssertionError naming the first invariant that does not hold."""
        for position, slot in self.exports.items():
            assert slot.position == position, f"export {position} stands under another position"
            assert 0 < position < self.next_export, f"export {position} was never allocated"
            assert slot.count > 0, f"export {position} is kept with count {slot.count}"
            if slot.key:
                assert self._export_of.get(slot.key) is slot, f"export {position} is not found by its object"
        for key, slot in self._export_of.items():
            assert self.exports.get(slot.position) is slot, f"freed export {slot.position} is still found"
            assert slot.key == key, f"export {slot.position} is found by another object"
        for position, held in self.imports.items():
            assert held.position == position, f"import {position} stands under another position"
            assert held.count > 0, f"import {position} is kept with count {held.count}"
        for position, question in self.questions.items():
            assert question.position == position, f"question {position} stands under another position"
            assert 0 < position < self.next_question, f"question {position} was never asked"
            assert not question.released, f"question {position} is kept though released"
        assert all(count >= 2 for count in self._resolvers.values()), "a resolver is kept with count 0"
        telling = sum(count >> 1 for count in self._resolvers.values())
        assert telling == self._telling, "resolvers are miscounted"

    def sizes(self) -> dict[str, int]:
        return {
            "exports": len(self.exports),
            "imports": len(self.imports),
            "questions": len(self.questions),
            "answers": len(self.answers),
            "resolvers": len(self._resolvers),
        }
