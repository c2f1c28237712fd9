"""One CapTP session: messages in, messages out (CapTP specification, Operations).

The facade of the core. `receive` takes the bytes of one message and raises RemoteProtocolError if the peer broke
the protocol; the caller then ends the session with `abort`. What is to be sent collects in `outbox`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from ocapn.captp.delivery import BREAK, BROKEN, FULFILL, FULFILLED, RemoteVow, Sent, Vow, crossing
from ocapn.captp.frames import DURABLE_SESSION, Agreement, Frames, read_terms, terms_of
from ocapn.captp.gate import Gate
from ocapn.captp.handles import Waiting
from ocapn.captp.handoff import HandoffCounts
from ocapn.captp.outbox import Outbox
from ocapn.captp.receiving import Receiver
from ocapn.captp.tables import Tables, nothing_touched
from ocapn.captp.writing import Writer
from ocapn.codec.messages import SYRUP, Codec
from ocapn.codec.operations import (
    ANSWER,
    EXPORT,
    Abort,
    Deliver,
    Descriptor,
    Form,
)
from ocapn.codec.resumption import Hints, write_ack
from ocapn.crypto import SessionKey, public_id, session_id
from ocapn.errors import (
    Aborted,
    Backpressure,
    Disconnected,
    OCapNError,
    RemoteError,
    RolledBack,
    SessionEnded,
    SessionExpired,
    SessionLost,
    fresh,
)
from ocapn.model.locators import PeerLocator

if TYPE_CHECKING:
    from ocapn.captp.node import Node

_BOOTSTRAP_DESCRIPTOR: Final = Descriptor(EXPORT, 0)
#: So long is waited for the answer whether a session is to be durable, seconds.
_ANSWER_WITHIN: Final = 30.0
#: An op:ack goes out on a durable session at least this often, seconds.
_ALIVE: Final = 15.0
#: A suspended session with nothing in its tables is kept for this long, seconds.
_EMPTY_LIFE: Final = 60.0


Trace = Callable[[str, bytes], None]


class _Asked(Waiting):
    """Waits for the answer whether the session is to be durable."""

    __slots__ = ("session",)
    listens = True

    def __init__(self, session: Session) -> None:
        self.session = session

    def settle(self, vow: Vow) -> None:
        self.session.answered(vow)


class Session:
    """The state of one session. `last_heard` is set by the caller when bytes arrive."""

    __slots__ = (
        "__weakref__",  # for the tests; a compiled class has none
        "_decoder",
        "_many_watchers",
        "_receiver",
        "_spent",
        "_undecided",
        "_watchers",
        "_writer",
        "asked_to_resume",
        "attached",
        "authenticated",
        "begun",
        "bootstrap",
        "bytes_in",
        "bytes_out",
        "codec",
        "cut",
        "dialled",
        "ended",
        "form",
        "frames",
        "gate",
        "handoffs",
        "held",
        "held_bytes",
        "id",
        "kept_bytes",
        "key",
        "last_heard",
        "location",
        "lost",
        "messages_in",
        "messages_out",
        "node",
        "on_leave",
        "outbox",
        "peer_id",
        "peer_key",
        "queued_bytes",
        "queued_turns",
        "reading",
        "reason",
        "renewed",
        "restarted",
        "tables",
        "trace",
        "unproved",
        "withdrawing",
    )

    def __init__(
        self,
        node: Node,
        *,
        key: SessionKey,
        peer_key: bytes,
        location: PeerLocator,
        dialled: bool,
        authenticated: bool,
        form: Form,
        now: float,
        agreement: Agreement | None = None,
        codec: Codec = SYRUP,
    ) -> None:
        self.node = node
        #: Of its messages, for all of its life: a connection on which it resumes may have agreed on another.
        self.codec = codec
        self.key = key
        self.peer_key = peer_key
        self.peer_id = public_id(peer_key)
        self.id = session_id(key.public_id, self.peer_id)
        self.location = location
        self.dialled = dialled
        self.authenticated = authenticated
        #: Its peer says that it is at that location, where a dial would have proved it: it is not sent to in place of
        #: the peer that is.
        self.unproved = not (authenticated or dialled) and location.transport in node.proving
        self.form = Form(form.old_deliver, form.old_gc, form.text_order)
        self.last_heard = now
        self.begun = now
        #: When its time began to count.
        self.renewed = now
        self.tables = Tables(node.limits)
        self.bootstrap = codec.descriptor(EXPORT, 0)
        self.ended: SessionEnded | None = None
        #: Called when the session leaves its connection, because it has ended or was cut.
        self.on_leave: Callable[[], None] | None = None
        #: Whether there is a connection; without one a session that has not ended is suspended.
        self.attached = True
        #: Why the last connection is gone, if it was cut.
        self.cut: str | None = None
        #: The frames of a durable session, or of one that may become durable.
        self.frames: Frames | None = None
        #: When we sent op:resume-session, for the first time since the cut, without an answer so far.
        self.asked_to_resume: float | None = None
        #: Whether no frame was taken and committed since the session came from a baggage.
        self.restarted = False
        #: Why a resume is refused: `ended` or `expired` once the session is over.
        self.reason: str | None = None
        self.trace: Trace | None = None
        #: Where the application's messages wait when the time of the session is over, if it has one.
        self.gate: Gate | None = None
        self.outbox = Outbox(self)
        self.queued_turns = 0
        self.queued_bytes = 0
        self.held: dict[Sent, None] = {}  # what waits on promises of ours that are not resolved
        self.held_bytes = 0
        self.kept_bytes = 0  # of large messages, by what else keeps their arguments
        self.lost = [0.0, 0]  # a minute, and how many messages that wanted no answer have failed in it
        self.withdrawing = 0  # gifts that the peer gave us, and to whose exporters we are connecting
        self.reading = 0  # size of the message being received
        self.messages_in = self.bytes_in = self.messages_out = self.bytes_out = 0
        #: Stands in the exports table for resolvers that were used.
        self._spent = RemoteVow(self, ANSWER, 0)
        self._spent.state = BROKEN
        self._spent.released = True
        self._receiver = Receiver(self)
        self._decoder = codec.decoder(node.limits)
        self._writer = Writer(self, self._receiver.bootstrap)
        self.handoffs = HandoffCounts()
        self._undecided: list[Callable[[], None]] = []
        self._watchers: list[Vow] = []
        self._many_watchers = 64  # from which on it is looked which of them are still wanted
        node.add_session(self)
        if agreement is not None:
            terms = terms_of(node.limits)
            self.frames = Frames(agreement, self.id, key.public_id, self.peer_id, terms, now)
            if node.keeper is not None:
                self.frames.commit(0, 0)
                self.tables.touched = nothing_touched()
            if agreement is Agreement.ASKING:
                self._ask()

    def __repr__(self) -> str:
        return f"<Session with {self.location.uri}, {self.state}>"

    @property
    def state(self) -> str:
        """For people."""
        if self.ended is not None:
            return f"ended: {self.ended.reason}"
        return "live" if self.attached else "suspended"

    # Receiving

    def receive(self, data: bytes) -> None:
        """One message. Raises RemoteProtocolError; SessionEnded (Aborted) if it is op:abort."""
        if self.ended is not None:
            return  # it crossed with the end
        self.messages_in += 1
        self.bytes_in += len(data)
        if self.trace is not None:
            self.trace("<-", data)
        frames = self.frames
        if frames is not None:
            if not frames.take(data):
                if frames.confirmed:
                    frames.confirmed = False
                    self.node.touch(self)
                    self._decided()
                return  # what was acknowledged is forgotten with the next commit: none is needed for it
            self.node.touch(self)
            if frames.settled:
                self.outbox.acknowledge(at_once=frames.ack_due)
        self.reading = len(data)
        decoder = self._decoder
        operation = decoder.decode(data)
        if decoder.text_order and not self.form.text_order:
            self.form.text_order = self._writer.encoder.text_order = True
        if frames is not None and frames.agreement is Agreement.UNDECIDED and frames.taken == 1:
            self._decide(operation)
        if type(operation) is Deliver:
            self._receiver.deliver(operation)
        elif type(operation) is Abort:
            self._end(Aborted(operation.reason))
            raise Aborted(operation.reason)  # another: one that was raised keeps the frames that it passed
        else:
            self._receiver.other(operation)

    def keep(self, size: int) -> bool:
        """Counts bytes whose arguments are kept, in `kept_bytes`, if the limit allows; says whether it does."""
        if self.held_bytes + self.kept_bytes + size > self.node.limits.kept_bytes:
            return False
        self.kept_bytes += size
        return True

    def forsake(self) -> None:
        """The session has ended, and so have too many others: what it has waiting on promises is dropped."""
        error = RemoteError("the session that sent this has ended, and what it sent waited too long")
        for item in list(self.held):
            item.drop(error)

    # Sending

    def deliver(self, recipient: bytes, args: list[object], *, forwarded: bool = False) -> RemoteVow:
        """Sends a message and asks for the answer. `recipient` is an encoded descriptor.

        Raises SessionEnded, NotPassable, TooBusy, Held, and Backpressure unless the message is `forwarded` for others.
        """
        if self.gate is not None:
            self.gate.passes()
        return self.ask(recipient, args, forwarded=forwarded)

    def ask(self, recipient: bytes, args: list[object], *, forwarded: bool = False) -> RemoteVow:
        """As `deliver`, for what is no message of the application."""
        self.may_send(forwarded)
        tables = self.tables
        if self._answers_held >= self.node.limits.answers:
            raise Backpressure(f"{self._answers_held} answers are owed by the peer already")
        encoded = self._writer.encode(args)
        position = tables.next_question
        question = RemoteVow(self, ANSWER, position)
        question.listening = True
        try:
            resolver = tables.export_resolver(question).position
        except OCapNError:
            self._writer.undo()
            raise
        tables.next_question = position + 1
        tables.questions[position] = question
        tables.touch("question", position)
        self._send_encoded(self.codec.deliver(recipient, encoded, position, resolver))
        return question

    def deliver_only(self, recipient: bytes, args: list[object], *, forwarded: bool = False) -> None:
        """Sends a message that wants no answer. Raises as `deliver`."""
        if self.gate is not None:
            self.gate.passes()
        self.say(recipient, args, forwarded=forwarded)

    def say(self, recipient: bytes, args: list[object], *, forwarded: bool = False) -> None:
        """As `deliver_only`, for what is no message of the application."""
        self.may_send(forwarded)
        encoded = self._writer.encode(args)
        if self.form.old_deliver:
            self._send_encoded(self.codec.deliver_only(recipient, encoded))
        else:
            self._send_encoded(self.codec.deliver(recipient, encoded, -1, -1))

    def select(self, recipient: bytes, kind: int, key: str | int) -> RemoteVow:
        """Asks for a part of what a promise of the peer becomes. Raises as `deliver`."""
        if self.gate is not None:
            self.gate.passes()
        return self.ask_part(recipient, kind, key)

    def ask_part(self, recipient: bytes, kind: int, key: str | int) -> RemoteVow:
        """As `select`, for what the application has not asked."""
        self.may_send(False)
        tables = self.tables
        if self._answers_held >= self.node.limits.answers:
            raise Backpressure(f"{self._answers_held} answers are owed by the peer already")
        position = tables.next_question
        message = self.codec.select(self._writer.encoder, kind, recipient, key, position)
        question = RemoteVow(self, ANSWER, position)
        tables.next_question = position + 1
        tables.questions[position] = question
        tables.touch("question", position)
        self.send(message)
        return question

    def listen(self, vow: RemoteVow) -> None:
        """Asks to be told what a promise of the peer becomes."""
        if self.ended is not None:
            vow.break_with(self.ended)
            return
        try:
            resolver = self.tables.export_resolver(vow).position
        except OCapNError as error:
            vow.break_with(error)
            return
        if vow.kind == ANSWER:
            self.tables.touch("question", vow.position)
        self.send(self.codec.listen(vow.recipient, resolver))

    def tell(self, resolver: int, fulfilled: bool, value: object) -> None:
        """Tells a resolver of the peer what the promise became, and returns the resolver."""
        if self.ended is not None:
            return
        recipient = self.codec.descriptor(EXPORT, resolver)
        try:
            if fulfilled:
                self.say(recipient, [FULFILL, value], forwarded=True)
            else:
                assert isinstance(value, BaseException)
                error = crossing(value)
                reason = error if error.value is None else error.value
                self.say(recipient, [BREAK, reason], forwarded=True)
        except OCapNError as refused:
            self.say(recipient, [BREAK, RemoteError(str(refused))], forwarded=True)
        self.tables.resolver_used(resolver)
        self._return(resolver, 1)

    def may_send(self, forwarded: bool) -> None:
        """Raises SessionEnded; Backpressure unless the message is `forwarded` for others."""
        if self.ended is not None:
            raise fresh(self.ended)  # one that is raised again and again collects every frame it passed
        if not forwarded:
            outbox = self.outbox
            if outbox.full:
                raise Backpressure(f"{outbox.frames} messages ({outbox.size} bytes) wait to be sent already")

    def _send_encoded(self, message: bytes) -> None:
        """Sends a message made from arguments that the writer has encoded."""
        self._writer.done()
        self.send(message)

    def send(self, message: bytes) -> None:
        """One encoded message, as it is."""
        self.messages_out += 1
        self.bytes_out += len(message)
        if self.trace is not None:
            self.trace("->", message)
        frames = self.frames
        if frames is not None:
            self.node.touch(self)
            frames.number(message)
            if frames.full and frames.agreement is Agreement.UNDECIDED:
                self.ordinary()
        self.outbox.append(message)

    # Durable sessions (spec/resume.md)

    def _ask(self) -> None:
        """Asks for a durable session: our first frame."""
        vow = RemoteVow(self, ANSWER, 0)
        vow.released = vow.listening = True
        resolver = self.tables.export_resolver(vow).position
        assert self.frames is not None
        args = self._writer.encode(self.frames.terms.value)
        self.send(self.codec.deliver(self.bootstrap, args, -1, resolver))
        vow.add(_Asked(self))

    def answered(self, vow: Vow) -> None:
        """The peer has answered the question whether the session is to be durable."""
        terms = read_terms(vow.value) if vow.state == FULFILLED else None
        if self.ended is not None:
            return
        if terms is None:
            if vow.state == FULFILLED:
                self.abort("a durable session was granted on terms that are none")
            else:
                self.ordinary()
        elif self.frames is None:
            self.abort("a durable session was granted too late")
        elif self.node.knows_key(self.peer_key):
            self.abort("the session key is that of another session")
        else:
            self.frames.agree(terms, Agreement.AGREED)
            self.node.keep(self)
            self.outbox.acknowledge(at_once=True)
            self._decided()

    def _decide(self, operation: object) -> None:
        """The peer's first frame: it asks for a durable session with it, or the session is ordinary for good."""
        if not (
            isinstance(operation, Deliver)
            and operation.to == _BOOTSTRAP_DESCRIPTOR
            and operation.answer < 0
            and operation.resolver is not None
            and operation.args[:1] == [DURABLE_SESSION]
        ):
            self.ordinary()

    def agree(self, args: list[object]) -> list[object]:
        """The peer asks for a durable session: what we offer. Raises RemoteError if there will be none."""
        frames = self.frames
        if self.ended is not None or frames is None or frames.agreement is not Agreement.UNDECIDED:
            raise RemoteError("this session is not to be durable, or is already")
        if self.node.knows_key(self.peer_key):
            self.ordinary()
            raise RemoteError("the session key is that of another session")
        terms = read_terms(args)
        if terms is None:
            self.ordinary()
            raise RemoteError("that is no offer of a durable session that could be accepted")
        offer = frames.terms.value
        frames.agree(terms, Agreement.PROVISIONAL)
        self.node.keep(self)
        self.outbox.acknowledge()
        return offer

    def ordinary(self) -> None:
        """The session ends with its connection, for good."""
        self.frames = None
        self.tables.touched = None
        self._decided()

    def when_decided(self, tell: Callable[[], None]) -> None:
        """Calls `tell` once both sides know whether the session is durable, if that is being asked now."""
        frames = self.frames
        if (
            self.ended is None
            and frames is not None
            and frames.agreement in (Agreement.ASKING, Agreement.PROVISIONAL)
        ):
            self._undecided.append(tell)
        else:
            tell()

    def _decided(self) -> None:
        undecided, self._undecided = self._undecided, []
        for tell in undecided:
            tell()

    @property
    def durable(self) -> bool:
        """Whether the session survives its connection."""
        return self.frames is not None and self.frames.agreement is Agreement.AGREED

    @property
    def unused(self) -> bool:
        """Whether nothing was sent from here but what a durable session is agreed on with: one frame, or two."""
        return self.frames is not None and self.frames.sent <= (1 if self.dialled else 2)

    @property
    def heard_lately(self) -> bool:
        """Whether something came from the peer within the limit of silence, if on a connection that is closed since."""
        return self.node.now() - self.last_heard < self.node.limits.silence

    @property
    def received(self) -> int:
        """How many frames were taken."""
        return 0 if self.frames is None else self.frames.taken

    @property
    def vouched_for(self) -> bool:
        """Whether this side has begun it, with a peer that was proved then: anybody can make others."""
        return self.dialled and (self.authenticated or self.location.transport in self.node.proving)

    def attach(self, received: int, first: int, authenticated: str | None) -> None:
        """The session goes on, on a new connection: the peer has our frames up to `received`, and sends from `first`.

        A connection that it still had is left.
        """
        frames = self.frames
        assert frames is not None
        self._leave()
        now = self.last_heard = self.node.now()
        again, uncommitted = frames.attach(received, first, now)
        self.attached = True
        self.authenticated = authenticated is not None
        if self.authenticated:
            self.unproved = False
        self.asked_to_resume = None
        self.node.attached(self)
        self.node.touch(self)  # where the peer is now, and that it is not suspended
        self.outbox.begin([write_ack(frames.tell(now)), *again], uncommitted)

    @property
    def frame_counts(self) -> tuple[int, int]:
        """Our frames, and theirs, that are numbered so far and, of theirs, are kept with the next commit."""
        frames = self.frames
        if frames is None:
            return 0, 0
        # Of a session that is not to be kept yet, nothing is: what it has taken is on disk with its first row.
        return frames.sent, frames.taken if frames.settled else 0

    def committed(self, sent: int, taken: int) -> None:
        """Frames up to these numbers are on disk."""
        frames = self.frames
        if frames is not None:
            frames.commit(sent, taken)
            if frames.untold and self.attached:  # else they are told of when it resumes
                self.outbox.acknowledge(at_once=frames.ack_due)

    def restored(self, frames: Frames, since: float) -> None:
        """The session comes from a baggage: it has no connection yet."""
        self.frames = frames
        self.tables.touched = nothing_touched()
        self.restarted = True
        self.last_heard = self.node.now() - self.node.limits.silence  # this process has heard nothing
        frames.since = since
        self.attached = False
        self.cut = "this peer was restarted"
        self.node.keep(self)
        self.node.suspend(self)

    def moved(self, hints: Hints) -> None:
        """The peer says how it can be reached from now on."""
        location = self.location
        self.location = PeerLocator(location.transport, location.designator, hints or None)

    def keep_alive(self) -> None:
        """To be called every few seconds: acknowledges now and then, and finds out that nobody is there."""
        frames = self.frames
        if frames is None or not self.attached:
            return
        now = self.node.now()
        if frames.agreement is Agreement.ASKING and now - frames.since >= _ANSWER_WITHIN:
            self.ordinary()
        elif self.durable:
            if now - self.last_heard >= self.node.limits.silence:
                self.disconnected("nothing was heard from the peer")
            elif now - frames.told_at >= _ALIVE:
                self.outbox.acknowledge(at_once=True)

    def _leave(self) -> None:
        leave, self.on_leave = self.on_leave, None
        self.attached = False
        if leave is not None:
            leave()

    @property
    def life(self) -> float:
        """How long the session may be suspended, seconds. One that holds nothing may still have been sent something."""
        frames = self.frames
        assert frames is not None
        return frames.terms.life if frames.kept or any(self.tables.sizes().values()) else _EMPTY_LIFE

    @property
    def spent(self) -> RemoteVow:
        """What stands in the exports table for a resolver that has no use any more."""
        return self._spent

    # Garbage

    def release_answer(self, question: RemoteVow) -> None:
        """An answer we asked for is not needed any more, as a place to send to."""
        if self.tables.questions.pop(question.position, None) is not None and self.ended is None:
            self.outbox.released(question.position)

    def release_import(self, position: int) -> None:
        """Nobody here holds the import any more."""
        slot = self.tables.imports.pop(position, None)
        if slot is not None:
            self._return(position, slot.count)

    def _return(self, position: int, count: int) -> None:
        if position and self.ended is None:  # the bootstrap object is never returned
            self.tables.touch("import", position)
            self.outbox.returned(position, count)

    @property
    def has_room(self) -> bool:
        """Whether an application may send: neither is the outbox full, nor are too many answers owed."""
        return not self.outbox.full and self._answers_held < self.node.limits.answers

    @property
    def _answers_held(self) -> int:
        """The answers that the peer will hold for us when it has read what was sent so far; its limit is like ours."""
        return len(self.tables.questions) + self.outbox.unreleased

    # Ends

    def overflows(self) -> None:
        """More is kept for the peer than a session may keep: it does not read, or does not acknowledge."""
        if self.ended is None:
            why = "the peer does not read what it is sent"
            if self.durable:
                self._say_abort(why)
                self.lose(why)
            else:
                self.abort(why)

    def abort(self, reason: str) -> None:
        """Ends the session with op:abort."""
        if self.ended is None:
            self._say_abort(reason)
            self._end(SessionEnded(reason))

    def expire(self, reason: str) -> None:
        """Ends the session with op:abort: its time is over."""
        if self.ended is None:
            self._say_abort(reason)
            self._end(SessionExpired(reason), reason="expired")

    def _say_abort(self, reason: str) -> None:
        if self.attached:
            if self.durable:
                assert self.frames is not None
                self.outbox.append(write_ack(self.frames.tell(self.node.now())))
            frames, self.frames = self.frames, None  # op:abort is no frame
            self.send(self.codec.abort(reason))
            self.frames = frames

    def disconnected(self, reason: str) -> None:
        """The connection is gone."""
        if self.ended is None and self.attached:
            if self.durable:
                assert self.frames is not None
                self.frames.since = self.node.now()
                self.cut = reason
                self.node.touch(self)
                self.outbox.suspend()
                self._leave()
                self.node.suspend(self)
            else:
                self._end(Disconnected(reason))

    def lose(self, why: str, received: int | None = None, *, reason: str = "ended") -> None:
        """The durable session cannot go on. `received`: how many of our frames the peer has, if that is known."""
        if self.ended is None:
            frames = self.frames
            assert frames is not None
            known = frames.acked if received is None else min(max(received, frames.acked), frames.sent)
            left = frames.sent - known
            never, uncertain = (0, left) if received is None else (left, 0)
            kind = RolledBack if reason.endswith("rolled-back") or reason == "stale" else SessionLost
            self._end(
                kind(why, known, never, uncertain), reason="expired" if reason == "expired" else "ended"
            )

    def _end(self, error: SessionEnded, reason: str = "ended") -> None:
        """Breaks what the peer owes, and lets go of what it held."""
        self.ended = error
        self.reason = reason
        self.node.touch(self)
        self.node.remove_session(self)
        tables = self.tables
        owed: list[Vow] = list(tables.questions.values())
        owed.extend(slot.vow for slot in tables.imports.values() if slot.vow is not None)
        owed.extend(told for slot in tables.exports.values() if (told := slot.resolves) is not None)
        for vow in owed:
            vow.break_with(error)
        watchers, self._watchers = self._watchers, []
        for vow in watchers:
            vow.resolve(error)
        self.tables = Tables(self.node.limits)
        self._receiver.forget()
        self.outbox.forget_garbage()
        gate, self.gate = self.gate, None
        if gate is not None:
            gate.drop(error)
        if self.held:
            self.node.left_behind(self)
        self._leave()
        self._decided()

    def watch(self) -> Vow:
        """A vow that is fulfilled with the error when the session ends."""
        vow = Vow(self.node)
        if self.ended is None:
            self._watchers.append(vow)
            if len(self._watchers) > self._many_watchers:
                self._watchers = [one for one in self._watchers if one is vow or one.held]
                self._many_watchers = 2 * len(self._watchers) + 64
        else:
            vow.resolve(self.ended)
        return vow

    # For people

    def stats(self) -> dict[str, int]:
        """Counts of messages and bytes, and the sizes of the tables."""
        deposited, withdrawing = self.node.gifts.counts(self.id)
        return {
            "messages_received": self.messages_in,
            "bytes_received": self.bytes_in,
            "messages_sent": self.messages_out,
            "bytes_sent": self.bytes_out,
            "outbox_messages": self.outbox.frames,
            "outbox_bytes": self.outbox.size,
            "frames_kept": 0 if self.frames is None else len(self.frames.kept),
            "turns_waiting": self.queued_turns,
            "messages_on_promises": len(self.held),
            "gifts_waiting": deposited,
            "withdrawals_waiting": withdrawing,
            **self.tables.sizes(),
        }

    def check(self) -> None:
        """Raises AssertionError naming the first invariant of the session that does not hold."""
        tables = self.tables
        tables.check()
        self._writer.check()
        assert self.outbox.frames >= len(self.outbox.messages), "the outbox is miscounted"
        assert self.queued_turns >= 0, "turns are miscounted"
        assert self.queued_bytes >= 0, "bytes of turns are miscounted"
        assert self.held_bytes == sum(item.size for item in self.held), "messages on promises are miscounted"
        if self.frames is not None:
            self.frames.check()
        if self.ended is not None:
            assert not any(tables.sizes().values()), "an ended session keeps references"

    def dump(self) -> dict[str, object]:
        """Every slot, readable, without secrets."""
        tables = self.tables
        return {
            "peer": self.location.uri,
            "state": self.state,
            "durable": self.durable,
            "exports": {
                position: {"count": slot.count, "is": str(slot)}
                for position, slot in sorted(tables.exports.items())
            },
            "imports": {
                position: {"count": slot.count, "is": "promise" if slot.vow is not None else "object"}
                for position, slot in sorted(tables.imports.items())
            },
            "questions": {position: vow.status for position, vow in sorted(tables.questions.items())},
            "answers": {position: vow.status for position, vow in sorted(tables.answers.items())},
        }
