"""What ought to be true: the graph of promises and objects that the machine keeps beside the real peers.

A shadow value is an `Obj`, a `Node` (a promise), `Bad` (what a broken promise broke with), or data: integers, strings,
None, lists, structs and Tagged with shadow values inside. No Python reference of the library is kept here.
"""

from __future__ import annotations

from typing import Final, final

from ocapn.model.values import Tagged


@final
class Obj:
    """An object, living at the peer with index `home`."""

    __slots__ = ("home", "number")

    def __init__(self, number: int, home: int) -> None:
        self.number = number
        self.home = home

    def __repr__(self) -> str:
        return f"obj{self.number}@{self.home}"


@final
class Bad:
    """Broken. `text` is the message, or None where the machine does not predict it."""

    __slots__ = ("text",)

    def __init__(self, text: str | None) -> None:
        self.text = text

    def __repr__(self) -> str:
        return f"bad({self.text})"


@final
class Pending:
    __slots__ = ()

    def __repr__(self) -> str:
        return "pending"


@final
class Res:
    """The resolver of a promise, passed on."""

    __slots__ = ("node",)

    def __init__(self, node: Node) -> None:
        self.node = node


PENDING: Final = Pending()
FIELD, INDEX, UNTAG = 0, 1, 2


class Node:
    """A promise made by `make_promise` at `home`: `resolution` is what it was resolved with."""

    __slots__ = ("home", "number", "resolution", "used")

    def __init__(self, number: int, home: int) -> None:
        self.number = number
        self.home = home
        self.resolution: object = PENDING
        self.used = False  # its resolver was, or was sent a message

    def now(self) -> object:
        """What it is resolved with, which may be another promise, or PENDING."""
        return self.resolution

    def awaits(self) -> list[object]:
        """What must settle before this can."""
        return []

    def __repr__(self) -> str:
        return f"p{self.number}"


@final
class Answer(Node):
    """The answer to a message to `target`. The object that the message reaches sets `resolution`."""

    __slots__ = ("target", "waits")

    def __init__(self, number: int, home: int, target: object) -> None:
        super().__init__(number, home)
        self.target = target
        self.waits: list[object] = []  # promises that the method awaits

    def now(self) -> object:
        if self.resolution is PENDING:
            target = final_of(self.target)
            if isinstance(target, Bad):
                return target
            if target is not PENDING and not isinstance(target, Obj):
                return Bad(None)
        return self.resolution

    def awaits(self) -> list[object]:
        return [self.target, *self.waits]


@final
class Part(Node):
    """A field, index or untagging of what `whole` becomes."""

    __slots__ = ("key", "kind", "whole")

    def __init__(self, number: int, home: int, whole: object, kind: int, key: str | int) -> None:
        super().__init__(number, home)
        self.whole = whole
        self.kind = kind
        self.key = key

    def now(self) -> object:
        whole = final_of(self.whole)
        if whole is PENDING or isinstance(whole, Bad):
            return whole
        key = self.key
        if self.kind == FIELD and isinstance(whole, dict) and key in whole:
            return whole[key]
        if self.kind == INDEX and isinstance(whole, list) and isinstance(key, int) and key < len(whole):
            return whole[key]
        if self.kind == UNTAG and isinstance(whole, Tagged) and whole.tag == key:
            return whole.value
        return Bad(None)

    def awaits(self) -> list[object]:
        return [self.whole]


def final_of(value: object) -> object:
    """What a shadow value settles as: an Obj, Bad, data, or PENDING."""
    seen: set[int] = set()
    while isinstance(value, Node):
        if id(value) in seen:
            return Bad(None)  # resolved to itself
        seen.add(id(value))
        value = value.now()
    return value


def depends(value: object, node: Node, *, inside: bool = False) -> bool:
    """Whether `value` cannot settle before `node` does, or, with `inside`, holds it somewhere in its data."""
    todo: list[object] = [value]
    seen: set[int] = set()
    while todo:
        one = todo.pop()
        if one is node:
            return True
        if inside:
            if isinstance(one, list):
                todo.extend(one)
            elif isinstance(one, dict):
                todo.extend(one.values())
            elif isinstance(one, Tagged):
                todo.append(one.value)
        if not isinstance(one, Node) or id(one) in seen:
            continue
        seen.add(id(one))
        now = one.now()
        if now is PENDING:
            todo.extend(one.awaits())
        else:
            todo.append(now)
    return False
