"""Keeps the sessions and the durable objects of a peer in a baggage: `ocapn.captp.port`, implemented.

`durable.keeping` has the objects, `durable.waiting` what waits, `durable.promises` what promises wait on, and
`durable.values` the values; nothing else of the package knows `ocapn`. spec/baggage.md describes the rows. At each
cut, the slots and objects that have changed since the last are encoded; at opening, all are brought back, and what
ended with a dead process is broken with PeerRestarted, on both sides.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, Final, final

from durable.baggage import Baggage, Batch
from durable.errors import BaggageCorrupt, DurableError, NotStorable
from durable.keeping import KeptExport, Objects
from durable.objects import Durable
from durable.promises import BROKEN_WITH, VALUE, Promises
from durable.records import MARK, decode, encode
from durable.store import key_number, number_key
from durable.values import (
    OUTCOME,
    PASSED,
    USER,
    Lost,
    Values,
    decode_row,
    encode_row,
    pack_locator,
    unpack_locator,
)
from durable.waiting import Waiters
from ocapn.captp.delivery import (
    BROKEN,
    FULFILLED,
    PENDING,
    LocalTarget,
    PromiseHandle,
    RemoteVow,
    Sent,
    Telling,
    Vow,
    broken,
    crossing,
)
from ocapn.captp.frames import Agreement, Frames, Terms
from ocapn.captp.node import Node, Tombstone, Turn
from ocapn.captp.session import Session
from ocapn.captp.tables import Import
from ocapn.codec.operations import ANSWER, Form
from ocapn.crypto import SessionKey, public_id

log: Final = logging.getLogger("durable")

#: What stands in an export's row.
_OBJECT, _PROMISE, _RESOLVER = 0, 1, 2
_KINDS: Final = {"export": b"e", "import": b"i", "resolver": b"r", "answer": b"a", "question": b"q"}


@final
class _Stored:
    """How much of a session is in the baggage: the frames of ours from `first` to `last`."""

    __slots__ = ("first", "last", "record", "restarted_at")

    def __init__(self, first: int, last: int, restarted_at: int = 0) -> None:
        self.restarted_at = restarted_at  # how many frames had been taken at the restart
        self.first = first
        self.last = last
        self.record = b""


@final
class SessionKeeper:
    """Keeps one node in one baggage."""

    def __init__(self, baggage: Baggage, node: Node) -> None:
        self._baggage = baggage
        self._node = node
        self._stored: dict[bytes, _Stored] = {}
        self._keys_removed = False  # and may still stand in the files
        self._unknown: set[bytes] = set()  # sessions whose peer has said that it does not know them
        self.blocks = baggage.blocks
        self._closed = False
        self._touched: set[Session] = set()
        self._promises = Promises(baggage, node)
        self._objects = Objects(baggage, node, self.when)
        number, obj = self._objects.number, self._objects.obj
        self._values = self._objects.values = Values(node, number, obj, self._promises)
        self._waiters = Waiters(baggage, node, self._promises, self._values, number, obj)
        baggage.attach(
            node.wake,
            self._gather,
            lambda value: self._values.pack(value, "value", USER),
            self._values.unpack,
        )

    @property
    def failed(self) -> Exception | None:
        return self._baggage.failed

    def close(self) -> None:
        self._closed = True
        self._objects.close()
        self._waiters.close()
        self._baggage.detach()

    # Durable answers

    def when(self, promise: object, obj: Any, fulfilled: str | None, broken: str | None) -> None:
        """See `durable.when`."""
        if self._closed:
            raise DurableError("the peer of this object has ended: it would not be told")
        if not isinstance(promise, PromiseHandle):
            vow = Vow(self._node)
            vow.resolve(promise)
            promise = vow.handle()
        self._objects.number(obj)
        self._waiters.when(promise, obj, fulfilled, broken)

    # What waits

    def waits(self, item: Sent | Telling, vow: Vow) -> None:
        self._waiters.waits(item, vow)

    def left(self, item: Sent | Telling) -> None:
        self._waiters.left(item)

    def begins(self, turn: Turn) -> None:
        self._waiters.begins(turn)

    def holds(self, slot: Import) -> bool:
        return self._objects.held(slot.session, slot.position) > 0

    # Sturdyrefs

    def export(self, swiss: bytes, obj: object) -> None:
        try:
            row = encode(self._values.pack(obj, "export", PASSED))
        except NotStorable as error:
            if isinstance(obj, Durable):
                _ephemeral(obj, error)
            return
        self._baggage.put("swiss", swiss, row)

    def unexport(self, swiss: bytes) -> None:
        self._baggage.remove("swiss", swiss)

    def forget(self, session_id: bytes) -> None:
        self._baggage.remove("node", b"tombstone/" + session_id)
        self._keys_removed = True

    def erase(self) -> None:
        if self._keys_removed:
            self._keys_removed = False
            self._baggage.scrub_soon()

    # Gifts

    def deposited(self, session_id: bytes, gift_id: bytes, gift: object, life: float) -> None:
        if isinstance(gift, Durable):
            try:
                row = [self._objects.number(gift), int(time.time() + life)]
            except NotStorable as error:
                _ephemeral(gift, error)
            else:
                self._baggage.put("gift", session_id + gift_id, encode(row))

    def withdrawn(self, session_id: bytes, gift_id: bytes) -> None:
        self._baggage.remove("gift", session_id + gift_id)

    def withdraws(self, vow: Vow, key: tuple[bytes, bytes], through: bytes, life: float) -> None:
        self._waiters.withdraws(vow, key, through, life)

    def given(self, vow: Vow, session_id: bytes, wire: bytes, life: float) -> None:
        self._waiters.given(vow, session_id, wire, life)

    def _restore_gifts(self) -> None:
        """Those that still wait, for no longer than any gift does, whatever the clock says now."""
        for key, data in self._baggage.scan("gift"):
            number, until = decode(data, table="gift")
            left = min(until - time.time(), self._node.limits.gift_life)
            if left > 0:
                gift: LocalTarget = self._objects.obj(number)
                self._node.gifts.restore((key[:32], key[32:]), gift, self._node.now() + left)
            else:
                self._baggage.remove("gift", key)

    # Batches

    @property
    def pending(self) -> bool:
        return bool(self._touched or self._baggage.dirty or self._objects.pending or self._waiters.pending)

    def ready(self) -> None:
        self._baggage.ready()

    def cut(self, sessions: Iterable[Session]) -> Batch | None:
        self._touched.update(sessions)
        return self._baggage.cut()

    def _gather(self) -> None:
        """Writes all that has changed into the batch that is about to be cut."""
        self._waiters.save()  # first: it says what other rows wait on
        self._objects.save()
        while sessions := self._touched | self._node.take_touched():
            self._touched = set()
            for session in sessions:
                self._save(session)
            self._objects.save()  # those that were exported for the first time; what they hold touches sessions

    def tries(self, session: Session) -> int:
        return self._try(session, 1)

    def spared(self, session: Session) -> None:
        if session.ended is None and not self._closed:
            self._try(session, -1)

    def _try(self, session: Session, more: int) -> int:
        frames = session.frames
        assert frames is not None
        key = b"trying/" + session.id
        row = self._baggage.read("node", key)
        number, times = (0, 0) if row is None else decode(row, table="node")
        times = max(0, (times if number == frames.taken + 1 else 0) + more)
        self._baggage.put("node", key, encode([frames.taken + 1, times]))
        return int(times)

    def keep_unknown(self, session: Session, said: Sequence[float]) -> None:
        if session.ended is None and session.id in (self._stored if said else self._unknown):
            key = b"unknown/" + session.id
            if said:
                now = time.time()
                self._unknown.add(session.id)
                self._baggage.put("node", key, encode([int(now - ago) for ago in said]))
            else:
                self._unknown.remove(session.id)
                self._baggage.remove("node", key)

    def unknown(self, session: Session) -> list[float]:
        """What a clock that was set back would have happen in the future happens now."""
        row = self._baggage.read("node", b"unknown/" + session.id)
        if row is None:
            return []
        self._unknown.add(session.id)
        now = time.time()
        return sorted((max(0.0, now - at) for at in decode(row, table="node")), reverse=True)

    def write(self, batches: Sequence[Batch]) -> None:
        self._baggage.write(batches)

    def written(self, batch: Batch) -> None:
        self._baggage.written(batch)

    def _save(self, session: Session) -> None:
        frames = session.frames
        if session.ended is not None:
            self._erase(session)
            return
        if frames is None or not frames.settled:
            if frames is None:
                session.tables.touched = None  # it will never be kept
            return
        stored = self._stored.get(session.id)
        tables = session.tables
        if stored is None:
            stored = self._stored[session.id] = _Stored(frames.acked + 1, frames.acked)
            touched, tables.touched = tables.positions | session.outbox.garbage, set()
        else:
            touched, tables.touched = tables.touched or set(), set()
        for kind, position in touched:
            self._save_slot(session, kind, position)
        if session.restarted and frames.taken > stored.restarted_at:
            session.restarted = False
            self._baggage.remove("node", b"trying/" + session.id)
        self._save_frames(session.id, frames, stored)
        record = encode_row(self._record(session, frames))
        if record != stored.record:
            stored.record = record
            self._baggage.put("session", session.id, record)

    def _save_frames(self, session_id: bytes, frames: Frames, stored: _Stored) -> None:
        for number in range(stored.first, min(frames.acked, stored.last) + 1):
            self._baggage.remove("outbox", session_id + number_key(number))
        stored.first = frames.acked + 1
        fresh = frames.sent - max(stored.last, frames.acked)
        if fresh:
            for back, (message, digest) in enumerate(islice(reversed(frames.kept), fresh)):
                self._baggage.put("outbox", session_id + number_key(frames.sent - back), digest + message)
        stored.last = frames.sent

    def _save_slot(self, session: Session, kind: str, position: int) -> None:
        key = session.id + _KINDS[kind] + number_key(position)
        table = "answer" if kind in ("answer", "question") else "slot"
        row = self._slot(session, kind, position, key)
        if row is None:
            self._promises.unwatch(key)
            self._baggage.remove(table, key)
            return
        try:
            data = encode_row(row)
        except NotStorable:  # what a promise has become, which stands last
            data = encode_row([*row[:-1], None])
        self._baggage.put(table, key, data)

    def _slot(self, session: Session, kind: str, position: int, key: bytes) -> list[Any] | None:
        tables = session.tables
        if kind == "export":
            slot = tables.exports.get(position)
            if slot is None:
                return None
            if isinstance(slot, KeptExport):
                return [slot.count, _OBJECT, {MARK + "o": slot.number}]
            value = slot.value
            if isinstance(value, RemoteVow):
                return [slot.count, _RESOLVER, [value.kind == ANSWER, value.position]]
            if isinstance(value, PromiseHandle):
                return [slot.count, _PROMISE, self._promise_row(session, kind, position, key, value._vow)]
            return [slot.count, _OBJECT, self._durable(value)]
        if kind == "import":
            held = tables.imports.get(position)
            count = session.outbox.owed(position) + (0 if held is None else held.count)
            promise = held is not None and held.vow is not None
            return [count, promise, self._objects.held(session, position)] if count else None
        if kind == "resolver":
            twice = tables.resolvers(position)
            return [twice, self._waiters.resolvers(session, position)] if twice else None
        if kind == "question":
            question = tables.questions.get(position)
            if question is None:
                return [False] if session.outbox.releases(position) else None
            return [question.listening]
        answer = tables.answers.get(position)
        if answer is None:
            return None
        return [self._promise_row(session, kind, position, key, answer)]

    def _durable(self, value: object) -> Any:
        """An object as it is kept; None if it ends with this process."""
        if isinstance(value, Durable):
            try:
                return {MARK + "o": self._objects.number(value)}
            except NotStorable as error:
                _ephemeral(value, error)
        return None

    def _promise_row(self, session: Session, kind: str, position: int, key: bytes, vow: Vow) -> Any:
        """What a promise is or waits on. The row is written again when that changes."""

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

    def _record(self, session: Session, frames: Frames) -> list[Any]:
        tables, form, terms = session.tables, session.form, frames.terms
        handoffs = session.handoffs
        return [
            session.key.seed,
            session.peer_key,
            pack_locator(session.location),
            [session.dialled, session.authenticated, frames.agreement is Agreement.AGREED],
            [form.old_deliver, form.old_gc, form.text_order],
            [terms.life, terms.frames, terms.size],
            [frames.epoch, frames.proven, frames.sent, frames.acked, frames.taken],
            [frames.acked_digest, frames.taken_digest],
            [tables.next_export, tables.next_question],
            [handoffs.next, handoffs.floor, sorted(handoffs.used)],
            0 if session.attached else int(time.time() - (self._node.now() - frames.since)),
        ]

    def _erase(self, session: Session) -> None:
        """The session is over: what is left of it is its tombstone."""
        self._waiters.ended(session.id)
        self._objects.ended(session)
        if self._stored.pop(session.id, None) is None:
            return
        self._baggage.remove("session", session.id)
        self._baggage.remove("node", b"trying/" + session.id)
        if session.id in self._unknown:
            self._unknown.remove(session.id)
            self._baggage.remove("node", b"unknown/" + session.id)
        for table in ("outbox", "slot", "answer"):
            for key, _ in self._baggage.scan(table, session.id):
                self._promises.unwatch(key)
                self._baggage.remove(table, key)
        tombstone = self._node.tombstone(session.id)
        if tombstone is not None:
            left = tombstone.until - self._node.now()
            row = [
                tombstone.key.seed,
                tombstone.peer_key,
                tombstone.reason,
                tombstone.received,
                int(time.time() + left),
            ]
            self._baggage.put("node", b"tombstone/" + session.id, encode(row))
        else:
            self._keys_removed = True

    # After a restart

    def designator(self, transport: str, drawn: str) -> str:
        key = b"designator/" + transport.encode()
        row = self._baggage.read("node", key)
        if row is not None:
            kept: str = decode(row, table="node")
            return kept
        self._baggage.put("node", key, encode(drawn))
        return drawn

    def restore(self) -> None:
        self._objects.restore()
        for key, data in self._baggage.scan("node", b"tombstone/"):
            self._restore_tombstone(key, decode(data, table="node"))
        sessions = []
        for session_id, data in self._baggage.scan("session"):
            session = self._restore_session(session_id, decode_row(data, "session"))
            if session is not None:
                sessions.append(session)
        promises: list[tuple[Session, int, int, Any]] = []
        resolvers: list[tuple[Session, int, int, Any]] = []
        for session in sessions:
            self._restore_imports(session)
            for position, count, form, kept in self._restore_exports(session):
                (promises if form == _PROMISE else resolvers).append((session, position, count, kept))
        for session, _, _, kept in resolvers:
            self._promises.listening(session.id, *kept)
        self._objects.upgrade()
        self._waiters.restore_promises()
        for session, position, count, kept in promises:
            vow = self._restore_promise(session, "export", position, kept)
            session.tables.restore_export(position, vow.handle(), 0, True).count = count
        for session in sessions:
            self._restore_answers(session)
        self._waiters.restore(sessions)
        for session, position, count, kept in resolvers:  # once it is known who waits for what they resolve
            value = self._promises.resolved_by(session, *kept)
            session.tables.restore_export(position, value, 0, False).count = count
        self._promises.restored()
        self._restore_gifts()
        for swiss, data in self._baggage.scan("swiss"):
            self._node.swiss[swiss] = self._values.unpack(decode_row(data, "swiss"))
        for session in sessions:
            self._settle(session)

    def _restore_tombstone(self, key: bytes, row: list[Any]) -> None:
        seed, peer_key, reason, received, until = row
        left = until - time.time()
        if left <= 0:
            self.forget(key.removeprefix(b"tombstone/"))
            return
        session_id = key.removeprefix(b"tombstone/")
        own = SessionKey(seed)
        self._node.remember(
            Tombstone(
                session_id, own, public_id(peer_key), peer_key, reason, received, self._node.now() + left
            )
        )

    def _restore_session(self, session_id: bytes, row: list[Any]) -> Session | None:
        seed, peer_key, location, flags, form, terms, counts, digests, positions, handoffs, since = row
        node = self._node
        dialled, authenticated, agreed = flags
        session = Session(
            node,
            key=SessionKey(seed),
            peer_key=peer_key,
            location=unpack_locator(location),
            dialled=dialled,
            authenticated=authenticated,
            form=Form(*form),
            now=node.now(),
        )
        if session.id != session_id:
            raise BaggageCorrupt("a session stands under another id", table="session")
        epoch, proven, sent, acked, taken = counts
        frames = Frames(
            Agreement.AGREED, session_id, session.key.public_id, session.peer_id, Terms(*terms), node.now()
        )
        rows = self._baggage.scan("outbox", session_id)
        numbers = [key_number(key[32:]) for key, _ in rows]
        if numbers != list(range(acked + 1, sent + 1)):
            raise BaggageCorrupt("frames that the peer has not acknowledged are missing", table="outbox")
        frames.restore(
            epoch, proven, acked, taken, digests[0], digests[1], [(data[32:], data[:32]) for _, data in rows]
        )
        tables = session.tables
        tables.next_export, tables.next_question = positions
        used = session.handoffs
        used.next, used.floor, used.used = handoffs[0], handoffs[1], set(handoffs[2])
        self._stored[session_id] = _Stored(acked + 1, sent, taken)
        asleep = 0.0 if not since else max(0.0, time.time() - since)
        session.restored(frames, node.now() - asleep)
        if not agreed:  # the asker never said that it had our answer
            session.lose("the session had not been agreed on when this peer was restarted")
            return None
        return session

    def _restore_imports(self, session: Session) -> None:
        for key, data in self._baggage.scan("slot", session.id + b"i"):
            position = key_number(key[33:])
            count, promise, held = decode_row(data, "slot")
            slot = session.tables.imports[position] = Import(session, position, promise)
            slot.count = count
            self._objects.restore_held(session, position, held)

    def _restore_exports(self, session: Session) -> list[tuple[int, int, int, Any]]:
        """Restores the objects, and returns what else is exported: position, count, form, and as what it is kept."""
        others = []
        restore = self._objects.restore_exports(session)
        lost = Lost()
        for key, data in self._baggage.scan("slot", session.id + b"e"):
            position = key_number(key[33:])
            count, form, kept = decode_row(data, "slot")
            if form != _OBJECT:
                others.append((position, count, form, kept))
            elif kept is None:
                session.tables.restore_export(position, lost, 0, False).count = count
            else:
                restore(position, count, kept[MARK + "o"])
        return others

    def _restore_promise(self, session: Session, kind: str, position: int, kept: Any) -> Vow:
        vow = self._promise(kept)
        if kind == "answer" and isinstance(vow, RemoteVow):  # the answer holds it
            answer = Vow(self._node)
            answer.resolve(vow.handle())
            vow = answer
        key = session.id + _KINDS[kind] + number_key(position)
        if kept != self._promise_row(session, kind, position, key, vow):
            session.tables.touch(kind, position)
        return vow

    def _restore_answers(self, session: Session) -> None:
        for key, data in self._baggage.scan("answer", session.id + b"a"):
            position = key_number(key[33:])
            (kept,) = decode_row(data, "answer")
            session.tables.answers[position] = self._restore_promise(session, "answer", position, kept)

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

    def _settle(self, session: Session) -> None:
        """Lets go of what the dead process held, and nothing that goes on does."""
        tables = session.tables
        for key, _ in self._baggage.scan("answer", session.id + b"q"):
            position = key_number(key[33:])
            if position not in tables.questions:
                session.outbox.released(position)
                tables.touch("question", position)
        for position, slot in list(tables.imports.items()):
            if not slot.held and not self._objects.held(session, position):
                if slot.vow is not None:
                    slot.vow.released = True
                session.release_import(position)
        self._node.touch(session)


def _ephemeral(obj: object, error: NotStorable) -> None:
    log.error("a %s cannot be kept, and ends with this process: %s", type(obj).__name__, error)
