"""Keeps the sessions and the durable objects of a peer in a baggage: `ocapn.captp.port`, implemented.

`durable.slots` has their slots, `durable.keeping` the objects, `durable.waiting` what waits, `durable.promises` what
promises wait on, and `durable.values` the values; nothing else of the package knows `ocapn`. spec/baggage.md describes
the rows. At each cut, the slots and objects that have changed since the last are encoded; at opening, all are brought
back, and what ended with a dead process is broken with PeerRestarted, on both sides.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, Final, final

from durable.baggage import Baggage, Batch
from durable.errors import BaggageCorrupt, BaggageFailed, DurableError, NotStorable
from durable.keeping import Objects
from durable.objects import Durable
from durable.outbox import pack_frames, unpack_frames
from durable.promises import Promises
from durable.records import decode, decode_row, encode, encode_flat
from durable.slots import KeptPromise, Slots, ephemeral
from durable.storage import BaggageStorage
from durable.store import key_number, number_key, row_name
from durable.values import (
    PASSED,
    USER,
    Values,
    pack_locator,
    unpack_locator,
)
from durable.waiting import Waiters
from ocapn.captp.delivery import Vow
from ocapn.captp.frames import Agreement, Frames, Terms
from ocapn.captp.handles import LocalTarget, PromiseHandle
from ocapn.captp.node import Node, Tombstone
from ocapn.captp.port import SetAside
from ocapn.captp.session import Session
from ocapn.captp.tables import Import
from ocapn.codec.cbor import CODECS
from ocapn.codec.messages import SYRUP, Codec
from ocapn.codec.operations import Form
from ocapn.crypto import SessionKey, public_id
from ocapn.crypto import session_id as session_id_of
from ocapn.errors import OCapNError, shown
from ocapn.limits import MAX_POSITION

log: Final = logging.getLogger("durable")

#: Of what is kept of one session.
_VERSION: Final = 1
_ABOUT: Final = b"about/"
_ASIDE: Final = b"aside/"
#: To which it is kept when a peer was last heard, and a session begun, seconds.
_ABOUT_STEP: Final = 60
_ID: Final = 32
#: Records of sessions that cannot go on; beyond it the oldest goes.
_MAX_ASIDE: Final = 100


@final
class _Stored:
    """What of a session is in the baggage, its slots aside."""

    __slots__ = ("about", "outbox", "progress", "record", "restarted_at", "sent")

    def __init__(self, sent: int, restarted_at: int = 0) -> None:
        self.about: list[int] = []
        self.restarted_at = restarted_at  # how many frames had been taken at the restart
        self.sent = sent  # the last frame of ours
        self.outbox: deque[tuple[int, int]] = deque()  # the first and last frame of each row
        self.record: list[Any] = []
        self.progress: list[Any] = []


def _numbers(numbers: list[Any]) -> None:
    """Raises BaggageCorrupt unless these are counts, positions or times."""
    if not all(type(number) is int and 0 <= number < MAX_POSITION for number in numbers):
        raise BaggageCorrupt("a count, a position or a time is none", table="session")


def _decoded(row: bytes) -> Any:
    """A row that helps, and without which it goes on; None if it is malformed."""
    try:
        return decode(row, table="node")
    except BaggageCorrupt:
        return None


def _codec_row(codec: Codec) -> list[str]:
    """What a row says of the codec of its session: nothing of Syrup, as rows did before there was another."""
    return [] if codec is SYRUP else [codec.name]


def _codec_of(row: list[str]) -> Codec:
    if not row:
        return SYRUP
    codec = CODECS.get(row[0])
    if codec is None:
        raise BaggageCorrupt("a session has a codec that this program does not know", table="session")
    return codec


@final
class SessionKeeper:
    """Keeps one node in one baggage."""

    def __init__(self, baggage: Baggage, node: Node) -> None:
        self._baggage = baggage
        self._node = node
        self._stored: dict[bytes, _Stored] = {}
        self._keys_removed = False  # and may still stand in the files
        self._unknown: set[bytes] = set()  # sessions whose peer has said that it does not know them
        self.blocks = baggage.blocks
        self._closed = False
        self._touched: set[Session] = set()
        self._promises = Promises(
            node, lambda session_id, position: self._slots.question(session_id, position)
        )
        self._objects = Objects(baggage, node, self.when)
        number, obj = self._objects.number, self._objects.obj
        self._values = self._objects.values = Values(node, number, obj, self._promises)
        self._waiters = Waiters(baggage, node, self._promises, self._values, number, obj)
        self.waits, self.left, self.begins = self._waiters.waits, self._waiters.left, self._waiters.begins
        self._slots = Slots(baggage, node, self._objects, self._promises, self._values, self._waiters)
        baggage.attach(
            node.wake,
            self._gather,
            lambda value: self._values.pack(value, "value", USER),
            self._values.unpack,
        )

    @property
    def failed(self) -> Exception | None:
        return self._baggage.failed

    def close(self) -> None:
        self._closed = True
        self._objects.close()
        self._waiters.close()
        self._baggage.detach()

    # Durable answers

    def when(self, promise: object, obj: Any, fulfilled: str | None, broken: str | None) -> None:
        """See `durable.when`."""
        if self._closed:
            raise DurableError("the peer of this object has ended: it would not be told")
        if not isinstance(promise, PromiseHandle):
            vow = Vow(self._node)
            vow.resolve(promise)
            promise = vow.handle()
        self._objects.number(obj)
        self._waiters.when(promise, obj, fulfilled, broken)

    def holds(self, slot: Import) -> bool:
        return slot.position in self._objects.holders(slot.session)

    # Sturdyrefs

    def export(self, swiss: bytes, obj: object) -> None:
        try:
            row = encode(self._values.pack(obj, "export", PASSED))
        except NotStorable as error:
            if isinstance(obj, Durable):
                ephemeral(obj, error)
            return
        self._baggage.put("swiss", swiss, row)

    def unexport(self, swiss: bytes) -> None:
        self._baggage.remove("swiss", swiss)

    def forget(self, session_id: bytes) -> None:
        self._baggage.remove("node", b"tombstone/" + session_id)
        self._keys_removed = True

    def erase(self) -> None:
        if self._keys_removed:
            self._keys_removed = False
            self._baggage.scrub_soon()

    # Gifts

    def deposited(self, session_id: bytes, gift_id: bytes, gift: object, life: float) -> None:
        if isinstance(gift, Durable):
            try:
                row = [self._objects.number(gift), int(time.time() + life)]
            except NotStorable as error:
                ephemeral(gift, error)
            else:
                self._baggage.put("gift", session_id + gift_id, encode(row))

    def withdrawn(self, session_id: bytes, gift_id: bytes) -> None:
        self._baggage.remove("gift", session_id + gift_id)

    def withdraws(self, vow: Vow, key: tuple[bytes, bytes], through: bytes, life: float) -> None:
        self._waiters.withdraws(vow, key, through, life)

    def given(self, vow: Vow, session_id: bytes, wire: bytes, life: float) -> None:
        self._waiters.given(vow, session_id, wire, life)

    def _restore_gifts(self) -> None:
        """Those that still wait, for no longer than any gift does, whatever the clock says now."""
        for key, data in self._baggage.scan("gift"):
            number, until = decode(data, table="gift")
            left = min(until - time.time(), self._node.limits.gift_life)
            if left > 0:
                gift: LocalTarget = self._objects.obj(number)
                self._node.gifts.restore((key[:32], key[32:]), gift, self._node.now() + left)
            else:
                self._baggage.remove("gift", key)

    # Batches

    def ready(self) -> None:
        self._baggage.ready()

    def cut(self, sessions: Iterable[Session]) -> Batch | None:
        self._touched.update(sessions)
        return self._baggage.cut()

    def _gather(self) -> None:
        """Writes all that has changed into the batch that is about to be cut."""
        self._waiters.save()  # first: it says what other rows wait on
        self._objects.save()
        while sessions := self._touched | self._node.take_touched():
            self._touched = set()
            for session in sessions:
                self._save(session)
            self._objects.save()  # those that were exported for the first time; what they hold touches sessions

    def tries(self, session: Session) -> int:
        return self._try(session, 1)

    def spared(self, session: Session) -> None:
        if session.ended is None and not self._closed:
            self._try(session, -1)

    def _try(self, session: Session, more: int) -> int:
        frames = session.frames
        assert frames is not None
        key = b"trying/" + session.id
        row = self._baggage.read("node", key)
        match None if row is None else _decoded(row):
            case [int(number), int(times)]:
                pass
            case _:
                number = times = 0
        times = max(0, (times if number == frames.taken + 1 else 0) + more)
        self._baggage.put("node", key, encode([frames.taken + 1, times]))
        return int(times)

    def keep_unknown(self, session: Session, said: Sequence[float]) -> None:
        if session.ended is None and session.id in (self._stored if said else self._unknown):
            key = b"unknown/" + session.id
            if said:
                now = time.time()
                self._unknown.add(session.id)
                self._baggage.put("node", key, encode([int(now - ago) for ago in said]))
            else:
                self._unknown.remove(session.id)
                self._baggage.remove("node", key)

    def unknown(self, session: Session) -> list[float]:
        """What a clock that was set back would have happen in the future happens now."""
        row = self._baggage.read("node", b"unknown/" + session.id)
        if row is None:
            return []
        self._unknown.add(session.id)
        now = time.time()
        found = _decoded(row)
        times = (
            [at for at in found if isinstance(at, int) and 0 <= at < MAX_POSITION]
            if isinstance(found, list)
            else []
        )
        return sorted((max(0.0, now - at) for at in times), reverse=True)

    def write(self, batches: Sequence[Batch]) -> None:
        self._baggage.write(batches)

    def written(self, batch: Batch) -> None:
        self._baggage.written(batch)

    def _save(self, session: Session) -> None:
        frames = session.frames
        if session.ended is not None:
            self._erase(session)
            return
        if frames is None or not frames.settled:
            if frames is None:
                session.tables.touched = None  # it will never be kept
            return
        stored = self._stored.get(session.id)
        if stored is None:
            stored = self._stored[session.id] = _Stored(frames.acked)
        self._slots.save(session)
        if session.restarted and frames.taken > stored.restarted_at:
            session.restarted = False
            self._baggage.remove("node", b"trying/" + session.id)
        self._save_frames(session.id, frames, stored)
        self._save_record(session, frames, stored)

    def _save_frames(self, session_id: bytes, frames: Frames, stored: _Stored) -> None:
        rows = stored.outbox
        while rows and rows[0][1] <= frames.acked:
            first, _ = rows.popleft()
            self._baggage.remove("outbox", session_id + number_key(first))
        fresh = frames.sent - max(stored.sent, frames.acked)
        if fresh > 0:
            messages = [message for message, _ in islice(reversed(frames.kept), fresh)]
            first = frames.sent - fresh + 1
            self._baggage.put("outbox", session_id + number_key(first), pack_frames(messages[::-1]))
            rows.append((first, frames.sent))
        stored.sent = frames.sent

    def _save_record(self, session: Session, frames: Frames, stored: _Stored) -> None:
        tables, form, terms = session.tables, session.form, frames.terms
        handoffs = session.handoffs
        offset = self._clock_offset()
        record = [
            session.key.seed,
            session.peer_key,
            pack_locator(session.location),
            [session.dialled, session.authenticated, frames.agreement is Agreement.AGREED],
            [form.old_deliver, form.old_gc, form.text_order, *_codec_row(session.codec)],
            [terms.life, terms.frames, terms.size],
        ]
        if record != stored.record:
            stored.record = record
            self._baggage.put("session", session.id, encode(record))
        progress = [
            [frames.epoch, frames.proven, frames.sent, frames.acked, frames.taken],
            [frames.acked_digest, frames.taken_digest, frames.sent_digest],
            [tables.next_export, tables.next_question],
            [handoffs.next, handoffs.floor, sorted(handoffs.used)],
            0 if session.attached else int(offset + frames.since),
        ]
        if progress != stored.progress:
            stored.progress = progress
            self._baggage.put("progress", session.id, encode_flat(progress))

        about = [
            _VERSION,
            int(offset + session.begun),
            int(offset + session.renewed),
            int(offset + session.last_heard),
        ]
        for now, then in zip(about, stored.about or [0] * 4, strict=True):
            if abs(now - then) >= _ABOUT_STEP:
                stored.about = about
                self._baggage.put("node", _ABOUT + session.id, encode(about))
                break

    def _clock_offset(self) -> float:
        """Added to a time on the node's clock it gives the seconds since 1970."""
        return time.time() - self._node.now()

    def _erase(self, session: Session) -> None:
        """The session is over: what is left of it is its tombstone."""
        self._waiters.ended(session.id)
        self._objects.ended(session)
        if self._stored.pop(session.id, None) is None:
            return
        self._baggage.remove("session", session.id)
        self._baggage.remove("progress", session.id)
        self._baggage.remove("node", b"trying/" + session.id)
        self._baggage.remove("node", _ABOUT + session.id)
        if session.id in self._unknown:
            self._unknown.remove(session.id)
            self._baggage.remove("node", b"unknown/" + session.id)
        self._slots.erase(session)
        for key, _ in self._baggage.scan("outbox", session.id):
            self._baggage.remove("outbox", key)
        tombstone = self._node.tombstone(session.id)
        if tombstone is not None:
            left = tombstone.until - self._node.now()
            row = [
                tombstone.key.seed,
                tombstone.peer_key,
                tombstone.reason,
                tombstone.received,
                int(time.time() + left),
            ]
            self._baggage.put("node", b"tombstone/" + session.id, encode(row))
        else:
            self._keys_removed = True

    # After a restart

    def identity(self, transport: str, drawn: str) -> str:
        key = b"designator/" + transport.encode()
        row = self._baggage.read("node", key)
        if row is not None:
            kept: str = decode(row, table="node")
            return kept
        self._baggage.put("node", key, encode(drawn))
        return drawn

    def storage(self) -> BaggageStorage:
        return BaggageStorage(self._baggage, self._node.limits.storage, now=self._node.now)

    def restore(self) -> None:
        self._objects.restore()
        for key, data in self._baggage.scan("node", b"tombstone/"):
            try:
                self._restore_tombstone(key, decode(data, table="node"))
            except Exception as error:
                self._unless_damaged(error)
                log.error("a tombstone cannot be used, and is removed: %s", error)
                self.forget(key.removeprefix(b"tombstone/"))
        sessions = []
        for session_id, data in self._baggage.scan("session"):
            try:
                session = self._restore_session(session_id, decode_row(data, "session"))
            except Exception as error:
                self._set_aside(session_id, data, error)
                continue
            if session is not None:
                sessions.append(session)
        promises: list[KeptPromise] = []
        resolvers: list[KeptPromise] = []
        for session in list(sessions):
            try:
                exported = self._slots.restore_exports(session)
            except Exception as error:
                sessions.remove(session)
                self._set_aside(session.id, self._baggage.read("session", session.id) or b"", error)
                continue
            promises += exported[0]
            resolvers += exported[1]
        for session, _, _, kept in resolvers:
            self._promises.listening(session.id, *kept)
        self._objects.upgrade()
        self._waiters.restore_promises()
        for session, position, count, kept in promises:
            vow = self._slots.restore_promise(session, "export", position, kept)
            session.tables.restore_export(position, vow.handle(), 0, True).count = count
        for session in sessions:
            self._slots.restore_answers(session)
        self._waiters.restore(
            (session, position, entry)
            for session in sessions
            for position, entry in self._slots.resolvers(session)
        )
        for session, position, count, kept in resolvers:  # once it is known who waits for what they resolve
            value = self._promises.resolved_by(session, *kept)
            session.tables.restore_export(position, value, 0, False).count = count
        self._promises.restored()
        self._restore_gifts()
        for swiss, data in self._baggage.scan("swiss"):
            self._node.swiss[swiss] = self._values.unpack(decode_row(data, "swiss"))
        for session in sessions:
            self._slots.settle(session)

    def _set_aside(self, session_id: bytes, data: bytes, error: Exception) -> None:
        """A session cannot be used as it is kept: what can be told of it stays, and the rest goes, its key first."""
        self._unless_damaged(error)
        half = self._node.live(session_id)
        if half is not None:
            why = "it cannot be used as it is kept"
            if half.frames is None:
                half.disconnected(why)
            else:
                half.lose(why)
        peer = None
        try:
            peer = unpack_locator(decode_row(data, "session")[2]).uri
        except Exception:  # it is not readable either
            pass
        log.error(
            "a session is set aside, with %s: %s", "an unknown peer" if peer is None else shown(peer), error
        )
        aside = list(self._baggage.scan("node", _ASIDE))
        if len(aside) >= _MAX_ASIDE:
            oldest, _ = min(aside, key=lambda row: decode(row[1], table="node")[2])
            self._baggage.remove("node", oldest)
        reason = f"{type(error).__name__}: {error}"
        if not isinstance(error, (DurableError, OCapNError, ValueError)):
            reason = f"a record has not the shape of its version ({reason})"
        self._baggage.put("node", _ASIDE + session_id, encode([shown(reason), peer, int(time.time())]))
        self._stored.pop(session_id, None)
        self._baggage.remove("session", session_id)
        if len(session_id) == _ID:  # else it would be the beginning of others
            for table in ("progress", "outbox", "slot", "answer"):
                for key, _ in self._baggage.scan(table, session_id):
                    self._baggage.remove(table, key)
        for kind in (_ABOUT, b"trying/", b"unknown/"):
            self._baggage.remove("node", kind + session_id)
        self._keys_removed = True

    @staticmethod
    def _unless_damaged(error: Exception) -> None:
        """Raises what tells of the store itself, and not of what stands in one of its rows."""
        if isinstance(error, BaggageFailed) or (isinstance(error, BaggageCorrupt) and error.file):
            raise error

    @property
    def aside(self) -> list[SetAside]:
        rows = [(key, decode(data, table="node")) for key, data in self._baggage.scan("node", _ASIDE)]
        return [SetAside(key.removeprefix(_ASIDE), reason, peer, at) for key, (reason, peer, at) in rows]

    def _restore_tombstone(self, key: bytes, row: list[Any]) -> None:
        seed, peer_key, reason, received, until = row
        left = until - time.time()
        if left <= 0:
            self.forget(key.removeprefix(b"tombstone/"))
            return
        session_id = key.removeprefix(b"tombstone/")
        own = SessionKey(seed)
        self._node.remember(
            Tombstone(
                session_id, own, public_id(peer_key), peer_key, reason, received, self._node.now() + left
            )
        )

    def _restore_session(self, session_id: bytes, row: list[Any]) -> Session | None:
        version, begun, renewed, heard = self._about(session_id)
        if version != _VERSION:
            raise BaggageCorrupt(
                f"it has version {version}, and this program reads {_VERSION}", table="session"
            )
        seed, peer_key, location, flags, form, terms = row
        progress = self._baggage.read("progress", session_id)
        if progress is None:
            raise BaggageCorrupt("the counts of a session are missing", table="progress")
        counts, digests, positions, handoffs, since = decode_row(progress, "progress")
        node = self._node
        _numbers([*terms, *counts, *positions, handoffs[0], handoffs[1], *handoffs[2], since])
        dialled, authenticated, agreed = flags
        key = SessionKey(seed)
        if session_id_of(key.public_id, public_id(peer_key)) != session_id:
            raise BaggageCorrupt("its keys are those of another session", table="session")
        session = Session(
            node,
            key=key,
            peer_key=peer_key,
            location=unpack_locator(location),
            dialled=dialled,
            authenticated=authenticated,
            form=Form(*form[:3]),
            now=node.now(),
            codec=_codec_of(form[3:]),
        )
        session.begun, session.renewed = begun, renewed
        epoch, proven, sent, acked, taken = counts
        frames = Frames(
            Agreement.AGREED, session_id, session.key.public_id, session.peer_id, Terms(*terms), node.now()
        )
        stored = _Stored(sent, taken)
        messages = self._restore_outbox(session_id, stored, acked)
        frames.restore(epoch, proven, acked, taken, digests[0], digests[1], messages)
        if frames.sent != sent or frames.sent_digest != digests[2]:
            raise BaggageCorrupt("frames that the peer has not acknowledged are missing", table="outbox")
        tables = session.tables
        tables.next_export, tables.next_question = positions
        used = session.handoffs
        used.next, used.floor, used.used = handoffs[0], handoffs[1], set(handoffs[2])
        self._stored[session_id] = stored
        self._slots.load(session)
        stored.about = [version, *(int(self._clock_offset() + at) for at in (begun, renewed, heard))]
        asleep = 0.0 if not since else max(0.0, time.time() - since)
        session.restored(frames, node.now() - asleep)
        session.last_heard = min(session.last_heard, heard)
        if not agreed:  # the asker never said that it had our answer
            session.lose("the session had not been agreed on when this peer was restarted")
            return None
        return session

    def _about(self, session_id: bytes) -> tuple[int, float, float, float]:
        """The version of what is kept of a session; when it began, was renewed and was heard, on the node's clock."""
        row = self._baggage.read("node", _ABOUT + session_id)
        if row is None:
            raise BaggageCorrupt("it is not known when it began", table="node")
        version, *times = decode(row, table="node")
        if version == _VERSION:
            _numbers(times)
        if version != _VERSION:
            return version, 0.0, 0.0, 0.0
        begun, renewed, heard = (self._node.now() - max(0.0, time.time() - at) for at in times)
        return version, begun, renewed, heard

    def _restore_outbox(self, session_id: bytes, stored: _Stored, acked: int) -> list[bytes]:
        """The frames that the peer has not acknowledged; a row that has some of them may have others before."""
        messages: list[bytes] = []
        for key, data in self._baggage.scan("outbox", session_id):
            first = key_number(key[32:])
            try:
                found = unpack_frames(data)
            except ValueError as error:
                raise BaggageCorrupt(str(error), table="outbox", row=row_name(key)) from None
            stored.outbox.append((first, first + len(found) - 1))
            messages += found[max(0, acked + 1 - first) :]
        return messages
