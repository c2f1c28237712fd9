"""What a peer is willing to spend on others, each default with its reason."""

from __future__ import annotations

from typing import Any

import attrs


def positive(_: object, field: attrs.Attribute[Any], value: float) -> None:
    if not value > 0:
        raise ValueError(f"limit {field.name} must be above zero, not {value!r}")


@attrs.frozen(kw_only=True)
class StorageLimits:
    """Bounds on what is kept for those who call, by `ocapn.current_storage()`.

    Sizes are bytes: of keys in UTF-8, and of values as they are kept, in CBOR.
    """

    #: One key: room for a path of identifiers; a key is compared and copied all the time.
    key: int = attrs.field(default=1024, validator=positive)
    #: One value. It is written whole whenever it changes.
    value: int = attrs.field(default=64 << 10, validator=positive)
    #: Containers inside containers in a value, at most 256 as encoding recurses.
    nesting: int = attrs.field(default=64, validator=[positive, attrs.validators.le(256)])
    #: What one peer may keep: keys, and keys and values in bytes.
    peer_keys: int = attrs.field(default=10_000, validator=positive)
    peer_size: int = attrs.field(default=4 << 20, validator=positive)
    #: The same for all peers together, in the backends that `open_peer` makes. Python objects in memory take some
    #: 400 bytes a key more.
    keys: int = attrs.field(default=100_000, validator=positive)
    size: int = attrs.field(default=64 << 20, validator=positive)
    #: Keys in one `get_many`, `set_many` or `delete_many`.
    batch: int = attrs.field(default=1_000, validator=positive)
    #: How long a backend that can block may take for one call, seconds: less than a caller would wait.
    answer: float = attrs.field(default=5.0, validator=positive)


@attrs.frozen(kw_only=True)
class Limits:
    """Bounds on everything that another peer can make this one hold or do.

    Sizes are bytes, durations seconds, all others counts. Exceeding one on receipt aborts the session with the
    limit's name; exceeding one at a send raises at the sender or breaks the send's promise.
    """

    #: One message. A larger value is better sent in pieces: a message is held whole while it is read.
    frame: int = attrs.field(default=1 << 20, validator=positive)
    #: One message before the session is established: a start-session is under 1 KiB, hints included.
    unauthenticated_frame: int = attrs.field(default=8 << 10, validator=positive)
    #: Containers inside containers, at most 256 as encoding recurses. Real arguments stay under ten.
    nesting: int = attrs.field(default=64, validator=[positive, attrs.validators.le(256)])
    #: Decimal digits of an integer: 850 bits, enough for any key, cheap to convert.
    integer_digits: int = attrs.field(default=256, validator=positive)
    #: From accepting or dialling a connection to a session.
    handshake: float = attrs.field(default=10.0, validator=positive)
    #: From the first byte of a message to its last.
    frame_progress: float = attrs.field(default=30.0, validator=positive)
    #: After this long without a byte, a connection yields to a new one from the same location.
    silence: float = attrs.field(default=45.0, validator=positive)
    #: Connections from one source that have not finished their handshake.
    unauthenticated_per_source: int = attrs.field(default=32, validator=positive)
    #: From all sources together: who has many addresses is to leave some of the files that a process may open.
    unauthenticated_in_all: int = attrs.field(default=1_000, validator=positive)
    #: Live imports and exports of a session together.
    slots: int = attrs.field(default=100_000, validator=positive)
    #: Answers a session holds for the peer, and asks of it.
    answers: int = attrs.field(default=10_000, validator=positive)
    #: `async` methods running for one session: each is a task. All sessions that have ended count as one; beyond it
    #: those of the session that ended first are cancelled.
    running_methods: int = attrs.field(default=1_000, validator=positive)
    #: Gifts deposited through one session, and withdrawals waiting in one. Ten times as many may wait that were
    #: deposited through sessions which have ended; beyond it the oldest go first.
    gifts: int = attrs.field(default=1_000, validator=positive)
    #: How long a gift, or a withdrawal of one, may wait for its counterpart.
    gift_life: float = attrs.field(default=600.0, validator=positive)
    #: Sessions that are over and whose gifts may yet be withdrawn, for as long. Beyond it the oldest goes first.
    past_sessions: int = attrs.field(default=10_000, validator=positive)
    #: How long a durable session may be without a connection: a laptop closed overnight finds its sessions again.
    suspended: float = attrs.field(default=86_400.0, validator=positive)
    #: Sessions without a connection that other peers have begun, as a key costs nothing, or with peers that nobody
    #: authenticated: beyond it one ends whose peer has no reference to anything here, or that was cut first.
    suspended_sessions: int = attrs.field(default=5_000, validator=positive)
    #: What is kept of sessions that are over, so that their peers can be told: how long, and of how many.
    tombstone_life: float = attrs.field(default=7 * 86_400.0, validator=positive)
    tombstones: int = attrs.field(default=10_000, validator=positive)
    #: Messages waiting in one session: for the network or, if it is durable, for the peer to acknowledge them. Above
    #: it application sends meet Backpressure. Both peers' limits count for a durable session.
    outbox_frames: int = attrs.field(default=10_000, validator=positive)
    #: The same in bytes. At twice either, the session ends: its peer has stopped reading.
    outbox_bytes: int = attrs.field(default=64 << 20, validator=positive)
    #: Turns of one session waiting to run; above it nothing more is read from its connection.
    queued_turns: int = attrs.field(default=1_000, validator=positive)
    #: Messages queued on the promises of a session that have not resolved yet. All sessions that have ended count as
    #: one; beyond it those of the session that ended first are dropped.
    queued_messages: int = attrs.field(default=10_000, validator=positive)
    #: Bytes of a session's messages whose arguments are kept here: for promises that have not resolved, for running
    #: methods, behind answers that are not released. Python objects take up to 64 times as much.
    kept_bytes: int = attrs.field(default=64 << 20, validator=positive)
    #: Turns in one pass of the loop, so that no sender starves the rest.
    slice_turns: int = attrs.field(default=200, validator=positive)
    #: Flushing what is queued when the peer closes.
    closing: float = attrs.field(default=2.0, validator=positive)
    #: Draining a half-closed connection so that the last message is read.
    draining: float = attrs.field(default=1.0, validator=positive)
    #: What is kept for those who call.
    storage: StorageLimits = attrs.field(factory=StorageLimits)


#: Positions, counts and deltas are below this (durable.md, limits): they fit a signed 64-bit column.
MAX_POSITION = 2**63 - 1
