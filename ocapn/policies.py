"""How a peer is dialled again, and how it is found out that it is gone."""

from __future__ import annotations

import math
import sys
from typing import Any, final

import attrs
from attrs.validators import ge, le, optional

from ocapn.leases import Lease, above_zero, none_or_above_zero


def _at_least_one(_: object, field: attrs.Attribute[Any], value: Any) -> None:
    if not 1 <= value <= sys.float_info.max:
        raise ValueError(f"{field.name} must be at least 1 and finite, not {value!r:.40}")


@final
@attrs.frozen(kw_only=True)
class Reconnect:
    """How a peer is dialled again, and how it is found out that it is gone (spec/supervision.md).

    After attempt n has failed, the next waits `base * factor ** (n - 1)` seconds, at most `cap`, less a random part of
    up to `jitter` of it.
    """

    #: A connection that was merely cut is there again at once; a peer that restarts needs some of these.
    base: float = attrs.field(default=0.1, validator=above_zero)
    #: After nine attempts in a row it is one every 15 to 30 seconds.
    factor: float = attrs.field(default=2.0, validator=_at_least_one)
    #: As long as somebody waits who has just got the network back.
    cap: float = attrs.field(default=30.0, validator=above_zero)
    #: In a row, until it is given up; None: never. A peer may be away for a weekend.
    attempts: int | None = attrs.field(default=None, validator=optional(_at_least_one))
    #: From 0 to 1. With half, a thousand peers that lost the same one do not come back all at once.
    jitter: float = attrs.field(default=0.5, validator=[ge(0.0), le(1.0)])
    #: A peer that was not heard for so long, though it was asked to answer halfway, is gone. None: it is not asked.
    keepalive: float | None = attrs.field(default=45.0, validator=none_or_above_zero)
    #: Also for sessions that the peer begins. None: that of `open_peer`.
    lease: Lease | None = None

    def delay(self, failed: int, fraction: float) -> float:
        """Seconds before the next attempt after so many have failed; infinite if there is none.

        `fraction` is random, from 0 up to 1.
        """
        if self.attempts is not None and failed >= self.attempts:
            return math.inf
        try:
            full = min(self.cap, self.base * self.factor ** (failed - 1))
        except OverflowError:
            full = self.cap
        return full * (1.0 - self.jitter * fraction)
