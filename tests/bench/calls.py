"""What is called again and again, and how."""

from __future__ import annotations

import ocapn
from ocapn import E

#: Arguments of about 150 bytes.
SMALL: list[object] = [
    "alice",
    "bob",
    42,
    {"memo": "thanks for the lunch", "currency": "EUR"},
    True,
    bytes(16),
]


async def sequential(ref: ocapn.Ref, count: int) -> None:
    """One call after another."""
    for _ in range(count):
        await E(ref).echo(*SMALL)


async def outstanding(ref: ocapn.Ref, count: int) -> None:
    """1,000 calls at once."""
    for _ in range(count // 1000):
        promises = [E(ref).echo(*SMALL) for _ in range(1000)]
        for promise in promises:
            await promise


async def sessions(peer: ocapn.Peer, sturdyref: ocapn.SturdyRef, count: int) -> None:
    """Connect, handshake, first call."""
    for _ in range(count):
        await peer.enliven(sturdyref)
        peer.sessions[0].end("measured")
