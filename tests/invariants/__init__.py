"""I3, I7, I8 and I9 (durable.md, Invariants) on the real stacks, after every test.

    I3  nothing observable precedes its commit
    I7  per slot, references sent = count + freed, never below 0
    I8  object positions and handoff counts are never reused, answer positions only after their release is committed
    I9  no key outlives its session but for the tombstone's

`tests/conftest.py` has every test watched. What is watched is the product from outside (`seams`): each frame that a
session numbers and takes, each message that a connection hands to its channel, each commit of a store. What a
session's tables should hold is counted from the frames alone (`ledger`), what may be shown from the commits alone
(`disk`). Sessions that are not durable, and peers without a baggage, have nothing of I3 and I9 to be watched.
"""

from __future__ import annotations

from tests.invariants.seams import install, watching
from tests.invariants.watch import Watch

__all__ = ["Watch", "install", "watching"]
