"""Durable kinds: classes whose objects are in the baggage.

    @durable.kind("counter", version=1)
    @attrs.define
    class Counter(ocapn.Target):
        value: int = 0

        @ocapn.method
        def add(self, n: int) -> int:
            self.value += n
            return self.value

An object becomes durable when it is stored: under a key of the baggage, in a field of a durable object, or when it is
sent or exported by a peer with a baggage. From then on each assignment to a field is seen, and commits with the turn.
So a field holds what cannot change unseen: None, bool, int, float, str, bytes, symbols, tuples of these, durable
objects, and references to remote ones. A list or a dict is refused; what is long belongs under keys of the baggage.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import getattr_static, iscoroutinefunction
from types import MemberDescriptorType
from typing import Any, Final, Protocol, TypeVar

import attrs

from durable.errors import BaggageNewer, DurableError

State = dict[str, Any]
Upgrade = Callable[[State], State]
T = TypeVar("T", bound=type)


class MissingKind(DurableError):
    """The baggage holds an object of a kind that was not registered before the peer was opened."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"the baggage holds objects of the kind {name!r}: import the module that registers it, with "
            f"@durable.kind({name!r}, …), before the peer is opened"
        )
        self.name = name


class MissingUpgrade(DurableError):
    """The baggage holds an object of an older version of its kind, and no upgrade from that version is registered."""


@attrs.define
class Kind:
    """A registered class: its name and version in the baggage, and the fields that are its state."""

    name: str
    version: int
    cls: type
    fields: tuple[str, ...]
    upgrades: dict[int, Upgrade]


#: Fields of a kind: each may have 1 MiB, and all of them stand in one row.
_MAX_FIELDS: Final = 256

#: Registered kinds by name.
kinds: Final[dict[str, Kind]] = {}


class Keeper(Protocol):
    """Who keeps durable objects."""

    def check(self, value: object, path: str) -> None:
        """Raises NotStorable if a field cannot hold the value."""

    def changes(self, obj: Any, name: str) -> None:
        """A field of a durable object is about to change. Raises DurableError once the peer has ended."""

    def load(self, obj: Any) -> bool:
        """Gives an object its state; whether it had none. Raises BaggageCorrupt, BaggageFailed, MissingUpgrade."""

    def when(self, promise: object, obj: Any, fulfilled: str | None, broken: str | None) -> None:
        """See `when`."""


class Durable:
    """What every object of a kind is, besides what its class says. `_durable_id` is 0 until it is kept."""

    __slots__ = ()
    _durable_kind: Kind
    _durable_id: int
    _durable_keeper: Keeper | None


def kind(name: str, *, version: int = 1) -> Callable[[T], T]:
    """Registers an attrs class as a kind of durable object.

    `name` is what the baggage calls it, whatever the class is called; `version` counts changes of its fields (see
    `upgrade`). Raises TypeError for a class that is not made by attrs, or has attributes with the names of fields;
    ValueError for a name that is taken, and for more than 256 fields.
    """
    if version < 1:
        raise ValueError(f"a version is 1 or more, not {version}")

    def register(cls: T) -> T:
        if not attrs.has(cls):
            raise TypeError(f"{cls.__qualname__} is no attrs class: put @attrs.define below @durable.kind")
        known = kinds.get(name)
        if known is not None and known.cls.__qualname__ != cls.__qualname__:
            raise ValueError(f"the kind {name!r} is {known.cls.__qualname__} already")
        fields = tuple(field.name for field in attrs.fields(cls))
        if len(fields) > _MAX_FIELDS:
            raise ValueError(
                f"{cls.__qualname__} has {len(fields)} fields, and at most {_MAX_FIELDS} can be kept"
            )
        for field in fields:
            there = getattr_static(cls, field, None)
            if there is not None and not isinstance(there, MemberDescriptorType):
                raise TypeError(
                    f"{cls.__qualname__} has an attribute of the class with the name of its field {field!r}"
                )
        made = Kind(name, version, cls, fields, known.upgrades if known is not None else {})
        made.cls = _tracked(cls, made)
        kinds[name] = made
        return made.cls  # type: ignore[return-value]  # a subclass, with two more slots

    return register


def upgrade(name: str, *, version: int) -> Callable[[Upgrade], Upgrade]:
    """Registers how the state of a kind is brought from `version` to the next: fields by name, old to new.

    It runs once for each object, when a peer is opened with the baggage, and what it returns commits in one batch. It
    may hand on the objects that a field holds, and must not look into them: they may not have been upgraded yet.
    """

    def register(function: Upgrade) -> Upgrade:
        found = kinds.get(name)
        if found is None:
            raise ValueError(f"register the kind {name!r} first")
        found.upgrades[version] = function
        return function

    return register


def small(value: object) -> bool:
    """Whether the value can be kept without a closer look."""
    kind = type(value)
    if kind is int:
        return -(1 << 63) <= value < 1 << 63  # type: ignore[operator]  # an int
    if kind is str:
        return len(value) < 256 and value.isascii()  # type: ignore[arg-type, attr-defined]  # a str
    return value is None or kind is bool or kind is float


