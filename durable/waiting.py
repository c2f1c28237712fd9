"""What waits, and goes on after a restart: messages, listeners, and gifts on their way (spec/baggage.md, Waiting).

Rows of `turn` are what will settle a promise, or do something without an answer: a message to a durable object that
has not begun, a message or a selection that is queued on a promise, a gift that is being withdrawn. Rows of `promise`
are durable objects that want to be told (`durable.when`). The resolvers of a peer that are to be told stand in its
session. All have numbers, drawn when they began to wait; in that order they wait again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextvars import copy_context
from functools import partial
from typing import Any, Final, final

from durable.baggage import Baggage
from durable.errors import NotStorable
from durable.objects import Durable
from durable.promises import VALUE, Promises
from durable.records import decode_row, encode_row
from durable.store import key_number, number_key
from durable.values import OUTCOME, TURN, Values
from ocapn.captp.delivery import FULFILLED, Message, Selection, Sent, Telling, Vow
from ocapn.captp.handles import CoreTarget, LocalTarget, PromiseHandle, Waiting
from ocapn.captp.handoff import resume_give
from ocapn.captp.node import Node, Turn
from ocapn.captp.session import Session
from ocapn.errors import PeerRestarted, RemoteError, SessionLost

_WITHDRAWAL: Final = "withdrawal"
_GIVE: Final = "give"


@final
class When(Waiting):
    """A durable object wants to be told what a promise becomes (`durable.when`)."""

    __slots__ = ("broken", "fulfilled", "number", "obj", "promise", "turn", "waiters")
    listens = True

    def __init__(
        self,
        waiters: Waiters,
        number: int,
        promise: PromiseHandle,
        obj: Any,
        fulfilled: str | None,
        broken: str | None,
    ) -> None:
        self.waiters = waiters
        self.number = number
        self.promise = promise  # held, so that its answer is not released
        self.obj = obj
        self.fulfilled = fulfilled
        self.broken = broken
        self.turn: Turn | None = None  # in which it is told

    def settle(self, vow: Vow) -> None:
        self.waiters.told(self, vow.state == FULFILLED, vow.value)

    def moves(self, vow: Vow) -> None:
        self.waiters.changed(self)


@final
class Told(CoreTarget):
    """A turn in which a method of a durable object is called by its name."""

    __slots__ = ("method", "obj")

    def __init__(self, obj: Any, method: str) -> None:
        self.obj = obj
        self.method = method

    def call(self, args: list[object]) -> object:
        copy_context().run(getattr(self.obj, self.method), *args)  # what it leaves there is for nobody else
        return None


@final
class _Coming(Waiting):
    """Has the row of a gift removed once the promise of it waits on something else, or is settled."""

    __slots__ = ("_gone",)
    listens = True

    def __init__(self, gone: Callable[[], None]) -> None:
        self._gone: Callable[[], None] | None = gone

    @property
    def gone(self) -> bool:
        return self._gone is None

    def settle(self, vow: Vow) -> None:
        gone, self._gone = self._gone, None
        if gone is not None:
            gone()

    def moves(self, vow: Vow) -> None:
        self.settle(vow)


@final
class _Kept:
    """What is kept of something that waits. `stored`: whether it has a row of its own."""

    __slots__ = ("number", "stored", "vow")

    def __init__(self, number: int, vow: Vow, stored: bool) -> None:
        self.number = number
        self.vow = vow
        self.stored = stored


@final
class Waiters:
    """What waits in one node. `number` and `obj` name and find durable objects."""

    def __init__(
        self,
        baggage: Baggage,
        node: Node,
        promises: Promises,
        values: Values,
        number: Callable[[Any], int],
        obj: Callable[[int], Any],
    ) -> None:
        self._baggage = baggage
        self._node = node
        self._promises = promises
        self._values = values
        self._number_of = number
        self._object = obj
        self._new: dict[Sent | Telling, Vow] = {}  # since the last `save`: most does not wait for long
        self._tellings: dict[bytes, dict[int, dict[Telling, None]]] = {}  # by session and position
        self._changed: dict[Sent | Turn | When, None] = {}  # whose rows are to be written
        self._closed = False

    def close(self) -> None:
        """Nothing is kept any more, and what is kept stays: what breaks now has not happened for the next process."""
        self._closed = True

    # What begins to wait, and what does not wait any more

    def when(self, promise: PromiseHandle, obj: Any, fulfilled: str | None, broken: str | None) -> None:
        """See `durable.when`."""
        item = When(self, self._promises.draw(), promise, obj, fulfilled, broken)
        if self._baggage.in_transaction:
            self._baggage.undo_with(lambda: self._forget(item))
        self.changed(item)
        promise._vow.end().add(item)

    def _forget(self, item: When) -> None:
        """The object did not want to be told after all."""
        self._changed.pop(item, None)
        waiting = item.promise._vow.end().waiting
        if item.turn is not None:  # the promise has settled
            self._node.turns.remove(item.turn)
        elif waiting is not None:
            waiting.discard(item)

    def told(self, item: When, fulfilled: bool, value: object) -> None:
        """The promise has settled: the object is told in a turn, which commits with what settled it."""
        if self._closed:
            return
        self._changed.pop(item, None)
        self._baggage.remove("promise", number_key(item.number))
        method = item.fulfilled if fulfilled else item.broken
        if method is not None:
            item.turn = self._node.enqueue(Told(item.obj, method), [value], None, None)
        elif not fulfilled:
            assert isinstance(value, BaseException)
            self._node.log_lost(value, None)

    def waits(self, item: Sent | Telling, vow: Vow) -> None:
        """It waits for `vow` now."""
        if self._closed:
            return
        kept: _Kept | None = item.kept
        if kept is None:
            if not self._new:
                self._node.wake()
            self._new[item] = vow
            return
        kept.vow = vow
        if isinstance(item, Telling):
            self._touch(item)
        else:
            self.changed(item)

    def left(self, item: Sent | Telling) -> None:
        """It does not wait any more."""
        if self._closed or self._new.pop(item, None) is not None:
            return
        kept: _Kept | None = item.kept
        item.kept = None
        if kept is None:
            return
        if isinstance(item, Telling):
            positions = self._tellings[item.session.id]
            del positions[item.position][item]
            if not positions[item.position]:
                del positions[item.position]
            self._touch(item)
        else:
            self._changed.pop(item, None)
            self._drop(kept)

    def _tells(self, item: Telling) -> None:
        self._tellings.setdefault(item.session.id, {}).setdefault(item.position, {})[item] = None

    def _touch(self, item: Telling) -> None:
        item.session.tables.touch("resolver", item.position)
        self._node.touch(item.session)

    def changed(self, item: Sent | Turn | When) -> None:
        """Its row is to be written again."""
        if not self._changed:
            self._node.wake()
        self._changed[item] = None

    def withdraws(self, vow: Vow, key: tuple[bytes, bytes], through: bytes, life: float) -> None:
        """A gift is withdrawn that has not been deposited: `vow` waits for it."""
        self._gift(vow, _WITHDRAWAL, [*key, through], life)

    def given(self, vow: Vow, session_id: bytes, wire: bytes, life: float) -> None:
        """A gift was given to us whose exporter is not reached yet: `vow` waits for it."""
        self._gift(vow, _GIVE, [session_id, wire], life)

    def _gift(self, vow: Vow, form: str, what: list[bytes], life: float) -> None:
        number = self._promises.draw()
        self._put(number, [None, form, what, int(time.time() + life)])
        self._comes(vow, number)

    def _comes(self, vow: Vow, number: int) -> None:
        def gone() -> None:
            self._remove(number)

        self._promises.settled_by(vow, number)
        vow.watch(_Coming(gone))

    def ended(self, session_id: bytes) -> None:
        """The session is over: nobody there is told any more."""
        for position in self._tellings.pop(session_id, {}).values():
            for item in position:
                item.keeper = None
                item.kept = None

    # Rows

    def save(self) -> None:
        """Writes what has changed since the last time."""
        new, self._new = self._new, {}
        for waiting, vow in new.items():
            self._begins_to_wait(waiting, vow)
        for turn in self._node.waiting_turns:
            if not turn.number:
                self._save_turn(turn)
        while self._changed:
            changed, self._changed = self._changed, {}
            for item in changed:  # in order: what waits for the answer to another comes after it
                if isinstance(item, Turn):
                    self._save_turn(item)
                elif isinstance(item, When):
                    waits_on = self._promises.on(item.promise._vow)
                    row = [self._number_of(item.obj), item.fulfilled, item.broken, waits_on]
                    self._baggage.put("promise", number_key(item.number), encode_row(row))
                else:
                    self._save_sent(item)

    def _begins_to_wait(self, item: Sent | Telling, vow: Vow) -> None:
        if isinstance(item, Telling):
            if item.session.ended is not None:
                return
            self._tells(item)
            self._touch(item)
        else:
            self.changed(item)
        item.kept = _Kept(self._promises.draw(), vow, False)

    def _save_turn(self, turn: Turn) -> None:
        """A message to a durable object that has not begun; to any other, it ends with the process."""
        target, method = turn.target, None
        if isinstance(target, Told):
            target, method = target.obj, target.method
        if not isinstance(target, Durable):
            turn.number = -1
            return
        number = turn.number or self._promises.draw()
        args, answer = turn.args, turn.answer
        source = None if turn.source is None else [turn.source.id, turn.size]

        def pack() -> list[Any]:
            packed = self._values.pack(args, "args", TURN)
            return [self._number_of(target), method, packed, answer is not None, source]

        try:
            self._put(number, self._promises.watched(number_key(number), lambda: self.changed(turn), pack))
        except NotStorable:
            if turn.number:  # it was kept, and what a promise in it became cannot be
                self._remove(number)
            turn.number = -1
            self._promises.unwatch(number_key(number))
            return
        turn.number = number
        if answer is not None:
            self._promises.settled_by(answer, number)

    def begins(self, turn: Turn) -> None:
        """A turn that was kept has its turn."""
        self._changed.pop(turn, None)
        self._remove(turn.number)

    def _save_sent(self, item: Sent) -> None:
        """A message or a selection that is queued on a promise. It goes on if the promise does."""
        kept: _Kept = item.kept
        number, answer = kept.number, item.answer
        target = self._target(kept.vow)
        source = None if item.source is None else [item.source.id, item.size]

        def pack() -> list[Any]:
            if isinstance(item, Selection):
                return [target, item.kind, item.key, answer is not None, source]
            assert isinstance(item, Message)
            packed = self._values.pack(item.args, "args", TURN)
            return [target, None, packed, answer is not None, source]

        if target is not None:
            try:
                self._put(number, self._promises.watched(number_key(number), lambda: self._again(item), pack))
            except NotStorable:
                pass
            else:
                kept.stored = True
                if answer is not None:
                    self._promises.settled_by(answer, number)
                return
        self._drop(kept)

    def _target(self, vow: Vow) -> Any:
        """What a message is sent to; None if that ends with the process. If nothing has to become of it any more, the
        message waits for its session to be renewed (`ocapn.captp.gate`)."""
        end = vow.end()
        if end.state != FULFILLED:
            return self._promises.on(vow)
        try:
            return [VALUE, self._values.pack(end.value, "target", OUTCOME)]
        except NotStorable:
            return None

    def _again(self, item: Sent) -> None:
        if item.kept is not None:
            self.changed(item)

    def _drop(self, kept: _Kept) -> None:
        """What was kept has no row any more."""
        if kept.stored:
            kept.stored = False
            self._remove(kept.number)
        else:
            self._promises.unwatch(number_key(kept.number))

    def _put(self, number: int, row: list[Any]) -> None:
        self._baggage.put("turn", number_key(number), encode_row(row))

    def _remove(self, number: int) -> None:
        if self._closed:
            return
        self._promises.forget(number)
        self._promises.unwatch(number_key(number))
        self._baggage.remove("turn", number_key(number))

    def resolvers(self, session: Session, position: int, twice: int) -> Any:
        """What is to be kept of those of a peer, at one position, that are to be told.

        `twice`, how many, as `Tables.resolvers` has it; with that, if there are any, those that will be told even
        after a restart: number, and what they wait on.
        """
        waiting = self._tellings.get(session.id, {}).get(position)
        if waiting:
            found = [[item.kept.number, self._promises.on(item.kept.vow)] for item in waiting]
            told = [one for one in found if one[1] is not None]
            if told:
                return [twice, told]
        return twice

    # After a restart

    def restore_promises(self) -> None:
        """The promises that rows of `turn` will settle."""
        for key, data in self._baggage.scan("turn"):
            number, (target, _, _, asked, *_) = key_number(key), decode_row(data, "turn")
            self._promises.drawn(number)
            if target is None or asked:
                self._promises.restore(number)

    def restore(self, resolvers: Iterable[tuple[Session, int, Any]]) -> None:
        """Everything waits again, in the order in which it began to; what waits for what is over is told.

        `resolvers`: what is kept of those that are to be told, by session and position.
        """
        begin: dict[int, Callable[[], None]] = {}
        gifts: list[Callable[[], None]] = []
        untold: list[tuple[Session, int]] = []
        for key, data in self._baggage.scan("turn"):
            number, row = key_number(key), decode_row(data, "turn")
            if row[0] is None:
                gifts.append(partial(self._restore_gift, number, *row[1:]))
            elif isinstance(row[0], int):
                begin[number] = partial(self._restore_turn, number, *row)
            else:
                begin[number] = partial(self._restore_sent, number, *row)
        for key, data in self._baggage.scan("promise"):
            number = key_number(key)
            begin[number] = partial(self._restore_when, number, *decode_row(data, "promise"))
        for session, position, kept in resolvers:
            twice, told = (kept, ()) if type(kept) is int else kept
            session.tables.restore_resolver(position, twice)
            for number, waits_on in told:
                begin[number] = partial(self._restore_telling, number, session, position, waits_on)
            untold += [(session, position)] * (twice // 2 - len(told))
        for number in sorted(begin):
            self._promises.drawn(number)
            begin[number]()
        for restore in gifts:  # last, as those that come too late break at once
            restore()
        for session, position in untold:
            session.tell(position, False, PeerRestarted("the process that owed this was restarted"))

    def _restore_turn(
        self, number: int, obj: int, method: str | None, args: Any, asked: bool, source: list[Any] | None
    ) -> None:
        target: LocalTarget = self._object(obj)
        if method is not None:
            target = Told(target, method)
        session, size = self._source(source)
        answer = self._promises.restore(number) if asked else None
        turn = self._node.enqueue(target, self._values.unpack(args), answer, session, size)
        turn.number = number

    def _restore_sent(
        self,
        number: int,
        target: list[Any],
        kind: int | None,
        what: Any,
        asked: bool,
        source: list[Any] | None,
    ) -> None:
        session, size = self._source(source)
        answer = self._promises.restore(number) if asked else None
        item: Sent
        if kind is None:
            item = Message(self._values.unpack(what), answer, session)
        else:
            assert answer is not None
            item = Selection(kind, what, answer, session)
        if target[0] == VALUE:
            vow = Vow(self._node)
            vow.resolve(self._values.unpack(target[1]))
        else:
            vow = self._promises.promise(target)
        self._keep(item, number, vow)
        if session is not None:
            item.hold(session, size)
        vow.end().add(item)

    def _source(self, source: list[Any] | None) -> tuple[Session | None, int]:
        session = None if source is None else self._node.kept_session(source[0])
        return session, 0 if source is None else max(0, source[1])

    def _restore_when(
        self, number: int, obj: int, fulfilled: str | None, broken: str | None, waits_on: list[Any] | None
    ) -> None:
        vow = self._promises.promise(waits_on, "the promise ended with the process that had it")
        vow.end().add(When(self, number, vow.handle(), self._object(obj), fulfilled, broken))

    def _restore_telling(self, number: int, session: Session, position: int, waits_on: list[Any]) -> None:
        vow = self._promises.promise(waits_on)
        item = Telling(session, position)
        self._keep(item, number, vow)
        self._tells(item)
        vow.end().add(item)

    def _keep(self, item: Sent | Telling, number: int, vow: Vow) -> None:
        item.kept = _Kept(number, vow, isinstance(item, Sent))
        item.keeper = self._node.keeper

    def _restore_gift(self, number: int, form: str, what: list[bytes], until: int) -> None:
        node = self._node
        vow = self._promises.restore(number)
        self._comes(vow, number)
        left = min(until - time.time(), node.limits.gift_life)
        if left <= 0:
            vow.break_with(RemoteError("the gift did not come in time"))
        elif form == _WITHDRAWAL:
            gifter, gift_id, through = what
            node.gifts.restore_withdrawal((gifter, gift_id), vow, through, node.now() + left)
        else:
            session_id, wire = what
            session = node.kept(session_id)
            if session is None:
                vow.break_with(SessionLost("the session is over"))
            else:
                resume_give(node, session_id, session.key, wire, vow, node.now() + left)
