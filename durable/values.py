"""Values as they are kept: what `durable.records` has, and what only a peer can read.

Durable objects stand as their numbers, references to remote objects as session and position, and what else CBOR has no
form for with a mark (`durable.records.MARK`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, final

import attrs

from durable.errors import BaggageCorrupt, NotStorable
from durable.objects import Durable
from durable.promises import Promises
from durable.records import MARK, encode, escaped, marked, unescaped
from ocapn.captp.delivery import BROKEN, FULFILLED, Vow, broken, crossing
from ocapn.captp.handles import CoreTarget, LocalTarget, PromiseHandle, RefHandle
from ocapn.captp.node import Node
from ocapn.captp.tables import Import
from ocapn.errors import ObjectLost, OCapNError, PeerRestarted, RemoteError, SessionEnded, SessionLost
from ocapn.model.locators import PeerLocator, SturdyRef
from ocapn.model.values import Null, Symbol, Tagged

if TYPE_CHECKING:
    from ocapn.captp.session import Session

_PLAIN: Final = (type(None), bool, int, float, str, bytes)
#: Errors that are kept with their class. The end of a session is kept as its loss.
_FAILURES: Final[dict[str, type[OCapNError]]] = {
    one.__name__: one for one in (SessionLost, PeerRestarted, ObjectLost)
}
#: Containers inside containers in a row: three for each of a message.
_MAX_DEPTH: Final = 256


@final
class Lost(CoreTarget):
    """Stands in the place of an object that ended with the process which exported it."""

    __slots__ = ()

    def call(self, args: list[object]) -> object:
        raise ObjectLost("the object ended with the process that it was in")


@final
@attrs.frozen
class Rules:
    """What may stand in a value: `fixed`, only what cannot change unseen; `references`, those to remote objects;
    `lost`, what was kept and cannot be any more, which is then kept as broken; `promises`, those that are pending."""

    fixed: bool
    references: bool
    lost: bool = False
    promises: bool = False


FIELD: Final = Rules(fixed=True, references=True)
SAVED: Final = Rules(fixed=True, references=True, lost=True)
PASSED: Final = Rules(fixed=False, references=True)
#: A message that was accepted is not refused any more: what ends with the process is kept as lost.
TURN: Final = Rules(fixed=False, references=True, lost=True, promises=True)
#: What a promise has become.
OUTCOME: Final = Rules(fixed=False, references=True, promises=True)
USER: Final = Rules(fixed=False, references=False)


@final
class Values:
    """Packs and unpacks the values of one node. `number` and `obj` name and find durable objects.

    `promises` knows what pending ones wait on.
    """

    def __init__(
        self,
        node: Node,
        number: Callable[[Any], int],
        obj: Callable[[int], Any],
        promises: Promises,
    ) -> None:
        self._node = node
        self._promises = promises
        self._number = number
        self._object = obj
        self._noted: set[tuple[Session, int]] | None = None

    @contextmanager
    def noting(self) -> Iterator[set[tuple[Session, int]]]:
        """Notes the references that are packed or unpacked: sessions, and positions of imports."""
        outer, self._noted = self._noted, set()
        try:
            yield self._noted
        finally:
            self._noted = outer

    def pack(self, value: object, path: str, rules: Rules) -> Any:
        """The value in terms of `durable.records`. Raises NotStorable."""
        if type(value) in _PLAIN:
            return value
        if isinstance(value, Durable):
            return {MARK + "o": self._number(value)}
        if isinstance(value, RefHandle):
            return self._pack_ref(value._import, path, rules)
        if isinstance(value, Symbol):
            return {MARK + "s": value.name}
        if isinstance(value, tuple):
            return {MARK + "t": [self.pack(one, f"{path}[{i}]", rules) for i, one in enumerate(value)]}
        if isinstance(value, SturdyRef):
            return {MARK + "u": [*pack_locator(value.peer), value.swiss]}
        if isinstance(value, PeerLocator):
            return {MARK + "l": pack_locator(value)}
        if value is Null:
            return {MARK + "n": None}
        if isinstance(value, PromiseHandle):
            return self._pack_promise(value._vow.end(), path, rules)
        if isinstance(value, LocalTarget):
            if rules is TURN:
                return {MARK + "x": None}
            raise NotStorable(
                f"a {type(value).__name__} ends with this process: make its class a @durable.kind", path
            )
        if isinstance(value, (list, dict, Tagged, RemoteError)):
            if rules.fixed:
                raise NotStorable(
                    f"a {type(value).__name__} can change without being noticed: use a tuple, or keys of the baggage",
                    path,
                )
            if isinstance(value, list):
                return [self.pack(one, f"{path}[{i}]", rules) for i, one in enumerate(value)]
            if isinstance(value, dict):
                return self._pack_dict(value, path, rules)
            if isinstance(value, Tagged):
                return {MARK + "g": [value.tag, self.pack(value.value, f"{path}.value", rules)]}
            return {MARK + "e": [_text(value.message), self.pack(value.value, f"{path}.value", rules)]}
        if isinstance(value, BaseException) and rules is TURN:
            return self.pack_error(value)
        raise NotStorable(f"cannot keep a {type(value).__qualname__}", path)

    def pack_error(self, error: BaseException) -> Any:
        """What broke a promise, as a value. What came with it and cannot be kept is left out."""
        if isinstance(error, SessionEnded):
            counts = (0, 0, 0)
            if isinstance(error, SessionLost):
                counts = (error.delivered, error.never_delivered, error.uncertain)
            return {MARK + "f": ["SessionLost", _text(error.reason), *counts]}
        if isinstance(error, (PeerRestarted, ObjectLost)):
            return {MARK + "f": [type(error).__name__, _text(str(error))]}
        told = crossing(error)
        try:
            packed = {MARK + "e": [_text(told.message), self.pack(told.value, "value", PASSED)]}
            check_packed(packed)
        except NotStorable:
            packed = {MARK + "e": [_text(told.message), None]}
        return packed

    def unpack_error(self, packed: Any) -> BaseException:
        """What `pack_error` has packed."""
        error = self.unpack(packed)
        if not isinstance(error, BaseException):
            raise BaggageCorrupt("a promise is broken with what is no error")
        return error

    def _pack_dict(self, value: dict[Any, object], path: str, rules: Rules) -> dict[str, Any]:
        packed = {}
        for key, one in value.items():
            if type(key) is not str:
                raise NotStorable(f"cannot keep a dict key of type {type(key).__qualname__}, only str", path)
            packed[escaped(key)] = self.pack(one, f"{path}[{key!r}]", rules)
        return packed

    def _pack_ref(self, slot: Import, path: str, rules: Rules) -> Any:
        session = slot.session
        if not rules.references:
            raise NotStorable(
                "a reference to an object of another peer is not kept here: put it in a field of a durable object",
                path,
            )
        if session.frames is not None and session.ended is None and self._noted is not None:
            self._noted.add((session, slot.position))
        if session.frames is not None:  # if the session is over, so is the reference, for ever
            return {MARK + "r": [session.id, slot.position]}
        if rules.lost:  # the session turned out not to be durable
            return {MARK + "b": self.pack_error(SessionLost("the session of this reference was not durable"))}
        raise NotStorable("the session of this reference is not durable, so it cannot be kept", path)

    def _pack_promise(self, vow: Vow, path: str, rules: Rules) -> Any:
        if vow.state == FULFILLED:
            return self.pack(vow.value, path, rules)
        if vow.state == BROKEN and rules.references:
            assert isinstance(vow.value, BaseException)
            return {MARK + "b": self.pack_error(vow.value)}
        if rules.promises:
            return {MARK + "p": self._promises.on(vow)}
        raise NotStorable("a promise cannot be kept: await it first, or use durable.when", path)

    def unpack(self, value: Any) -> Any:
        """What `pack` has packed. A reference whose session is over is a broken promise."""
        if type(value) is list:
            return [self.unpack(one) for one in value]
        if type(value) is not dict:
            return value
        mark = marked(value)
        if mark is not None:
            return self._unpack_marked(mark, value[MARK + mark])
        return {unescaped(key): self.unpack(one) for key, one in value.items()}

    def _unpack_marked(self, mark: str, content: Any) -> Any:
        match mark:
            case "o":
                return self._object(content)
            case "r":
                return self._unpack_ref(*content)
            case "s":
                return Symbol(content)
            case "t":
                return tuple(self.unpack(one) for one in content)
            case "g":
                return Tagged(content[0], self.unpack(content[1]))
            case "u":
                return SturdyRef(unpack_locator(content[:3]), content[3])
            case "l":
                return unpack_locator(content)
            case "n":
                return Null
            case "x":
                return Lost()
            case "p":
                return self._promises.promise(
                    content, "the promise ended with the process that had it"
                ).handle()
            case "b":
                return broken(self._node, self.unpack_error(content)).handle()
            case "e":
                return RemoteError(content[0], self.unpack(content[1]))
            case "f":
                return _FAILURES[content[0]](*content[1:])
        raise BaggageCorrupt(f"no value is marked {mark!r}")

    def _unpack_ref(self, session_id: bytes, position: int) -> object:
        session = self._node.kept_session(session_id)
        slot = None if session is None else session.tables.imports.get(position)
        if slot is None:
            return broken(self._node, SessionLost("the session of this reference is over")).handle()
        if self._noted is not None:
            self._noted.add((slot.session, position))
        return slot.handle()


def check_packed(value: Any) -> None:
    """Raises NotStorable for what cannot be kept in one piece, or at all, though `Values.pack` has packed it."""
    encode(value, max_depth=_MAX_DEPTH)


def _text(text: str) -> str:
    """What an exception says may be no text."""
    return text.encode(errors="replace").decode()


def pack_locator(locator: PeerLocator) -> list[Any]:
    return [locator.transport, locator.designator, dict(locator.hints)]


def unpack_locator(packed: list[Any]) -> PeerLocator:
    return PeerLocator(packed[0], packed[1], packed[2] or None)
