"""What an application sends on a session whose time may be over (spec/supervision.md, Expiry).

A session with a gate notes when it was last used. While the gate is closed, messages wait here, in order; they go out
when it opens, or break.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, final

from ocapn.errors import OCapNError, SessionExpired

if TYPE_CHECKING:
    from ocapn.captp.delivery import RemoteVow, Sent, Vow
    from ocapn.captp.handles import PromiseHandle


@final
class Held(OCapNError):
    """The gate is closed: what was to be sent is for `gate.hold`."""

    def __init__(self, gate: Gate) -> None:
        super().__init__("the time of the session is over")
        self.gate = gate


@final
class Gate:
    """`room` messages may wait. `now` is the node's clock."""

    __slots__ = ("_now", "_waiting", "closure", "room", "used")

    def __init__(self, room: int, now: Callable[[], float]) -> None:
        self.room = room
        self._now = now
        #: What was sent, and to which promise; the handle keeps that in use. Without a message: what the peer has told.
        self._waiting: deque[tuple[Sent | None, Vow, PromiseHandle, object]] = deque()
        #: Of the time that it is closed, another each time; None while it is open.
        self.closure: object | None = None
        #: When the application, or the peer's, last sent something to the other.
        self.used = now()

    def __len__(self) -> int:
        return sum(1 for item, *_ in self._waiting if item is not None)

    @property
    def closed(self) -> bool:
        return self.closure is not None

    def close(self) -> None:
        if self.closure is None:
            self.closure = object()

    def passes(self) -> None:
        """The application sends something. Raises Held."""
        if self.closed:
            raise Held(self)
        self.used = self._now()

    def hold(self, item: Sent, vow: Vow) -> None:
        """It was sent to `vow`, which has become, or may become, something of the peer. Raises SessionExpired."""
        if len(self) >= self.room:
            raise SessionExpired(
                f"the time of the session is over, and {self.room} messages wait for it to be renewed already"
            )
        self._waiting.append((item, vow, vow.handle(), None))
        if vow.node.keeper is not None:
            item.moves(vow)

    def told(self, vow: RemoteVow, value: object) -> bool:
        """The peer has fulfilled a promise of its own. Whether that waits, as messages to it do: else what is sent to
        `value` itself would overtake them."""
        waiting = [item for item, one, _, _ in self._waiting if one is vow]
        if not self.closed or not waiting:
            return False
        if None not in waiting:  # it may say so again and again; the first counts
            self._waiting.append((None, vow, vow.handle(), value))
        return True

    def open(self) -> None:
        """The session goes on: what waits is sent."""
        self.closure = None
        while self._waiting and not self.closed:
            item, vow, _, value = self._waiting.popleft()
            if item is not None:
                vow.end().add(item)
            else:
                vow.told(value)  # type: ignore[attr-defined]  # a RemoteVow

    def drop(self, error: BaseException) -> None:
        """The session does not go on: what waits breaks."""
        self.closure = None
        waiting, self._waiting = self._waiting, deque()
        for item, vow, _, _ in waiting:
            if item is not None:
                if item.answer is None:
                    vow.node.log_lost(error, item.source)
                item.drop(error)
