"""Values as they are kept: what `durable.records` has, and what only a peer can read.

Durable objects stand as their numbers, references to remote objects as session and position, and what else CBOR has no
form for with a mark (`durable.records.MARK`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, final

import attrs

from durable.errors import BaggageCorrupt, NotStorable
from durable.objects import Durable
from durable.records import MARK, decode, encode, escaped, marked, unescaped
from ocapn.captp.delivery import (
    BROKEN,
    FULFILLED,
    CoreTarget,
    LocalTarget,
    PromiseHandle,
    RefHandle,
    RemoteVow,
    Vow,
    broken,
)
from ocapn.captp.node import Node
from ocapn.captp.tables import Import
from ocapn.codec.operations import ANSWER
from ocapn.errors import ObjectLost, PeerRestarted, RemoteError, SessionLost
from ocapn.model.locators import PeerLocator, SturdyRef
from ocapn.model.values import Null, Symbol, Tagged

_PLAIN: Final = (type(None), bool, int, float, str, bytes)
#: Bytes of a row; a message has fewer.
_MAX_ROW: Final = 1 << 26
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
    `lost`, what was kept and cannot be any more, which is then kept as broken."""

    fixed: bool
    references: bool
    lost: bool = False


FIELD: Final = Rules(fixed=True, references=True)
SAVED: Final = Rules(fixed=True, references=True, lost=True)
PASSED: Final = Rules(fixed=False, references=True)
#: A message that was accepted is not refused any more: what ends with the process is kept as lost.
TURN: Final = Rules(fixed=False, references=True, lost=True)
USER: Final = Rules(fixed=False, references=False)


@final
class Values:
    """Packs and unpacks the values of one node. `number` and `obj` name and find durable objects.

    `remote` finds the promise of a peer: session, whether it is an answer, position.
    """

    def __init__(
        self,
        node: Node,
        number: Callable[[Any], int],
        obj: Callable[[int], Any],
        remote: Callable[[bytes, bool, int], Vow | None],
    ) -> None:
        self._node = node
        self._remote = remote
        self._number = number
        self._object = obj

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
            return {MARK + "e": [value.message, self.pack(value.value, f"{path}.value", rules)]}
        raise NotStorable(f"cannot keep a {type(value).__qualname__}", path)

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
            raise NotStorable("a reference is kept in a field of a durable object", path)
        if session.frames is not None:  # if the session is over, so is the reference, for ever
            return {MARK + "r": [session.id, slot.position]}
        if rules.lost:  # the session turned out not to be durable
            return {MARK + "b": "the session of this reference was not durable"}
        raise NotStorable("the session of this reference is not durable, so it cannot be kept", path)

    def _pack_promise(self, vow: Vow, path: str, rules: Rules) -> Any:
        if vow.state == FULFILLED:
            return self.pack(vow.value, path, rules)
        if vow.state == BROKEN and rules.references:
            return {MARK + "b": str(vow.value)}
        if rules is TURN:
            if isinstance(vow, RemoteVow) and vow.session.durable and not vow.released:
                return {MARK + "p": [vow.session.id, vow.kind == ANSWER, vow.position]}
            return {MARK + "b": "the promise ended with the process that had it"}
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
                vow = self._remote(*content)
                return (
                    vow or broken(self._node, PeerRestarted("the promise is not known any more"))
                ).handle()
            case "b":
                return broken(self._node, SessionLost(content)).handle()
            case "e":
                return RemoteError(content[0], self.unpack(content[1]))
        raise BaggageCorrupt(f"no value is marked {mark!r}")

    def _unpack_ref(self, session_id: bytes, position: int) -> object:
        session = self._node.kept_session(session_id)
        slot = None if session is None else session.tables.imports.get(position)
        if slot is None:
            return broken(self._node, SessionLost("the session of this reference is over")).handle()
        return slot.handle()


def encode_row(value: Any) -> bytes:
    """A row that may hold what other peers have sent: as deep and as large as messages are, with what stands around."""
    return encode(value, max_size=_MAX_ROW, max_depth=_MAX_DEPTH)


def decode_row(data: bytes, table: str) -> Any:
    return decode(data, table=table, max_depth=_MAX_DEPTH)


def pack_locator(locator: PeerLocator) -> list[Any]:
    return [locator.transport, locator.designator, dict(locator.hints)]


def unpack_locator(packed: list[Any]) -> PeerLocator:
    return PeerLocator(packed[0], packed[1], packed[2] or None)
