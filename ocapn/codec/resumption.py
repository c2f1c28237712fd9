"""The records of durable sessions: `op:ack` and `op:resume-*` (spec/resume.md), and what their signatures are over.

They are not operations of CapTP: nothing of them reaches a session's tables. What is signed is written in Syrup,
each record with a label of its own, so that no signature can serve in another place.
"""

from __future__ import annotations

import re
from typing import Final, Literal, final

import attrs

from ocapn.codec.base import Reading
from ocapn.codec.operations import read_signature, signature_value
from ocapn.codec.syrup import Constructor, Decoder, Records, encode
from ocapn.errors import RemoteProtocolError
from ocapn.limits import MAX_POSITION, Limits
from ocapn.model.values import Symbol

_ACK_HEAD: Final = b"<6'op:ack"
_ACK: Final = re.compile(rb"<6'op:ack(0|[1-9][0-9]{0,18})\+>")
#: Of op:abort and op:start-session in each codec.
_ABORT_HEADS: Final = (b"<8'op:abort", b"\xd8\x1b\x82\x65abort")
_START_HEADS: Final = (b"<16'op:start-session", b"\xd8\x1b\x85\x6dstart-session")
_CONTROL_HEADS: Final = (_ACK_HEAD, *_ABORT_HEADS)
_RESUME_HEAD: Final = b"<17'op:resume-session"

#: Why a resume is refused (spec/resume.md, Refusals). Only `unknown` comes without a signature.
REASONS: Final = (
    "unknown",
    "retry",
    "crossed",
    "policy",
    "stale",
    "ended",
    "expired",
    "you-rolled-back",
    "i-rolled-back",
    "diverged",
)

#: What a peer says of its own address: the hints of its locator, or False for none.
Hints = dict[str, str] | Literal[False]


def write_ack(number: int) -> bytes:
    return b"<6'op:ack%d+>" % number


def is_ack(message: bytes) -> bool:
    return message.startswith(_ACK_HEAD)


def is_control(message: bytes) -> bool:
    """Whether a message is op:ack or op:abort, which are neither numbered nor hashed."""
    if len(message) > 2 and message[0] == 60 and message[2] != 39:
        return (
            False  # in Syrup, with a label of ten bytes or more, or malformed; most are, and this is quicker
        )
    return message.startswith(_CONTROL_HEADS)


def is_resume(message: bytes) -> bool:
    """Whether the first message of a connection wants to resume a session."""
    return message.startswith(_RESUME_HEAD)


def is_start_or_abort(message: bytes) -> bool:
    """Whether a message is what a peer says that knows nothing of resuming."""
    return message.startswith((*_START_HEADS, *_ABORT_HEADS))


def read_ack(message: bytes) -> int:
    """The number in an op:ack. Raises RemoteProtocolError."""
    match = _ACK.fullmatch(message)
    if match is None:
        raise RemoteProtocolError("malformed: op:ack takes the number of a frame")
    return int(match[1])


@attrs.frozen
class Claims:
    """What one side has on disk: counts of frames, and the digest of the last that it accepted.

    `proven` is the epoch that the other side is known to have committed.
    """

    epoch: int
    proven: int
    sent: int
    acked: int
    received: int
    digest: bytes

    @property
    def value(self) -> list[object]:
        return [self.epoch, self.proven, self.sent, self.acked, self.received, self.digest]


@final
@attrs.frozen
class ResumeSession:
    session: bytes
    nonce: bytes
    hints: Hints
    claims: Claims
    signature: bytes


@final
@attrs.frozen
class ResumeAccept:
    nonce: bytes
    epoch: int
    hints: Hints
    claims: Claims
    signature: bytes


@final
@attrs.frozen
class ResumeConfirm:
    signature: bytes


@final
@attrs.frozen
class ResumeRefuse:
    """`nonce` is the reader's own; `received` the sender's final count of accepted frames, if the session is over."""

    session: bytes
    nonce: bytes
    reason: str
    received: int | None
    signature: bytes | None


# Reading


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value <= MAX_POSITION:
        raise ValueError("a count is an integer from 0 to 2^63 - 1")
    return value


def _bytes32(value: object, what: str) -> bytes:
    if type(value) is not bytes or len(value) != 32:
        raise ValueError(f"{what} is 32 bytes")
    return value


def _hints(value: object) -> Hints:
    if value is False:
        return value
    if type(value) is dict and all(type(hint) is str for hint in value.values()):
        return value
    raise ValueError("hints are a struct of strings, or f")


def _claims(value: object) -> Claims:
    if type(value) is not list or len(value) != 6:
        raise ValueError("claims are [epoch proven sent acked received digest]")
    epoch, proven, sent, acked, received = map(_count, value[:5])
    return Claims(epoch, proven, sent, acked, received, _bytes32(value[5], "a digest"))


def _fields(items: list[object], count: int) -> list[object]:
    if len(items) != count + 1:
        raise ValueError(f"takes {count} fields, not {len(items) - 1}")
    return items[1:]


