"""Promises, their queues, and the order of messages (CapTP specification, Promises; semantics.md).

A `Vow` is a promise as the core sees it; the application holds it by a `PromiseHandle`, and an imported object
by a `RefHandle`. Handles say what is still wanted: when the last one is finalised the wire is told. Tables and
queues hold vows; a vow that follows another holds the other's handle, so that a chain in use stays whole.

States of a vow:

    PENDING    nothing known; messages and listeners wait in `waiting`, in order
    FOLLOWING  resolved to another vow, `value` is its handle; whatever waited has moved there
    FULFILLED  `value` is data or a reference, never a promise
    BROKEN     `value` is the exception

A `RemoteVow` is one that another peer will resolve. While it is pending, messages to it are pipelined. If it
turns out to be something that does not live at that peer, messages already on their way there could be
overtaken by messages sent directly; so if any were sent, the peer is asked a second time (`op:listen`), what is
sent meanwhile waits here, and the second answer, which comes after all that was forwarded, settles the vow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, final
from weakref import ref as weakref

from ocapn.captp.gate import Gate, Held
from ocapn.captp.handles import LocalTarget, PromiseHandle, RefHandle, Waiting
from ocapn.codec.operations import ANSWER, GET, INDEX
from ocapn.errors import OCapNError, PassableError, RemoteError, fresh
from ocapn.model.values import Symbol, Tagged

if TYPE_CHECKING:
    from ocapn.captp.node import Node
    from ocapn.captp.port import Keeper
    from ocapn.captp.session import Session

PENDING: Final = 0
FOLLOWING: Final = 1
FULFILLED: Final = 2
BROKEN: Final = 3

#: What a resolver is told.
FULFILL: Final = Symbol("fulfill")
BREAK: Final = Symbol("break")

#: Length of a queue on a promise from which on it is looked whether somebody still wants what is in it.
_MANY: Final = 64


class Sent(Waiting):
    """What was sent to a promise: a message or a selection. `source` is the session that it came from, if any."""

    __slots__ = ("answer", "keeper", "kept", "size", "source")

    def __init__(self, answer: Vow | None, source: Session | None) -> None:
        self.answer = answer
        self.source = source
        self.size = -1  # in bytes on the wire, while it counts as held
        self.keeper: Keeper | None = None  # while it waits, if somebody keeps what does
        self.kept: Any = None  # the keeper's own

    def hold(self, source: Session, size: int) -> None:
        """Counts it among those that `source` has waiting on promises."""
        self.size = size
        source.held[self] = None
        source.held_bytes += self.size

    def let_go(self) -> int:
        """It does not wait any more. Returns its size, -1 if it was not counted."""
        if self.keeper is not None:
            self.keeper.left(self)
            self.keeper = None
        size = self.size
        if size >= 0:
            assert self.source is not None
            del self.source.held[self]
            self.source.held_bytes -= size
            self.size = -1
        return size

    def drop(self, error: BaseException) -> None:
        """Gives it up, though what it waits for has not come."""
        self.let_go()
        self.size = _DROPPED
        answer, self.answer = self.answer, None
        if answer is not None:
            answer.break_with(error)

    @property
    def gone(self) -> bool:
        return self.size == _DROPPED

    def moves(self, vow: Vow) -> None:
        if self.size != _DROPPED:
            self.keeper = vow.node.keeper
            assert self.keeper is not None
            self.keeper.waits(self, vow)


#: In place of the size of what was given up.
_DROPPED: Final = -2


class Message(Sent):
    """Arguments on their way to what a promise becomes, and the vow of the answer, if one is wanted."""

    __slots__ = ("args",)

    def __init__(self, args: list[object], answer: Vow | None, source: Session | None) -> None:
        super().__init__(answer, source)
        self.args = args

    def drop(self, error: BaseException) -> None:
        super().drop(error)
        self.args = []

    def settle(self, vow: Vow) -> None:
        size = self.let_go()
        if size == _DROPPED:
            return
        node = vow.node
        value = vow.value
        if vow.state == FULFILLED:
            if isinstance(value, LocalTarget):
                node.enqueue(value, self.args, self.answer, self.source, size)
                return
            if isinstance(value, RefHandle):
                slot = value._import
                self._pass_on(vow, slot.session, slot.recipient)
                return
            value = RemoteError("the promise became data, which takes no messages")
        assert isinstance(value, BaseException)
        if self.answer is not None:
            self.answer.break_with(value)
        else:
            node.log_lost(value, self.source)

    def forward(self, vow: RemoteVow) -> None:
        if self.let_go() != _DROPPED:
            vow.used = True
            self._pass_on(vow, vow.session, vow.recipient)

    def _pass_on(self, vow: Vow, session: Session, recipient: bytes) -> None:
        answer = self.answer
        # What other peers send on must not end a session whose peer reads slowly: it meets Backpressure.
        forwarded = self.source is None
        # What its peer sends to itself, through here, is nothing that this side sends it.
        own = self.source is session
        try:
            if answer is None:
                (session.say if own else session.deliver_only)(recipient, self.args, forwarded=forwarded)
            else:
                ask = session.ask if own else session.deliver
                answer.resolve(ask(recipient, self.args, forwarded=forwarded).handle())
        except OCapNError as error:
            failure = held_back(error, self, vow)
            if failure is not None:
                if answer is None:
                    session.node.log_lost(failure, self.source)
                else:
                    answer.break_with(failure)


class Selection(Sent):
    """A field, an index or an untagging of what a promise becomes (op:get, op:index, op:untag)."""

    __slots__ = ("key", "kind")

    def __init__(self, kind: int, key: str | int, answer: Vow, source: Session | None = None) -> None:
        super().__init__(answer, source)
        self.kind = kind
        self.key = key

    def settle(self, vow: Vow) -> None:
        self.let_go()
        answer = self.answer
        if answer is None:  # it was dropped
            return
        if vow.state == BROKEN:
            assert isinstance(vow.value, BaseException)
            answer.break_with(vow.value)
            return
        try:
            part = select(vow.value, self.kind, self.key)
        except RemoteError as error:
            answer.break_with(error)
        else:
            answer.resolve(part)

    def forward(self, vow: RemoteVow) -> None:
        self.let_go()
        answer = self.answer
        if answer is None:
            return
        try:
            session = vow.session
            # What its peer asks of itself, through here, is nothing that this side asks of it.
            ask = session.ask_part if self.source is session else session.select
            answer.resolve(ask(vow.recipient, self.kind, self.key).handle())
        except OCapNError as error:
            failure = held_back(error, self, vow)
            if failure is not None:
                answer.break_with(failure)


def held_back(error: OCapNError, item: Sent, vow: Vow) -> OCapNError | None:
    """`item`, sent to `vow`, has met `error`: what it fails with, None if it waits for the session to be renewed."""
    if isinstance(error, Held):
        try:
            error.gate.hold(item, vow)
        except OCapNError as full:
            return full
        return None
    return error


def select(value: object, kind: int, key: str | int) -> object:
    """The part of `value` that op:get, op:index or op:untag names. Raises RemoteError."""
    if kind == GET:
        if not isinstance(value, dict):
            raise RemoteError("op:get wants a struct, and this is none")
        if key not in value:
            raise RemoteError(f"the struct has no field {str(key)[:100]!r}")
        return value[key]
    if kind == INDEX:
        if not isinstance(value, (list, tuple)):
            raise RemoteError("op:index wants a list, and this is none")
        assert isinstance(key, int)
        if not 0 <= key < len(value):
            raise RemoteError(f"the list has {len(value)} members, and no index {key}")
        return value[key]
    if not isinstance(value, Tagged):
        raise RemoteError("op:untag wants a tagged value, and this is none")
    if value.tag != key:
        raise RemoteError(f"the value is tagged {value.tag[:100]!r}, not {str(key)[:100]!r}")
    return value.value


@final
class Queue:
    """What waits on one promise, in order.

    Sessions come and go, and the promise may stay: a queue that has doubled is looked through, so that what they
    left behind is at most as much as is, or was then, wanted.
    """

    __slots__ = ("_look_at", "items")

    def __init__(self) -> None:
        self.items: list[Waiting] = []
        self._look_at = _MANY

    def add(self, item: Waiting) -> None:
        self.items.append(item)
        self._look_through()

    def discard(self, item: Waiting) -> None:
        if item in self.items:
            self.items.remove(item)

    def _look_through(self) -> None:
        """The queue has grown: forgets what is gone, if it has not been looked at for long."""
        if len(self.items) >= self._look_at:
            self.items = [one for one in self.items if not one.gone]
            self._look_at = max(_MANY, 2 * len(self.items))

    def join(self, other: Queue) -> Queue:
        """This queue with `other` behind it. A long one is not copied, through however many promises it moves."""
        if len(self.items) >= len(other.items):
            joint = self
            joint.items.extend(other.items)
        else:
            joint = other
            joint.items[:0] = self.items
        joint._look_through()
        return joint


class Vow:
    """A promise that is resolved here."""

    __slots__ = ("_handle", "node", "released", "state", "step", "value", "waiting")

    def __init__(self, node: Node) -> None:
        self.node = node
        self.released = True  # nothing to tell another peer when the handle is finalised
        self.state = PENDING
        self.step = 0  # the node's when it was settled
        self.value: object = None
        self.waiting: Queue | None = None
        self._handle: weakref[PromiseHandle] | None = None

    def handle(self) -> PromiseHandle:
        """The application's end of this promise: one object as long as somebody holds it."""
        handle = None if self._handle is None else self._handle()
        if handle is None:
            handle = self.node.make_promise(self)
            self._handle = weakref(handle)
        return handle

    @property
    def status(self) -> str:
        """What has become of it, for people."""
        return {PENDING: "pending", FULFILLED: "fulfilled", BROKEN: "broken"}[self.end().state]

    @property
    def held(self) -> bool:
        """Whether anybody holds the handle."""
        return self._handle is not None and self._handle() is not None

    def end(self) -> Vow:
        """The vow at the end of the chain that this one follows: pending, fulfilled or broken."""
        vow: Vow = self
        while vow.state == FOLLOWING:
            vow = vow.value._vow  # type: ignore[attr-defined]  # FOLLOWING: a PromiseHandle
        step: Vow = self
        while step is not vow:  # so that no part of a long chain is walked twice
            after: Vow = step.value._vow  # type: ignore[attr-defined]  # likewise
            if after is not vow:
                step.value = vow.handle()
            step = after
        return vow

    # Asking

    def add(self, item: Waiting) -> None:
        """Sends a message or selection to the promise, or listens on it. The vow must be its own end."""
        if self.state >= FULFILLED:
            item.settle(self)
        else:
            self._wait(item)

    def _wait(self, item: Waiting) -> None:
        self.watch(item)
        if self.node.keeper is not None:
            item.moves(self)

    def watch(self, item: Waiting) -> None:
        """Has `item` told what becomes of the pending promise, without asking a peer for it."""
        if self.waiting is None:
            self.waiting = Queue()
        self.waiting.add(item)

    def take_over(self, waiting: Queue) -> None:
        """What waited on a promise that has become this one. This one may have become another since."""
        vow = self.end()
        if vow.state >= FULFILLED:
            for item in waiting.items:
                item.settle(vow)
        elif isinstance(vow, RemoteVow):
            for item in waiting.items:
                vow.add(item)
        else:
            moving = None if self.node.keeper is None else list(waiting.items)
            vow.waiting = waiting if vow.waiting is None else vow.waiting.join(waiting)
            for item in moving or ():
                item.moves(vow)

    # Resolving

    def resolve(self, value: object) -> None:
        """Fulfils with data or a reference, or follows a promise. Later resolutions are ignored."""
        if self.state != PENDING:
            return
        if not isinstance(value, PromiseHandle):
            self._settle(FULFILLED, value)
            return
        other = value._vow.end()
        if other is self:
            self.break_with(RemoteError("the promise was resolved to itself"))
        elif other.state >= FULFILLED:
            self._settle(other.state, other.value)
        else:
            self.value = other.handle()
            self.state = FOLLOWING  # last: another thread may look
            self._follow(other)
            waiting, self.waiting = self.waiting, None
            if waiting is not None and waiting.items:
                first = waiting.items[0]  # who wants to hear of a promise listened when the vow was made
                if isinstance(first, Telling) and first.partial:
                    del waiting.items[0]
                    first.tell(True, other.handle())
                self.node.settle(other, waiting)
            self._left()

    def break_with(self, error: BaseException) -> None:
        """Breaks the promise. Later resolutions are ignored."""
        if self.state == PENDING:
            self._settle(BROKEN, error)

    def _settle(self, state: int, value: object) -> None:
        self.step = self.node.step
        self.value = bare(value) if state == BROKEN else value
        self.state = state  # last: another thread may look
        waiting, self.waiting = self.waiting, None
        if waiting is not None and waiting.items:
            self.node.settle(self, waiting)
        self._left()

    def _left(self) -> None:
        """The vow is no longer pending."""

    def _follow(self, other: Vow) -> None:
        """The vow now follows `other`."""
        if isinstance(other, RemoteVow) and not other.listening:
            other.listen()  # if it follows this one, messages would go round between the two peers for ever


