"""The time of a session: when it is over, what is sent waits until somebody has said whether the session goes on."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal, final

import attrs
import trio
from attrs.validators import ge, optional

from ocapn.callbacks import caught
from ocapn.captp.gate import Gate
from ocapn.errors import shown
from ocapn.sessions import Session

log: Final = logging.getLogger("ocapn.session")

#: What has ended the time of a session: nothing was sent for too long, or it is as old as it may become.
Why = Literal["idle", "life"]


def _over(why: Why) -> str:
    reason = "nothing was sent for too long" if why == "idle" else "it is as old as it may become"
    return f"the time of the session is over: {reason}"


def above_zero(_: object, field: attrs.Attribute[Any], value: Any) -> None:
    if not (isinstance(value, (int, float)) and 0 < value <= sys.float_info.max):
        raise ValueError(f"{field.name} must be above zero and finite, not {value!r:.40}")


none_or_above_zero: Final[Any] = optional(above_zero)


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
    idle: float | None = attrs.field(default=None, validator=none_or_above_zero)
    #: Since the session began, or was last renewed.
    life: float | None = attrs.field(default=None, validator=none_or_above_zero)
    on_reauthorise: Callable[[Session, Why], Awaitable[bool]] | None = None
    within: float = attrs.field(default=60.0, validator=above_zero)
    #: A few calls of a user who waits for a login. More is for who sent them to hold.
    queue: int = attrs.field(default=32, validator=ge(0))


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
        self._core.renewed = self._gate.used = self._core.node.now()
        self._open()
        self._changed.set()

    def _open(self) -> None:
        if self._gate.closed and self._core.ended is None:
            self._gate.open()
            self._public.tell_soon()

    @property
    def ends(self) -> tuple[float, Why]:
        """When the time is over, on the node's clock, and for which reason."""
        life = math.inf if self.lease.life is None else self._core.renewed + self.lease.life
        idle = math.inf if self.lease.idle is None else self._gate.used + self.lease.idle
        return (life, "life") if life <= idle else (idle, "idle")

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:  # of callbacks: the time does not wait for one that hangs
            while self._core.ended is None:
                ends, why = self.ends
                if self._core.node.now() >= ends:
                    await self._expire(why, nursery)
                    continue
                self._open()  # there is another lease, by which it is not over
                self._changed = trio.Event()
                with trio.move_on_at(ends):
                    await self._any(self.over, self._changed)
            await self.over.wait()  # what has ended it may not be on disk yet
            nursery.cancel_scope.cancel()

    async def _expire(self, why: Why, nursery: trio.Nursery) -> None:
        """The time is over, until it is renewed, there is another lease, or the session has ended."""
        core, gate, lease = self._core, self._gate, self.lease
        gate.close()
        self._public.tell_soon()
        asking = trio.CancelScope()
        if lease.on_reauthorise is not None:
            nursery.start_soon(self._ask, lease.on_reauthorise, why, asking)
        with trio.move_on_after(lease.within) as within:
            while gate.closed and core.ended is None and self.lease is lease:
                self._changed = trio.Event()
                await self._any(self.over, self._changed)
        asking.cancel()
        if within.cancelled_caught and gate.closed:
            core.expire(_over(why))

    async def _ask(
        self, ask: Callable[[Session, Why], Awaitable[bool]], why: Why, asking: trio.CancelScope
    ) -> None:
        renewed = False
        with asking, caught(self._failed):
            renewed = bool(await ask(self._public, why))
        if asking.cancel_called:  # it may have ignored that
            return
        if renewed:
            self.renew()
        else:
            self._core.expire(_over(why))
            self._changed.set()

    def _failed(self, error: Exception) -> None:
        log.error("on_reauthorise for the session with %s", shown(self._core.location.uri), exc_info=error)

    @staticmethod
    async def _any(one: trio.Event, other: trio.Event) -> None:
        """Returns when either is set."""
        async with trio.open_nursery() as nursery:

            async def wait(event: trio.Event) -> None:
                await event.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(wait, one)
            nursery.start_soon(wait, other)
