"""The records of CapTP: operations (`op:*`) and descriptors (`desc:*`), and how to read and write them.

Field names are those of the CapTP specification. Reading takes every form that deployed peers send (wire.md);
`Form` says which of them to write.
"""

from __future__ import annotations

from typing import Final, final

from ocapn.codec.base import Reading, Writing
from ocapn.codec.descriptors import ANSWER as ANSWER
from ocapn.codec.descriptors import DESCRIPTOR_NAMES as DESCRIPTOR_NAMES
from ocapn.codec.descriptors import EXPORT as EXPORT
from ocapn.codec.descriptors import OBJECT as OBJECT
from ocapn.codec.descriptors import PROMISE as PROMISE
from ocapn.codec.descriptors import Descriptor as Descriptor
from ocapn.codec.descriptors import descriptor_bytes as descriptor_bytes
from ocapn.codec.syrup import Constructor, Records
from ocapn.errors import BadLocator, RemoteError
from ocapn.limits import MAX_POSITION
from ocapn.model.locators import PeerLocator, SturdyRef
from ocapn.model.values import Null, Symbol, Tagged


@final
class Give:
    """`desc:handoff-give`: the gifter's word that the receiver may have the gift. `wire` is its encoding."""

    __slots__ = ("exporter", "gift_id", "gifter_side", "receiver_key", "session", "wire")

    def __init__(
        self,
        receiver_key: bytes,
        exporter: PeerLocator,
        session: bytes,
        gifter_side: bytes,
        gift_id: bytes,
        wire: bytes,
    ) -> None:
        self.receiver_key = receiver_key
        self.exporter = exporter
        self.session = session
        self.gifter_side = gifter_side
        self.gift_id = gift_id
        self.wire = wire


@final
class Receive:
    """`desc:handoff-receive`: the receiver's claim on a gift. `wire` is its encoding."""

    __slots__ = ("count", "give", "session", "side", "wire")

    def __init__(self, session: bytes, side: bytes, count: int, give: Envelope, wire: bytes) -> None:
        self.session = session
        self.side = side
        self.count = count
        self.give = give
        self.wire = wire


@final
class Envelope:
    """`desc:sig-envelope`: a certificate with its signature (64 bytes). `wire` is its encoding."""

    __slots__ = ("signature", "signed", "wire")

    def __init__(self, signed: Give | Receive, signature: bytes, wire: bytes) -> None:
        self.signed = signed
        self.signature = signature
        self.wire = wire


# Operations


@final
class StartSession:
    __slots__ = ("location", "public_key", "signature", "version")

    def __init__(self, version: str, public_key: bytes, location: PeerLocator, signature: bytes) -> None:
        self.version = version
        self.public_key = public_key
        self.location = location
        self.signature = signature


@final
class Deliver:
    """`references` tells whether the arguments hold anything but plain data; `old_form`: op:deliver-only."""

    __slots__ = ("answer", "args", "old_form", "references", "resolver", "to")

    def __init__(
        self,
        to: Descriptor,
        args: list[object],
        answer: int,
        resolver: Descriptor | None,
        references: bool,
        old_form: bool,
    ) -> None:
        self.to = to
        self.args = args
        self.answer = answer  # -1 for none
        self.resolver = resolver
        self.references = references
        self.old_form = old_form


@final
class Listen:
    __slots__ = ("resolver", "to", "wants_partial")

    def __init__(self, to: Descriptor, resolver: Descriptor, wants_partial: bool) -> None:
        self.to = to
        self.resolver = resolver
        self.wants_partial = wants_partial


GET: Final = 0
INDEX: Final = 1
UNTAG: Final = 2
SELECTOR_NAMES: Final = ("op:get", "op:index", "op:untag")


@final
class Select:
    """`op:get` (a field), `op:index` or `op:untag` (a tag), by `kind`: part of what `receiver` becomes."""

    __slots__ = ("answer", "key", "kind", "receiver")

    def __init__(self, kind: int, receiver: Descriptor, key: str | int, answer: int) -> None:
        self.kind = kind
        self.receiver = receiver
        self.key = key
        self.answer = answer