class HeldVow(Vow):
    """The answer to a message that waits in a gate: what is sent to it waits there too, until that opens.

    If it closes again, nothing waits there for this any more: the message may have gone to an object that is here.
    """

    __slots__ = ("closure", "gate")

    def __init__(self, node: Node, gate: Gate) -> None:
        super().__init__(node)
        self.gate = gate
        self.closure = gate.closure

    def passes(self) -> None:
        """Raises Held."""
        if self.state == PENDING and self.closure is self.gate.closure:
            raise Held(self.gate)


class RemoteVow(Vow):
    """A promise that the peer of `session` resolves: an answer we asked for, or a promise it exported."""

    __slots__ = ("_recipient", "asked_again", "kind", "listening", "position", "session", "used")

    def __init__(self, session: Session, kind: int, position: int) -> None:
        super().__init__(session.node)
        self.session = session
        self.kind = kind  # ANSWER, or EXPORT for a promise that the peer exported
        self.position = position
        self._recipient = b""
        self.listening = False  # a resolver of ours is with the peer
        self.used = False  # messages were pipelined to it
        self.asked_again = False
        self.released = False

    @property
    def recipient(self) -> bytes:
        """Its descriptor, encoded; of most, nobody asks."""
        if not self._recipient:
            self._recipient = self.session.codec.descriptor(self.kind, self.position)
        return self._recipient

    def add(self, item: Waiting) -> None:
        if self.state >= FULFILLED:
            item.settle(self)
        elif not item.listens and not self.asked_again:
            item.forward(self)
        elif isinstance(item, Telling) and item.session is self.session and not self.asked_again:
            # The promise is the listener's own: it is told so, and does not wait for itself. If it was asked again,
            # messages wait here, and the listener must not overtake them.
            item.tell(True, self.handle())
        else:
            self._wait(item)
            if not self.listening:
                self.listen()

    def listen(self) -> None:
        """Asks the peer to tell what the promise becomes (op:listen)."""
        self.listening = True
        self.session.listen(self)

    def told(self, value: object) -> None:
        """The peer fulfilled the promise with `value`."""
        if self.state != PENDING:
            return
        gate = self.session.gate
        if gate is not None and gate.told(self, value):
            return
        if self.used and not self.asked_again and not self.released and self._elsewhere(value):
            self.asked_again = True
            self.listen()
        else:
            self.resolve(value)

    def _elsewhere(self, value: object) -> bool:
        """Whether messages to this promise are, or were, passed on by the peer: `value` does not live there.

        A promise of ours counts even if it became something of the peer's: what the peer passes on comes here first.
        """
        if isinstance(value, PromiseHandle):
            vow = value._vow
            theirs = isinstance(vow, RemoteVow) and vow.session is self.session
            return vow.end() is not self and not (theirs and vow.state == PENDING)
        if isinstance(value, RefHandle):
            return value._import.session is not self.session
        return isinstance(value, LocalTarget)

    def _follow(self, other: Vow) -> None:
        super()._follow(other)
        if self.used and isinstance(other, RemoteVow):
            other.used = True

    def _left(self) -> None:
        session = self.session
        if self.kind == ANSWER and not self.released:
            self.released = True
            session.release_answer(self)

    def release(self) -> None:
        """The handle was finalised: gives the promise up on the wire, unless a new handle was made since."""
        if not self.released and not self.held:
            self.released = True
            if self.kind == ANSWER:
                self.session.release_answer(self)
            else:
                self.session.release_import(self.position)


