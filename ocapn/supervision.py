"""Supervised connections: a session with a peer is kept, whatever becomes of the network (spec/supervision.md).

A `SupervisedConnection` outlasts the sessions that it has with its peer, one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, Literal, Protocol, final

import attrs
import trio

from ocapn.captp.bootstrap import FETCH, KEEPALIVE
from ocapn.captp.node import Node
from ocapn.captp.session import Session as CoreSession
from ocapn.dialling import Dialler
from ocapn.errors import (
    BadLocator,
    ConnectFailed,
    Disconnected,
    OCapNError,
    SessionEnded,
    SessionExpired,
    SessionLost,
    fresh,
)
from ocapn.leases import Lease
from ocapn.listeners import Listeners
from ocapn.model.locators import PeerLocator
from ocapn.policies import Reconnect
from ocapn.sessions import Session

ConnectionStatus = Literal[
    "disconnected", "connecting", "connected", "suspended", "reconnecting", "expired", "given_up"
]
#: What happens to a connection: `asked` and `left` by the application; there is a `live` session, it was `cut`, or
#: `resumed`; it has `expired`, was `lost` or has `ended`; an attempt has `failed`, or it was the last (`spent`).
Happening = Literal["asked", "left", "live", "cut", "expired", "lost", "ended", "failed", "spent"]

#: Every transition there is; what has no entry changes nothing. spec/supervision.md has the same table.
TRANSITIONS: Final[Mapping[tuple[ConnectionStatus, Happening], ConnectionStatus]] = {
    ("disconnected", "asked"): "connecting",
    ("connecting", "live"): "connected",
    ("connecting", "cut"): "suspended",
    ("connecting", "expired"): "expired",
    ("connecting", "failed"): "connecting",
    ("connecting", "spent"): "given_up",
    ("connecting", "left"): "disconnected",
    ("connected", "cut"): "suspended",
    ("connected", "expired"): "expired",
    ("connected", "lost"): "given_up",
    ("connected", "ended"): "reconnecting",
    ("connected", "spent"): "given_up",
    ("connected", "left"): "disconnected",
    ("suspended", "live"): "connected",
    ("suspended", "expired"): "expired",
    ("suspended", "lost"): "given_up",
    ("suspended", "ended"): "reconnecting",
    ("suspended", "failed"): "suspended",
    ("suspended", "spent"): "given_up",
    ("suspended", "left"): "disconnected",
    ("reconnecting", "live"): "connected",
    ("reconnecting", "cut"): "suspended",
    ("reconnecting", "expired"): "expired",
    ("reconnecting", "failed"): "reconnecting",
    ("reconnecting", "spent"): "given_up",
    ("reconnecting", "left"): "disconnected",
    ("expired", "asked"): "connecting",
    ("expired", "live"): "connected",
    ("expired", "cut"): "suspended",
    ("expired", "lost"): "expired",
    ("expired", "ended"): "expired",
    ("expired", "left"): "disconnected",
    ("given_up", "asked"): "connecting",
    ("given_up", "live"): "connected",
    ("given_up", "expired"): "expired",
    ("given_up", "lost"): "given_up",
    ("given_up", "ended"): "given_up",
    ("given_up", "spent"): "given_up",
    ("given_up", "left"): "disconnected",
}

_HAPPENS: Final[Mapping[str, Happening]] = {"live": "live", "suspended": "cut", "expired": "expired"}


@final
@attrs.frozen
class ConnectionSnapshot:
    """How a connection is. The same object until something changes.

    `since` is when it became so, on trio's clock. `cause` is what went wrong last, None if nothing did. `attempt`
    counts the attempts that have failed in a row, and `delay` is how long the next one waits, seconds, infinite if
    there is none. `session` is the one to send on, if there is one.
    """

    peer: PeerLocator
    status: ConnectionStatus
    since: float
    cause: OCapNError | None = None
    attempt: int = 0
    delay: float = 0.0
    session: Session | None = None


@final
@attrs.frozen
class ConnectionEvent:
    """A connection was `before` and is as in `now`. `missed` events before it were too many for this listener."""

    before: ConnectionStatus
    now: ConnectionSnapshot
    missed: int


class Owner(Protocol):
    """What supervision needs of the peer."""

    node: Node

    def public(self, session: CoreSession) -> Session:
        """The application's end of a session."""

    def limit(self, public: Session, lease: Lease | None) -> None:
        """The session may be used as long as the lease says; None: as that of the peer does."""

    def sessions_with(self, locator: PeerLocator) -> list[Session]:
        """All that have not ended: one may be suspended beside a live one."""

    def reads(self, session: CoreSession) -> bool:
        """Whether what its peer sends is read: not while turns are behind."""

    def pump(self) -> None:
        """Runs turns, and sends what came of them."""


