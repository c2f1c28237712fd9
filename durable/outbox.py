"""Frames that a peer has not acknowledged, as rows: those of one batch together (spec/baggage.md, Frames)."""

from __future__ import annotations

from collections.abc import Iterable


def pack_frames(frames: Iterable[bytes]) -> bytes:
    """Frames one after the other, each behind its length in 4 bytes."""
    return b"".join([part for frame in frames for part in (len(frame).to_bytes(4, "big"), frame)])


def unpack_frames(data: bytes) -> list[bytes]:
    """The frames that were packed. Raises ValueError."""
    frames = []
    at = 0
    while at < len(data):
        start = at + 4
        at = start + int.from_bytes(data[at:start], "big")
        frames.append(data[start:at])
    if at != len(data) or not frames:
        raise ValueError("not a row of frames")
    return frames