def broken(node: Node, error: BaseException) -> Vow:
    """A vow that is broken from the start."""
    vow = Vow(node)
    vow._settle(BROKEN, error)
    return vow


def bare(error: object) -> BaseException:
    """The error without where it was raised: a traceback keeps frames, and with them references, alive."""
    assert isinstance(error, BaseException)
    if error.__traceback__ is not None or error.__context__ is not None or error.__cause__ is not None:
        error = fresh(error)
        error.__cause__ = None
    return error


def crossing(error: BaseException) -> RemoteError:
    """What another object learns of an error: its message, and its class only if that says it may."""
    if isinstance(error, RemoteError):
        return error
    message = _message(error)
    if isinstance(error, PassableError):
        return RemoteError(f"{type(error).__name__}: {message}")
    return RemoteError(message)


def _message(error: BaseException) -> str:
    """The text of an error. What Python makes of several arguments, a file's name among them, is no message."""
    if isinstance(error, OSError) and error.strerror is not None:
        return str(error.strerror)
    if type(error).__str__ is BaseException.__str__ and len(error.args) > 1:
        return "an error with arguments that are not passed on"
    try:
        return str(error)
    except Exception:  # its class has a `__str__` that fails
        return "an error that has no text"


def error_of(value: object) -> BaseException:
    """The exception that a `break` with `value` stands for."""
    return value if isinstance(value, BaseException) else RemoteError(_told(value), value)


