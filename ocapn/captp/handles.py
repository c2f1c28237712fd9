"""What the layers above derive from: targets, the handles that an application holds, and what waits on a promise.

This module is never compiled (spec/building.md): a compiled class has no weak references, and no subclasses in Python.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ocapn.captp.delivery import RemoteVow, Vow
    from ocapn.captp.tables import Import


class LocalTarget:
    """Base of what can be exported. How a message becomes a call is for the layer above (`Node.invoke`)."""

    __slots__ = ("__weakref__",)


class CoreTarget(LocalTarget):
    """A target that the protocol itself provides: its messages are handled in the core, in turns like others."""

    __slots__ = ()

    def call(self, args: list[object]) -> object:
        """The answer to a message: a value, or a promise. Raises RemoteError."""
        raise NotImplementedError


class RefHandle:
    """What an application holds of an imported object. Its finalisation is the release of the import."""

    __slots__ = ("__weakref__", "_import")
    _import: Import

    def __init__(self, slot: Import) -> None:
        self._import = slot

    def __del__(self) -> None:
        slot = self._import
        slot.session.node.finalised(slot)


class PromiseHandle:
    """What an application holds of a promise. Its finalisation gives up the interest in it."""

    __slots__ = ("__weakref__", "_vow")
    _vow: Vow

    def __init__(self, vow: Vow) -> None:
        self._vow = vow

    def __del__(self) -> None:
        vow = self._vow
        if not vow.released:
            vow.node.finalised(vow)  # type: ignore[arg-type]  # what is not released is a RemoteVow


class Waiting:
    """Something that waits on a vow: a message, a selection, or a listener."""

    __slots__ = ()
    #: Whether it wants the outcome told (listeners), or passed through to what the vow becomes (messages).
    listens = False

    @property
    def gone(self) -> bool:
        """Whether nobody is interested in it any more."""
        return False

    def settle(self, vow: Vow) -> None:
        """`vow`, to which this was sent or on which it listened, is fulfilled or broken."""
        raise NotImplementedError

    def forward(self, vow: RemoteVow) -> None:
        """`vow` is now what this waits for, and takes messages. Only for messages and selections."""
        raise NotImplementedError

    def moves(self, vow: Vow) -> None:
        """`vow` is now what this waits for, or what will settle `vow` is kept from now on. Only with a keeper."""