@final
class GcExports:
    __slots__ = ("deltas", "old_form", "positions")

    def __init__(self, positions: list[int], deltas: list[int], old_form: bool) -> None:
        self.positions = positions
        self.deltas = deltas
        self.old_form = old_form


@final
class GcAnswers:
    __slots__ = ("old_form", "positions")

    def __init__(self, positions: list[int], old_form: bool) -> None:
        self.positions = positions
        self.old_form = old_form


@final
class Abort:
    __slots__ = ("reason",)

    def __init__(self, reason: str) -> None:
        self.reason = reason


Operation = StartSession | Deliver | Listen | Select | GcExports | GcAnswers | Abort

# Reading. Constructors raise ValueError with the rule; the decoder adds the offset and the label.


def _fields(items: list[object], count: int) -> None:
    if len(items) != count + 1:
        raise ValueError(f"takes {count} fields, not {len(items) - 1}")


def _position(value: object, what: str = "a position") -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{what} is a non-negative integer")
    if value > MAX_POSITION:
        raise ValueError(f"{what} is below 2^63")
    return value


def _positions(value: object, what: str = "position") -> list[int]:
    if type(value) is not list:
        raise ValueError(f"{what}s are a list")
    for item in value:
        _position(item, f"a {what}")
    return value


def _make_descriptor(kind: int) -> Constructor:
    def make(items: list[object], decoder: Reading) -> object:
        if len(items) != 2:
            raise ValueError(f"takes 1 fields, not {len(items) - 1}")
        position = items[1]
        if type(position) is not int or not 0 <= position <= MAX_POSITION:
            raise ValueError("a position is an integer from 0 to 2^63 - 1")
        decoder.references += 1
        return Descriptor(kind, position)

    return make


def _recipient(value: object, what: str = "to") -> Descriptor:
    if type(value) is Descriptor and value.kind >= EXPORT:
        return value
    raise ValueError(f"{what} is a desc:export or a desc:answer")


def _resolver(value: object) -> Descriptor:
    if type(value) is Descriptor and value.kind <= PROMISE:
        return value
    raise ValueError("a resolver is a desc:import-object or a desc:import-promise")


def _deliver(items: list[object], decoder: Reading) -> Deliver:
    if len(items) != 5:
        raise ValueError(f"takes 4 fields, not {len(items) - 1}")
    to = items[1]
    if type(to) is not Descriptor or to.kind < EXPORT:
        raise ValueError("to is a desc:export or a desc:answer")
    args = items[2]
    if type(args) is not list:
        raise ValueError("args are a list")
    answer = items[3]
    if answer is False:
        answer = -1
    elif type(answer) is not int or not 0 <= answer <= MAX_POSITION:
        raise ValueError("an answer position is an integer from 0 to 2^63 - 1, or f")
    resolver = items[4]
    return _delivery(to, args, answer, None if resolver is False else _resolver(resolver), decoder.references)


def _delivery(
    to: Descriptor, args: list[object], answer: int, resolver: Descriptor | None, references: int
) -> Deliver:
    """An op:deliver with so many references in all."""
    return Deliver(to, args, answer, resolver, references > (1 if resolver is None else 2), False)


def _deliver_only(items: list[object], decoder: Reading) -> Deliver:
    _fields(items, 2)
    args = items[2]
    if type(args) is not list:
        raise ValueError("args are a list")
    return Deliver(_recipient(items[1]), args, -1, None, decoder.references > 1, True)


def _listen(items: list[object], decoder: Reading) -> Listen:
    if len(items) not in (3, 4):
        raise ValueError(f"takes 3 fields, or 2, not {len(items) - 1}")
    partial = items[3] if len(items) == 4 else False
    if type(partial) is not bool:
        raise ValueError("wants-partial is a boolean")
    return Listen(_recipient(items[1]), _resolver(items[2]), partial)


def _get(items: list[object], decoder: Reading) -> Select:
    _fields(items, 3)
    key = items[2]
    if type(key) is not str:
        raise ValueError("a field's name is a string")
    return Select(GET, _recipient(items[1], "receiver"), key, _position(items[3], "an answer position"))


