"""The durable objects of one baggage: their numbers, their rows, and that they are loaded when they are looked at.

An object that a row names is there at once, without its state: that is read from its row when a field is first asked
for. So opening takes no longer for all the objects that nobody asks for, and a chain of them may be as long as it is.
What an unloaded object holds of other peers must not be released meanwhile: the row of each import says how many
durable objects hold it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, final

from durable.baggage import Baggage
from durable.errors import BaggageCorrupt, BaggageNewer, DurableError, NotStorable
from durable.objects import MissingKind, adopt, blank, disown, fill, kinds, state_of, upgraded
from durable.records import decode, decode_row, encode, encode_row
from durable.store import key_number, number_key
from durable.values import FIELD, SAVED, Values, check_packed
from ocapn.captp.handles import CoreTarget
from ocapn.captp.node import Node
from ocapn.captp.tables import Export, Late, Tables
from ocapn.errors import ObjectLost

if TYPE_CHECKING:
    from ocapn.captp.session import Session

log: Final = logging.getLogger("durable")

_NEXT: Final = b"next-object"
_KIND: Final = b"kind/"

#: A reference to a remote object: its session, and the position of the import.
Held = tuple["Session", int]


@final
class _Unreadable(CoreTarget):
    """In the place of an object whose row is damaged: what is sent to it breaks, and nothing else does."""

    __slots__ = ()

    def call(self, args: list[object]) -> object:
        raise ObjectLost("the object is damaged on the disk of its peer")


@final
class Objects:
    """Keeps the durable objects of one node. `when` is `durable.when`."""

    def __init__(
        self,
        baggage: Baggage,
        node: Node,
        when: Callable[[object, Any, str | None, str | None], None],
    ) -> None:
        self.values: Values  # whoever makes this gives it
        self.when = when
        self._baggage = baggage
        self._node = node
        self._closed = False
        self._objects: dict[int, Any] = {}
        self._unloaded: dict[int, tuple[int, dict[str, Any]]] = {}  # version and packed state
        self._changed: dict[int, Any] = {}
        self._adopted: list[Any] = []  # an object that is about to be kept, and what it holds
        self._next = 1
        self._kinds: dict[str, list[Any]] = {}  # of the baggage: version and fields
        self._exports: dict[Session, tuple[Tables, dict[int, Export]]] = {}  # of those that were restored
        self._damaged: set[int] = set()
        self._holds: dict[int, frozenset[Held]] = {}  # what loaded objects hold, as it stands in their rows
        self._held: dict[Session, dict[int, int]] = {}  # by how many, an import

    def close(self) -> None:
        """Nothing is kept any more."""
        self._closed = True

    # For `durable.objects`

    def check(self, value: object, path: str) -> None:
        """Raises NotStorable if a field cannot hold the value."""
        check_packed(self.values.pack(value, path, FIELD))

    def changes(self, obj: Any, name: str) -> None:
        """A field of a durable object is about to change. Raises DurableError once the peer has ended."""
        if self._closed:
            raise DurableError("the peer of this object has ended: what changes now would not be kept")
        if self._changed.get(obj._durable_id) is obj and not self._baggage.in_transaction:
            return  # it has been since the last batch
        self.load(obj)
        if self._baggage.in_transaction:
            old = getattr(obj, name)
            self._baggage.undo_with(lambda: object.__setattr__(obj, name, old))
        self._change(obj)

    def load(self, obj: Any) -> bool:
        """Gives the object its state; whether it had none."""
        number = obj._durable_id
        found = self._unloaded.get(number)
        if found is None or self._objects[number] is not obj:
            return False
        version, packed = found
        kind = obj._durable_kind
        with self.values.noting() as holds:
            state = {field: self.values.unpack(one) for field, one in packed.items()}
        fill(obj, upgraded(kind.name, version, state))
        del self._unloaded[number]
        if holds:
            self._holds[number] = frozenset(holds)
        return True

    def _change(self, obj: Any) -> None:
        if not self._changed:
            self._node.wake()
        self._changed[obj._durable_id] = obj

    # For rows

    def number(self, obj: Any) -> int:
        """The number of a durable object, which it gets when it is first kept."""
        keeper = getattr(obj, "_durable_keeper", None)
        if keeper is self:
            number: int = obj._durable_id
            return number
        if keeper is not None:
            raise NotStorable("the object is in another baggage")
        kind = obj._durable_kind
        if type(obj) is not kind.cls:
            raise NotStorable(
                f"{type(obj).__name__} is no @durable.kind, as {kind.cls.__name__} is", kind.name
            )
        number = self._next
        self._next += 1
        adopt(obj, self, number)  # before its state is looked at, which may hold itself
        self._adopted.append(obj)
        if len(self._adopted) == 1:
            self._keep_adopted()
        return number

    def _keep_adopted(self) -> None:
        """Keeps a new object, and what new objects that holds, which join the list as they are found."""
        try:
            for one in self._adopted:
                with self.values.noting():
                    for packed in self._packed(one).values():
                        check_packed(packed)
        except BaseException:
            for one in self._adopted:  # none was kept before, and none is now
                disown(one)
            raise
        else:
            self._baggage.put("node", _NEXT, encode(self._next))
            for one in self._adopted:
                self._objects[one._durable_id] = one
                self._change(one)
        finally:
            self._adopted = []

    def obj(self, number: int) -> Any:
        """The object with that number; one object as long as this process lives. Raises BaggageCorrupt."""
        obj = self._objects.get(number)
        if obj is None:
            row = self._baggage.read("object", number_key(number))
            if row is None:
                raise BaggageCorrupt("a durable object is missing", table="object")
            name, version, packed = decode_row(row, "object")
            obj = self._objects[number] = blank(name)
            adopt(obj, self, number)
            self._unloaded[number] = version, packed
            for tables, exports in self._exports.values():
                slot = exports.pop(number, None)
                if slot is not None and tables.exports.get(slot.position) is slot:
                    tables.known_as(slot, id(obj))
        return obj

    def _exported(self, number: int) -> Any:
        """The same for a message to it; what it breaks, if the object cannot be read, is that message alone."""
        try:
            return self.obj(number)
        except BaggageCorrupt as error:
            if number not in self._damaged:
                self._damaged.add(number)
                log.error("an object cannot be read: %s", error)
            return _Unreadable()

    def save(self) -> None:
        """Writes the rows of the objects that have changed."""
        while self._changed:
            number, obj = self._changed.popitem()
            kind = obj._durable_kind
            with self.values.noting() as holds:
                state = self._packed(obj, SAVED)
            self._baggage.put("object", number_key(number), encode_row([kind.name, kind.version, state]))
            if holds or number in self._holds:
                self._now_holds(number, frozenset(holds))
            if kind.name not in self._kinds:
                self._save_kind(kind)

    def _packed(self, obj: Any, rules: Any = FIELD) -> dict[str, Any]:
        kind = obj._durable_kind.name
        return {name: self.values.pack(one, f"{kind}.{name}", rules) for name, one in state_of(obj).items()}

    def _save_kind(self, kind: Any) -> None:
        self._kinds[kind.name] = row = [kind.version, list(kind.fields)]
        self._baggage.put("node", _KIND + kind.name.encode(), encode(row))

    # What they hold of other peers

    def _now_holds(self, number: int, holds: frozenset[Held]) -> None:
        before = self._holds.pop(number, frozenset())
        if holds:
            self._holds[number] = holds
        for some, more in ((holds - before, 1), (before - holds, -1)):
            for session, position in some:
                held = self._held.setdefault(session, {})
                left = held[position] = held.get(position, 0) + more
                session.tables.touch("import", position)
                self._node.touch(session)
                if not left:
                    del held[position]
                    if not held:
                        del self._held[session]
                    slot = session.tables.imports.get(position)
                    if slot is not None and not slot.held:
                        self._node.finalised(slot)

    def holders(self, session: Session) -> Mapping[int, int]:
        """How many durable objects hold each import that some do, as their rows say."""
        return self._held.get(session, {})

    def restore_held(self, session: Session, position: int, held: int) -> None:
        """The row of an import says so."""
        if held:
            self._held.setdefault(session, {})[position] = held

    def ended(self, session: Session) -> None:
        """What they hold of it is broken for ever, and what of them it held is free."""
        self._held.pop(session, None)
        self._exports.pop(session, None)

    # After a restart

    def restore(self) -> None:
        """Raises MissingKind, BaggageNewer."""
        row = self._baggage.read("node", _NEXT)
        if row is not None:
            self._next = decode(row, table="node")
        for key, data in self._baggage.scan("node", _KIND):
            self._kinds[key.removeprefix(_KIND).decode()] = decode(data, table="node")
        for name, (version, _) in self._kinds.items():
            if name not in kinds:
                raise MissingKind(name)
            if version > kinds[name].version:
                raise BaggageNewer(f"the kind {name!r}", version, kinds[name].version)

    def upgrade(self) -> None:
        """Loads all objects of kinds whose version or fields have changed. Raises MissingUpgrade."""
        changed = {
            name
            for name, row in self._kinds.items()
            if row != [kinds[name].version, list(kinds[name].fields)]
        }
        if changed:
            for key, data in self._baggage.scan("object"):
                if decode_row(data, "object")[0] in changed:
                    obj = self.obj(key_number(key))
                    self.load(obj)
                    self._change(obj)
            for name in changed:
                self._save_kind(kinds[name])

    def restore_exports(self, session: Session) -> Callable[[int, int, int], None]:
        """What restores the export of an object, given its position, count and number."""
        exports: dict[int, Export] = {}
        tables = session.tables
        self._exports[session] = tables, exports
        slots, find, known = tables.exports, self._exported, self._objects

        def restore(position: int, count: int, number: int) -> None:
            slot = slots[position] = Export(position, Late(number, find), 0, False)
            slot.count = count
            if number in known:
                tables.known_as(slot, id(known[number]))
            else:
                exports[number] = slot

        return restore
