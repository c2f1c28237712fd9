"""Sending: `E`, `send_only`, and what they return to be called (semantics.md). A send never waits.

This module is compiled where the core is (spec/building.md): every message that an application sends goes through it.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import get_ident
from typing import TYPE_CHECKING, Final, TypeVar, cast, final, overload

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
    held_back,
)
from ocapn.captp.gate import Held
from ocapn.captp.handles import LocalTarget, PromiseHandle, RefHandle
from ocapn.captp.node import Node
from ocapn.captp.passing import copy_args, describe
from ocapn.errors import Backpressure, NotPassable, SessionEnded, TooBusy, WrongContext, fresh
from ocapn.model.values import Symbol
from ocapn.references import current_node

if TYPE_CHECKING:
    from ocapn.captp.session import Session
    from ocapn.promise import Promise

_T = TypeVar("_T")

_names: Final[dict[str, Symbol]] = {}


def symbol_of(name: str) -> Symbol:
    """The symbol of that name; the common ones are kept."""
    symbol = _names.get(name)
    if symbol is None:
        if len(_names) >= 2048:
            _names.clear()
        symbol = _names[name] = Symbol(name)
    return symbol


def node_of(receiver: object) -> Node:
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
    check_thread(node)
    return node


def check_thread(node: Node) -> None:
    """Raises WrongContext in another thread than the peer's."""
    if node.thread != get_ident():
        raise WrongContext("a peer is used from its own thread; use trio.from_thread.run_sync")


def _explained(error: NotPassable, args: list[object], named: bool, node: Node) -> NotPassable:
    """The same refusal, with the path to what was refused; the name of the method does not count."""
    try:
        copy_args(args[1:] if named else args, node.limits)
    except NotPassable as found:
        return found
    return error


def _deliver(session: Session, recipient: bytes, args: list[object]) -> RemoteVow:
    node = session.node
    if node.quick:
        node.begin_at_once()
        try:
            question = session.deliver(recipient, args)
        except BaseException:
            node.end_at_once(None)
            raise
        node.end_at_once(session)
        return question
    question = session.deliver(recipient, args)
    if session.outbox.much:
        node.hasten(session)
    return question


def _deliver_only(session: Session, recipient: bytes, args: list[object]) -> None:
    session.deliver_only(recipient, args)
    if session.outbox.much:
        session.node.hasten(session)


def send(receiver: object, args: list[object], named: bool = False) -> Promise:
    """The promise of the answer; `named`: the first of `args` is the name of the method. Raises as `E` does."""
    node = node_of(receiver)
    try:
        if isinstance(receiver, RefHandle):
            slot = receiver._import
            answer: Vow = _deliver(slot.session, slot.recipient, args)
        elif isinstance(receiver, LocalTarget):
            answer = Vow(node)
            node.enqueue(receiver, copy_args(args, node.limits), answer, None)
        else:
            answer = _send_to_vow(cast(PromiseHandle, receiver)._vow.end(), args)
    except NotPassable as error:
        raise _explained(error, args, named, node) from None
    except Held as held:
        answer = HeldVow(node, held.gate)
        answer = _wait_for_renewal(held, receiver, Message(_held_args(args, named, node), answer, None))
    except (SessionEnded, Backpressure, TooBusy) as error:
        answer = broken(node, error)
    return cast("Promise", answer.handle())


def send_selection(receiver: object, kind: int, key: str | int) -> Promise:
    """A part of what a promise becomes; `kind` is GET, INDEX or UNTAG. Raises TypeError, WrongContext, NotPassable."""
    node = node_of(receiver)
    if not isinstance(receiver, PromiseHandle):
        raise TypeError("only a promise has parts to ask for")
    vow = receiver._vow.end()
    try:
        if isinstance(vow, RemoteVow) and vow.state == PENDING and not vow.asked_again:
            vow.used = True
            part = vow.session.select(vow.recipient, kind, key)
            node.selected(part)
            answer: Vow = part
        else:
            if type(vow) is HeldVow:
                vow.passes()
            answer = Vow(node)
            vow.add(Selection(kind, key, answer))
    except Held as held:
        answer = _wait_for_renewal(held, receiver, Selection(kind, key, HeldVow(node, held.gate)))
    except (SessionEnded, Backpressure, TooBusy) as error:
        answer = broken(node, error)
    return cast("Promise", answer.handle())


