"""What a restart brings back, and how it compares with the peers once they are there (spec/supervision.md)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Literal, final

import attrs

from ocapn.captp.frames import terms_of
from ocapn.captp.session import Session as CoreSession
from ocapn.crypto import public_id
from ocapn.errors import SessionEnded
from ocapn.model.locators import PeerLocator
from ocapn.sessions import Session

#: What of a peer may be another than it was: its session key, its designator, the hints to where it is, what it takes
#: of a durable session, whether the session is durable, and whether the netlayer proved that it is that peer.
What = Literal["key", "designator", "hints", "limits", "durable", "authenticated"]
_WHAT: Final[tuple[What, ...]] = ("key", "designator", "hints", "limits", "durable", "authenticated")


def facts(core: CoreSession) -> dict[What, object]:
    """What is known of the peer of a session. Of its key, the public identifier."""
    terms = terms_of(core.node.limits) if core.frames is None else core.frames.terms
    return {
        "key": public_id(core.peer_key).hex(),
        "designator": core.location.designator,
        "hints": dict(core.location.hints or {}),
        "limits": (terms.life, terms.frames, terms.size) if core.durable else None,
        "durable": core.durable,
        "authenticated": core.authenticated,
    }


@final
@attrs.frozen
class Change:
    """One thing that is not as it was stored."""

    what: What
    stored: object
    live: object


@final
@attrs.frozen
class Difference:
    """How a peer differs from what was stored of it; false if it does not.

    Nothing follows from it by itself: the application accepts it, and later ones are against what is now, or refuses
    it, which ends the session.
    """

    restored: RestoredSession
    session: Session
    changes: tuple[Change, ...]

    def __bool__(self) -> bool:
        return bool(self.changes)

    def accept(self) -> None:
        """What is live is what the peer is compared with from now on. Raises SessionEnded if the session is over."""
        if self.session.ended is not None:
            raise SessionEnded("the session that was compared is over")
        self.restored.stored = facts(self.session._core)

    def refuse(self, reason: str = "the peer is not as it was") -> None:
        """Ends the session, with this reason."""
        self.session.end(reason)


@final
@attrs.define(eq=False)
class RestoredSession:
    """A session that the baggage has brought back, as it was stored.

    `silent` is how long ago its peer was last heard, to a minute, and `age` when the session began, both in seconds
    before the peer was opened; `outbox` counts messages that the peer has not acknowledged.
    """

    peer: PeerLocator
    silent: float
    age: float
    outbox: int
    session: Session
    stored: dict[What, object] = attrs.field(repr=False)
    _live: Callable[[Session], Awaitable[Session]] = attrs.field(repr=False, alias="live")

    async def reconcile(self) -> Difference:
        """How the peer differs from what was stored, once there is a live session with it: this, or if it is over,
        another, whose key is another too. Dials if need be. Raises ConnectFailed, SessionEnded.
        """
        live = await self._live(self.session)
        now = facts(live._core)
        changes = tuple(
            Change(what, self.stored[what], now[what]) for what in _WHAT if self.stored[what] != now[what]
        )
        return Difference(self, live, changes)
