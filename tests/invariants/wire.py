"""What a frame does to the tables of both sides, read from its bytes alone."""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import Final

import attrs

from ocapn.codec.cbor import CBOR
from ocapn.codec.messages import SYRUP
from ocapn.codec.operations import (
    PROMISE,
    Deliver,
    Descriptor,
    Envelope,
    GcAnswers,
    GcExports,
    Listen,
    Receive,
    Select,
)
from ocapn.errors import RemoteProtocolError
from ocapn.limits import Limits
from ocapn.model.values import Tagged


@attrs.frozen
class Effect:
    """Of one frame. Positions of references are those that its sender chose, the bootstrap object's left out.

    `given`: what is exported, once for each time; `returned`: positions and deltas; `asked`: the answer, -1 for none;
    `released`: answers; `counts`: the handoff counts of certificates, with the session each is for.
    """

    given: list[int] = attrs.Factory(list)
    returned: list[tuple[int, int]] = attrs.Factory(list)
    asked: int = -1
    released: list[int] = attrs.Factory(list)
    counts: list[tuple[bytes, int]] = attrs.Factory(list)


class _Local(threading.local):
    def __init__(self) -> None:
        self.syrup = SYRUP.decoder(Limits())
        self.cbor = CBOR.decoder(Limits())


_local: Final = _Local()
_SMALL: Final = 4096


def effect(message: bytes) -> Effect | None:
    """None for a frame that does nothing of this, or cannot be read."""
    if message.endswith(b"ff>") and b"desc:import-" not in message and b"desc:handoff-" not in message:
        return None
    return _recent(message) if len(message) < _SMALL else _read(message)


def _read(message: bytes) -> Effect | None:
    try:
        operation = (_local.syrup if message[:1] == b"<" else _local.cbor).decode(message)
    except RemoteProtocolError:
        return None
    if isinstance(operation, Deliver):
        found = Effect(asked=operation.answer)
        _walk(operation.args, found)
        _given(operation.resolver, found)
        return found
    if isinstance(operation, Listen):
        found = Effect()
        _given(operation.resolver, found)
        return found
    if isinstance(operation, Select):
        return Effect(asked=operation.answer)
    if isinstance(operation, GcExports):
        return Effect(returned=list(zip(operation.positions, operation.deltas, strict=True)))
    if isinstance(operation, GcAnswers):
        return Effect(released=operation.positions)
    return None


#: Both sides read a frame, one after the other.
_recent: Final = lru_cache(256)(_read)


def _given(value: Descriptor | None, found: Effect) -> None:
    if value is not None and value.kind <= PROMISE and value.position:
        found.given.append(value.position)


def _walk(args: list[object], found: Effect) -> None:
    left: list[object] = [args]
    while left:
        value = left.pop()
        if isinstance(value, Descriptor):
            _given(value, found)
        elif isinstance(value, list):
            left += value
        elif isinstance(value, dict):
            left += value.values()
        elif isinstance(value, Tagged):
            left.append(value.value)
        elif isinstance(value, Envelope) and isinstance(value.signed, Receive):
            found.counts.append((value.signed.session, value.signed.count))
