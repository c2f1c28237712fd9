"""Sending and promises: `E`, `Promise` and the functions around them (semantics.md).

A Promise has no public attributes of its own: `p.name(args)` sends. What one does with a promise besides
sending and awaiting is a function here.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from threading import get_ident
from typing import Any, TypeVar, cast, final, overload

import trio

from ocapn.captp.delivery import (
    FULFILLED,
    PENDING,
    HeldVow,
    Message,
    RemoteVow,
    Selection,
    Sent,
    Vow,
    broken,
    crossing,
    error_of,
    held_back,
)
from ocapn.captp.gate import Held
from ocapn.captp.handles import LocalTarget, PromiseHandle, RefHandle, Waiting
from ocapn.captp.node import Node
from ocapn.captp.passing import copy_args, copy_passable, copy_result, describe
from ocapn.codec.operations import GET, INDEX, UNTAG
from ocapn.errors import Backpressure, NotPassable, RemoteError, SessionEnded, TooBusy, WrongContext, fresh
from ocapn.model.values import Symbol, Tagged
from ocapn.references import Ref, Target, current_node, method

_T = TypeVar("_T")

_names: dict[str, Symbol] = {}


def _symbol(name: str) -> Symbol:
    symbol = _names.get(name)
    if symbol is None:
        if len(_names) >= 2048:
            _names.clear()
        symbol = _names[name] = Symbol(name)
    return symbol


def _node_of(receiver: object) -> Node:
    """The peer that a send to `receiver` is made on. Raises WrongContext, or TypeError."""
    if isinstance(receiver, PromiseHandle):
        node = receiver._vow.node
    elif isinstance(receiver, RefHandle):
        node = receiver._import.session.node
    elif isinstance(receiver, LocalTarget):
        found = current_node.get(None)
        if found is None:
            raise WrongContext(
                "E on a local object needs a peer: use it in the body of `async with open_peer(...)` "
                "or in a running method"
            )
        node = found
    else:
        raise TypeError(f"messages are sent to targets, references and promises, not to {describe(receiver)}")
    _check_thread(node)
    return node


def _check_thread(node: Node) -> None:
    if node.thread != get_ident():
        raise WrongContext("a peer is used from its own thread; use trio.from_thread.run_sync")


def _explained(error: NotPassable, args: list[object], named: bool, node: Node) -> NotPassable:
    """The same refusal, with the path to what was refused; the name of the method does not count."""
    try:
        copy_args(args[1:] if named else args, node.limits)
    except NotPassable as found:
        return found
    return error


def _send(receiver: object, args: list[object], named: bool = False) -> Promise:
    node = _node_of(receiver)
    try:
        if isinstance(receiver, RefHandle):
            slot = receiver._import
            answer: Vow = slot.session.deliver(slot.recipient, args)
        elif isinstance(receiver, LocalTarget):
            answer = Vow(node)
            node.enqueue(receiver, copy_args(args, node.limits), answer, None)
        else:
            answer = _send_to_vow(cast(PromiseHandle, receiver)._vow.end(), args)
    except NotPassable as error:
        raise _explained(error, args, named, node) from None
    except Held as held:
        answer = HeldVow(node, held.gate)
        answer = _held(held, receiver, Message(_held_args(args, named, node), answer, None))
    except (SessionEnded, Backpressure, TooBusy) as error:
        answer = broken(node, error)
    return cast(Promise, answer.handle())


def _held_args(args: list[object], named: bool, node: Node) -> list[object]:
    """The arguments of a message that waits. Raises NotPassable."""
    try:
        return copy_args(args, node.limits)
    except NotPassable as error:
        raise _explained(error, args, named, node) from None


def _held(held: Held, receiver: object, item: Sent) -> Vow:
    """The answer to what is sent once the session is renewed."""
    answer = item.answer
    assert answer is not None
    failure = held_back(held, item, _vow_of(receiver))
    return answer if failure is None else broken(answer.node, failure)


def _vow_of(receiver: object) -> Vow:
    """What a message to a promise or a reference waits on."""
    if isinstance(receiver, PromiseHandle):
        return receiver._vow.end()
    assert isinstance(receiver, RefHandle)
    vow = Vow(receiver._import.session.node)
    vow.resolve(receiver)
    return vow


def _send_to_vow(vow: Vow, args: list[object]) -> Vow:
    if isinstance(vow, RemoteVow) and vow.state == PENDING and not vow.asked_again:
        vow.used = True
        return vow.session.deliver(vow.recipient, args)
    if vow.state == FULFILLED and isinstance(vow.value, RefHandle):
        slot = vow.value._import
        return slot.session.deliver(slot.recipient, args)
    if type(vow) is HeldVow:
        vow.passes()
    answer = Vow(vow.node)
    vow.add(Message(copy_args(args, vow.node.limits), answer, None))
    return answer


def _send_only(receiver: object, args: list[object], named: bool = False) -> None:
    node = _node_of(receiver)
    try:
        if isinstance(receiver, RefHandle):
            slot = receiver._import
            slot.session.deliver_only(slot.recipient, args)
        elif isinstance(receiver, LocalTarget):
            node.enqueue(receiver, copy_args(args, node.limits), None, None)
        else:
            vow = cast(PromiseHandle, receiver)._vow.end()
            if isinstance(vow, RemoteVow) and vow.state == PENDING and not vow.asked_again:
                vow.used = True
                vow.session.deliver_only(vow.recipient, args)
            elif vow.state == FULFILLED and isinstance(vow.value, RefHandle):
                slot = vow.value._import
                slot.session.deliver_only(slot.recipient, args)
            else:
                if type(vow) is HeldVow:
                    vow.passes()
                vow.add(Message(copy_args(args, node.limits), None, None))
    except NotPassable as error:
        raise _explained(error, args, named, node) from None
    except Held as held:
        failure = held_back(held, Message(_held_args(args, named, node), None, None), _vow_of(receiver))
        if failure is not None:
            raise failure from None
    except SessionEnded as error:
        raise fresh(error) from None


def _no_keywords(keywords: dict[str, object]) -> None:
    if keywords:
        raise TypeError(f"messages have no keyword arguments: {', '.join(keywords)}")


@final
class _Method:
    """`E(x).name`: call it to send."""

    __slots__ = ("_name", "_receiver")

    def __init__(self, receiver: object, name: Symbol) -> None:
        self._receiver = receiver
        self._name = name

    def __call__(self, *args: object, **keywords: object) -> Promise:
        if keywords:
            _no_keywords(keywords)
        return _send(self._receiver, [self._name, *args], named=True)

    def __repr__(self) -> str:
        return f"<method {self._name.name!r} of {self._receiver!r}>"


@final
class _MethodOnly:
    __slots__ = ("_name", "_receiver")

    def __init__(self, receiver: object, name: Symbol) -> None:
        self._receiver = receiver
        self._name = name

    def __call__(self, *args: object, **keywords: object) -> None:
        _no_keywords(keywords)
        _send_only(self._receiver, [self._name, *args], named=True)


def _check_name(name: str) -> None:
    if name[:1] == "_":
        raise AttributeError(f"names that begin with an underscore are sent as E(x)[{name!r}]")


@final
class Sender:
    """What `E(x)` returns."""

    __slots__ = ("_receiver",)

    def __init__(self, receiver: object) -> None:
        self._receiver = receiver

    def __getattr__(self, name: str) -> _Method:
        if name[:1] == "_":
            _check_name(name)
        return _Method(self._receiver, _symbol(name))

    def __getitem__(self, name: str) -> _Method:
        return _Method(self._receiver, Symbol(name))

    def __call__(self, *args: object, **keywords: object) -> Promise:
        _no_keywords(keywords)
        return _send(self._receiver, list(args))

    def __repr__(self) -> str:
        return f"E({self._receiver!r})"


@final
class SenderOnly:
    """What `send_only(x)` returns: as `E(x)`, but nothing comes back."""

    __slots__ = ("_receiver",)

    def __init__(self, receiver: object) -> None:
        self._receiver = receiver

    def __getattr__(self, name: str) -> _MethodOnly:
        _check_name(name)
        return _MethodOnly(self._receiver, _symbol(name))

    def __getitem__(self, name: str) -> _MethodOnly:
        return _MethodOnly(self._receiver, Symbol(name))

    def __call__(self, *args: object, **keywords: object) -> None:
        _no_keywords(keywords)
        _send_only(self._receiver, list(args))


@overload
def E(receiver: object) -> Sender: ...
@overload
def E(receiver: object, interface: Callable[..., _T]) -> _T: ...
def E(receiver: object, interface: object = None) -> object:  # type[_T] above would not take a Protocol
    """Sends to a local object, a remote reference or a promise, alike.

    `E(x).name(args)` sends the symbol `name` and the arguments, `E(x)(args)` the arguments alone,
    `E(x)["any-name"](args)` reaches every name. A send never waits and returns a `Promise`.
    `E(x, Greeter)` types the sends by a class or Protocol; what its methods return is what `await` gives if they
    are declared `async`.

    Raises NotPassable with the path to an argument that cannot be passed, WrongContext without a peer or from
    another thread. All else breaks the promise: SessionEnded, Backpressure, RemoteError.
    """
    return Sender(receiver)


def send_only(receiver: object) -> SenderOnly:
    """As `E`, for messages that want no answer: nothing is returned, and an error there is only logged there.

    The send raises NotPassable, Backpressure and SessionEnded.
    """
    return SenderOnly(receiver)


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


@final
class Promise(PromiseHandle):
    """The answer to a send, or any other value that is not known yet.

    `await p` gives the value, or raises what broke it; `p.name(args)`, `p(args)` and `p["name"](args)` send to what
    it will become. Dropping the last reference to a promise gives up the interest in it.
    """

    __slots__ = ()

    def __getattr__(self, name: str) -> _Method:
        if name[:1] == "_":
            _check_name(name)
        return _Method(self, _symbol(name))

    def __getitem__(self, name: str) -> _Method:
        return _Method(self, Symbol(name))

    def __call__(self, *args: object, **keywords: object) -> Promise:
        _no_keywords(keywords)
        return _send(self, list(args))

    def __await__(self) -> Generator[Any, Any, Any]:
        vow = self._vow.end()
        node = vow.node
        if vow.state == PENDING:
            if node.thread != get_ident():
                raise WrongContext("a promise is awaited in the thread of its peer")
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
            vow = self._vow.end()
        elif not node.uncommitted():
            yield from trio.lowlevel.checkpoint().__await__()
        else:  # what settled it may not be on disk yet
            committed = trio.Event()
            node.event(committed.set)
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


def _part(receiver: object, kind: int, key: str | int) -> Promise:
    node = _node_of(receiver)
    if not isinstance(receiver, PromiseHandle):
        raise TypeError("only a promise has parts to ask for")
    vow = receiver._vow.end()
    try:
        if isinstance(vow, RemoteVow) and vow.state == PENDING and not vow.asked_again:
            vow.used = True
            answer: Vow = vow.session.select(vow.recipient, kind, key)
        else:
            if type(vow) is HeldVow:
                vow.passes()
            answer = Vow(node)
            vow.add(Selection(kind, key, answer))
    except Held as held:
        answer = _held(held, receiver, Selection(kind, key, HeldVow(node, held.gate)))
    except (SessionEnded, Backpressure, TooBusy) as error:
        answer = broken(node, error)
    return cast(Promise, answer.handle())


def field(promise: Promise, name: str) -> Promise:
    """The field `name` of the struct that `promise` becomes, pipelined (op:get)."""
    if not isinstance(name, str):
        raise TypeError(f"a field's name is a str, not {type(name).__name__}")
    return _part(promise, GET, name)


def index(promise: Promise, position: int) -> Promise:
    """The member at `position`, from 0, of the list that `promise` becomes, pipelined (op:index)."""
    if type(position) is not int or position < 0:
        raise ValueError("an index is an integer from 0")
    return _part(promise, INDEX, position)


def untag(promise: Promise, tag: str) -> Promise:
    """The value of the Tagged with `tag` that `promise` becomes, pipelined (op:untag)."""
    if not isinstance(tag, str):
        raise TypeError(f"a tag is a str, not {type(tag).__name__}")
    return _part(promise, UNTAG, tag)


def is_settled(promise: Promise) -> bool:
    """Whether `await promise` would not wait: it is fulfilled or broken."""
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
    node = _node_of(reference)
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
        _check_thread(self._vow.node)
        self._vow.resolve(copy_passable(value, self._vow.node.limits, "value"))

    def break_(self, error: BaseException | str) -> None:
        """Breaks the promise; a str is the message of the error. Raises WrongContext in another thread."""
        _check_thread(self._vow.node)
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


__all__ = [
    "E",
    "Promise",
    "Ref",
    "Resolver",
    "Sender",
    "SenderOnly",
    "field",
    "index",
    "is_settled",
    "make_promise",
    "send_only",
    "untag",
    "when_broken",
]
