"""What the protocol core asks of whoever keeps its state on disk (durable.md, The one rule).

The core says which sessions have changed; at the end of a pass of the loop a keeper encodes what is new as a batch of
bytes, which a worker thread writes while the loop goes on. Nothing that depends on a batch is shown before it is on
disk: see `ocapn.commits`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from ocapn.captp.node import Node
    from ocapn.captp.session import Session


class Keeper(Protocol):
    """Keeps the sessions and objects of one node. All but `write` is called on the loop."""

    #: Whether `write` blocks, and so is called in a worker thread.
    blocks: bool

    def designator(self, transport: str, drawn: str) -> str:
        """The designator of this peer over a transport: `drawn` the first time, and that for ever."""

    def restore(self) -> None:
        """Brings back what was kept, sessions as suspended ones, and settles what cannot go on after a restart."""

    def cut(self, sessions: Iterable[Session]) -> Any | None:
        """A batch of all changes since the last, those of `sessions` among them; None if there are none."""

    def write(self, batches: Sequence[Any]) -> None:
        """Puts batches on disk, in the order in which they were cut. Blocks, in any thread; raises if it fails."""

    def tries(self, session: Session) -> int:
        """How often a process has begun with the next frame of a session as its first after a restart."""

    def spared(self, session: Session) -> None:
        """The frame that `tries` has counted was not begun with after all: its connection went away before."""

    def begins(self, number: int) -> None:
        """A turn that waited, and was kept, has its turn."""

    def written(self, batch: Any) -> None:
        """The batch is on disk."""

    def deposited(self, session_id: bytes, gift_id: bytes, gift: object, life: float) -> None:
        """A gift waits for its receiver, for `life` seconds; it is kept if it can be."""

    def withdrawn(self, session_id: bytes, gift_id: bytes) -> None:
        """A gift waits no longer."""

    def forget(self, session_id: bytes) -> None:
        """The tombstone of a session has expired, and its key with it."""

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