def _tracked(cls: type, made: Kind) -> type:
    """A subclass that tells the keeper of each assignment, and has it load the state when that is first asked for."""
    inherited: Any = cls.__setattr__
    missing: Any = getattr(cls, "__getattr__", None)
    deletes: Any = cls.__delattr__
    fields = frozenset(made.fields)

    def set_attribute(self: Any, name: str, value: object) -> None:
        keeper = getattr(self, "_durable_keeper", None)
        if keeper is None or name not in fields:
            inherited(self, name, value)
            return
        keeper.changes(self, name)
        old = getattr(self, name)
        inherited(self, name, value)
        kept = getattr(self, name)  # what a converter has made of it
        if not small(kept):
            try:
                keeper.check(kept, f"{made.name}.{name}")
            except BaseException:
                object.__setattr__(self, name, old)
                raise

    def get_attribute(self: Any, name: str) -> object:
        """Of an attribute that the object does not have."""
        keeper = getattr(self, "_durable_keeper", None) if name in fields else None
        if keeper is not None and keeper.load(self):
            return getattr(self, name)
        if missing is not None and not name.startswith("_durable_"):
            return missing(self, name)
        raise AttributeError(f"{cls.__name__!r} object has no attribute {name!r}", name=name, obj=self)

    def delete_attribute(self: Any, name: str) -> None:
        if name in fields and getattr(self, "_durable_keeper", None) is not None:
            raise AttributeError(f"{name} is a field of a kept {cls.__name__}: it cannot be deleted")
        deletes(self, name)

    def get_state(self: Any) -> dict[str, Any]:
        """For `copy`, whose copies are new objects, not kept. Classes with slots have it from attrs."""
        keeper = getattr(self, "_durable_keeper", None)
        if keeper is not None:
            keeper.load(self)
        return dict(self.__dict__)

    own: Any = cls.__getstate__
    more: dict[str, Any] = {"__getstate__": get_state} if own is object.__getstate__ else {}
    return type(
        cls.__name__,
        (cls, Durable),
        {
            **more,
            "__slots__": ("_durable_id", "_durable_keeper"),
            "__module__": cls.__module__,
            "__qualname__": cls.__qualname__,
            "__doc__": cls.__doc__,
            "__setattr__": set_attribute,
            "__getattr__": get_attribute,
            "__delattr__": delete_attribute,
            "_durable_kind": made,
        },
    )


def state_of(obj: Durable) -> State:
    """The fields of a durable object."""
    return {name: getattr(obj, name) for name in obj._durable_kind.fields}


def blank(name: str) -> Any:
    """An object of the kind without its state. Raises MissingKind."""
    found = kinds.get(name)
    if found is None:
        raise MissingKind(name)
    return object.__new__(found.cls)


def upgraded(name: str, version: int, state: State) -> State:
    """The state as the registered version of the kind has it. Raises BaggageNewer, MissingUpgrade."""
    found = kinds[name]
    if version > found.version:
        raise BaggageNewer(f"the kind {name!r}", version, found.version)
    for step in range(version, found.version):
        function = found.upgrades.get(step)
        if function is None:
            raise MissingUpgrade(
                f"the baggage holds version {version} of the kind {name!r}: register "
                f"@durable.upgrade({name!r}, version={step}), which brings it to {step + 1}"
            )
        state = function(state)
    return state


def fill(obj: Any, state: State) -> None:
    """Gives a blank object its state. A field that is not in it, as one that was added since, has its default.

    Raises MissingUpgrade if it has none.
    """
    kind = obj._durable_kind
    for field in attrs.fields(kind.cls):
        name = field.name
        if name in state:
            value = state[name]
        elif isinstance(field.default, attrs.Factory) and not field.default.takes_self:  # type: ignore[arg-type]  # stubs: a function
            value = field.default.factory()
        elif field.default is not attrs.NOTHING:
            value = field.default
        else:
            raise MissingUpgrade(
                f"the baggage holds version {kind.version} of the kind {kind.name!r} without the field {name!r}: "
                "raise the version, and register an upgrade"
            )
        object.__setattr__(obj, name, value)


def disown(obj: Any) -> None:
    """The object could not be kept: it is as it was."""
    object.__setattr__(obj, "_durable_id", 0)
    object.__setattr__(obj, "_durable_keeper", None)


def adopt(obj: Any, keeper: Keeper, number: int) -> None:
    """The object is durable from now on."""
    object.__setattr__(obj, "_durable_id", number)
    object.__setattr__(obj, "_durable_keeper", keeper)


def when(promise: object, obj: Any, fulfilled: str | None, broken: str | None = None) -> None:
    """Has a durable object told, once, what a promise becomes: also if the process is restarted meanwhile.

    `fulfilled` and `broken` are names of methods of `obj`, called in a turn of their own with the value or with the
    error; they need not be marked `@ocapn.method`. With None, a value is dropped and an error is logged.

    After a restart these go on: a promise that a peer resolves, over a durable session; the answer of a message to a
    durable object that has not begun, or that is queued on such a promise; a gift that is on its way. The restarted
    process tells of any other that it broke, with PeerRestarted: the answer of an `async` method that had begun, a
    promise made with `make_promise`. Tasks that await a promise end with their process.

    Raises TypeError if `obj` is not kept in the baggage of a peer yet, or for an `async` method, AttributeError for a
    name that is no method.
    """
    keeper: Keeper | None = getattr(obj, "_durable_keeper", None)
    if keeper is None:
        raise TypeError("only an object that is in a baggage can be told: store it first")
    for name in (fulfilled, broken):
        if name is None:
            continue
        method = getattr(obj, name)
        if not callable(method):
            raise AttributeError(f"{name} is no method of {type(obj).__name__}")
        if iscoroutinefunction(method):
            raise TypeError(f"{name} is async, and would run at most once: let a plain method be told")
    keeper.when(promise, obj, fulfilled, broken)
