"""What the sessions of one peer share: the turn queue, the swiss numbers, the gifts, and each other.

A node is driven from outside: `receive` has messages read and their turns run, `run` runs others, `take` hands out what
is to be sent. Time and randomness are functions given to it. What needs a connection is asked of `connect`.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, final

import attrs

from ocapn.captp.delivery import Queue, RemoteVow, Vow, crossing
from ocapn.captp.handles import CoreTarget, LocalTarget, PromiseHandle, RefHandle
from ocapn.captp.handoff import Gifts
from ocapn.captp.tables import Import
from ocapn.crypto import SessionKey
from ocapn.errors import OCapNError, RemoteError, SessionEnded, fresh, shown
from ocapn.limits import Limits
from ocapn.model.locators import PeerLocator

if TYPE_CHECKING:
    from ocapn.captp.handshake import Handshake
    from ocapn.captp.port import Keeper
    from ocapn.captp.session import Session

log: Final = logging.getLogger("ocapn.captp")

#: What `Node.invoke` returns when the answer comes later: the method is a task now.
LATER: Final = object()


@final
class Turn:
    """A message to a local target, ready to be delivered. `source` is the session it came from, if any.

    `number` is that of a keeper which keeps the turn until it begins; 0 as long as none has seen it.
    """

    __slots__ = ("answer", "args", "number", "size", "source", "target")

    def __init__(
        self, target: LocalTarget, args: list[object], answer: Vow | None, source: Session | None
    ) -> None:
        self.target = target
        self.args = args
        self.answer = answer
        self.source = source
        self.size = 0
        self.number = 0


@final
class _HeldBack:
    """Of one target: how many of its methods are called and have not begun, and the messages that wait for them."""

    __slots__ = ("unbegun", "waiting")

    def __init__(self) -> None:
        self.unbegun = 0
        self.waiting: deque[Turn] = deque()


@final
class _Past:
    """What a handoff must know of a session, kept for the gift's life after it ended."""

    __slots__ = ("peer_id", "peer_key", "until")

    def __init__(self, peer_id: bytes, peer_key: bytes, until: float) -> None:
        self.peer_id = peer_id
        self.peer_key = peer_key
        self.until = until


@final
@attrs.frozen
class Tombstone:
    """What is kept of a durable session that is over, so that its peer can be told (spec/resume.md, Ends)."""

    id: bytes
    key: SessionKey
    peer_id: bytes
    peer_key: bytes
    reason: str
    received: int
    until: float


@final
@attrs.frozen
class Introduction:
    """Who wants a session with this peer, or wants to resume one.

    `public_key` is the peer's Ed25519 key in this session; `authenticated` says whether the netlayer proved that the
    peer is the one that `locator` names. `binding` is what only the two ends of the connection have in common: empty
    where the transport has nothing but is safe enough, None where no session would be durable (spec/resume.md).
    """

    locator: PeerLocator
    public_key: bytes
    resumes: bool
    authenticated: bool
    binding: bytes | None


@final
class TurnResult:
    """What turns leave behind: sessions with something to send, and application code to wake.

    With a baggage, what is to be committed first is in the batch that the keeper cuts.
    """

    __slots__ = ("events", "outbound")

    def __init__(self, outbound: list[Session], events: list[Callable[[], None]]) -> None:
        self.outbound = outbound
        self.events = events


Invoke = Callable[[Turn], object]
Connect = Callable[[PeerLocator, Callable[["Session | OCapNError"], None]], None]

#: Failed messages of one session that are logged in a minute.
_LOST: Final = 100