def _index(items: list[object], decoder: Reading) -> Select:
    _fields(items, 3)
    key = _position(items[2], "an index")
    return Select(INDEX, _recipient(items[1], "receiver"), key, _position(items[3], "an answer position"))


def _untag(items: list[object], decoder: Reading) -> Select:
    _fields(items, 3)
    key = items[2]
    if type(key) is not str:
        raise ValueError("a tag is a string")
    return Select(UNTAG, _recipient(items[1], "receiver"), key, _position(items[3], "an answer position"))


def _gc_exports(items: list[object], decoder: Reading) -> GcExports:
    _fields(items, 2)
    positions = _positions(items[1])
    deltas = _positions(items[2], "delta")
    if len(positions) != len(deltas):
        raise ValueError("positions and deltas are lists of one length")
    return GcExports(positions, deltas, False)


def _gc_export(items: list[object], decoder: Reading) -> GcExports:
    _fields(items, 2)
    if type(items[1]) is list:
        form = _gc_exports(items, decoder)
        return GcExports(form.positions, form.deltas, True)
    return GcExports([_position(items[1])], [_position(items[2], "a delta")], True)


def _gc_answers(items: list[object], decoder: Reading) -> GcAnswers:
    _fields(items, 1)
    return GcAnswers(_positions(items[1]), False)


def _gc_answer(items: list[object], decoder: Reading) -> GcAnswers:
    _fields(items, 1)
    if type(items[1]) is list:
        return GcAnswers(_positions(items[1]), True)
    return GcAnswers([_position(items[1])], True)


def _abort(items: list[object], decoder: Reading) -> Abort:
    _fields(items, 1)
    if type(items[1]) is not str:
        raise ValueError("a reason is a string")
    return Abort(items[1])


def _start_session(items: list[object], decoder: Reading) -> StartSession:
    _fields(items, 4)
    version, key, location, signature = items[1:]
    if type(version) is not str:
        raise ValueError("the version is a string")
    if type(location) is not PeerLocator:
        raise ValueError("the location is an ocapn-peer")
    return StartSession(version, read_public_key(key), location, read_signature(signature))


_ECC: Final = Symbol("ecc")
_CURVE: Final = [Symbol("curve"), Symbol("Ed25519")]
_FLAGS: Final = [Symbol("flags"), Symbol("eddsa")]
_PUBLIC_KEY: Final = Symbol("public-key")
_SIG_VAL: Final = Symbol("sig-val")
_EDDSA: Final = Symbol("eddsa")


def read_public_key(value: object) -> bytes:
    """The 32 bytes of an Ed25519 key in its gcrypt form. Raises ValueError."""
    match value:
        case [head, [ecc, curve, flags, [q, bytes(key)]]] if (
            [head, ecc, curve, flags, q] == [_PUBLIC_KEY, _ECC, _CURVE, _FLAGS, Symbol("q")]
        ) and len(key) == 32:
            return key
    raise ValueError("a public key is ['public-key ['ecc ['curve 'Ed25519] ['flags 'eddsa] ['q :32-bytes]]]")


def read_signature(value: object) -> bytes:
    """The 64 bytes of an Ed25519 signature in its gcrypt form. Raises ValueError."""
    match value:
        case [head, [scheme, [r_name, bytes(r)], [s_name, bytes(s)]]] if (
            [head, scheme, r_name, s_name] == [_SIG_VAL, _EDDSA, Symbol("r"), Symbol("s")]
        ) and len(r) == len(s) == 32:
            return r + s
    raise ValueError("a signature is ['sig-val ['eddsa ['r :32-bytes] ['s :32-bytes]]]")


def public_key_value(key: bytes) -> list[object]:
    """The gcrypt form of an Ed25519 public key of 32 bytes (CapTP specification, Public Key)."""
    return [_PUBLIC_KEY, [_ECC, _CURVE, _FLAGS, [Symbol("q"), key]]]


def signature_value(signature: bytes) -> list[object]:
    """The gcrypt form of an Ed25519 signature of 64 bytes (CapTP specification, Signature)."""
    return [_SIG_VAL, [_EDDSA, [Symbol("r"), signature[:32]], [Symbol("s"), signature[32:]]]]


