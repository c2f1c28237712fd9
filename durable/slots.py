"""The slots of sessions as rows: what each side has exported, imported, asked and owes (spec/baggage.md, Database).

What there is to say of a slot is in its page if that is short, and else in a row of its own: objects and promises that
are exported, and answers that have become something longer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import Any, Final, final

from durable.baggage import Baggage
from durable.errors import NotStorable
from durable.keeping import Objects
from durable.objects import Durable, small
from durable.pages import OWN, PLACES, Pages
from durable.promises import BROKEN_WITH, VALUE, Promises
from durable.records import MARK, decode_row, encode_row
from durable.store import key_number, number_key
from durable.values import OUTCOME, Lost, Values
from durable.waiting import Waiters
from ocapn.captp.delivery import BROKEN, FULFILLED, PENDING, RemoteVow, Vow, broken, crossing
from ocapn.captp.handles import PromiseHandle
from ocapn.captp.node import Node
from ocapn.captp.session import Session
from ocapn.captp.tables import Export, Import, Late, nothing_touched
from ocapn.codec.operations import ANSWER

log: Final = logging.getLogger("durable")

#: What stands in the row of an export.
_OBJECT, _PROMISE, _RESOLVER = 0, 1, 2
#: Characters of a text that does not need a row of its own.
_SHORT: Final = 32
#: In a page, the outcome of an answer that ends with the process.
_GONE: Final = 0

#: An exported promise or resolver that is kept: its session, position and count, and as what it is kept.
KeptPromise = tuple[Session, int, int, Any]


@final
class _Stored:
    """The slots of a session that are in the baggage."""

    __slots__ = ("own", "pages")

    def __init__(self, pages: Pages) -> None:
        self.pages = pages
        self.own: dict[str, set[int]] = {kind: set() for kind in OWN}  # with rows of their own


@final
class Slots:
    """Keeps the slots of the sessions of one node."""

    def __init__(
        self,
        baggage: Baggage,
        node: Node,
        objects: Objects,
        promises: Promises,
        values: Values,
        waiters: Waiters,
    ) -> None:
        self._baggage = baggage
        self._node = node
        self._objects = objects
        self._promises = promises
        self._values = values
        self._waiters = waiters
        self._stored: dict[bytes, _Stored] = {}  # by session
        #: What there is to say of slots of a kind, by position.
        self._kinds: Final[tuple[tuple[str, Callable[[Session, set[int]], dict[int, Any]]], ...]] = (
            ("question", self._questions),
            ("export", self._exports),
            ("import", self._imports),
            ("resolver", self._resolvers),
            ("answer", self._answers),
        )

    def save(self, session: Session) -> None:
        """Writes what has changed since the last time; everything, the first time."""
        tables = session.tables
        stored = self._stored.get(session.id)
        if stored is None:
            stored = self._stored[session.id] = _Stored(Pages(self._baggage, session.id))
            tables.touch_all()
            session.outbox.touch_all()
        assert tables.touched is not None
        touched, tables.touched = tables.touched, nothing_touched()
        for kind, say in self._kinds:
            positions = touched[kind]
            if positions:
                stored.pages.save(kind, say(session, positions))

    def erase(self, session: Session) -> None:
        """The session is over."""
        stored = self._stored.pop(session.id)
        for position, _ in stored.pages.all("answer"):
            self._promises.unwatch(session.id + OWN["answer"] + number_key(position))
        for table in ("slot", "answer"):
            for key, _ in self._baggage.scan(table, session.id):
                self._promises.unwatch(key)
                self._baggage.remove(table, key)

    # What pages say

    def _questions(self, session: Session, positions: set[int]) -> dict[int, Any]:
        """Whether a resolver of ours is with the peer; False of one that the peer is to be told to release."""
        questions, releases = session.tables.questions, session.outbox.releases
        said: dict[int, Any] = {}
        for position in positions:
            question = questions.get(position)
            if question is not None:
                said[position] = question.listening
            else:
                said[position] = False if releases(position) else None
        return said

    def _imports(self, session: Session, positions: set[int]) -> dict[int, Any]:
        """How often it came and was not returned; with whether it is a promise, and how many durable objects hold it,
        unless that is no and none."""
        imports, owed, held = session.tables.imports, session.outbox.owed, self._objects.holders(session)
        said: dict[int, Any] = {}
        for position in positions:
            slot = imports.get(position)
            count = owed(position) + (0 if slot is None else slot.count)
            promise = slot is not None and slot.vow is not None
            holders = held.get(position, 0)
            if not count:
                said[position] = None
            else:
                said[position] = [count, promise, holders] if promise or holders else count
        return said

    def _resolvers(self, session: Session, positions: set[int]) -> dict[int, Any]:
        """How many are to be told, and who goes on waiting to be."""
        many, kept = session.tables.resolvers, self._waiters.resolvers
        return {
            position: kept(session, position, twice) if (twice := many(position)) else None
            for position in positions
        }

    def _answers(self, session: Session, positions: set[int]) -> dict[int, Any]:
        """The outcomes of answers that are owed."""
        own, answers = self._stored[session.id].own["answer"], session.tables.answers
        watching = self._promises.watching
        said: dict[int, Any] = {}
        for position in positions:
            answer = answers.get(position)
            end = None if answer is None else answer.end()
            entry: Any = None
            row: list[Any] | None = None
            if end is None or (end.state == FULFILLED and _is_short(end.value)):  # as most are
                if watching:
                    self._promises.unwatch(session.id + OWN["answer"] + number_key(position))
                if end is not None:
                    entry = [VALUE, end.value]
            else:
                outcome = self._promise_row(session, "answer", position, end)
                if outcome is None:
                    entry = _GONE
                elif outcome[0] in (VALUE, BROKEN_WITH):
                    row = [outcome]
                else:
                    entry = outcome
            said[position] = entry
            if row is not None or position in own:
                self._save_row(session.id, "answer", position, row)
        return said

    def _exports(self, session: Session, positions: set[int]) -> dict[int, Any]:
        """Of a resolver, which answer it is for."""
        own, exports = self._stored[session.id].own["export"], session.tables.exports
        said: dict[int, Any] = {}
        for position in positions:
            slot = exports.get(position)
            entry: Any = None
            row: list[Any] | None = None
            if slot is not None:
                value = slot.held
                if type(value) is RemoteVow and value.kind == ANSWER:
                    entry = value.position
                else:
                    row = self._export(session, slot)
            said[position] = entry
            if row is not None or position in own:
                self._save_row(session.id, "export", position, row)
        return said

    # Rows of their own

    def _save_row(self, session_id: bytes, kind: str, position: int, row: list[Any] | None) -> None:
        key = session_id + OWN[kind] + number_key(position)
        table, _ = PLACES[kind]
        own = self._stored[session_id].own[kind]
        if row is None:
            own.remove(position)
            if kind == "export":  # an answer may have gone to its page, and still wait
                self._promises.unwatch(key)
            self._baggage.remove(table, key)
            return
        try:
            data = encode_row(row)
        except NotStorable:  # what a promise has become, which stands last
            data = encode_row([*row[:-1], None])
        own.add(position)
        self._baggage.put(table, key, data)

    def _export(self, session: Session, slot: Export) -> list[Any]:
        value = slot.held
        if isinstance(value, Late):  # which is not loaded for this
            return [slot.count, _OBJECT, {MARK + "o": value.number}]
        if isinstance(value, RemoteVow):
            return [slot.count, _RESOLVER, [False, value.position]]
        if isinstance(value, PromiseHandle):
            kept = self._promise_row(session, "export", slot.position, value._vow)
            return [slot.count, _PROMISE, kept]
        return [slot.count, _OBJECT, self._durable(value)]

    def _durable(self, value: object) -> Any:
        """An object as it is kept; None if it ends with this process."""
        if isinstance(value, Durable):
            try:
                return {MARK + "o": self._objects.number(value)}
            except NotStorable as error:
                ephemeral(value, error)
        return None

    def _promise_row(self, session: Session, kind: str, position: int, vow: Vow) -> Any:
        """What a promise is or waits on. It is written again when that changes."""
        key = session.id + OWN[kind] + number_key(position)

        def again() -> None:
            session.tables.touch(kind, position)
            self._node.touch(session)

        return self._promises.watched(key, again, lambda: self._outcome(vow.end()))

    def _outcome(self, vow: Vow) -> Any:
        """What a promise has become or waits on; None if that ends with this process."""
        if vow.state == PENDING:
            return self._promises.on(vow)
        try:
            if vow.state == FULFILLED:
                return [VALUE, self._values.pack(vow.value, "value", OUTCOME)]
            if vow.state == BROKEN:
                return [BROKEN_WITH, self._values.pack_error(crossing(vow.value))]  # type: ignore[arg-type]  # an exception
        except NotStorable:
            pass
        return None

    # After a restart

    def load(self, session: Session) -> None:
        """Reads the pages, restores the imports, and finds out what else there is. Raises BaggageCorrupt."""
        stored = self._stored[session.id] = _Stored(Pages(self._baggage, session.id))
        stored.pages.load()
        for position, entry in stored.pages.all("import"):
            count, promise, held = (entry, False, 0) if type(entry) is int else entry
            slot = session.tables.imports[position] = Import(session, position, promise)
            slot.count = count
            self._objects.restore_held(session, position, held)

    def question(self, session_id: bytes, position: int) -> bool:
        """Whether a question is kept."""
        return self._stored[session_id].pages.get("question", position) is not None

    def resolvers(self, session: Session) -> Iterator[tuple[int, Any]]:
        """Those of the peer that are to be told: their positions, and what is kept of them."""
        return self._stored[session.id].pages.all("resolver")

    def restore_exports(self, session: Session) -> tuple[list[KeptPromise], list[KeptPromise]]:
        """Restores the objects, and returns promises and resolvers."""
        stored = self._stored[session.id]
        promises: list[KeptPromise] = []
        resolvers: list[KeptPromise] = [
            (session, position, 1, [True, answer]) for position, answer in stored.pages.all("export")
        ]
        restore = self._objects.restore_exports(session)
        lost = Lost()
        for key, data in self._baggage.scan("slot", session.id + OWN["export"]):
            position = key_number(key[33:])
            stored.own["export"].add(position)
            count, form, kept = decode_row(data, "slot")
            if form == _PROMISE:
                promises.append((session, position, count, kept))
            elif form == _RESOLVER:
                resolvers.append((session, position, count, kept))
            elif kept is None:
                session.tables.restore_export(position, lost, 0, False).count = count
            else:
                restore(position, count, kept[MARK + "o"])
        return promises, resolvers

    def restore_promise(self, session: Session, kind: str, position: int, kept: Any) -> Vow:
        """What was kept of an exported promise or an answer."""
        vow = self._promise(kept)
        if kind == "answer" and isinstance(vow, RemoteVow):  # the answer holds it
            answer = Vow(self._node)
            answer.resolve(vow.handle())
            vow = answer
        if kept != self._promise_row(session, kind, position, vow):
            session.tables.touch(kind, position)
        return vow

    def restore_answers(self, session: Session) -> None:
        """The answers that are owed."""
        stored = self._stored[session.id]
        rows = [(position, entry or None) for position, entry in stored.pages.all("answer")]
        for key, data in self._baggage.scan("answer", session.id + OWN["answer"]):
            position = key_number(key[33:])
            stored.own["answer"].add(position)
            (kept,) = decode_row(data, "answer")
            rows.append((position, kept))
        for position, kept in sorted(rows, key=itemgetter(0)):
            session.tables.answers[position] = self.restore_promise(session, "answer", position, kept)

    def _promise(self, kept: list[Any] | None) -> Vow:
        """A promise that has become what it had, goes on waiting, or ended with the process."""
        if kept is None or kept[0] not in (VALUE, BROKEN_WITH):
            return self._promises.promise(kept)
        outcome, content = kept
        if outcome == BROKEN_WITH:
            return broken(self._node, self._values.unpack_error(content))
        vow = Vow(self._node)
        vow.resolve(self._values.unpack(content))
        return vow

    def settle(self, session: Session) -> None:
        """Lets go of what the dead process held, and nothing that goes on does."""
        tables = session.tables
        for position, _ in self._stored[session.id].pages.all("question"):
            if position not in tables.questions:
                session.outbox.released(position)
                tables.touch("question", position)
        held = self._objects.holders(session)
        for position, slot in list(tables.imports.items()):
            if not slot.held and position not in held:
                if slot.vow is not None:
                    slot.vow.released = True
                session.release_import(position)
        self._node.touch(session)


def _is_short(value: object) -> bool:
    """Whether an answer takes little room in a page, and can be kept there."""
    return small(value) and type(value) is not float and (not isinstance(value, str) or len(value) <= _SHORT)


def ephemeral(obj: object, error: NotStorable) -> None:
    """Says in the log that an object which should be durable cannot be kept."""
    log.error("a %s cannot be kept, and ends with this process: %s", type(obj).__name__, error)
