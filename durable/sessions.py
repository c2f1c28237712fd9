"""Keeps the sessions and the durable objects of a peer in a baggage: `ocapn.captp.port`, implemented.

With `durable.values` all of the package that knows `ocapn`. spec/baggage.md describes the rows. At each cut, the
slots and objects that have changed since the last are encoded; at opening, all are brought back, and what a dead
process left unsettled is broken with PeerRestarted, on both sides.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, Final, final

from durable.baggage import Baggage, Batch
from durable.errors import BaggageCorrupt, DurableError, NotStorable
from durable.objects import Durable, adopt, blank, disown, fill, state_of, upgraded
from durable.records import MARK, decode, encode
from durable.values import (
    FIELD,
    PASSED,
    SAVED,
    TURN,
    USER,
    Lost,
    Values,
    decode_row,
    encode_row,
    pack_locator,
    unpack_locator,
)
from ocapn.captp.delivery import (
    BROKEN,
    FULFILLED,
    PENDING,
    CoreTarget,
    LocalTarget,
    PromiseHandle,
    RemoteVow,
    Telling,
    Vow,
    Waiting,
    broken,
    crossing,
)
from ocapn.captp.frames import Agreement, Frames, Terms
from ocapn.captp.node import Node, Tombstone, Turn
from ocapn.captp.session import Session
from ocapn.captp.tables import Import
from ocapn.codec.operations import ANSWER, Form, descriptor_bytes
from ocapn.crypto import SessionKey, public_id
from ocapn.errors import PeerRestarted, RemoteError, SessionLost

log: Final = logging.getLogger("durable")

_NEXT_OBJECT: Final = b"next-object"
#: What stands in an export's row.
_OBJECT, _PROMISE, _RESOLVER = 0, 1, 2
_KINDS: Final = {"export": b"e", "import": b"i", "resolver": b"r", "answer": b"a", "question": b"q"}


class _Settling(Waiting):
    """Has an answer, or an exported promise, written again once it is known what it has become."""

    __slots__ = ("kind", "position", "session", "watched")
    listens = True

    def __init__(
        self, session: Session, kind: str, position: int, watched: set[tuple[bytes, str, int]]
    ) -> None:
        self.session = session
        self.kind = kind
        self.position = position
        self.watched = watched

    @property
    def gone(self) -> bool:
        tables = self.session.tables
        return self.position not in (tables.answers if self.kind == "answer" else tables.exports)

    def settle(self, vow: Vow) -> None:
        self.watched.discard((self.session.id, self.kind, self.position))
        if not self.gone:
            self.session.tables.touch(self.kind, self.position)
            self.session.node.touch(self.session)


@final
class _Telling(Waiting):
    """A durable object wants to be told what a promise becomes (`durable.when`)."""

    __slots__ = ("broken", "fulfilled", "keeper", "number", "obj", "promise", "waits_on")
    listens = True

    def __init__(
        self,
        keeper: SessionKeeper,
        number: int,
        promise: PromiseHandle,
        obj: Any,
        fulfilled: str | None,
        broken: str | None,
    ) -> None:
        self.keeper = keeper
        self.number = number
        self.promise = promise  # held, so that its answer is not released
        self.obj = obj
        self.fulfilled = fulfilled
        self.broken = broken
        self.waits_on: list[Any] | None = []  # as it stands in the baggage; nothing does yet

    def settle(self, vow: Vow) -> None:
        self.keeper.told(self, vow.state == FULFILLED, vow.value)

    def now_waits_on(self) -> list[Any] | None:
        """Of which session, and whether it is an answer, and at which position; None if it ends with the process."""
        vow = self.promise._vow.end()
        if isinstance(vow, RemoteVow) and vow.session.durable and not vow.released:
            return [vow.session.id, vow.kind == ANSWER, vow.position]
        return None


@final
class _Told(CoreTarget):
    """A turn in which a method of a durable object is called by its name."""

    __slots__ = ("method", "obj")

    def __init__(self, obj: Any, method: str) -> None:
        self.obj = obj
        self.method = method

    def call(self, args: list[object]) -> object:
        getattr(self.obj, self.method)(*args)
        return None


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
        self._objects: dict[int, Any] = {}
        self._changed: dict[int, Any] = {}
        self._adopted: list[Any] = []  # objects that are kept as part of one that is being kept
        self._next_object = 1
        self._next_telling = 1
        self._tellings: dict[int, _Telling] = {}
        self._next_turn = 1
        self._answering: dict[int, int] = {}  # the answers of turns that are kept: id of the vow to number
        self._stored: dict[bytes, _Stored] = {}
        self.blocks = baggage.blocks
        self._closed = False
        self._touched: set[Session] = set()
        self._watched: set[tuple[bytes, str, int]] = set()  # what `_Settling` waits for
        self._values = Values(node, self._number, self._object, self._remote)
        baggage.attach(
            node.wake,
            self._gather,
            lambda value: self._values.pack(value, "value", USER),
            self._values.unpack,
        )

    def close(self) -> None:
        self._closed = True
        self._baggage.detach()

    # Objects

    def check(self, value: object, path: str) -> None:
        encode_row(self._values.pack(value, path, FIELD))

    def changes(self, obj: Any, name: str) -> None:
        if self._closed:
            raise DurableError("the peer of this object has ended: what changes now would not be kept")
        if self._baggage.in_transaction:
            old = getattr(obj, name)
            self._baggage.undo_with(lambda: object.__setattr__(obj, name, old))
        self._change(obj)

    def _change(self, obj: Any) -> None:
        if not self._changed:
            self._node.wake()
        self._changed[obj._durable_id] = obj

    def _number(self, obj: Any) -> int:
        """The number of a durable object, which it gets when it is first kept."""
        keeper = getattr(obj, "_durable_keeper", None)
        if keeper is self:
            number: int = obj._durable_id
            return number
        if keeper is not None:
            raise NotStorable("the object is in another baggage")
        kind = obj._durable_kind
        if type(obj) is not kind.cls:
            raise NotStorable(
                f"{type(obj).__name__} is no @durable.kind, as {kind.cls.__name__} is", kind.name
            )
        number = self._next_object
        self._next_object += 1
        adopt(obj, self, number)  # before its state is looked at, which may hold itself
        first, self._adopted = self._adopted, [*self._adopted, obj]
        try:
            state = {
                name: self._values.pack(one, f"{kind.name}.{name}", FIELD)
                for name, one in state_of(obj).items()
            }
            encode_row(state)
        except BaseException:
            for one in self._adopted[len(first) :]:  # what it holds was not kept before, and is not now
                self._objects.pop(one._durable_id, None)
                self._changed.pop(one._durable_id, None)
                disown(one)
            raise
        finally:
            if not first:
                self._adopted = []
        self._baggage.put("node", _NEXT_OBJECT, encode(self._next_object))
        self._objects[number] = obj
        self._change(obj)
        return number

    def _object(self, number: int) -> Any:
        """The object with that number; one object as long as this process lives."""
        obj = self._objects.get(number)
        if obj is not None:
            return obj
        key = _key(number)
        row = self._baggage.read("object", key)
        if row is None:
            raise BaggageCorrupt("a durable object is missing", table="object")
        name, version, packed = decode_row(row, "object")
        obj = blank(name)
        self._objects[number] = obj  # before its state, which may hold itself
        state = {field: self._values.unpack(one) for field, one in packed.items()}
        if version != obj._durable_kind.version:
            state = upgraded(name, version, state)
            fill(obj, state, self, number)
            self._change(obj)
        else:
            fill(obj, state, self, number)
        return obj

    def _save_object(self, obj: Any) -> None:
        kind = obj._durable_kind
        state = {
            name: self._values.pack(one, f"{kind.name}.{name}", SAVED) for name, one in state_of(obj).items()
        }
        self._baggage.put("object", _key(obj._durable_id), encode_row([kind.name, kind.version, state]))

    # Durable answers

    def when(self, promise: object, obj: Any, fulfilled: str | None, broken: str | None) -> None:
        """See `durable.when`."""
        if not isinstance(promise, PromiseHandle):
            vow = Vow(self._node)
            vow.resolve(promise)
            promise = vow.handle()
        self._number(obj)
        item = _Telling(self, self._next_telling, promise, obj, fulfilled, broken)
        self._next_telling += 1
        self._tellings[item.number] = item
        self._node.wake()
        promise._vow.end().add(item)

    def told(self, item: _Telling, fulfilled: bool, value: object) -> None:
        """The promise has settled: the object is told in a turn, which commits with what settled it."""
        del self._tellings[item.number]
        self._baggage.remove("promise", _key(item.number))
        method = item.fulfilled if fulfilled else item.broken
        if method is not None:
            self._node.enqueue(_Told(item.obj, method), [value], None, None)
        elif not fulfilled:
            assert isinstance(value, BaseException)
            self._node.log_lost(value, None)

    def _save_tellings(self) -> None:
        for item in self._tellings.values():
            waits_on = item.now_waits_on()
            if waits_on != item.waits_on:
                item.waits_on = waits_on
                row = [self._number(item.obj), item.fulfilled, item.broken, waits_on]
                self._baggage.put("promise", _key(item.number), encode(row))

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

    # Gifts

    def deposited(self, session_id: bytes, gift_id: bytes, gift: object, life: float) -> None:
        if isinstance(gift, Durable):
            row = [self._number(gift), int(time.time() + life)]
            self._baggage.put("gift", session_id + gift_id, encode(row))

    def withdrawn(self, session_id: bytes, gift_id: bytes) -> None:
        self._baggage.remove("gift", session_id + gift_id)

    def _restore_gifts(self) -> None:
        """Those that still wait, for no longer than any gift does, whatever the clock says now."""
        for key, data in self._baggage.scan("gift"):
            number, until = decode(data, table="gift")
            left = min(until - time.time(), self._node.limits.gift_life)
            if left > 0:
                gift: LocalTarget = self._object(number)
                self._node.gifts.restore((key[:32], key[32:]), gift, self._node.now() + left)
            else:
                self._baggage.remove("gift", key)

    # Batches

    def cut(self, sessions: Iterable[Session]) -> Batch | None:
        self._touched.update(sessions)
        return self._baggage.cut()

    def _gather(self) -> None:
        """Writes all that has changed into the batch that is about to be cut."""
        for turn in self._node.waiting_turns:
            if not turn.number:
                self._save_turn(turn)
        sessions, self._touched = self._touched | self._node.take_touched(), set()
        for session in sessions:
            self._save(session)
        self._answering.clear()
        self._save_tellings()
        while self._changed:
            _, obj = self._changed.popitem()
            self._save_object(obj)

    def _save_turn(self, turn: Turn) -> None:
        """A message to a durable object that has not begun; to any other, it ends with the process."""
        turn.number = -1
        target, method = turn.target, None
        if isinstance(target, _Told):
            target, method = target.obj, target.method
        if not isinstance(target, Durable):
            return
        waiting = () if turn.answer is None else turn.answer.waiting or ()
        tellings = [[one.session.id, one.position] for one in waiting if isinstance(one, Telling)]
        try:
            args = self._values.pack(turn.args, "args", TURN)
            row = encode_row([self._number(target), method, args, tellings, turn.answer is not None])
        except NotStorable:
            return
        turn.number = self._next_turn
        self._next_turn += 1
        self._baggage.put("turn", _key(turn.number), row)
        self._answering[id(turn.answer)] = turn.number

    def begins(self, number: int) -> None:
        self._baggage.remove("turn", _key(number))

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
            touched, tables.touched = tables.positions, set()
        else:
            touched, tables.touched = tables.touched or set(), set()
        for kind, position in touched:
            self._save_slot(session, kind, position)
        if session.restarted and frames.taken > stored.restarted_at:
            session.restarted = False
            self._baggage.remove("node", b"trying/" + session.id)
        self._save_frames(session.id, frames, stored)
        record = encode(self._record(session, frames))
        if record != stored.record:
            stored.record = record
            self._baggage.put("session", session.id, record)

    def _save_frames(self, session_id: bytes, frames: Frames, stored: _Stored) -> None:
        for number in range(stored.first, min(frames.acked, stored.last) + 1):
            self._baggage.remove("outbox", session_id + _key(number))
        stored.first = frames.acked + 1
        fresh = frames.sent - max(stored.last, frames.acked)
        if fresh:
            for back, (message, digest) in enumerate(islice(reversed(frames.kept), fresh)):
                self._baggage.put("outbox", session_id + _key(frames.sent - back), digest + message)
        stored.last = frames.sent

    def _save_slot(self, session: Session, kind: str, position: int) -> None:
        key = session.id + _KINDS[kind] + _key(position)
        table = "answer" if kind in ("answer", "question") else "slot"
        row = self._slot(session, kind, position)
        if row is None:
            self._watched.discard((session.id, kind, position))  # the peer may use an answer's position again
            self._baggage.remove(table, key)
        else:
            self._baggage.put(table, key, encode_row(row))

    def _slot(self, session: Session, kind: str, position: int) -> list[Any] | None:
        tables = session.tables
        if kind == "export":
            slot = tables.exports.get(position)
            if slot is None:
                return None
            value = slot.value
            if isinstance(value, RemoteVow):
                return [slot.count, _RESOLVER, [value.kind == ANSWER, value.position]]
            if isinstance(value, PromiseHandle):
                return [slot.count, _PROMISE, self._settling(session, kind, position, value._vow)]
            return [slot.count, _OBJECT, self._durable(value)]
        if kind == "import":
            held = tables.imports.get(position)
            count = session.outbox.owed(position) + (0 if held is None else held.count)
            return [count, held is not None and held.vow is not None] if count else None
        if kind == "resolver":
            twice = tables.resolvers(position)
            return [twice] if twice else None
        if kind == "question":
            question = tables.questions.get(position)
            if question is None:
                return [False] if session.outbox.releases(position) else None
            return [question.listening]
        answer = tables.answers.get(position)
        if answer is None:
            return None
        return [self._settling(session, kind, position, answer), self._answering.get(id(answer), 0)]

    def _durable(self, value: object) -> Any:
        """An object as it is kept; None if it ends with this process."""
        if isinstance(value, Durable):
            try:
                return {MARK + "o": self._number(value)}
            except NotStorable as error:
                _ephemeral(value, error)
        return None

    def _settling(self, session: Session, kind: str, position: int, vow: Vow) -> Any:
        end = vow.end()
        watched = (session.id, kind, position)
        if end.state == PENDING and watched not in self._watched:
            self._watched.add(watched)
            end.add(_Settling(session, kind, position, self._watched))
        return self._outcome(end)

    def _outcome(self, vow: Vow) -> Any:
        """What a promise has become, for those who ask after a restart; None if that ends with this process."""
        try:
            if vow.state == FULFILLED:
                packed = [1, self._values.pack(vow.value, "value", PASSED)]
                encode_row(packed)
                return packed
            if vow.state == BROKEN:
                return [0, str(crossing(vow.value))]  # type: ignore[arg-type]  # BROKEN: an exception
        except NotStorable:
            pass
        return None

    def _record(self, session: Session, frames: Frames) -> list[Any]:
        tables, form, terms = session.tables, session.form, frames.terms
        count, floor, used = session.handoff_counts
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
            [count, floor, sorted(used)],
            0 if session.attached else int(time.time() - (self._node.now() - frames.since)),
        ]

    def _erase(self, session: Session) -> None:
        """The session is over: what is left of it is its tombstone."""
        if self._stored.pop(session.id, None) is None:
            return
        self._baggage.remove("session", session.id)
        self._baggage.remove("node", b"trying/" + session.id)
        for table in ("outbox", "slot", "answer"):
            for key, _ in self._baggage.scan(table, session.id):
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
        row = self._baggage.read("node", _NEXT_OBJECT)
        if row is not None:
            self._next_object = decode(row, table="node")
        for key, data in self._baggage.scan("node", b"tombstone/"):
            self._restore_tombstone(key, decode(data, table="node"))
        sessions = []
        for session_id, data in self._baggage.scan("session"):
            session = self._restore_session(session_id, decode(data, table="session"))
            if session is not None:
                sessions.append(session)
        for session in sessions:
            self._restore_imports(session)
        # Objects hold references, and slots hold objects.
        for key, _ in self._baggage.scan("object"):
            self._object(int.from_bytes(key, "big"))
        self._restore_tellings()
        answers, kept = self._restore_turns()
        for session in sessions:
            self._restore_slots(session, answers)
        self._restore_gifts()
        for swiss, data in self._baggage.scan("swiss"):
            self._node.swiss[swiss] = self._values.unpack(decode_row(data, "swiss"))
        for session in sessions:
            self._settle(session, kept)

    def _restore_tombstone(self, key: bytes, row: list[Any]) -> None:
        seed, peer_key, reason, received, until = row
        left = until - time.time()
        if left <= 0:
            self._baggage.remove("node", key)
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
        numbers = [int.from_bytes(key[32:], "big") for key, _ in rows]
        if numbers != list(range(acked + 1, sent + 1)):
            raise BaggageCorrupt("frames that the peer has not acknowledged are missing", table="outbox")
        frames.restore(
            epoch, proven, acked, taken, digests[0], digests[1], [(data[32:], data[:32]) for _, data in rows]
        )
        tables = session.tables
        tables.next_export, tables.next_question = positions
        session.handoff_counts = (handoffs[0], handoffs[1], set(handoffs[2]))
        self._stored[session_id] = _Stored(acked + 1, sent, taken)
        asleep = 0.0 if not since else max(0.0, time.time() - since)
        session.restored(frames, node.now() - asleep)
        if not agreed:  # the asker never said that it had our answer
            session.lose("the session had not been agreed on when this peer was restarted")
            return None
        return session

    def _restore_imports(self, session: Session) -> None:
        for key, data in self._baggage.scan("slot", session.id + b"i"):
            position = int.from_bytes(key[33:], "big")
            count, promise = decode_row(data, "slot")
            slot = session.tables.imports[position] = Import(session, position, promise)
            slot.count = count

    def _restore_turns(self) -> tuple[dict[int, Vow], set[tuple[bytes, int]]]:
        """The answers of the turns that go on, and the resolvers that will be told of them."""
        answers: dict[int, Vow] = {}
        kept: set[tuple[bytes, int]] = set()
        for key, data in self._baggage.scan("turn"):
            number, (obj, method, args, tellings, asked) = (
                int.from_bytes(key, "big"),
                decode_row(data, "turn"),
            )
            self._next_turn = max(self._next_turn, number + 1)
            answer = Vow(self._node) if asked else None
            target: LocalTarget = self._object(obj)
            if method is not None:
                target = _Told(target, method)
            self._node.enqueue(target, self._values.unpack(args), answer, None).number = number
            if answer is not None:
                answers[number] = answer
                for session_id, position in tellings:
                    session = self._node.kept_session(session_id)
                    if session is not None:
                        kept.add((session_id, position))
                        answer.add(Telling(session, position))
        return answers, kept

    def _restore_slots(self, session: Session, answers: dict[int, Vow]) -> None:
        tables = session.tables
        lost = Lost()
        for key, data in self._baggage.scan("slot", session.id + b"e"):
            position = int.from_bytes(key[33:], "big")
            count, form, kept = decode_row(data, "slot")
            value: Any
            if form == _RESOLVER:
                value = self._resolved_by(session, *kept)
            elif form == _PROMISE:
                value = self._promise(kept).handle()
            else:
                value = lost if kept is None else self._values.unpack(kept)
            identity = id(value) if isinstance(value, Durable) else 0
            tables.restore_export(position, value, identity, form == _PROMISE).count = count
        for key, data in self._baggage.scan("answer", session.id + b"a"):
            position = int.from_bytes(key[33:], "big")
            outcome, turn = decode_row(data, "answer")
            vow = tables.answers[position] = answers.get(turn) or self._promise(outcome)
            self._settling(session, "answer", position, vow)
        for key, data in self._baggage.scan("slot", session.id + b"r"):
            position = int.from_bytes(key[33:], "big")
            (twice,) = decode_row(data, "slot")
            tables.restore_resolver(position, twice)

    @staticmethod
    def _resolved_by(session: Session, answer: bool, position: int) -> RemoteVow:
        """The promise that a resolver of ours is for, if somebody still waits for it."""
        if answer:
            return session.tables.questions.get(position, session.spent)
        slot = session.tables.imports.get(position)
        if slot is None or slot.vow is None:
            return session.spent
        slot.vow.listening = True
        return slot.vow

    def _restore_tellings(self) -> None:
        for key, data in self._baggage.scan("promise"):
            number, (obj, fulfilled, broken_, waits_on) = (
                int.from_bytes(key, "big"),
                decode_row(data, "promise"),
            )
            self._next_telling = max(self._next_telling, number + 1)
            vow = None if waits_on is None else self._remote(*waits_on)
            if vow is None:
                vow = broken(self._node, PeerRestarted("the promise ended with the process that had it"))
            item = _Telling(self, number, vow.handle(), self._object(obj), fulfilled, broken_)
            item.waits_on = waits_on
            self._tellings[number] = item
            if isinstance(vow, RemoteVow):
                vow.listening = True  # it was, or this would not wait for it
            vow.add(item)

    def _remote(self, session_id: bytes, answer: bool, position: int) -> Vow | None:
        """A promise that a peer will resolve, as it was."""
        session = self._node.kept_session(session_id)
        if session is None:
            return broken(self._node, SessionLost("the session is over"))
        if not answer:
            slot = session.tables.imports.get(position)
            return None if slot is None else slot.vow
        question = session.tables.questions.get(position)
        if question is None:
            row = self._baggage.read("answer", session_id + _KINDS["question"] + _key(position))
            if row is None:
                return None
            question = RemoteVow(session, ANSWER, position, descriptor_bytes(ANSWER, position))
            (question.listening,) = decode_row(row, "answer")
            session.tables.questions[position] = question
        return question

    def _promise(self, outcome: list[Any] | None) -> Vow:
        """A promise that has become what it had, or that ended with the process."""
        if outcome is None:
            return broken(self._node, PeerRestarted("the process that owed this was restarted"))
        fulfilled, content = outcome
        if not fulfilled:
            return broken(self._node, RemoteError(content))
        vow = Vow(self._node)
        vow.resolve(self._values.unpack(content))
        return vow

    def _settle(self, session: Session, kept: set[tuple[bytes, int]]) -> None:
        """Lets go of what the dead process waited for, and tells those who waited for it."""
        tables = session.tables
        for key, _ in self._baggage.scan("answer", session.id + b"q"):
            position = int.from_bytes(key[33:], "big")
            if position not in tables.questions:
                session.outbox.released(position)
                tables.touch("question", position)
        restarted = PeerRestarted("the process that owed this was restarted")
        for key, _ in self._baggage.scan("slot", session.id + b"r"):
            position = int.from_bytes(key[33:], "big")
            times = tables.resolvers(position) // 2 - ((session.id, position) in kept)
            for _ in range(times):
                session.tell(position, False, restarted)
        for position, slot in list(tables.imports.items()):
            if not slot.held:
                session.release_import(position)
        self._node.touch(session)


def _ephemeral(obj: object, error: NotStorable) -> None:
    log.error("a %s cannot be kept, and ends with this process: %s", type(obj).__name__, error)


def _key(number: int) -> bytes:
    return number.to_bytes(8, "big")
