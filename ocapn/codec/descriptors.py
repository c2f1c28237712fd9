"""Descriptors: references on the wire (CapTP specification, Descriptors)."""

from __future__ import annotations

from typing import Final, final

OBJECT: Final = 0  # desc:import-object
PROMISE: Final = 1  # desc:import-promise
EXPORT: Final = 2  # desc:export
ANSWER: Final = 3  # desc:answer

DESCRIPTOR_NAMES: Final = ("desc:import-object", "desc:import-promise", "desc:export", "desc:answer")
#: The labels in Syrup, to the kinds.
DESCRIPTOR_LABELS: Final = {b"%d'%b" % (len(n), n.encode()): i for i, n in enumerate(DESCRIPTOR_NAMES)}
_DESCRIPTOR_HEADS: Final = tuple(b"<%d'%b%%d+>" % (len(n), n.encode()) for n in DESCRIPTOR_NAMES)


@final
class Descriptor:
    """A reference on the wire, as the receiver sees it: `kind` is OBJECT, PROMISE, EXPORT or ANSWER."""

    __slots__ = ("kind", "position")

    def __init__(self, kind: int, position: int) -> None:
        self.kind = kind
        self.position = position

    def __repr__(self) -> str:
        return f"<{DESCRIPTOR_NAMES[self.kind]} {self.position}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Descriptor) and self.kind == other.kind and self.position == other.position

    def __hash__(self) -> int:
        return hash((self.kind, self.position))


def descriptor_bytes(kind: int, position: int) -> bytes:
    """A descriptor in Syrup."""
    return _DESCRIPTOR_HEADS[kind] % position