@final
class SupervisedConnection:
    """Keeps a session with one peer: `await peer.connect(locator, policy=Reconnect())`.

    It dials, resumes what was cut, and dials again what has ended, as the policy says, until the application
    disconnects or the peer is closed. What cannot heal is given up at once: the peer is another than the locator
    says, speaks another version or refuses this one, or a durable session is lost; and what the policy's attempts
    were spent on. `retry` begins again. A session that the peer itself begins is as good as one that was dialled.

    References belong to a session. Those of a durable one stay when it is cut; after `reconnecting` enliven anew.
    """

    def __init__(self, peer: Owner, dialler: Dialler, locator: PeerLocator, policy: Reconnect) -> None:
        self.policy = policy
        self._peer = peer
        self._dialler = dialler
        self._listeners = Listeners[ConnectionEvent]()
        self._changed = trio.Event()
        #: Set when an attempt is not to wait any longer.
        self._hurry = trio.Event()
        #: Cancelled when there is another session than the one that is suspended.
        self._staying = trio.CancelScope()
        self._scope = trio.CancelScope()
        self._failed = 0  # attempts in a row; a session that ends soon counts as one
        self._begun = -math.inf  # when there was a session
        self._snapshot = ConnectionSnapshot(locator, "disconnected", trio.current_time())
        self._step("asked")

    # What applications use

    @property
    def peer(self) -> PeerLocator:
        """Where the other peer is."""
        return self._snapshot.peer

    @property
    def status(self) -> ConnectionStatus:
        return self._snapshot.status

    def snapshot(self) -> ConnectionSnapshot:
        """How the connection is now: a value, and the same object until something changes."""
        return self._snapshot

    def events(self) -> trio.MemoryReceiveChannel[ConnectionEvent]:
        """Every transition from now on: `async with connection.events() as events: async for event in events`.

        Any number may listen; nobody who is slow holds up the connection. Ends after `disconnected`.
        """
        return self._listeners.listen()

    async def session(self) -> Session:
        """The session to send on, once there is one: also one that is suspended, or waits to be renewed. Raises
        ConnectFailed if there is none and it is given up or was disconnected, SessionExpired if it was not renewed."""
        await trio.lowlevel.checkpoint()
        while True:
            now = self._snapshot
            if now.session is not None and now.session.ended is None:  # else that is about to be told
                return now.session
            if now.status == "expired" and now.session is None:
                raise SessionExpired(str(now.cause))
            if now.status == "disconnected":
                raise ConnectFailed("the connection was disconnected", lasting=True)
            if now.status == "given_up":
                if isinstance(now.cause, ConnectFailed):
                    raise fresh(now.cause)
                raise ConnectFailed(f"the connection was given up: {now.cause}", lasting=True) from now.cause
            await self._changed.wait()

    def retry(self) -> None:
        """Dials at once: does not wait for the delay, and begins again what was given up, or expired and was not
        renewed. Does nothing while there is a session that is connected or waits to be renewed.

        Raises ConnectFailed after `disconnect`.
        """
        if self.status == "disconnected":
            raise ConnectFailed("the connection was disconnected: connect again", lasting=True)
        session = self._snapshot.session
        if session is not None and session.ended is None:
            if session.status == "suspended":
                self._step("asked", session=session)
                self._step("cut", session=session)
                self._dialler.hurry(session._core, anew=True)
            return
        self._failed = 0
        self._step("asked")
        self._hurry.set()

    def disconnect(self, reason: str = "disconnected") -> None:
        """Ends the session, and dials no more: its references break, on both sides and for good."""
        self.stop()
        for session in self._peer.sessions_with(self.peer):
            session.end(reason)

    # For the peer that it belongs to

    def stop(self) -> None:
        """Dials no more, and leaves the session as it is."""
        if self.status != "disconnected":
            self._step("left")
            self._scope.cancel()
            self._listeners.close()

    def arrived(self, session: CoreSession) -> None:
        """There is a session with the peer, or it has a connection again."""
        self._hurry.set()
        mine = self._snapshot.session
        if mine is not None and mine._core is not session and not mine._core.attached:
            self._staying.cancel()

    def failed(self, error: OCapNError, attempt: int, delay: float) -> None:
        """An attempt to resume the session has failed."""
        if self.status == "suspended":
            spent = math.isinf(delay)
            self._step("spent" if spent else "failed", error, attempt, delay, self._snapshot.session)

    async def run(self) -> None:
        """Until it is stopped."""
        with self._scope:
            while True:
                session = await self._dialled()
                if session is not None:
                    await self._stay(session)
                # If the peer comes by itself, that is as good.
                while self.status in ("expired", "given_up") and self._dialler.session_now(self.peer) is None:
                    self._hurry = trio.Event()
                    await self._hurry.wait()

    # How it goes

    def _step(
        self,
        what: Happening,
        cause: OCapNError | None = None,
        attempt: int = 0,
        delay: float = 0.0,
        session: Session | None = None,
    ) -> None:
        before = self._snapshot
        after = TRANSITIONS.get((before.status, what))
        if after is None:
            return
        since = before.since if after == before.status else trio.current_time()
        now = self._snapshot = ConnectionSnapshot(before.peer, after, since, cause, attempt, delay, session)
        changed, self._changed = self._changed, trio.Event()
        changed.set()
        self._listeners.tell(lambda missed: ConnectionEvent(before.status, now, missed))

    async def _dialled(self) -> Session | None:
        """The session with the peer; None if it is given up."""
        while True:
            self._hurry = trio.Event()
            if self.status in ("connecting", "reconnecting"):  # else the peer has come by itself
                with trio.move_on_after(self._snapshot.delay):
                    await self._hurry.wait()
                    self._failed = 0
            try:
                session = await self._dialler.session_with(self.peer)
                if session.ended is not None:
                    raise fresh(session.ended)
                return self._peer.public(session)
            except OCapNError as error:
                if self.status not in ("connecting", "reconnecting"):
                    return None  # it had come by itself, and is gone again
                lasting = isinstance(error, BadLocator) or (
                    isinstance(error, ConnectFailed) and error.lasting
                )
                if not self._fails("failed", error, lasting):
                    return None

    def _fails(self, what: Happening, error: OCapNError, lasting: bool = False) -> bool:
        """An attempt has failed; whether there is another."""
        self._failed += 1
        delay = math.inf if lasting else self.policy.delay(self._failed, self._dialler.fraction())
        self._step("spent" if math.isinf(delay) else what, error, self._failed, delay)
        return not math.isinf(delay)

    async def _stay(self, session: Session) -> None:
        """Until the session has ended."""
        self._begun = trio.current_time()
        self._peer.limit(session, self.policy.lease)
        async with trio.open_nursery() as nursery:
            self._staying = nursery.cancel_scope
            if self.policy.keepalive is not None:
                nursery.start_soon(self._keep_alive, session._core, self.policy.keepalive)
            async with session.events() as events:
                if session.ended is None:
                    self._becomes(session, session.status, None)
                async for event in events:
                    self._becomes(session, event.status, event.why)
            nursery.cancel_scope.cancel()

    def _becomes(self, session: Session, status: str, why: SessionEnded | None) -> None:
        """The session has become so: the connection has, too."""
        if why is None:
            what = _HAPPENS[status]
            if self.status == "expired" and what == "cut":
                self._dialler.hurry(session._core, anew=True)
            if self.status != TRANSITIONS.get((self.status, what), self.status):
                self._step(what, self._cause(session) if what == "cut" else None, session=session)
        elif session.left:
            self.stop()
        elif isinstance(why, SessionLost) and not session._core.unused:
            self._step("lost", why)
        elif self.status == "expired" or trio.current_time() - self._begun >= self.policy.cap:
            self._failed = 0
            self._step("ended", why)
        else:  # else a peer that ends each session at once would be dialled without a pause
            self._fails("ended", why)

    @staticmethod
    def _cause(session: Session) -> Disconnected | None:
        cut = session._core.cut
        return None if cut is None else Disconnected(cut)

    async def _keep_alive(self, session: CoreSession, limit: float) -> None:
        """Asks a peer that says nothing for an answer, and gives its connection up if there is none."""
        asked = -math.inf  # when, if nothing was heard since
        question: object = None  # held: an answer that nobody wants may be released before it comes
        while session.ended is None:
            now, heard = trio.current_time(), session.last_heard
            until = now + limit / 2
            if session.attached and self._peer.reads(session):
                if asked <= heard and now >= heard + limit / 2:
                    question = self._ask(session)
                    asked = asked if question is None else now
                if question is None and now >= heard + limit / 2:
                    until = now + limit / 4  # so much waits for an answer already: it is tried again
                elif asked <= heard:
                    until = heard + limit / 2
                elif now < asked + limit / 2:
                    until = asked + limit / 2
                else:
                    session.disconnected(
                        f"nothing was heard from the peer for {limit:g} s, though it was asked"
                    )
                    self._peer.pump()
            await trio.sleep_until(until)
        del question

    def _ask(self, session: CoreSession) -> object:
        try:
            question = session.ask(session.bootstrap, [FETCH, KEEPALIVE], forwarded=True).handle()
        except OCapNError:  # so much waits for an answer already
            return None
        self._peer.pump()
        return question