def _told(value: object) -> str:
    text = repr(value)
    return "broken with " + (text if len(text) <= 200 else text[:200] + "…")


def resolve(vow: Vow, args: list[object]) -> None:
    """A message to the resolver of `vow`: ['fulfill value] or ['break error]. Raises RemoteError."""
    if len(args) == 2:
        if args[0] is FULFILL:
            if isinstance(vow, RemoteVow):
                vow.told(args[1])
            else:
                vow.resolve(args[1])
            return
        if args[0] is BREAK:
            vow.break_with(error_of(args[1]))
            return
    raise RemoteError("a resolver takes ['fulfill value] or ['break error]")


class Telling(Waiting):
    """A resolver of the peer that wants to be told what a vow becomes, once: resolve-me, or op:listen."""

    __slots__ = ("keeper", "kept", "partial", "position", "session")
    listens = True

    def __init__(self, session: Session, position: int, partial: bool = False) -> None:
        self.session = session
        self.position = position
        self.partial = partial  # a promise that it becomes is told at once
        self.keeper: Keeper | None = None  # while it waits, if somebody keeps what does
        self.kept: Any = None  # the keeper's own

    @property
    def gone(self) -> bool:
        return self.session.ended is not None

    def settle(self, vow: Vow) -> None:
        self.tell(vow.state == FULFILLED, vow.value)

    def tell(self, fulfilled: bool, value: object) -> None:
        """Tells it, and waits no more."""
        if self.keeper is not None:
            self.keeper.left(self)
            self.keeper = None
        self.session.tell(self.position, fulfilled, value)

    def moves(self, vow: Vow) -> None:
        if self.session.ended is None:
            self.keeper = vow.node.keeper
            assert self.keeper is not None
            self.keeper.waits(self, vow)
