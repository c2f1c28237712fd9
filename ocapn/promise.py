"""Promises: `Promise` and the functions around it (semantics.md).

A Promise has no public attributes of its own: `p.name(args)` sends. What one does with a promise besides
sending and awaiting is a function here.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from threading import get_ident
from typing import Any, Final, cast, final

import trio
from trio.lowlevel import checkpoint, checkpoint_if_cancelled

from ocapn.captp.delivery import FULFILLED, PENDING, Vow, crossing, error_of
from ocapn.captp.handles import PromiseHandle, RefHandle, Waiting
from ocapn.captp.node import Node
from ocapn.captp.passing import copy_passable, copy_result
from ocapn.codec.operations import GET, INDEX, UNTAG
from ocapn.errors import RemoteError, WrongContext, fresh
from ocapn.model.values import Symbol, Tagged
from ocapn.references import Target, current_node, method
from ocapn.sending import (
    Method,
    check_name,
    check_thread,
    no_keywords,
    node_of,
    send,
    send_selection,
    symbol_of,
)

#: So many settled promises are awaited before others run, as a pass of the loop takes longer than a few of them; unless
#: that takes so long, in seconds.
_IN_A_ROW: Final = 63
_LONG: Final = 0.001


class _Waiter(Waiting):
    """A task that awaits a promise."""

    __slots__ = ("_task", "lost")
    listens = True

    def __init__(self, task: trio.lowlevel.Task) -> None:
        self._task: trio.lowlevel.Task | None = task
        #: Why nobody will tell what the promise becomes.
        self.lost: BaseException | None = None

    def settle(self, vow: Vow) -> None:
        vow.node.event(self.wake)

    def wake(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            trio.lowlevel.reschedule(task)

    def lose(self, error: BaseException) -> None:
        self.lost = error
        self.wake()

    def give_up(self) -> None:
        self._task = None

    def wait(self, node: Node, abort: Callable[[object], trio.lowlevel.Abort]) -> Generator[Any, Any, None]:
        """Until it is woken. Raises why it was lost."""
        lose = self.lose
        node.awaiting.add(lose)
        try:
            yield from trio.lowlevel.wait_task_rescheduled(abort).__await__()
        finally:
            node.awaiting.discard(lose)
        if self.lost is not None:
            raise fresh(self.lost)


async def waited(node: Node, event: trio.Event) -> None:
    """Waits for the event; a checkpoint. Raises what ends the node, if that comes first."""
    lost: list[BaseException] = []

    def lose(error: BaseException) -> None:
        lost.append(error)
        event.set()

    if not event.is_set():
        node.waits()
        node.awaiting.add(lose)
    try:
        await event.wait()
    finally:
        node.awaiting.discard(lose)
    if lost:
        raise fresh(lost[0])


def _other_thread() -> WrongContext:
    return WrongContext("a promise is awaited in the thread of its peer")


def _others_ran(node: Node) -> None:
    node.awaits_left = _IN_A_ROW
    node.awaits_until = node.now() + _LONG


@final
class Promise(PromiseHandle):
    """The answer to a send, or any other value that is not known yet.

    `await p` gives the value, or raises what broke it. It is a checkpoint; of settled promises that a task awaits one
    after the other, each is a point at which it may be cancelled, and at least every 64th lets others run, or the first
    after a millisecond. `p.name(args)`, `p(args)` and `p["name"](args)` send to what it will become. Dropping the last
    reference to a promise gives up the interest in it.
    """

    __slots__ = ()

    def __getattr__(self, name: str) -> Method:
        check_name(name)
        return Method(self, symbol_of(name))

    def __getitem__(self, name: str) -> Method:
        return Method(self, Symbol(name))

    def __call__(self, *args: object, **keywords: object) -> Promise:
        no_keywords(keywords)
        return send(self, list(args))

    def __await__(self) -> Generator[Any, Any, Any]:
        vow = self._vow.end()
        node = vow.node
        if vow.state == PENDING:
            if node.thread != get_ident():
                raise _other_thread()
            node.waits()
            waiter = _Waiter(trio.lowlevel.current_task())
            vow.add(waiter)

            def abort(_: object) -> trio.lowlevel.Abort:
                waiter.give_up()
                waiting = self._vow.end().waiting
                if waiting is not None:
                    waiting.discard(waiter)
                return trio.lowlevel.Abort.SUCCEEDED

            yield from waiter.wait(node, abort)
            _others_ran(node)
            vow = self._vow.end()
        elif vow.step <= node.committed:
            if node.thread != get_ident():
                yield from checkpoint().__await__()
            elif node.awaits_left and node.now() < node.awaits_until:
                node.awaits_left -= 1
                yield from checkpoint_if_cancelled().__await__()
            else:
                yield from checkpoint().__await__()
                _others_ran(node)
        else:  # what settled it may not be on disk yet
            if node.thread != get_ident():
                raise _other_thread()
            committed = trio.Event()
            node.once_committed(vow.step, committed.set)
            yield from waited(node, committed).__await__()
        value = vow.value
        if vow.state != FULFILLED:
            assert isinstance(value, BaseException)
            raise fresh(value)
        kind = type(value)
        if kind is list or kind is dict or kind is Tagged:
            return copy_result(value, vow.node.limits)  # each waiter has its own
        return value

    def __repr__(self) -> str:
        vow = self._vow.end()
        if vow.state == PENDING:
            return "<Promise, pending>"
        if vow.state == FULFILLED:
            return "<Promise, fulfilled>"
        return f"<Promise, broken: {vow.value}>"

    def __iter__(self) -> Any:
        raise TypeError("a Promise is not iterable: await it first")

    def __bool__(self) -> bool:
        raise TypeError("a Promise is neither true nor false: await it first")


def field(promise: Promise, name: str) -> Promise:
    """The field `name` of the struct that `promise` becomes, pipelined (op:get)."""
    if not isinstance(name, str):
        raise TypeError(f"a field's name is a str, not {type(name).__name__}")
    return send_selection(promise, GET, name)


def index(promise: Promise, position: int) -> Promise:
    """The member at `position`, from 0, of the list that `promise` becomes, pipelined (op:index)."""
    if type(position) is not int or position < 0:
        raise ValueError("an index is an integer from 0")
    return send_selection(promise, INDEX, position)


def untag(promise: Promise, tag: str) -> Promise:
    """The value of the Tagged with `tag` that `promise` becomes, pipelined (op:untag)."""
    if not isinstance(tag, str):
        raise TypeError(f"a tag is a str, not {type(tag).__name__}")
    return send_selection(promise, UNTAG, tag)


def is_settled(promise: Promise) -> bool:
    """Whether it is fulfilled or broken. With a baggage, `await` may wait until that is on disk."""
    return promise._vow.end().state != PENDING


@final
class _Watch(Waiting):
    """Follows a promise until it breaks, also after it was fulfilled with a reference."""

    __slots__ = ("_vow",)
    listens = True

    def __init__(self, vow: Vow) -> None:
        self._vow = vow

    def settle(self, vow: Vow) -> None:
        value = vow.value
        if vow.state != FULFILLED:
            self._vow.resolve(value)
        elif isinstance(value, RefHandle):
            self._vow.resolve(value._import.session.watch().handle())


def when_broken(reference: object) -> Promise:
    """A promise of the exception that breaks `reference`: fulfilled with it when that happens.

    A promise breaks when it is broken, or when it became a reference and that breaks. A reference breaks when its
    session ends. Local objects, and promises fulfilled with them or with data, never break.
    """
    node = node_of(reference)
    vow = Vow(node)
    if isinstance(reference, RefHandle):
        return cast(Promise, reference._import.session.watch().handle())
    if isinstance(reference, PromiseHandle):
        reference._vow.end().add(_Watch(vow))
    return cast(Promise, vow.handle())


@final
class Resolver(Target):
    """The other half of `make_promise`: decides what the promise becomes, once. It can be passed on.

    From elsewhere it takes `['fulfill value]` and `['break error]`, as resolvers do (CapTP specification).
    """

    __slots__ = ("_vow",)

    def __init__(self, vow: Vow) -> None:
        self._vow = vow

    def fulfill(self, value: object = None) -> None:
        """Fulfils the promise with a value, a reference, or another promise to follow.

        Raises NotPassable, and WrongContext in another thread than the peer's.
        """
        check_thread(self._vow.node)
        self._vow.resolve(copy_passable(value, self._vow.node.limits, "value"))

    def break_(self, error: BaseException | str) -> None:
        """Breaks the promise; a str is the message of the error. Raises WrongContext in another thread."""
        check_thread(self._vow.node)
        self._vow.break_with(crossing(error) if isinstance(error, BaseException) else RemoteError(error))

    @method(name="fulfill")
    def _fulfill(self, value: object) -> None:
        self._vow.resolve(value)

    @method(name="break")
    def _break(self, error: object) -> None:
        self._vow.break_with(error_of(error))

    def __repr__(self) -> str:
        return "<Resolver>"


def make_promise() -> tuple[Promise, Resolver]:
    """A promise, and the resolver that decides what it becomes. Raises WrongContext without a peer."""
    node = current_node.get(None)
    if node is None:
        raise WrongContext(
            "make_promise needs a peer: use it in the body of `async with open_peer(...)` or in a method"
        )
    vow = Vow(node)
    return cast(Promise, vow.handle()), Resolver(vow)
