"""The application's end of a session: its status, its events, its counts.

A `Session` outlasts the connections of its session, and is the same one whatever connection carries it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, Literal, Protocol, cast, final

import attrs
import trio

from ocapn.callbacks import caught
from ocapn.captp.session import Session as CoreSession
from ocapn.errors import NotAuthenticated, OCapNError, SessionEnded, fresh
from ocapn.limits import StorageLimits
from ocapn.listeners import Listeners
from ocapn.model.locators import PeerLocator
from ocapn.promise import waited
from ocapn.storage.access import can_block
from ocapn.storage.backend import AsyncStorageBackend, StorageBackend, StorageStats, name_given, name_of
from ocapn.storage.checks import check_key
from ocapn.trace import Tracer

log: Final = logging.getLogger("ocapn.storage")

Status = Literal["live", "suspended", "expired", "ended"]


@final
@attrs.frozen
class SessionEvent:
    """A session was cut (`suspended`), has resumed or was renewed (`live`), its time is over (`expired`), or all of it
    is (`ended`, and why).

    `missed` counts the events before it that this listener was too slow for.
    """

    status: Status
    why: SessionEnded | None
    missed: int


class Renewable(Protocol):
    """The time of a session."""

    #: To be set when the session has ended.
    over: trio.Event

    def renew(self) -> None:
        """It begins again."""


@final
class Keeping:
    """Where a peer keeps what those who call it keep, and who they are (spec/storage.md)."""

    def __init__(
        self,
        backend: StorageBackend | AsyncStorageBackend,
        limits: StorageLimits,
        identity: Callable[[Session], str | None] | None,
    ) -> None:
        self.backend = backend
        self.blocks = can_block(backend)
        self.limits = limits
        self._identity = identity

    def name(self, session: Session) -> str:
        """The caller's name in the backend. Raises NotAuthenticated, StorageRefused if the application's is none."""
        if session.authenticated:
            return name_of(session.location.transport, session.location.designator)
        said = None if self._identity is None else self._identity(session)
        if said is None:
            raise NotAuthenticated("nobody has proved who calls, so there is no storage")
        return name_given(check_key(said, self.limits.key, "what storage_identity returns"))

    def stats(self) -> StorageStats | None:
        """What is kept; None if the backend does not say, or would have to be waited for."""
        stats = None if self.blocks else getattr(self.backend, "stats", None)
        try:
            return None if stats is None else cast(StorageStats, stats())
        except Exception as error:
            log.warning("the storage does not say what it keeps: it has failed with %s", type(error).__name__)
            return None

    async def sweep(self) -> None:
        """Removes some of what has expired. What fails is tried again the next time."""
        sweep = getattr(self.backend, "sweep", None)
        if sweep is None:
            return
        with caught(self._sweep_failed):
            if not self.blocks:
                sweep()
                return
            with trio.move_on_after(self.limits.answer):
                await sweep()

    def _sweep_failed(self, error: Exception) -> None:
        what = (
            error if isinstance(error, OCapNError) else f"the storage has failed with {type(error).__name__}"
        )
        log.warning("expired entries are not removed: %s", what)


@final
class Session:
    """A session with another peer, for applications that want to know: `peer.sessions`."""

    __slots__ = ("__weakref__", "_core", "_listeners", "_room", "keeping", "left", "methods", "tenure")

    def __init__(self, core: CoreSession, keeping: Keeping) -> None:
        self._core = core
        self._listeners = Listeners[SessionEvent]()
        #: Where the peer keeps what the other one keeps.
        self.keeping = keeping
        self._room = trio.Event()
        #: The running `async` methods that the other peer called. They may outlive the session.
        self.methods: set[trio.CancelScope] = set()
        #: Its time, if that is bounded.
        self.tenure: Renewable | None = None
        #: Whether it was the application here that has ended it.
        self.left = False

    @property
    def location(self) -> PeerLocator:
        """Where the other peer says it is."""
        return self._core.location

    @property
    def netlayer(self) -> str:
        """The transport that carries the session."""
        return self._core.location.transport

    @property
    def authenticated(self) -> bool:
        """Whether the netlayer proved to us that the other peer is the one that `location` names.

        Of a durable session without a connection: whether it did on the last.
        """
        return self._core.authenticated

    @property
    def ended(self) -> SessionEnded | None:
        """Why the session is over, or None while it lives."""
        return self._core.ended

    @property
    def durable(self) -> bool:
        """Whether the session survives its connection: both peers have agreed on it."""
        return self._core.durable

    @property
    def status(self) -> Status:
        """`suspended`: a durable session that was cut, and waits for a connection to go on. `expired`: what is sent
        waits for the session to be renewed.
        """
        core = self._core
        if core.ended is not None:
            return "ended"
        if core.gate is not None and core.gate.closed:
            return "expired"
        return "live" if core.attached else "suspended"

    def end(self, reason: str = "session ended") -> None:
        """Ends the session with op:abort: `reason` is sent. Its references break on both sides, for good.

        The peer of a suspended session learns it when it tries to resume.
        """
        self.left = self.left or self._core.ended is None
        self._core.abort(reason)  # the peer is woken; a pump here would run turns in the caller's stack

    def renew(self) -> None:
        """The session may be used for as long as its lease says, from now. What waits for that is sent.

        Raises RuntimeError if its time is not bounded. Does nothing once the session has ended.
        """
        if self.tenure is None:
            raise RuntimeError("the session has no lease: it lasts until somebody ends it")
        self.tenure.renew()

    async def renewed(self) -> None:
        """Returns when the time of the session is not over. Raises SessionEnded."""
        await trio.lowlevel.checkpoint()
        async with self.events() as events:
            while self.status == "expired":
                try:
                    await events.receive()
                except trio.EndOfChannel:
                    raise SessionEnded("this peer is closing") from None
        if self._core.ended is not None:
            raise fresh(self._core.ended)

    @property
    def waiting(self) -> int:
        """How many messages wait for the session to be renewed."""
        return 0 if self._core.gate is None else len(self._core.gate)

    async def writable(self) -> None:
        """Waits until the outbox has room for application messages. Raises SessionEnded."""
        core = self._core
        await trio.lowlevel.checkpoint()
        while core.ended is None and not core.has_room:
            if self._room.is_set():
                self._room = trio.Event()
            await waited(core.node, self._room)
        if core.ended is not None:
            raise fresh(core.ended)

    def events(self) -> trio.MemoryReceiveChannel[SessionEvent]:
        """What becomes of the session from now on: `async with session.events() as events: async for event in events`.

        Any number may listen; nobody who is slow holds up the session. Ends after `ended`, and with the peer.
        """
        if self._core.ended is None:
            return self._listeners.listen()
        send, receive = trio.open_memory_channel[SessionEvent](1)
        send.send_nowait(SessionEvent("ended", self._core.ended, 0))
        send.close()
        return receive

    def tell_soon(self) -> None:
        """The status has changed: who listens is told, once what has changed it is committed."""
        status, why = self.status, self._core.ended
        self._core.node.event(lambda: self._tell(status, why))

    def _tell(self, status: Status, why: SessionEnded | None) -> None:
        self._listeners.tell(lambda missed: SessionEvent(status, why, missed))
        if why is not None:
            self.tell_no_more()

    def tell_no_more(self) -> None:
        """The session is over, or its peer is closed."""
        self._listeners.close()
        if self.tenure is not None:
            self.tenure.over.set()

    def make_room(self) -> None:
        """Something has left the outbox, or the session is over: wakes who waits, if that is enough."""
        if not self._room.is_set() and (self._core.has_room or self._core.ended is not None):
            self._room.set()

    def stats(self) -> dict[str, int]:
        """Counts of messages and bytes since the start, and the present sizes of queues and tables."""
        return self._core.stats()

    def dump(self) -> dict[str, object]:
        """Every slot of the session, readable, without secrets."""
        return self._core.dump()

    def check(self) -> None:
        """The invariants of the session's tables. Raises AssertionError naming the first that does not hold."""
        self._core.check()

    def trace(self, write: Callable[[str], object] | None, *, secrets: bool = False) -> None:
        """Switches the wire trace on, a line a message to `write`, or off with None.

        Lines are in the notation of the specification. Swiss numbers and gift ids are left out unless `secrets`;
        what applications send is not.
        """
        self._core.trace = None if write is None else Tracer(write, secrets=secrets)

    def __repr__(self) -> str:
        return repr(self._core)
