"""Dialling: the peer that somebody wants a session with, and the peer of a session that was cut.

The first until there is a session, or it is known why there is none; the second until the session resumes or ends.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol, final

import trio

from ocapn.callbacks import start_soon
from ocapn.captp.handshake import Crossed, Handshake, State, is_lasting
from ocapn.captp.resume import KEPT, Refusal
from ocapn.captp.session import Session as CoreSession
from ocapn.codec.operations import Form
from ocapn.connection import Connection, Owner
from ocapn.errors import Aborted, BadLocator, ConnectFailed, Disconnected, OCapNError, shown
from ocapn.model.locators import PeerLocator
from ocapn.netlayers.base import Netlayer
from ocapn.policies import Reconnect

log: Final = logging.getLogger("ocapn.session")

#: How long a dial that the other side ended may wait for the session of crossed hellos, seconds.
_CROSSING: Final = 2.0
#: How the peer of a session that was cut is dialled, if nobody has said.
_USUAL: Final = Reconnect()
#: A peer that does not know a session may be another at its address, unless it is so for long: times, seconds.
_UNKNOWN: Final = (3, 600.0)


_LOST: Final = {
    "ended": "the peer has ended the session",
    "expired": "the peer has given the session up",
    "diverged": "the two peers have different histories of the session",
}


def _lost(reason: str, ours: bool) -> str:
    """The reason of a refusal that ends a session, for people. `ours`: it is we who refused."""
    if reason in _LOST:
        return _LOST[reason]
    who = "the peer has" if (reason == "you-rolled-back") == ours else "this peer has"
    return f"{who} lost what it had committed, as if from an old backup"


class Supervisor(Protocol):
    """Who keeps a session with a peer."""

    policy: Reconnect

    def arrived(self, session: CoreSession) -> None:
        """There is a session with the peer, or it has a connection again."""

    def failed(self, error: OCapNError, attempt: int, delay: float) -> None:
        """An attempt to resume the session has failed; the next waits for `delay` seconds, or never comes."""


@final
class _Redial:
    """A suspended session whose peer is dialled again and again."""

    __slots__ = ("_unknown", "attempts", "hurry")

    def __init__(self, unknown: Sequence[float] = ()) -> None:
        self.attempts = 0
        #: Set when somebody wants the session now.
        self.hurry = trio.Event()
        now = trio.current_time()
        #: When the peer has said that it does not know the session: first, and last.
        self._unknown = [now - ago for ago in unknown]

    def unknown(self) -> list[float]:
        """The peer has said that it does not know the session: how long ago it has said so, with this time."""
        now = trio.current_time()
        self._unknown = [*self._unknown[: _UNKNOWN[0] - 1], now]
        return [now - time for time in self._unknown]


def _forgotten(unknown: Sequence[float]) -> bool:
    """Whether the peer has said often and long enough that it does not know a session."""
    times, life = _UNKNOWN
    return len(unknown) >= times and unknown[0] >= life


@final
class _Wanted:
    """A session that somebody waits for, and the dial that is under way."""

    __slots__ = ("callbacks", "scope", "settled")

    def __init__(self) -> None:
        self.callbacks: list[Callable[[CoreSession | OCapNError], None]] = []
        self.settled = trio.Event()
        #: Of the dial; cancelled when nobody waits for it any more.
        self.scope = trio.CancelScope()

    def settle(self, result: CoreSession | OCapNError) -> None:
        self.settled.set()
        callbacks, self.callbacks = self.callbacks, []
        for callback in callbacks:
            callback(result)


@final
class Dialler:
    """What a peer dials, and who waits for it.

    `netlayers` are by transport. `form` is how to write to peers that have not shown what they read; `forms` says so
    for single peers. `supervisors` has who keeps sessions, by the location of their peer. `forget` is called when a
    session is not dialled for any more: it may have ended.
    """

    def __init__(
        self,
        peer: Owner,
        netlayers: Mapping[str, Netlayer],
        form: Form,
        forms: Mapping[PeerLocator, Form],
        supervisors: Mapping[PeerLocator, Supervisor],
        forget: Callable[[CoreSession], None],
    ) -> None:
        self._peer = peer
        self._netlayers = netlayers
        self._form = form
        self._forms = forms
        self._supervisors = supervisors
        self._forget = forget
        self._attempts: dict[CoreSession, set[Connection]] = {}  # connections that a session may resume on
        self._redials: dict[CoreSession, _Redial] = {}  # suspended sessions
        self._wanted: dict[PeerLocator, _Wanted] = {}
        self._nursery: trio.Nursery | None = None
        self._closing = False

    def restore(self, session: CoreSession, unknown: Sequence[float]) -> None:
        """The baggage has brought a session back. `unknown`: how long ago its peer said it knows none such."""
        self._redials[session] = _Redial(unknown)

    def run_in(self, nursery: trio.Nursery) -> None:
        """Dials in the nursery from now on, what the baggage has brought back first."""
        self._nursery = nursery
        for session in list(self._redials):
            nursery.start_soon(self._redial, session)
        for locator, wanted in list(self._wanted.items()):
            nursery.start_soon(self._dial, locator, wanted)

    def stop(self) -> None:
        """The peer is closing: nobody is dialled any more."""
        self._closing = True

    def give_up(self) -> None:
        """Tells who waits for a session that the peer is closing."""
        wanted, self._wanted = self._wanted, {}
        for one in wanted.values():
            one.settle(ConnectFailed("this peer is closing"))

    # Beginning

    def connect(self, locator: PeerLocator, callback: Callable[[CoreSession | OCapNError], None]) -> None:
        """A session with `locator`, told to `callback`: at once, or when it is there."""
        session = self._peer.node.session_with(locator)
        if session is not None:
            self.hurry(session)
            callback(session)
            return
        if self._closing:
            callback(ConnectFailed("this peer is closing"))
            return
        wanted = self._wanted.get(locator)
        if wanted is None:
            wanted = self._wanted[locator] = _Wanted()
            if self._nursery is not None:
                start_soon(self._nursery, self._dial, locator, wanted)
        wanted.callbacks.append(callback)

    def session_now(self, locator: PeerLocator) -> CoreSession | None:
        """The session with a peer, live or suspended, if there is one."""
        return self._peer.node.session_with(locator)

    def hurry(self, session: CoreSession, *, anew: bool = False) -> None:
        """Somebody wants the session: if it is suspended, its peer is dialled at once. `anew`: attempts so far do not
        count any more."""
        redial = self._redials.get(session)
        if redial is not None:
            redial.hurry.set()
            if anew:
                redial.attempts = 0

    def fraction(self) -> float:
        """A random number from 0 up to 1."""
        return int.from_bytes(self._peer.node.random(4), "big") / (1 << 32)

    async def session_with(self, locator: PeerLocator) -> CoreSession:
        """The session with a peer; dials if there is none. Raises ConnectFailed, BadLocator, SessionEnded.

        If all who waited for it are cancelled, so is the dial.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._peer.node.is_own(locator):
            raise ConnectFailed("that is this peer itself", lasting=True)
        done = trio.Event()
        results: list[CoreSession | OCapNError] = []

        def callback(result: CoreSession | OCapNError) -> None:
            results.append(result)
            done.set()

        self.connect(locator, callback)
        try:
            await done.wait()
        except trio.Cancelled:
            wanted = self._wanted.get(locator)
            if wanted is not None and callback in wanted.callbacks:
                wanted.callbacks.remove(callback)
                if not wanted.callbacks:
                    del self._wanted[locator]
                    wanted.scope.cancel()
            raise
        result = results[0]
        if isinstance(result, OCapNError):
            raise result
        return result

    def established(self, session: CoreSession, connection: Connection) -> bool:
        """The connection has become the session's: whoever waits for it is told. Says whether anybody was."""
        keeper = self._peer.node.keeper
        if keeper is not None:
            keeper.keep_unknown(session, [])
        for other in self._attempts.pop(session, ()):
            if other is not connection:
                other.attempt.cancel()
        if session.unproved:
            return False
        supervisor = self._supervisors.get(session.location)
        if supervisor is not None:
            supervisor.arrived(session)
        wanted = self._wanted.pop(session.location, None)
        if wanted is None:
            return False
        wanted.settle(session)
        return True

    async def _dial(self, locator: PeerLocator, wanted: _Wanted) -> None:
        """Dials until there is a session, or says why there is none."""
        if self._wanted.get(locator) is not wanted:
            return  # it came in before this task began; who wanted it was told
        try:
            with wanted.scope:
                connection = await self._dialled(locator)
            if wanted.scope.cancelled_caught:
                return
        except OCapNError as error:
            if self._wanted.get(locator) is wanted and isinstance(error, (Aborted, Crossed, Disconnected)):
                # It may have lost to a connection from the other side that is on its way (crossed hellos).
                with trio.move_on_after(_CROSSING):
                    await wanted.settled.wait()
            if self._wanted.get(locator) is wanted:
                del self._wanted[locator]
                if not isinstance(error, (ConnectFailed, BadLocator)):
                    error = ConnectFailed(
                        f"no session with {locator.uri}: {error}", lasting=is_lasting(error)
                    )
                wanted.settle(error)
                self._peer.pump()
            return
        await connection.run()

    async def _dialled(self, locator: PeerLocator) -> Connection:
        netlayer = self._netlayers.get(locator.transport)
        if netlayer is None:
            have = ", ".join(self._netlayers) or "none"
            raise ConnectFailed(f"this peer has no netlayer {locator.transport}; it has {have}", lasting=True)
        form = self._forms.get(locator, self._form)
        handshake = Handshake(
            self._peer.node, netlayer.location, dialled=locator, authenticated=None, form=form
        )
        self._peer.node.dials[locator] = handshake
        scope = trio.CancelScope(deadline=trio.current_time() + self._peer.limits.handshake)
        handshake.on_drop = scope.cancel
        try:
            with scope:
                channel = await netlayer.dial(locator, self._peer.limits)
                handshake.reached(
                    authenticated=channel.authenticated,
                    binding=channel.binding,
                    vouches=channel.vouches,
                    codec=channel.codec,
                )
                connection = Connection(self._peer, netlayer, channel)
                try:  # the end of the session before this one must not arrive after the start
                    await self._peer.settled()
                except BaseException:
                    await channel.aclose()
                    raise
                await connection.shake_hands(handshake)
                return connection
            if handshake.state is State.ENDED:
                raise Crossed("crossed hellos: the other connection is the session")
            raise ConnectFailed(f"{locator.uri} did not answer within {self._peer.limits.handshake:g} s")
        finally:
            if self._peer.node.dials.get(locator) is handshake:
                del self._peer.node.dials[locator]

    # Resuming

    def cut(self, session: CoreSession) -> None:
        """A session has lost its connection: its peer is dialled, unless it is already or nobody has to."""
        if session not in self._redials and not self._over(session):
            assert self._nursery is not None
            self._redials[session] = _Redial()
            self._nursery.start_soon(self._redial, session)

    def attempt(self, session: CoreSession, connection: Connection) -> None:
        """A session is being resumed on the connection, which is dropped if another is quicker."""
        self._attempts.setdefault(session, set()).add(connection)

    def attempted(self, connection: Connection) -> None:
        """The attempt on the connection, if there was one, is over."""
        for session, connections in list(self._attempts.items()):
            connections.discard(connection)
            if not connections:
                del self._attempts[session]

    def refused(self, session: CoreSession, refusal: Refusal, connection: Connection) -> None:
        """A session was not resumed on the connection."""
        reason = refusal.reason
        log.info("resume of the session with %s: %s", shown(session.location.uri), refusal)
        if reason == "unknown":
            redial = self._redials.get(session)
            said = [] if redial is None else redial.unknown()
            if said and self._peer.node.keeper is not None:
                self._peer.node.keeper.keep_unknown(session, said)
            if connection.channel.authenticated is not None or _forgotten(said):
                session.lose("the peer does not know the session any more: it was restarted without it")
        elif reason == "stale" and not refusal.ours:
            log.error("this peer has an old copy of a session that another process goes on with")
            session.lose("this is an old copy of the session, and another goes on with it", reason=reason)
        elif reason not in KEPT:
            session.lose(_lost(reason, refusal.ours), refusal.received, reason=reason)

    def _over(self, session: CoreSession) -> bool:
        """Whether nobody has to dial for a session that was cut."""
        return session.attached or session.ended is not None or self._closing

    async def _redial(self, session: CoreSession) -> None:
        """Dials the peer of a suspended session until it resumes, on whatever connection, or ends."""
        redial = self._redials[session]
        delay = 0.0
        try:
            while not self._over(session):
                with trio.move_on_after(delay):
                    await redial.hurry.wait()
                if self._over(session):
                    break
                redial.hurry = trio.Event()  # whoever hurries from now on wants another attempt
                try:
                    connection = await self._resumed(session, first=not redial.attempts)
                except OCapNError as error:
                    log.info("resume of the session with %s: %s", shown(session.location.uri), shown(error))
                    redial.attempts += 1
                    delay = self._delay(session, redial, error)
                else:
                    del self._redials[session]
                    await connection.run()
                    return
        finally:
            if self._redials.get(session) is redial:
                del self._redials[session]
        self._forget(session)

    def _delay(self, session: CoreSession, redial: _Redial, error: OCapNError) -> float:
        """How long the next attempt waits after one that has failed: infinitely, until somebody wants the session."""
        supervisor = None if session.unproved else self._supervisors.get(session.location)
        policy = _USUAL if supervisor is None else supervisor.policy
        attempts = redial.attempts
        delay = policy.delay(attempts, self.fraction())
        if math.isinf(delay):
            redial.attempts = 0
        if supervisor is not None:
            supervisor.failed(error, attempts, delay)
        return delay

    async def _resumed(self, session: CoreSession, *, first: bool) -> Connection:
        """Resumes a session on a new connection. Raises OCapNError."""
        locator = session.location
        netlayer = self._netlayers.get(locator.transport)
        if netlayer is None:
            raise ConnectFailed(f"this peer has no netlayer {locator.transport}")
        with trio.move_on_after(self._peer.limits.handshake):
            channel = await netlayer.dial(locator, self._peer.limits)
            connection = Connection(self._peer, netlayer, channel)
            if self._over(session) or channel.binding is None:
                await channel.aclose()
                raise ConnectFailed("the session went on meanwhile, or cannot over this connection")
            if first:
                session.asked_to_resume = trio.current_time()
            try:
                await connection.resume(session)
            finally:
                session.asked_to_resume = None
                self.attempted(connection)
            return connection
        raise ConnectFailed(f"{locator.uri} did not answer within {self._peer.limits.handshake:g} s")
