"""Objects and short-cuts that the tests of the public API share."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, Final

import trio
import trio.testing

from ocapn import E, Peer, Promise, Session, Target, method, send_only


class Echo(Target):
    """Gives back what it is given."""

    @method
    def echo(self, value: object) -> object:
        return value


class Recorder(Target):
    """Writes down what it is told, in the order in which the messages were begun."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    @method
    def note(self, value: object) -> None:
        self.seen.append(value)

    @method
    async def note_later(self, value: object) -> None:
        """As `note`, from the first step of a task."""
        self.seen.append(value)
        await trio.lowlevel.checkpoint()


class Box(Target):
    """Keeps one thing."""

    def __init__(self, content: object = None) -> None:
        self.content: Any = content

    @method
    def put(self, content: object) -> None:
        self.content = content

    @method
    def get(self) -> object:
        return self.content

    @method
    def drop(self) -> None:
        self.content = None


class Gate(Target):
    """Answers `wait` when it is opened."""

    def __init__(self) -> None:
        self.opened = trio.Event()
        self.waiting = 0

    @method
    async def wait(self, value: object = None) -> object:
        self.waiting += 1
        await self.opened.wait()
        return value


CONTEXT: Final[ContextVar[str]] = ContextVar("CONTEXT", default="none")


class Marking(Target):
    """Sets a variable of its context, and tells what it finds there."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    @method
    def sets(self) -> None:
        CONTEXT.set("of a method")

    @method
    async def sets_and_sends(self) -> None:
        await trio.lowlevel.checkpoint()
        CONTEXT.set("of a task")
        send_only(self).told()
        send_only(self).told_later()

    @method
    async def calls(self, other: object) -> None:
        await E(other).told()
        await E(other).told_later()

    @method
    def told(self) -> str:
        self.seen.append(CONTEXT.get())
        return CONTEXT.get()

    @method
    async def told_later(self) -> str:
        self.seen.append(CONTEXT.get())
        return CONTEXT.get()


async def far(exporter: Peer, importer: Peer, obj: object) -> Any:
    """What `importer` holds of an object of `exporter`."""
    return await importer.enliven(exporter.export(obj))


def between(peer: Peer, other: Peer) -> Session:
    """The session that `peer` has with `other`."""
    (session,) = [session for session in peer.sessions if session.location == other.locator()]
    return session


def waiting_on(promise: Promise) -> int:
    """How many wait on it."""
    queue = promise._vow.waiting
    return 0 if queue is None else len(queue.items)


async def settle() -> None:
    """Lets everything run that can, without moving the clock."""
    await trio.testing.wait_all_tasks_blocked()


class Trace:
    """The lines of a session's trace; `sent` and `received` pick those that begin with an operation."""

    def __init__(self, session: Session) -> None:
        self.lines: list[str] = []
        session.trace(self.lines.append)

    def sent(self, operation: str = "") -> list[str]:
        return [line for line in self.lines if line.startswith(f"-> <{operation}")]

    def received(self, operation: str = "") -> list[str]:
        return [line for line in self.lines if line.startswith(f"<- <{operation}")]
