"""Where the product is watched: functions of it are wrapped, once for the process, and tell the watch of the day."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Final

from durable.baggage import Baggage
from durable.directory import DirectoryStore
from durable.memory import MemoryStore
from durable.sealing import SealedStore
from durable.sessions import SessionKeeper
from durable.store import Changes, Store
from ocapn.captp.frames import Frames
from ocapn.captp.node import Node
from ocapn.captp.outbox import Outbox
from ocapn.captp.session import Session
from ocapn.captp.tables import Tables
from ocapn.codec.resumption import is_control
from ocapn.connection import Connection
from ocapn.peer import Peer
from tests.invariants.route import Route
from tests.invariants.watch import Watch

_installed: Final[list[bool]] = []
#: The innermost is the one that is told.
_watches: Final[list[Watch]] = []


class _Writing(threading.local):
    """The baggage that is being written in this thread, and the number of its last batch."""

    baggage: Baggage | None = None
    number = 0


_writing: Final = _Writing()


@contextmanager
def watching() -> Iterator[Watch]:
    """What runs in the block is watched; raises AssertionError, in the end, with all that was found wrong."""
    install()
    watch = Watch()
    _watches.append(watch)
    try:
        yield watch
        watch.check()
    finally:
        _watches.remove(watch)
    assert not watch.wrong, "\n".join(watch.wrong)


def install() -> None:
    """Wraps what is to be watched. What a test patches later stays watched if it calls what was there."""
    if not _installed:
        _installed.append(True)
        _sessions()
        _stores()
        _shown()
        _ends()


def _wrap(owner: type, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    original = getattr(owner, name)
    setattr(owner, name, wraps(original)(make(original)))


def _after(owner: type, name: str, tell: Callable[..., None]) -> None:
    """`tell` is called with the watch and the arguments, once the function has returned."""

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def after(*args: Any, **options: Any) -> Any:
            result = original(*args, **options)
            if _watches:
                tell(_watches[-1], *args, **options)
            return result

        return after

    _wrap(owner, name, make)


def _before(owner: type, name: str, tell: Callable[..., None]) -> None:
    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def before(*args: Any, **options: Any) -> Any:
            if _watches:
                tell(_watches[-1], *args, **options)
            return original(*args, **options)

        return before

    _wrap(owner, name, make)


def _sessions() -> None:
    _after(Peer, "__init__", lambda watch, peer, *rest: watch.peer(peer))
    _after(Node, "add_session", Watch.session)
    _after(
        Frames,
        "__init__",
        lambda watch, frames, agreement, session, own_id, *rest: watch.frames(frames, session, own_id),
    )
    _after(Frames, "restore", lambda watch, frames, *rest: watch.restored(frames))

    def agreed(watch: Watch, frames: Frames, *rest: object) -> None:
        ledger = watch.ledger(frames)
        if ledger is not None:
            ledger.settled_at = frames.sent

    def numbered(watch: Watch, frames: Frames, message: bytes) -> None:
        ledger = watch.ledger(frames)
        if ledger is not None:
            ledger.number(message)

    def attached(watch: Watch, frames: Frames, received: int, *rest: object) -> None:
        ledger = watch.ledger(frames)
        if ledger is not None:
            ledger.attached_at = received + 1

    _after(Frames, "agree", agreed)
    _after(Frames, "number", numbered)
    _after(Frames, "attach", attached)

    def taking(original: Callable[..., Any]) -> Callable[..., Any]:
        def take(frames: Frames, message: bytes) -> bool:
            result: bool = original(frames, message)
            if result and _watches and not is_control(message):
                ledger = _watches[-1].ledger(frames)
                if ledger is not None:
                    ledger.take(message)
            return result

        return take

    _wrap(Frames, "take", taking)

    def exported(watch: Watch, tables: Tables, *rest: object) -> None:
        if tables.next_export in tables.exports:
            watch.report(f"I8: export {tables.next_export} is given to a second thing")

    _before(Tables, "_new_export", exported)


def _stores() -> None:
    _before(SessionKeeper, "restore", lambda watch, keeper: watch.restoring(keeper._node))

    def cutting(original: Callable[..., Any]) -> Callable[..., Any]:
        def cut(baggage: Baggage) -> Any:
            batch = original(baggage)
            if _watches:
                _watches[-1].cut(baggage, batch)
            return batch

        return cut

    def writing(original: Callable[..., Any]) -> Callable[..., Any]:
        def write(baggage: Baggage, batches: Any) -> None:
            _writing.baggage, _writing.number = baggage, max((one.number for one in batches), default=0)
            try:
                original(baggage, batches)
            finally:
                _writing.baggage = None

        return write

    _wrap(Baggage, "cut", cutting)
    _wrap(Baggage, "write", writing)

    def committed(watch: Watch, store: Store, changes: Changes, *within: object) -> None:
        if not within:  # else it is that of a sealed store, whose rows tell nothing
            watch.committed(store, changes, _writing.baggage, _writing.number)

    for kind in (MemoryStore, DirectoryStore, SealedStore):
        _after(kind, "commit", committed)
    for name in ("scrub", "close"):
        _after(DirectoryStore, name, Watch.cleaned)
        _after(SealedStore, name, Watch.cleaned)


def _shown() -> None:
    def appended(watch: Watch, outbox: Outbox, message: bytes) -> None:
        if outbox._session.node.keeper is not None:
            watch.appended(outbox._session, message)

    _before(Outbox, "append", appended)

    def telling(original: Callable[..., Any]) -> Callable[..., Any]:
        def event(node: Node, tell: Callable[[], None]) -> None:
            if node.keeper is not None and _watches:
                tell = _watches[-1].event(node, tell)
            original(node, tell)

        return event

    _wrap(Node, "event", telling)

    def connected(watch: Watch, connection: Connection, *rest: object) -> None:
        route = watch.connection(connection)
        if route is not None:
            _watch_channel(connection.channel, route)

    _after(Connection, "__init__", connected)
    _before(Peer, "attempt", lambda watch, peer, session, connection: watch.attempt(session, connection))


def _watch_channel(channel: Any, route: Route) -> None:
    send, send_now = channel.send, channel.send_now

    async def sending(messages: list[bytes]) -> None:
        route.took(route.hand(messages))
        await send(messages)

    def sending_now(messages: list[bytes]) -> int:
        numbered = route.hand(messages)
        sent: int = send_now(messages)
        route.took(numbered[:sent])
        return sent

    channel.__dict__.update(send=sending, send_now=sending_now)


def _ends() -> None:
    def ended(watch: Watch, session: Session, *rest: object, **options: object) -> None:
        if session.node.keeper is not None:
            watch.ended(session)

    _after(Session, "_end", ended)
    _before(Peer, "_close", Watch.closing)

    def finished(original: Callable[..., Any]) -> Callable[..., Any]:
        def finish(peer: Peer) -> None:
            failed = peer._commits is not None and peer._commits.failed
            original(peer)
            if _watches and not failed:
                _watches[-1].finished(peer)

        return finish

    _wrap(Peer, "_finish", finished)
