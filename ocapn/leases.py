"""The time of a session: when it is over, what is sent waits until somebody has said whether the session goes on."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal, final

import attrs
import trio

from ocapn.captp.gate import Gate
from ocapn.errors import shown
from ocapn.sessions import Session

log: Final = logging.getLogger("ocapn.session")

#: What has ended the time of a session: nothing was sent for too long, or it is as old as it may become.
Why = Literal["idle", "life"]


_WHY: Final[dict[Why, str]] = {
    "idle": "nothing was sent for too long",
    "life": "it is as old as it may become",
}


def above_zero(_: object, field: attrs.Attribute[Any], value: float | None) -> None:
    if value is not None and not 0 < value < math.inf:
        raise ValueError(f"{field.name} must be above zero and finite, not {value!r}")


@final
@attrs.frozen(kw_only=True)
class Lease:
    """How long a session may be used, seconds; and who may say that it goes on.

    When a time is over, what the application sends waits, `queue` messages of it, until `on_reauthorise` has said
    whether the session goes on: it is called with the session and which time is over, and returns whether, or raises,
    which is a no. It has `within` seconds. Then what waits goes out in order; or it breaks with SessionExpired, as does
    the message that finds no room, and the session ends. Without `on_reauthorise` it is for `session.renew()`.

    Only what is sent from here waits. What was sent before is with the peer and is not undone; what the peer sends
    comes in, and is answered. Time is that of a monotonic clock, and of a restart that of the wall clock since: a clock
    that was set back takes nothing from it, one that was set forward ends it early, which asks for leave once more.
    """

    #: Since the application, or the peer's, last sent something to the other. Answers do not count, nor does garbage.
    idle: float | None = attrs.field(default=None, validator=above_zero)
    #: Since the session began, or was last renewed.
    life: float | None = attrs.field(default=None, validator=above_zero)
    on_reauthorise: Callable[[Session, Why], Awaitable[bool]] | None = None
    within: float = attrs.field(default=60.0, validator=above_zero)
    #: A few calls of a user who waits for a login. More is for who sent them to hold.
    queue: int = attrs.field(default=32, validator=attrs.validators.ge(0))


@final
class Tenure:
    """The time of one session: `run` watches over it until the session has ended."""

    __slots__ = ("_changed", "_core", "_gate", "_public", "lease", "over")

    def __init__(self, public: Session, lease: Lease) -> None:
        self.lease = lease
        self._public = public
        core = self._core = public._core
        self._gate = core.gate = Gate(lease.queue, core.node.now)
        #: Set when the session has ended.
        self.over = trio.Event()
        self._changed = trio.Event()  # the time was renewed, or there is another lease

    def change(self, lease: Lease) -> None:
        """Another lease, from the same time on."""
        self.lease = lease
        self._gate.room = lease.queue
        self._changed.set()

    def renew(self) -> None:
        """See `Session.renew`."""
        core = self._core
        core.renewed = self._gate.used = core.node.now()
        if self._gate.closed and core.ended is None:
            self._gate.open()
            self._public.tell_soon()
        self._changed.set()

    @property
    def ends(self) -> tuple[float, Why]:
        """When the time is over, on the node's clock, and for which reason."""
        life = math.inf if self.lease.life is None else self._core.renewed + self.lease.life
        idle = math.inf if self.lease.idle is None else self._gate.used + self.lease.idle
        return (life, "life") if life <= idle else (idle, "idle")

    async def run(self) -> None:
        while self._core.ended is None:
            ends, why = self.ends
            if self._core.node.now() >= ends:
                await self._expire(why)
                continue
            self._changed = trio.Event()
            with trio.move_on_at(ends):
                await self._any(self.over, self._changed)
        await self.over.wait()  # what has ended it may not be on disk yet

    async def _expire(self, why: Why) -> None:
        core, gate, lease = self._core, self._gate, self.lease
        until = core.node.now() + lease.within
        gate.closed = True
        self._public.tell_soon()
        with trio.move_on_after(lease.within):
            async with trio.open_nursery() as nursery:
                if lease.on_reauthorise is not None:
                    nursery.start_soon(self._ask, why, until, nursery.cancel_scope)
                while gate.closed and core.ended is None:
                    self._changed = trio.Event()
                    await self._any(self.over, self._changed)
                nursery.cancel_scope.cancel()
        if gate.closed:
            core.expire(f"the time of the session is over: {_WHY[why]}")

    async def _ask(self, why: Why, until: float, scope: trio.CancelScope) -> None:
        assert self.lease.on_reauthorise is not None
        try:
            renewed = await self.lease.on_reauthorise(self._public, why)
        except Exception:
            log.exception("on_reauthorise for the session with %s", shown(self._core.location.uri))
            renewed = False
        if renewed and self._core.node.now() < until:  # it may have ignored that its time was over
            self.renew()
        scope.cancel()

    @staticmethod
    async def _any(one: trio.Event, other: trio.Event) -> None:
        """Returns when either is set."""
        async with trio.open_nursery() as nursery:

            async def wait(event: trio.Event) -> None:
                await event.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(wait, one)
            nursery.start_soon(wait, other)
