"""What two peers show to each other and to their applications, marked on the record of their disks.

Commit, then show: what a crash leaves of a side holds at least what that side had shown. Frames are counted here,
from the messages alone: the first of a session is number 1, and a connection on which it resumes begins after what
the claims on it say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import trio

from ocapn import Limits, MemoryNetlayer, MemoryNetwork, PeerLocator
from ocapn.codec.operations import OPERATIONS, StartSession
from ocapn.codec.resumption import (
    Claims,
    ResumeAccept,
    ResumeConfirm,
    ResumeSession,
    is_ack,
    is_control,
    read_ack,
    read_resumption,
)
from ocapn.codec.syrup import Decoder
from ocapn.crypto import public_id, session_id
from ocapn.netlayers.base import Channel, Listener, Netlayer
from tests.crash.disk import Event, Mark

#: Of a session: frames `sent` and `taken`, the `epoch`, and that it was `agreed` on. Of the application: calls that
#: its `counter` has answered, answers that it was `told` of, the `next` number to send.
What = Literal["sent", "taken", "epoch", "agreed", "counter", "told", "next"]

_LIMITS = Limits()


@dataclass(frozen=True)
class Shown:
    """A side has shown that it has so many; `session` is None for what belongs to the application."""

    side: str
    session: bytes | None
    what: What
    count: int


Note = Callable[[Shown], None]
_Key = tuple[str, bytes | None, What]


@dataclass(frozen=True)
class Promise:
    """What was shown up to a point."""

    least: dict[_Key, int] = field(default_factory=dict)

    def after(self, event: Event) -> Promise:
        match event:
            case Mark(Shown(side, session, what, count)):
                key: _Key = side, session, what
                if count > self.least.get(key, -1):
                    return Promise(self.least | {key: count})
        return self

    def of(self, side: str, session: bytes | None, what: What) -> int:
        return self.least.get((side, session, what), 0)

    def sessions(self, side: str) -> set[bytes]:
        return {session for one, session, _ in self.least if one == side and session is not None}

    @property
    def agreed(self) -> set[bytes]:
        """Sessions that both sides know to be durable."""
        known: dict[bytes, int] = {}
        for _, session, what in self.least:
            if session is not None and what == "agreed":
                known[session] = known.get(session, 0) + 1
        return {session for session, sides in known.items() if sides == 2}


class _Tap(Channel):
    """One end of a connection; notes what its side shows on it.

    Of a new session nothing is noted before the side's first op:ack: until then neither side relies on the other.
    """

    def __init__(self, inner: Channel, side: str, note: Note) -> None:
        self._inner = inner
        self._side = side
        self._note = note
        self.authenticated = inner.authenticated
        self.binding = inner.binding
        self.source = inner.source
        self._keys: dict[bool, bytes] = {}  # ours under True
        self._claims: dict[bool, Claims] = {}
        self._session: bytes | None = None
        self._epoch = 0
        self._sent: int | None = None  # frames of ours so far; None in the handshake
        self._kept = False

    def _shown(self, what: What, count: int) -> None:
        assert self._session is not None
        self._note(Shown(self._side, self._session, what, count))

    def _sends(self, message: bytes) -> None:
        if self._sent is None:
            self._shakes(message, ours=True)
        elif is_ack(message):
            self._kept = True
            self._shown("taken", read_ack(message))
            self._shown("epoch", self._epoch)
            self._shown("sent", self._sent)
        elif not is_control(message):
            self._sent += 1
            if self._kept:
                self._shown("sent", self._sent)

    def _shakes(self, message: bytes, *, ours: bool) -> None:
        if is_control(message):
            return
        resuming = message[3:].startswith(b"'op:resume-")
        match read_resumption(message, _LIMITS) if resuming else Decoder(_LIMITS, OPERATIONS).decode(message):
            case StartSession(public_key=key):
                self._keys[ours] = public_id(key)
                if len(self._keys) == 2:
                    self._session = session_id(*self._keys.values())
                    self._sent = 0
            case ResumeSession(session=session, claims=claims):
                self._session = session
                self._claim(claims, ours)
            case ResumeAccept(epoch=epoch, claims=claims):
                self._epoch = epoch
                self._claim(claims, ours)
            case ResumeConfirm():
                self._kept = True
                self._sent = self._claims[False].received
                if ours:
                    self._shown("epoch", self._epoch)

    def _claim(self, claims: Claims, ours: bool) -> None:
        self._claims[ours] = claims
        if ours:
            self._shown("sent", claims.sent)
            self._shown("taken", claims.received)
            self._shown("epoch", claims.epoch)

    async def send(self, messages: list[bytes]) -> None:
        for message in messages:
            self._sends(message)
        await self._inner.send(messages)

    async def receive(self, most: int) -> list[bytes]:
        messages = await self._inner.receive(most)
        for message in messages:
            if self._sent is None:
                self._shakes(message, ours=False)
        return messages

    def set_max_message(self, size: int) -> None:
        self._inner.set_max_message(size)

    async def send_eof(self) -> None:
        await self._inner.send_eof()

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Ear(Listener):
    def __init__(self, inner: Listener, side: str, note: Note) -> None:
        self._inner = inner
        self._side = side
        self._note = note
        self.location = inner.location

    async def accept(self) -> Channel:
        return _Tap(await self._inner.accept(), self._side, self._note)

    async def aclose(self) -> None:
        await self._inner.aclose()


class TappedNetlayer(Netlayer):
    """A place in a memory network, whose messages are noted. Dials nobody before `gate` is set."""

    transport = "memory"

    def __init__(self, network: MemoryNetwork, side: str, note: Note, gate: trio.Event) -> None:
        self._inner = MemoryNetlayer(network, side)
        self._side = side
        self._note = note
        self._gate = gate
        self.location = self._inner.location

    async def listen(self, limits: Limits) -> Listener | None:
        listener = await self._inner.listen(limits)
        assert listener is not None
        return _Ear(listener, self._side, self._note)

    async def dial(self, locator: PeerLocator, limits: Limits) -> Channel:
        await self._gate.wait()
        return _Tap(await self._inner.dial(locator, limits), self._side, self._note)
