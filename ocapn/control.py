"""What a running peer tells of itself over a local socket file: `ocapn status` reads it (spec/supervision.md, Status).

Whoever connects is sent one JSON document and the end of the stream; nothing is read. The file has mode 0600: who may
open it may also read the process's memory. No key, swiss number, message or value is in it.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import attrs
import trio

from ocapn.errors import ConnectFailed, shown
from ocapn.netlayers.unix import SocketFile
from ocapn.peer import Peer
from ocapn.sessions import Session

log: Final = logging.getLogger("ocapn.control")

#: Of the document.
VERSION: Final = 1
#: A reader that takes longer than this is not one, seconds.
_READING: Final = 10.0
#: Readers at a time. More wait.
_READERS: Final = 8
#: Bytes of a document that `ask` reads at most.
_MOST: Final = 64 << 20


def report(peer: Peer) -> dict[str, Any]:
    """How the peer is now: values of JSON, times in seconds."""
    now = trio.current_time()
    return {
        "version": VERSION,
        "pid": os.getpid(),
        "peer": [locator.uri for locator in peer.node.own],
        "connections": [
            {
                "peer": snapshot.peer.uri,
                "status": snapshot.status,
                "for": round(now - snapshot.since, 3),
                "attempts_failed": snapshot.attempt,
                "delay": None if math.isinf(snapshot.delay) else round(snapshot.delay, 3),
                "cause": None if snapshot.cause is None else shown(snapshot.cause),
            }
            for snapshot in (connection.snapshot() for connection in peer.connections)
        ],
        "sessions": [_session(session, now) for session in peer.sessions],
        "restored": [
            {
                "peer": one.peer.uri,
                "silent": round(one.silent, 3),
                "age": round(one.age, 3),
                "outbox": one.outbox,
                "status": one.session.status,
            }
            for one in peer.restored
        ],
        "storage": None if (stats := peer.storage_stats()) is None else attrs.asdict(stats),
        "set_aside": [
            {"session": one.session_id.hex()[:16], "peer": one.peer, "reason": one.reason, "at": one.at}
            for one in peer.set_aside
        ],
    }


def _session(session: Session, now: float) -> dict[str, Any]:
    core = session._core
    return {
        "peer": session.location.uri,
        "status": session.status,
        "durable": session.durable,
        "authenticated": session.authenticated,
        "age": round(now - core.begun, 3),
        "heard": round(now - core.last_heard, 3),
        "waiting_for_renewal": session.waiting,
        "running_methods": len(session.methods),
        **session.stats(),
    }


@asynccontextmanager
async def control_socket(peer: Peer, path: str | os.PathLike[str]) -> AsyncIterator[None]:
    """While the block runs, whoever opens the socket file at `path` is told how the peer is.

    The file is made with mode 0600 and removed at the end. Raises ConnectFailed if it cannot be, or somebody has it.
    """
    file = await SocketFile.make(path)
    limit = trio.CapacityLimiter(_READERS)

    async def tell(stream: trio.SocketStream) -> None:
        with trio.move_on_after(_READING):
            async with stream, limit:
                try:
                    await stream.send_all(json.dumps(report(peer)).encode() + b"\n")
                except trio.BrokenResourceError:
                    pass  # it did not want to know
                except Exception:  # who asks how a peer is must not end it
                    log.exception("control socket: it cannot be told how the peer is")

    async def accept() -> None:
        async with trio.open_nursery() as readers:
            while True:
                try:
                    stream = await file.listener.accept()
                except OSError as error:
                    log.warning("control socket: cannot accept: %s", error)
                    await trio.sleep(0.1)
                    continue
                if len(readers.child_tasks) < 2 * _READERS:
                    readers.start_soon(tell, stream)
                else:
                    await trio.aclose_forcefully(stream)

    block: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            try:
                yield
            except BaseException as error:
                block = error  # the block's own: it is not for the nursery to put into a group
            nursery.cancel_scope.cancel()
    finally:
        await file.aclose()
    if block is not None:
        raise block


async def ask(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What the peer behind a socket file tells of itself. Raises ConnectFailed, and what is malformed as ValueError."""
    try:
        stream = await trio.open_unix_socket(os.fspath(path))
    except OSError as error:
        raise ConnectFailed(f"no peer answers at {os.fspath(path)}: {error.strerror or error}") from error
    data = bytearray()
    async with stream:
        with trio.move_on_after(_READING) as scope:
            try:
                async for part in stream:
                    data += part
                    if len(data) > _MOST:
                        raise ValueError("that is more than a peer tells of itself")
            except trio.BrokenResourceError as error:
                raise ConnectFailed(f"{os.fspath(path)} did not answer to the end") from error
    if scope.cancelled_caught:
        raise ConnectFailed(f"{os.fspath(path)} did not answer within {_READING:g} s")
    document = json.loads(data)
    if not isinstance(document, dict) or document.get("version") != VERSION:
        raise ValueError(f"not the answer of a peer of this version ({VERSION})")
    return document