def _void(items: list[object], decoder: Reading) -> None:
    _fields(items, 0)


def _null(items: list[object], decoder: Reading) -> object:
    _fields(items, 0)
    return Null


def _tagged(items: list[object], decoder: Reading) -> Tagged:
    _fields(items, 2)
    tag = items[1]
    if isinstance(tag, Symbol):
        tag = tag.name
    if type(tag) is not str:
        raise ValueError("a tag is a symbol or a string")
    return Tagged(tag, items[2])


def _error(items: list[object], decoder: Reading) -> RemoteError:
    if len(items) < 2 or type(items[1]) is not str:
        raise ValueError("an error has a message, a string")
    return RemoteError(items[1])


def _peer(items: list[object], decoder: Reading) -> PeerLocator:
    _fields(items, 3)
    transport, designator, hints = items[1:]
    if not isinstance(transport, Symbol):
        raise ValueError("a transport is a symbol")
    if type(designator) is not str:
        raise ValueError("a designator is a string")
    if hints is not False and type(hints) is not dict:
        raise ValueError("hints are a struct of strings, or f")
    if hints and not all(type(hint) is str for hint in hints.values()):
        raise ValueError("hints are a struct of strings, or f")
    try:
        return PeerLocator(transport.name, designator, hints or None, decoder.raw())
    except BadLocator as error:
        raise ValueError(str(error)) from None


def _sturdyref(items: list[object], decoder: Reading) -> SturdyRef:
    _fields(items, 2)
    peer, swiss = items[1:]
    if type(peer) is not PeerLocator or type(swiss) is not bytes:
        raise ValueError("a sturdyref is an ocapn-peer and a byte array")
    return SturdyRef(peer, swiss)


def _give(items: list[object], decoder: Reading) -> Give:
    _fields(items, 5)
    key, exporter, session, side, gift_id = items[1:]
    if type(exporter) is not PeerLocator:
        raise ValueError("the exporter's location is an ocapn-peer")
    if type(session) is not bytes or type(side) is not bytes or type(gift_id) is not bytes:
        raise ValueError("session, gifter-side and gift-id are byte arrays")
    if not 1 <= len(gift_id) <= 64:
        raise ValueError("a gift id is 1 to 64 bytes")
    decoder.references += 1  # so that one without its envelope is found
    return Give(read_public_key(key), exporter, session, side, gift_id, decoder.raw())


def _receive(items: list[object], decoder: Reading) -> Receive:
    _fields(items, 4)
    session, side, count, give = items[1:]
    if type(session) is not bytes or type(side) is not bytes:
        raise ValueError("receiving-session and receiving-side are byte arrays")
    if not isinstance(give, Envelope) or not isinstance(give.signed, Give):
        raise ValueError("the signed give is a desc:sig-envelope of a desc:handoff-give")
    decoder.references += 1
    return Receive(session, side, _position(count, "a handoff count"), give, decoder.raw())


def _envelope(items: list[object], decoder: Reading) -> Envelope:
    _fields(items, 2)
    signed = items[1]
    if not isinstance(signed, (Give, Receive)):
        raise ValueError("what is signed is a desc:handoff-give or a desc:handoff-receive")
    decoder.references += 1
    return Envelope(signed, read_signature(items[2]), decoder.raw())


_VALUES: Final[dict[Symbol, Constructor]] = {
    Symbol("void"): _void,
    Symbol("null"): _null,
    Symbol("desc:tagged"): _tagged,
    Symbol("desc:error"): _error,
    Symbol("ocapn-peer"): _peer,
    Symbol("ocapn-sturdyref"): _sturdyref,
    Symbol("desc:import-object"): _make_descriptor(OBJECT),
    Symbol("desc:import-promise"): _make_descriptor(PROMISE),
    Symbol("desc:export"): _make_descriptor(EXPORT),
    Symbol("desc:answer"): _make_descriptor(ANSWER),
    Symbol("desc:handoff-give"): _give,
    Symbol("desc:handoff-receive"): _receive,
    Symbol("desc:sig-envelope"): _envelope,
}

