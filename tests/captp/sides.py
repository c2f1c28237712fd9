"""Nodes driven by hand: two or more sides of the protocol core, no trio, no network, a clock that tests set."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random
from threading import get_ident
from typing import Any, final

from ocapn import Limits, PeerLocator, Promise, Ref
from ocapn.captp.delivery import Vow
from ocapn.captp.handles import LocalTarget, PromiseHandle
from ocapn.captp.handshake import Handshake
from ocapn.captp.node import Node, Turn
from ocapn.captp.session import Session
from ocapn.codec.operations import Form
from ocapn.errors import ConnectFailed, OCapNError


@final
class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@final
class Box(LocalTarget):
    """A target that keeps the arguments of every message, and answers with `answer`, or by what it is to do."""

    __slots__ = ("answer", "got", "name")

    def __init__(self, name: str = "box", answer: object = None) -> None:
        self.name = name
        self.got: list[list[object]] = []
        self.answer = answer

    def __repr__(self) -> str:
        return f"<{self.name}>"


@final
class Side:
    """One peer."""

    def __init__(
        self, name: str, *, limits: Limits | None = None, clock: Clock | None = None, seed: int = 0
    ) -> None:
        self.location = PeerLocator("memory", name)
        self.wanted: list[tuple[PeerLocator, Callable[[Session | OCapNError], None]]] = []
        self.node = Node(
            limits=limits or Limits(),
            now=clock or Clock(),
            random=Random(f"{name} {seed}").randbytes,
            make_ref=Ref,
            make_promise=Promise,
            invoke=self._invoke,
            connect=self._connect,
            wake=lambda: None,
            wake_from_finaliser=lambda: None,
            collect_soon=lambda: None,
        )
        self.node.own = [self.location]
        self.node.thread = get_ident()
        self.links: dict[str, Link] = {}

    def _invoke(self, turn: Turn) -> object:
        box = turn.target
        assert isinstance(box, Box)
        box.got.append(turn.args)
        if isinstance(box.answer, BaseException):
            raise box.answer
        return box.answer

    def _connect(self, locator: PeerLocator, callback: Callable[[Session | OCapNError], None]) -> None:
        session = self.node.sessions.get(locator)
        if session is not None:
            callback(session)
        else:
            self.wanted.append((locator, callback))

    def refuse_wanted(self) -> None:
        for locator, callback in self.wanted:
            callback(ConnectFailed(f"{locator.uri} is not there"))
        self.wanted.clear()

    def run(self) -> None:
        """Every turn that waits, and what finalisers reported."""
        while not self.node.idle:
            self.node.run(1000)
            self.node.collect()
            result = self.node.take()
            for link in self.links.values():
                link.collect()
            for tell in result.events:
                tell()
        self.node.collect_sessions()
        self.node.take()

    def promise(self) -> tuple[PromiseHandle, Vow]:
        vow = Vow(self.node)
        return vow.handle(), vow

    def hold(self, session: Session, position: int, *, promise: bool = False) -> Any:
        """What the peer exported at `position`, as if it had just come."""
        return session.tables.import_slot(session, position, promise).handle()


@final
class Link:
    """A session of two sides, and what is under way on it."""

    def __init__(self, a: Side, b: Side) -> None:
        dialler = Handshake(a.node, a.location, dialled=b.location, authenticated=None, form=Form())
        listener = Handshake(b.node, b.location, dialled=None, authenticated=None, form=Form())
        start = listener.read(dialler.outbound.pop())
        self.sides = (a, b)
        b_session = listener.judge(start, b.node.now())
        a_session = dialler.judge(dialler.read(listener.outbound.pop()), a.node.now())
        self.a, self.b = a_session, b_session
        self.under_way: tuple[deque[bytes], deque[bytes]] = (deque(), deque())  # to b, to a
        a.links[b.location.designator] = self
        b.links[a.location.designator] = self

    def collect(self) -> None:
        """Puts what the sessions have to send on its way."""
        for session, queue in zip((self.a, self.b), self.under_way, strict=True):
            messages = session.outbox.take()
            session.outbox.written(messages)
            queue.extend(messages)

    def to_b(self, count: int = -1) -> int:
        """Lets `b` receive so many messages, or all, and run the turns that come of each."""
        return self._pass(self.under_way[0], self.b, self.sides[1], count)

    def to_a(self, count: int = -1) -> int:
        return self._pass(self.under_way[1], self.a, self.sides[0], count)

    def _pass(self, queue: deque[bytes], session: Session, side: Side, count: int) -> int:
        self.collect()
        passed = 0
        while queue and passed != count and session.ended is None:
            session.receive(queue.popleft())
            side.run()
            passed += 1
        self.collect()
        return passed


def quiet(*links: Link) -> None:
    """Passes everything on until nothing moves, and checks the nodes."""
    sides = {id(side): side for link in links for side in link.sides}.values()
    idle = 0
    while idle < 3:
        for side in sides:
            side.run()
        moved = sum(link.to_b() + link.to_a() for link in links)
        idle = 0 if moved else idle + 1
    for side in sides:
        side.node.check()


def pair(*, limits: Limits | None = None, clock: Clock | None = None) -> tuple[Side, Side, Link]:
    a, b = Side("a", limits=limits, clock=clock), Side("b", limits=limits, clock=clock)
    return a, b, Link(a, b)


def exported(session: Session, value: LocalTarget | PromiseHandle) -> int:
    """Exports `value` as if it had been sent once; its position."""
    slot = session.tables.export(value, id(value) if isinstance(value, LocalTarget) else id(value._vow))
    slot.count += 1
    return slot.position


def empty(*sessions: Session) -> bool:
    """Whether nothing is left in the tables."""
    return not any(any(session.tables.sizes().values()) for session in sessions)