@final
class Node:
    """The shared half of the protocol core.

    Given to it: `now` (seconds, monotonic), `random` (that many random bytes), `make_ref` and `make_promise`
    (application handles), `invoke` (delivers a turn and returns the result, or LATER; raises what the method
    raises), `starts` (whether `invoke` may be called, and runs nothing of the method: it returns LATER, or raises),
    `connect` (a session to a locator, told to the callback), `wake` (there is something to do),
    `wake_from_finaliser` (likewise, called in any thread, in the middle of anything), `collect_soon` (there is
    garbage to tell other peers of: call `collect_sessions` in a moment, so that it goes in few messages).
    """

    def __init__(
        self,
        *,
        limits: Limits,
        now: Callable[[], float],
        random: Callable[[int], bytes],
        make_ref: Callable[[Import], RefHandle],
        make_promise: Callable[[Vow], PromiseHandle],
        invoke: Invoke,
        starts: Callable[[Turn], bool] = lambda turn: False,
        connect: Connect,
        wake: Callable[[], None],
        wake_from_finaliser: Callable[[], None],
        collect_soon: Callable[[], None],
        durable: Callable[[PeerLocator | None], str] = lambda locator: "never",
        authenticate: Callable[[Introduction], bool] = lambda introduction: True,
    ) -> None:
        self.limits = limits
        self.now = now
        self.random = random
        self.make_ref = make_ref
        self.make_promise = make_promise
        self.invoke = invoke
        self.starts = starts
        self.connect = connect
        self.wake = wake
        self.wake_from_finaliser = wake_from_finaliser
        self.collect_soon = collect_soon
        #: Who keeps what is to outlive the process, if anybody does.
        self.keeper: Keeper | None = None
        self._touched: set[Session] = set()
        self.durable = durable
        self.authenticate = authenticate
        #: Called when much was sent on a session, also in a turn: it may go out at once, and the session may be cut or
        #: end under it. Raises nothing.
        self.hasten: Callable[[Session], None] = lambda session: None
        #: Whether the next message that is not sent in a turn may go out at once. Those behind it go together.
        self.quick = False
        self._at_once = False
        #: Called when a session was cut, has resumed or has ended.
        self.on_status: Callable[[Session], None] | None = None
        #: The application's end of a session.
        self.public: Callable[[Session], Any] = lambda session: session
        #: Identifier of the thread that the node is used from.
        self.thread = 0
        self.own: list[PeerLocator] = []
        #: Transports of which a dial proves the designator.
        self.proving: frozenset[str] = frozenset()
        self.swiss: dict[bytes, LocalTarget | RefHandle | PromiseHandle] = {}
        #: Live sessions by the location of their peer; not those that are `unproved`.
        self.sessions: dict[PeerLocator, Session] = {}
        self._by_id: dict[bytes, Session] = {}
        #: Sessions without a connection, the one that was cut first at the front.
        self.suspended: dict[bytes, Session] = {}
        self._beside: list[
            Session
        ] = []  # live, and another is the live session at that location, or is to be
        self._tombstones: dict[bytes, Tombstone] = {}
        self._keys: dict[
            bytes, bytes
        ] = {}  # of the peers of kept sessions, live or dead: public key to session id
        self._past: dict[bytes, _Past] = {}
        self._left: list[Session] = []  # ended sessions with messages on promises, the oldest first
        #: Connections that we opened and that are not sessions yet.
        self.dials: dict[PeerLocator, Handshake] = {}
        self.gifts = Gifts(self, limits)
        self._closed = False
        #: The number of the step that is going on, and of the last that is on disk: application code may hear of a vow
        #: that was settled in that or an earlier one. Without a keeper both stay 0.
        self.step = 0
        self.committed = 0
        #: Calls a function once a step that is not on disk is.
        self.once_committed: Callable[[int, Callable[[], None]], None] = lambda step, tell: self.event(tell)
        #: Whether the peer is closing: what ends for want of a connection has not ended if it is kept.
        self.leaving = False
        #: Why nothing is committed or shown any more.
        self.failure: BaseException | None = None
        #: Of those who wait for what this node has to show: called with the reason if it never will.
        self.awaiting: set[Callable[[BaseException], None]] = set()
        self.turns: deque[Turn] = deque()
        #: Turns that `receive` has run since somebody set this to zero, whatever it has raised: part of a slice.
        self.ran = 0
        #: How many settled promises may still be awaited before others run, and until when (`ocapn.promise`).
        self.awaits_left = 0
        self.awaits_until = 0.0
        self._held_back: dict[int, _HeldBack] = {}
        self._finalised: deque[RemoteVow | Import] = deque()
        self._collecting = False  # `wake` was called for what is finalised
        self._settled: deque[tuple[Vow, Queue]] = deque()
        self._settling = False
        self._dirty: dict[Session, None] = {}
        self._selected: list[RemoteVow] = []
        self._garbage: list[Session] = []
        self._events: list[Callable[[], None]] = []

    # Sessions

    def is_own(self, location: PeerLocator) -> bool:
        return location in self.own

    def add_session(self, session: Session) -> None:
        self._take_place(session)
        self._by_id[session.id] = session

    def _take_place(self, session: Session) -> None:
        """The session, which is live, is the one to send to at its location, or there is another, or will be."""
        if session.unproved or self.sessions.setdefault(session.location, session) is not session:
            self._beside.append(session)

    def keep(self, session: Session) -> None:
        """The session is to be durable: its peer's key is for no other session from now on."""
        self._keys[session.peer_key] = session.id

    def suspend(self, session: Session) -> None:
        """The session was cut. It is not live any more, and has not ended."""
        self._not_live(session)
        self.suspended[session.id] = session
        if (
            len(self.suspended) > self.limits.suspended_sessions
        ):  # else none are counted: many are cut at once
            strangers = [one for one in self.suspended.values() if not one.vouched_for]
            if len(strangers) > self.limits.suspended_sessions:
                idle = next((one for one in strangers if not one.tables.exports), strangers[0])
                idle.lose("too many sessions are suspended", reason="expired")
        self._status(session)

    def attached(self, session: Session) -> None:
        """The session has a connection again. One that was started meanwhile stays the one to send to."""
        self.suspended.pop(session.id, None)
        self._take_place(session)
        self._status(session)

    def _status(self, session: Session) -> None:
        if self.on_status is not None:
            self.on_status(session)

    def _not_live(self, session: Session) -> None:
        location = session.location
        if self.sessions.get(location) is session:
            del self.sessions[location]
            for other in self._beside:
                if other.location == location and not other.unproved:
                    self.sessions[location] = other
                    self._beside.remove(other)
                    break
        elif session in self._beside:
            self._beside.remove(session)

    def session_with(self, location: PeerLocator) -> Session | None:
        """The session to send on: the live one, else the one that is suspended."""
        live = self.sessions.get(location)
        if live is not None:
            return live
        return next(
            (one for one in self.suspended.values() if one.location == location and not one.unproved), None
        )

    def kept_session(self, session_id: bytes) -> Session | None:
        """The durable session with that id, if it has not ended."""
        session = self._by_id.get(session_id)
        return session if session is not None and session.durable else None

    def kept(self, session_id: bytes) -> Session | Tombstone | None:
        """The same, or what is kept of it."""
        return self.kept_session(session_id) or self._tombstones.get(session_id)

    def knows_key(self, public_key: bytes) -> bool:
        """Whether the key is that of a peer of a session that is kept, or was: it is not for another session."""
        return public_key in self._keys

    def admits(self, session: Session, authenticated: str | None, binding: bytes) -> bool:
        """Whether the application lets the peer of a session resume it."""
        return self.authenticate(
            Introduction(session.location, session.peer_key, True, authenticated is not None, binding)
        )

    def _bury(self, session: Session) -> None:
        """The session is over; its peer may not know."""
        frames = session.frames
        if frames is None or not frames.settled:
            return
        while len(self._tombstones) >= self.limits.tombstones:
            self._erase(next(iter(self._tombstones.values())))
        self._tombstones[session.id] = Tombstone(
            session.id,
            session.key,
            session.peer_id,
            session.peer_key,
            session.reason or "ended",
            frames.taken,
            self.now() + self.limits.tombstone_life,
        )

    def tombstone(self, session_id: bytes) -> Tombstone | None:
        """What is kept of a session that is over."""
        return self._tombstones.get(session_id)

    def remember(self, tombstone: Tombstone) -> None:
        """A session that was over before this peer was restarted."""
        self._tombstones[tombstone.id] = tombstone
        self._keys[tombstone.peer_key] = tombstone.id

    def _erase(self, tombstone: Tombstone) -> None:
        del self._tombstones[tombstone.id]
        self._keys.pop(tombstone.peer_key, None)
        if self.keeper is not None:
            self.keeper.forget(tombstone.id)

    def remove_session(self, session: Session) -> None:
        """The session has ended: forgets it, but for what handoffs may still need."""
        self._not_live(session)
        self.suspended.pop(session.id, None)
        if self._by_id.pop(session.id, None) is not None:
            self._bury(session)
            if len(self._past) >= self.limits.past_sessions:
                del self._past[next(iter(self._past))]
            until = self.now() + self.limits.gift_life
            self._past[session.id] = _Past(session.peer_id, session.peer_key, until)
            self._status(session)
        self.gifts.session_ended(session.id)

    def left_behind(self, session: Session) -> None:
        """An ended session has messages on promises. They stay, up to the limits of one session for all of them."""
        left = self._left = [one for one in self._left if one.held]
        left.append(session)
        messages = sum(len(one.held) for one in left)
        size = sum(one.held_bytes for one in left)
        while messages > self.limits.queued_messages or size > self.limits.kept_bytes:
            oldest = left.pop(0)
            messages -= len(oldest.held)
            size -= oldest.held_bytes
            oldest.forsake()

    def past_session(self, session_id: bytes) -> Session | Tombstone | _Past | None:
        """The session with that id: live, or ended within the gift's life, or of which there is a tombstone."""
        return self._by_id.get(session_id) or self._tombstones.get(session_id) or self._past.get(session_id)

    def live(self, session_id: bytes) -> Session | None:
        """The session with that id, if it has not ended."""
        return self._by_id.get(session_id)

    def is_live(self, session_id: bytes) -> bool:
        return session_id in self._by_id

    def dropped(self, handshake: Handshake) -> None:
        """The dial lost to another connection."""
        for location, dial in list(self.dials.items()):
            if dial is handshake:
                del self.dials[location]

    def expire(self) -> None:
        """Forgets what has waited too long, and keeps sessions alive. To be called every few seconds."""
        now = self.now()
        self.gifts.expire(now)
        for session_id in [key for key, past in self._past.items() if past.until <= now]:
            del self._past[session_id]
        for tombstone in [one for one in self._tombstones.values() if one.until <= now]:
            self._erase(tombstone)
        if self.keeper is not None:
            self.keeper.erase()
        for session in list(self.suspended.values()):
            assert session.frames is not None
            if now - session.frames.since >= session.life:
                session.lose(f"it was suspended for more than {session.life:g} s", reason="expired")
        for session in list(self._by_id.values()):
            session.keep_alive()

    # Turns

    def enqueue(
        self,
        target: LocalTarget,
        args: list[object],
        answer: Vow | None,
        source: Session | None,
        size: int = -1,
    ) -> Turn:
        """A message for a local target: it is delivered in a later turn.

        `size` is that of the message, if it is not the one that `source` is receiving.
        """
        turn = Turn(target, args, answer, source)
        if self._closed:
            self._refuse(turn)
            return turn
        if source is not None:
            turn.size = source.reading if size < 0 else size
            source.queued_turns += 1
            source.queued_bytes += turn.size
        self.turns.append(turn)
        if len(self.turns) == 1:
            self.wake()
        return turn

    @property
    def waiting_turns(self) -> Iterator[Turn]:
        """Those that have not begun."""
        # What is held back came before.
        return chain(*[held.waiting for held in self._held_back.values()], self.turns)

    def close(self) -> None:
        """Nothing runs any more. What has not begun breaks, as does all that comes; who waits for it is told."""
        self._closed = True
        waiting = list(self.waiting_turns)
        self.turns, self._held_back = deque(), {}
        for turn in waiting:
            self._refuse(turn)
        events = self.take().events
        if self.failure is None:
            for tell in events:
                tell()
        if self.keeper is not None:  # a session that is kept has not ended, and breaks nothing that it owes
            self._lose(SessionEnded("the peer was closed"))

    def fail(self, error: BaseException) -> None:
        """What has happened since the last commit is not for anybody to see: who waits for it gets this."""
        self.failure = error
        self._lose(error)

    def waits(self) -> None:
        """Somebody is about to wait. Raises what ended the node, if it did."""
        if self.failure is not None:
            raise fresh(self.failure)
        if self._closed and self.keeper is not None:
            raise SessionEnded("the peer was closed")

    def _lose(self, error: BaseException) -> None:
        awaiting, self.awaiting = self.awaiting, set()
        for lose in awaiting:
            lose(error)

    def _refuse(self, turn: Turn) -> None:
        if turn.answer is not None:
            turn.answer.break_with(SessionEnded("the peer was closed"))

    def receive(self, session: Session, messages: list[bytes], most: int) -> int:
        """Messages of a session, each with its turn while it is at hand, as long as `ran` is below `most`.

        With a keeper, each with up to `most` turns, and none after one that is left, which would have to be kept: what
        is committed with a frame is what came of it. Says how many it took. Raises as `Session.receive`.
        """
        taken = 0
        for message in messages:
            taken += 1
            session.receive(message)
            if self.keeper is not None:
                self.run(most)
                if self.turns:
                    break
            elif self.turns and self.ran < most:
                self.ran += self.run(1)
                if session.outbox.much:
                    self.hasten(session)
        return taken

    def run(self, most: int) -> int:
        """Runs up to `most` turns; returns how many it ran."""
        turns = self.turns
        ran = 0
        while turns and ran < most:
            turn = turns.popleft()
            if self._held_back:
                held = self._held_back.get(id(turn.target))
                if held is not None and (held.waiting or not self.starts(turn)):
                    held.waiting.append(turn)
                    continue
            ran += 1
            if turn.number > 0:
                assert self.keeper is not None
                self.keeper.begins(turn)
            source = turn.source
            if source is not None:
                source.queued_turns -= 1
                source.queued_bytes -= turn.size
            answer = turn.answer
            try:
                target = turn.target
                result = target.call(turn.args) if isinstance(target, CoreTarget) else self.invoke(turn)
            except Exception as error:
                if answer is None:
                    self.log_lost(error, source)
                else:
                    log.debug("a method raised", exc_info=error)
                    answer.break_with(crossing(error))
                continue
            if result is not LATER and answer is not None:
                answer.resolve(result)
        return ran

    def hold_back(self, target: LocalTarget) -> None:
        """A method of `target` was called and has not begun: messages to it wait until all such have (`go_on`). Only
        calls that begin later too (`starts`) do not wait, as they begin in the order of the calls."""
        held = self._held_back.get(id(target))
        if held is None:
            held = self._held_back[id(target)] = _HeldBack()
        held.unbegun += 1

    def go_on(self, target: LocalTarget) -> None:
        """The first of those methods has begun."""
        held = self._held_back[id(target)]
        held.unbegun -= 1
        if held.unbegun:
            return
        del self._held_back[id(target)]
        waiting = held.waiting
        if waiting:
            waiting.reverse()
            self.turns.extendleft(waiting)
        if self.turns:
            self.wake()

    @property
    def idle(self) -> bool:
        """Whether there is nothing to run, to release, to send or to tell now."""
        return not (self.turns or self._finalised or self._dirty or self._events or self._touched)

    def settle(self, vow: Vow, waiting: Queue) -> None:
        """Passes on what waited on `vow`, or on what has become `vow`: in order, and without recursion however
        long the chain is."""
        if self._settling:
            self._settled.append((vow, waiting))
            return
        self._settling = True
        try:
            vow.take_over(waiting)
            while self._settled:
                vow, waiting = self._settled.popleft()
                vow.take_over(waiting)
        finally:
            self._settling = False

    def log_lost(self, error: BaseException, source: Session | None) -> None:
        """An error that nobody asked to be told. `source` is the session whose message failed, if it came in.

        Of one session only so many are written a minute, or a peer could fill the disk with them.
        """
        if source is not None:
            minute = self.now() // 60
            if source.lost[0] != minute:
                source.lost = [minute, 0]
            source.lost[1] += 1
            if source.lost[1] > _LOST:
                if source.lost[1] == _LOST + 1:
                    log.warning("many messages of one session fail: for a minute, no more of them are logged")
                return
        if isinstance(error, (RemoteError, OCapNError)):
            log.warning("a message that wants no answer failed: %s", shown(error))
        else:
            log.warning("a message that wants no answer failed", exc_info=error)

    # Garbage

    def finalised(self, item: RemoteVow | Import) -> None:
        """A handle is gone. Called by finalisers, in any thread: only queues, and wakes the loop."""
        self._finalised.append(item)
        if not self._collecting:
            self._collecting = True
            self.wake_from_finaliser()

    def collect(self) -> None:
        """Releases what finalisers reported."""
        self._collecting = False  # before looking: what comes meanwhile, in another thread, wakes again
        finalised = self._finalised
        while finalised:
            finalised.popleft().release()

    def has_garbage(self, session: Session) -> None:
        """The session has returned or released something, and not yet told its peer."""
        self._garbage.append(session)
        if len(self._garbage) == 1:
            self.collect_soon()

    def collect_sessions(self) -> None:
        """Has garbage sent that no other message took along."""
        sessions, self._garbage = self._garbage, []
        for session in sessions:
            session.outbox.collect()

    # Outbound

    def dirty(self, session: Session) -> None:
        """The session has something to send."""
        self._dirty[session] = None
        if len(self._dirty) == 1 and not self._at_once:
            self.wake()

    def begin_at_once(self) -> None:
        """A message is about to be sent for which nobody has to be woken: `end_at_once` follows."""
        self.quick = False
        self._at_once = True

    def end_at_once(self, sent: Session | None) -> None:
        """What was `sent` on a session, if it could be, goes out now, and not after a pass of the loop."""
        self._at_once = False
        if sent is not None:
            self._dirty.pop(sent, None)
        if self._dirty:  # something else was sent with it: a gift's deposit, to its exporter
            self.wake()
        if sent is not None:
            self.hasten(sent)

    def selected(self, part: RemoteVow) -> None:
        """The application has asked a peer for a part of an answer, and may want to know it."""
        self._selected.append(part)

    def _hear(self) -> None:
        """Asks for the parts that are held, and not only for what was sent to them: at once, and not one after the
        other as they are awaited. Only then is it asked for those that there is not much room for."""
        selected, self._selected = self._selected, []
        for part in selected:
            session = part.session
            wanted = part.held and not part.used and not part.listening
            if wanted and session.has_room and session.tables.slots < self.limits.slots // 2:
                part.listen()

    def event(self, tell: Callable[[], None]) -> None:
        """Something that application code waits for has happened: `tell` is called once the turn is out."""
        if self._closed and self.failure is None:
            tell()
            return
        self._events.append(tell)
        if len(self._events) == 1:
            self.wake()

    def touch(self, session: Session) -> None:
        """Something of the session has changed that is to be committed, if anything is."""
        if self.keeper is not None:
            self._touched.add(session)

    def take_touched(self) -> set[Session]:
        """The sessions that have changed since the last call."""
        touched, self._touched = self._touched, set()
        return touched

    def take(self) -> TurnResult:
        """What the turns since the last call have to show: commit, then send, then tell."""
        if self._selected:
            self._hear()
        result = TurnResult(list(self._dirty), self._events)
        self._dirty = {}
        self._events = []
        return result

    def check(self) -> None:
        """The invariants of every session, and those between them. Raises AssertionError."""
        self.gifts.check()
        for location, session in self.sessions.items():
            assert session.location == location, "a session is kept under another location"
            assert self._by_id.get(session.id) is session, "a session is not found by its id"
        for session_id, session in self._by_id.items():
            session.check()
            assert session.ended is None, "an ended session is found by its id"
            if session.frames is not None and session.frames.settled:
                assert self._keys.get(session.peer_key) == session_id, "a session's key could begin another"
            if session.attached:
                assert session_id not in self.suspended, "a session is live and suspended"
                assert session in self._beside or session.location in self.sessions, (
                    "a live session is not found by its location"
                )
            else:
                assert self.suspended.get(session_id) is session, (
                    "a session has no connection and is not suspended"
                )
        assert self.suspended.keys() <= self._by_id.keys(), "a session is suspended that has ended"
        kept = self._by_id.keys() | self._tombstones.keys()
        assert kept >= set(self._keys.values()), "keys are kept of sessions that are forgotten"