_OPERATIONS: Final[dict[Symbol, Constructor]] = {
    Symbol("op:start-session"): _start_session,
    Symbol("op:deliver"): _deliver,
    Symbol("op:deliver-only"): _deliver_only,
    Symbol("op:listen"): _listen,
    Symbol("op:get"): _get,
    Symbol("op:index"): _index,
    Symbol("op:untag"): _untag,
    Symbol("op:gc-exports"): _gc_exports,
    Symbol("op:gc-export"): _gc_export,
    Symbol("op:gc-answers"): _gc_answers,
    Symbol("op:gc-answer"): _gc_answer,
    Symbol("op:abort"): _abort,
}

#: What a session reads: operations outside, values and descriptors inside.
OPERATIONS: Final = Records(_OPERATIONS, _VALUES, descriptors=True, deliver=_delivery)
#: Values as they are passed, descriptors included, without an operation around them.
PASSABLES: Final = Records(_VALUES, _VALUES, descriptors=True)

# Writing


@final
class Form:
    """Which of the accepted forms to write (wire.md, Dialects).

    `old_deliver`: op:deliver-only where no answer is wanted, and a resolver in every op:deliver;
    `old_gc`: the singular labels of garbage collection; `text_order`: struct keys in the order of their text.
    """

    __slots__ = ("old_deliver", "old_gc", "text_order")

    def __init__(self, old_deliver: bool = False, old_gc: bool = False, text_order: bool = False) -> None:
        self.old_deliver = old_deliver
        self.old_gc = old_gc
        self.text_order = text_order


#: The dialects by name; None, the default of a peer, is the newest form, adapting to what the peer shows.
DIALECTS: Final = ("2026-02", "2026-02-text-order", "2026-02-singular-gc", "2026-01")


def form_of(dialect: str | None) -> Form:
    """The forms of a dialect. Raises ValueError for an unknown name."""
    if dialect is not None and dialect not in DIALECTS:
        raise ValueError(f"no dialect is called {dialect!r}; there are {', '.join(DIALECTS)}")
    return Form(
        old_deliver=dialect == "2026-01",
        old_gc=dialect in ("2026-01", "2026-02-singular-gc"),
        text_order=dialect == "2026-02-text-order",
    )


def write_start_session(encoder: Writing, operation: StartSession) -> bytes:
    fields = (
        operation.version,
        public_key_value(operation.public_key),
        operation.location,
        signature_value(operation.signature),
    )
    return b"<16'op:start-session%b>" % b"".join([encoder.encode(field) for field in fields])


def write_location(wire: bytes) -> bytes:
    """What op:start-session signs: an encoded location in a record of its own."""
    return b"<11'my-location" + wire + b">"


#: Characters of a reason: it may quote what the other side sent, and must fit into any frame.
MOST_REASON: Final = 500


def write_abort(reason: str) -> bytes:
    text = reason[:MOST_REASON].encode("utf-8", "replace")
    return b"<8'op:abort%d\"%b>" % (len(text), text)


def write_gc_exports(positions: list[int], deltas: list[int], form: Form) -> bytes:
    lists = (b"".join([b"%d+" % n for n in positions]), b"".join([b"%d+" % n for n in deltas]))
    return (b"<12'op:gc-export[%b][%b]>" if form.old_gc else b"<13'op:gc-exports[%b][%b]>") % lists


def write_gc_answers(positions: list[int], form: Form) -> bytes:
    listed = b"".join([b"%d+" % n for n in positions])
    return (b"<12'op:gc-answer[%b]>" if form.old_gc else b"<13'op:gc-answers[%b]>") % listed


def write_listen(to: bytes, resolver: int) -> bytes:
    return b"<9'op:listen%b%bf>" % (to, descriptor_bytes(OBJECT, resolver))


def write_select(encoder: Writing, kind: int, to: bytes, key: str | int, answer: int) -> bytes:
    name = SELECTOR_NAMES[kind].encode()
    return b"<%d'%b%b%b%d+>" % (len(name), name, to, encoder.encode(key), answer)
