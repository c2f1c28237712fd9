"""What the protocol core asks of whoever keeps its state on disk (durable.md, The one rule).

The core says which sessions have changed; at the end of a pass of the loop a keeper encodes what is new as a batch of
bytes, which a worker thread writes while the loop goes on. Nothing that depends on a batch is shown before it is on
disk: see `ocapn.commits`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import attrs

if TYPE_CHECKING:
    from ocapn.captp.delivery import Sent, Telling, Vow
    from ocapn.captp.node import Node, Turn
    from ocapn.captp.session import Session
    from ocapn.captp.tables import Import
    from ocapn.storage.backend import StorageBackend


@attrs.frozen
class SetAside:
    """What was kept of a session that cannot go on, for inspection: its keys and messages are gone.

    `peer` is where it was, if that could be read; `at` is in seconds since 1970.
    """

    session_id: bytes
    reason: str
    peer: str | None
    at: int


class Keeper(Protocol):
    """Keeps the sessions and objects of one node. All but `write` is called on the loop."""

    #: Whether `write` blocks, and so is called in a worker thread.
    blocks: bool

    @property
    def failed(self) -> Exception | None:
        """Why nothing can be kept any more, once that is so."""

    def identity(self, transport: str, drawn: str) -> str:
        """What makes this peer the same over a transport: `drawn` the first time, and that for ever. May be secret."""

    def storage(self) -> StorageBackend:
        """Keeps what callers keep, in the transactions of their turns. Called once, before `restore`."""

    def restore(self) -> None:
        """Brings back what was kept, sessions as suspended ones, and settles what cannot go on after a restart."""

    @property
    def aside(self) -> Sequence[SetAside]:
        """What of sessions was found, now or at an earlier time, that cannot go on."""

    def ready(self) -> None:
        """Raises RuntimeError where `cut` must not be called: while the application has a transaction open."""

    def cut(self, sessions: Iterable[Session]) -> Any | None:
        """A batch of all changes since the last, those of `sessions` among them; None if there are none."""

    def write(self, batches: Sequence[Any]) -> None:
        """Puts batches on disk, in the order in which they were cut. Blocks, in any thread; raises if it fails."""

    def tries(self, session: Session) -> int:
        """How often a process has begun with the next frame of a session as its first after a restart."""

    def spared(self, session: Session) -> None:
        """The frame that `tries` has counted was not begun with after all: its connection went away before."""

    def keep_unknown(self, session: Session, said: Sequence[float]) -> None:
        """So many seconds ago, the longest first, the peer has said that it does not know a session; if at all."""

    def unknown(self, session: Session) -> list[float]:
        """The same as it was kept, with the time that has passed since."""

    def begins(self, turn: Turn) -> None:
        """A turn that waited, and was kept, has its turn."""

    def waits(self, item: Sent | Telling, vow: Vow) -> None:
        """Something waits for `vow` now, or what will settle `vow` is kept from now on. It is kept if it can be."""

    def left(self, item: Sent | Telling) -> None:
        """It does not wait any more."""

    def holds(self, slot: Import) -> bool:
        """Whether what is kept holds an import that nobody else does."""

    def written(self, batch: Any) -> None:
        """The batch is on disk."""

    def deposited(self, session_id: bytes, gift_id: bytes, gift: object, life: float) -> None:
        """A gift waits for its receiver, for `life` seconds; it is kept if it can be."""

    def withdrawn(self, session_id: bytes, gift_id: bytes) -> None:
        """A gift waits no longer."""

    def withdraws(self, vow: Vow, key: tuple[bytes, bytes], through: bytes, life: float) -> None:
        """`vow` waits, for `life` seconds, for a gift to be deposited, which the session `through` withdraws."""

    def given(self, vow: Vow, session_id: bytes, wire: bytes, life: float) -> None:
        """`vow` waits for a session with the exporter of a gift: `wire` is the give, which came through a session."""

    def forget(self, session_id: bytes) -> None:
        """The tombstone of a session has expired, and its key with it."""

    def erase(self) -> None:
        """Called every few seconds: keys that were removed since the last time are erased for good, soon."""

    def close(self) -> None:
        """The peer has ended: another may be opened with what was kept."""

    def export(self, swiss: bytes, obj: object) -> None:
        """A sturdyref was made for an object, which is kept if it can be."""

    def unexport(self, swiss: bytes) -> None:
        """A sturdyref was ended."""


class Baggage(Protocol):
    """What `open_peer(baggage=…)` takes: `durable.open_baggage` gives one."""

    def keeper(self, node: Node) -> Keeper:
        """The keeper for a node."""