def _held_args(args: list[object], named: bool, node: Node) -> list[object]:
    """The arguments of a message that waits. Raises NotPassable."""
    try:
        return copy_args(args, node.limits)
    except NotPassable as error:
        raise _explained(error, args, named, node) from None


def _wait_for_renewal(held: Held, receiver: object, item: Sent) -> Vow:
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
        return _deliver(vow.session, vow.recipient, args)
    if vow.state == FULFILLED and isinstance(vow.value, RefHandle):
        slot = vow.value._import
        return _deliver(slot.session, slot.recipient, args)
    if type(vow) is HeldVow:
        vow.passes()
    answer = Vow(vow.node)
    vow.add(Message(copy_args(args, vow.node.limits), answer, None))
    return answer


def _send_only(receiver: object, args: list[object], named: bool = False) -> None:
    node = node_of(receiver)
    try:
        if isinstance(receiver, RefHandle):
            slot = receiver._import
            _deliver_only(slot.session, slot.recipient, args)
        elif isinstance(receiver, LocalTarget):
            node.enqueue(receiver, copy_args(args, node.limits), None, None)
        else:
            vow = cast(PromiseHandle, receiver)._vow.end()
            if isinstance(vow, RemoteVow) and vow.state == PENDING and not vow.asked_again:
                vow.used = True
                _deliver_only(vow.session, vow.recipient, args)
            elif vow.state == FULFILLED and isinstance(vow.value, RefHandle):
                slot = vow.value._import
                _deliver_only(slot.session, slot.recipient, args)
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


def no_keywords(keywords: dict[str, object]) -> None:
    """Raises TypeError if there are any."""
    if keywords:
        raise TypeError(f"messages have no keyword arguments: {', '.join(keywords)}")


@final
class Method:
    """`E(x).name`: call it to send."""

    __slots__ = ("_name", "_receiver")

    def __init__(self, receiver: object, name: Symbol) -> None:
        self._receiver = receiver
        self._name = name

    def __call__(self, *args: object, **keywords: object) -> Promise:
        no_keywords(keywords)
        return send(self._receiver, [self._name, *args], named=True)

    def __repr__(self) -> str:
        return f"<method {self._name.name!r} of {self._receiver!r}>"


@final
class MethodOnly:
    """`send_only(x).name`: likewise."""

    __slots__ = ("_name", "_receiver")

    def __init__(self, receiver: object, name: Symbol) -> None:
        self._receiver = receiver
        self._name = name

    def __call__(self, *args: object, **keywords: object) -> None:
        no_keywords(keywords)
        _send_only(self._receiver, [self._name, *args], named=True)


def check_name(name: str) -> None:
    """Raises AttributeError for names that Python's own machinery may ask for."""
    if name[:1] == "_":
        raise AttributeError(f"names that begin with an underscore are sent as E(x)[{name!r}]")


@final
class Sender:
    """What `E(x)` returns."""

    __slots__ = ("_receiver",)

    def __init__(self, receiver: object) -> None:
        self._receiver = receiver

    def __getattr__(self, name: str) -> Method:
        check_name(name)
        return Method(self._receiver, symbol_of(name))

    def __getitem__(self, name: str) -> Method:
        return Method(self._receiver, Symbol(name))

    def __call__(self, *args: object, **keywords: object) -> Promise:
        no_keywords(keywords)
        return send(self._receiver, list(args))

    def __repr__(self) -> str:
        return f"E({self._receiver!r})"


@final
class SenderOnly:
    """What `send_only(x)` returns: as `E(x)`, but nothing comes back."""

    __slots__ = ("_receiver",)

    def __init__(self, receiver: object) -> None:
        self._receiver = receiver

    def __getattr__(self, name: str) -> MethodOnly:
        check_name(name)
        return MethodOnly(self._receiver, symbol_of(name))

    def __getitem__(self, name: str) -> MethodOnly:
        return MethodOnly(self._receiver, Symbol(name))

    def __call__(self, *args: object, **keywords: object) -> None:
        no_keywords(keywords)
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

    What is sent goes out when the sender waits, or before if it is much.

    Raises NotPassable with the path to an argument that cannot be passed, WrongContext without a peer or from
    another thread, TypeError for what takes no messages. All else breaks the promise: SessionEnded, Backpressure,
    RemoteError.
    """
    return Sender(receiver)


def send_only(receiver: object) -> SenderOnly:
    """As `E`, for messages that want no answer: nothing is returned, and an error there is only logged there.

    The send raises NotPassable, Backpressure, SessionEnded, WrongContext and TypeError.
    """
    return SenderOnly(receiver)
