"""What the two codecs have in common, for those who read records from one and write references to one."""

from __future__ import annotations

from abc import ABC, abstractmethod


class Reading(ABC):
    """A decoder, as those see it who make values of the records in a message.

    `references` counts the descriptors built for the current value; `text_order` becomes true once a struct arrived
    whose keys are in the order of their text and not in Syrup's (wire.md, Struct keys).
    """

    __slots__ = ("references", "text_order")

    references: int
    text_order: bool

    @abstractmethod
    def decode(self, data: bytes) -> object:
        """The one value that `data` encodes. Raises DecodeError, also when bytes are missing or left over."""

    @abstractmethod
    def raw(self) -> bytes:
        """The encoding of the record being constructed, exactly as it arrived."""


class Writing(ABC):
    """An encoder, as those see it who send messages and write what is no plain data."""

    __slots__ = ("text_order",)

    text_order: bool

    @abstractmethod
    def encode(self, value: object) -> bytes:
        """The encoding of `value`. Raises NotPassable, with the path to what cannot be encoded."""

    @abstractmethod
    def arguments(self, args: list[object]) -> bytes:
        """The arguments of a message, as they stand in it. Raises NotPassable."""

    @abstractmethod
    def reference(self, kind: int, position: int) -> None:
        """Writes a descriptor where a value is wanted."""

    @abstractmethod
    def certificate(self, wire: bytes) -> None:
        """Writes a signed envelope, of which these are the bytes in Syrup, where a value is wanted."""
