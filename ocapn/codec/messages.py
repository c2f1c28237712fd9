"""The messages of a session in bytes, in the codec that its two sides have agreed on.

The records that keep a durable session whole (`ocapn.codec.resumption`), and what certificates are signed over, are in
Syrup whatever the codec: others than the two sides have to read them, or a connection with another codec.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final, final

from ocapn.codec.base import Reading, Writing
from ocapn.codec.operations import (
    OPERATIONS,
    Form,
    StartSession,
    descriptor_bytes,
    write_abort,
    write_gc_answers,
    write_gc_exports,
    write_listen,
    write_location,
    write_select,
    write_start_session,
)
from ocapn.codec.syrup import Decoder, Encoder, WriteOther, refuse
from ocapn.limits import Limits


class Codec(ABC):
    """What a session needs of a codec. `to` is an encoded descriptor; `args` what the encoder's `arguments` made."""

    #: What the handshake of `noise` calls it.
    number: int
    name: str

    @abstractmethod
    def decoder(self, limits: Limits) -> Reading:
        """Makes an operation (`ocapn.codec.operations`) of a message."""

    @abstractmethod
    def encoder(self, limits: Limits, write_other: WriteOther = refuse, text_order: bool = False) -> Writing:
        """`write_other` gets every value that is no plain data."""

    @abstractmethod
    def descriptor(self, kind: int, position: int) -> bytes:
        """As the recipient of a message."""

    @abstractmethod
    def deliver(self, to: bytes, args: bytes, answer: int, resolver: int) -> bytes:
        """op:deliver; `answer` and `resolver`, the position of an object, are -1 for none."""

    @abstractmethod
    def deliver_only(self, to: bytes, args: bytes) -> bytes:
        """op:deliver-only."""

    @abstractmethod
    def listen(self, to: bytes, resolver: int) -> bytes:
        """op:listen."""

    @abstractmethod
    def select(self, encoder: Writing, kind: int, to: bytes, key: str | int, answer: int) -> bytes:
        """op:get, op:index or op:untag. Raises NotPassable."""

    @abstractmethod
    def gc_exports(self, positions: list[int], deltas: list[int], form: Form) -> bytes:
        """op:gc-exports."""

    @abstractmethod
    def gc_answers(self, positions: list[int], form: Form) -> bytes:
        """op:gc-answers."""

    @abstractmethod
    def abort(self, reason: str) -> bytes:
        """op:abort."""

    @abstractmethod
    def start_session(self, encoder: Writing, operation: StartSession) -> bytes:
        """op:start-session."""

    @abstractmethod
    def location_message(self, location: bytes) -> bytes:
        """What op:start-session signs of an encoded location."""


@final
class SyrupCodec(Codec):
    number = 0
    name = "syrup"

    def decoder(self, limits: Limits) -> Reading:
        return Decoder(limits, OPERATIONS)

    def encoder(self, limits: Limits, write_other: WriteOther = refuse, text_order: bool = False) -> Writing:
        return Encoder(limits, write_other, text_order)

    def descriptor(self, kind: int, position: int) -> bytes:
        return descriptor_bytes(kind, position)

    def deliver(self, to: bytes, args: bytes, answer: int, resolver: int) -> bytes:
        if answer < 0:
            if resolver < 0:
                return b"".join([b"<10'op:deliver", to, args, b"ff>"])
            end = b"f<18'desc:import-object%d+>>" % resolver
            return b"".join([b"<10'op:deliver", to, args, end])
        end = b"%d+<18'desc:import-object%d+>>" % (answer, resolver)
        return b"".join([b"<10'op:deliver", to, args, end])

    def deliver_only(self, to: bytes, args: bytes) -> bytes:
        return b"<15'op:deliver-only%b%b>" % (to, args)

    def listen(self, to: bytes, resolver: int) -> bytes:
        return write_listen(to, resolver)

    def select(self, encoder: Writing, kind: int, to: bytes, key: str | int, answer: int) -> bytes:
        return write_select(encoder, kind, to, key, answer)

    def gc_exports(self, positions: list[int], deltas: list[int], form: Form) -> bytes:
        return write_gc_exports(positions, deltas, form)

    def gc_answers(self, positions: list[int], form: Form) -> bytes:
        return write_gc_answers(positions, form)

    def abort(self, reason: str) -> bytes:
        return write_abort(reason)

    def start_session(self, encoder: Writing, operation: StartSession) -> bytes:
        return write_start_session(encoder, operation)

    def location_message(self, location: bytes) -> bytes:
        return write_location(location)


SYRUP: Final = SyrupCodec()