def _resume_session(items: list[object], decoder: Reading) -> ResumeSession:
    session, nonce, hints, claims, signature = _fields(items, 5)
    return ResumeSession(
        _bytes32(session, "a session id"),
        _bytes32(nonce, "a nonce"),
        _hints(hints),
        _claims(claims),
        read_signature(signature),
    )


def _resume_accept(items: list[object], decoder: Reading) -> ResumeAccept:
    nonce, epoch, hints, claims, signature = _fields(items, 5)
    return ResumeAccept(
        _bytes32(nonce, "a nonce"), _count(epoch), _hints(hints), _claims(claims), read_signature(signature)
    )


def _resume_confirm(items: list[object], decoder: Reading) -> ResumeConfirm:
    (signature,) = _fields(items, 1)
    return ResumeConfirm(read_signature(signature))


def _resume_refuse(items: list[object], decoder: Reading) -> ResumeRefuse:
    session, nonce, reason, received, signature = _fields(items, 5)
    if not isinstance(reason, Symbol) or reason.name not in REASONS:
        raise ValueError("a reason is one of " + ", ".join(REASONS))
    return ResumeRefuse(
        _bytes32(session, "a session id"),
        _bytes32(nonce, "a nonce"),
        reason.name,
        None if received is False else _count(received),
        None if signature is False else read_signature(signature),
    )


_RECORDS: Final[dict[Symbol, Constructor]] = {
    Symbol("op:resume-session"): _resume_session,
    Symbol("op:resume-accept"): _resume_accept,
    Symbol("op:resume-confirm"): _resume_confirm,
    Symbol("op:resume-refuse"): _resume_refuse,
}
_RESUMPTION: Final = Records(_RECORDS, {})


def read_resumption(message: bytes, limits: Limits) -> object:
    """One of the op:resume records. Raises DecodeError, also for any other operation."""
    return Decoder(limits, _RESUMPTION).decode(message)


# Writing


def _record(label: str, *values: object) -> bytes:
    return b"<" + encode(Symbol(label)) + b"".join([encode(value) for value in values]) + b">"


def _received(received: int | None) -> object:
    if received is None:
        return False  # not in one expression with an int, of which a compiler may make 0
    return received


def _signature(signature: bytes | None) -> object:
    return False if signature is None else signature_value(signature)


def write_resume_session(operation: ResumeSession) -> bytes:
    return _record(
        "op:resume-session",
        operation.session,
        operation.nonce,
        operation.hints,
        operation.claims.value,
        _signature(operation.signature),
    )


def write_resume_accept(operation: ResumeAccept) -> bytes:
    return _record(
        "op:resume-accept",
        operation.nonce,
        operation.epoch,
        operation.hints,
        operation.claims.value,
        _signature(operation.signature),
    )


def write_resume_confirm(operation: ResumeConfirm) -> bytes:
    return _record("op:resume-confirm", _signature(operation.signature))


def write_resume_refuse(operation: ResumeRefuse) -> bytes:
    return _record(
        "op:resume-refuse",
        operation.session,
        operation.nonce,
        Symbol(operation.reason),
        _received(operation.received),
        _signature(operation.signature),
    )


# What is signed. `channel` is [transport-symbol binding]; I and R are the public identifiers of the two sides.


@final
@attrs.frozen
class Transcript:
    """What both sides know of one resume, from the initiator's first message on."""

    session: bytes
    transport: str
    binding: bytes
    initiator: bytes
    responder: bytes

    @property
    def _channel(self) -> list[object]:
        return [Symbol(self.transport), self.binding]

    def resume(self, nonce: bytes, hints: Hints, claims: Claims) -> bytes:
        return _record(
            "ocapn-durable-1:resume",
            self.session,
            self._channel,
            nonce,
            self.initiator,
            self.responder,
            hints,
            claims.value,
        )

    def accept(self, first: ResumeSession, nonce: bytes, epoch: int, hints: Hints, claims: Claims) -> bytes:
        return _record(
            "ocapn-durable-1:accept",
            self.session,
            self._channel,
            first.nonce,
            nonce,
            self.responder,
            self.initiator,
            epoch,
            first.hints,
            hints,
            first.claims.value,
            claims.value,
        )

    def confirm(self, first: ResumeSession, accept: ResumeAccept) -> bytes:
        return _record(
            "ocapn-durable-1:confirm",
            self.session,
            self._channel,
            first.nonce,
            accept.nonce,
            self.initiator,
            self.responder,
            accept.epoch,
            first.hints,
            accept.hints,
            first.claims.value,
            accept.claims.value,
        )

    def refuse(self, nonce: bytes, sender: bytes, reader: bytes, reason: str, received: int | None) -> bytes:
        return _record(
            "ocapn-durable-1:refuse",
            self.session,
            self._channel,
            nonce,
            sender,
            reader,
            Symbol(reason),
            _received(received),
        )
