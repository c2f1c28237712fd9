"""What is in a baggage, for people: read from its rows, so that no kind need be registered and no peer be open.

All of it reads or prunes a baggage that no peer is open with. spec/baggage.md describes the rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Protocol

from durable.baggage import Baggage
from durable.directory import WAL
from durable.errors import BaggageCorrupt
from durable.header import FORMAT, HEADER
from durable.outbox import unpack_frames
from durable.pages import OWN, PLACES, SIZE, entries
from durable.records import decode, encode, marked, unescaped
from durable.sqlite import STATE
from durable.store import TABLES, key_number, number_key, row_name

#: Of tables and rows read so far.
Progress = Callable[[str, int], None]

#: That of a value, as `durable.values` has it, and what a row has around one.
_MAX_DEPTH: Final = 260
_NEXT_OBJECT: Final = b"next-object"
_TOMBSTONE: Final = b"tombstone/"
_KIND: Final = b"kind/"
_ASIDE: Final = b"aside/"
#: Tables of slots, whose keys have a letter after the id of the session.
_SLOTS: Final = ("slot", "answer")
#: By table and that letter, whether the row is a page.
_PAGED: Final = dict.fromkeys(PLACES.values(), True) | {
    (PLACES[kind][0], letter): False for kind, letter in OWN.items()
}
#: Tables whose rows begin with the number of an object; those of `turn` may begin with what a message is queued on, or
#: with None for a gift that is on its way.
_NUMBERED: Final = ("promise", "turn", "gift")
#: Tables that name no object, and are not to be decoded.
_RAW: Final = ("outbox",)
#: Every table is known here: in one that is not, objects might be named that `prune` would not see.
KNOWN: Final = frozenset(
    (
        "node",
        "session",
        "progress",
        "outbox",
        "slot",
        "answer",
        "promise",
        "turn",
        "gift",
        "swiss",
        "object",
        "user",
    )
)
_PAGE: Final = 1000


class Rows(Protocol):
    """A baggage or a store."""

    def scan(
        self, table: str, prefix: bytes = b"", after: bytes | None = None, limit: int | None = None
    ) -> list[tuple[bytes, bytes]]:
        """As `Store.scan`."""


@dataclass(frozen=True)
class Session:
    """One session that is kept. Frames `sent` and `acked` are ours, `received` theirs."""

    id: bytes
    transport: str
    designator: str
    hints: dict[str, str]
    dialled: bool
    agreed: bool
    epoch: int
    sent: int
    acked: int
    received: int
    #: When it was cut, in seconds since 1970; 0 if it was connected when its row was written.
    cut_at: int
    outbox_frames: int
    outbox_bytes: int
    exports: int
    imports: int
    questions: int
    answers: int


@dataclass(frozen=True)
class Tombstone:
    """What is left of a session that has ended. `until` is in seconds since 1970."""

    id: bytes
    reason: str
    received: int
    until: int


@dataclass(frozen=True)
class Aside:
    """What was found of a session that could not be used. `at` is in seconds since 1970."""

    id: bytes
    reason: str
    peer: str | None
    at: int


@dataclass(frozen=True)
class DurableObject:
    """An object as it stands in its row: its state is not unpacked."""

    number: int
    kind: str
    version: int
    state: dict[str, Any]


@dataclass(frozen=True)
class Sturdyref:
    """A swiss number, which is a secret, and what it stands for, packed."""

    swiss: bytes
    value: Any


@dataclass
class Keys:
    """How many keys a namespace has, and the bytes of keys and values."""

    count: int = 0
    size: int = 0


@dataclass
class Summary:
    """Everything that can be told without unpacking an object."""

    sessions: list[Session] = field(default_factory=list)
    tombstones: list[Tombstone] = field(default_factory=list)
    aside: list[Aside] = field(default_factory=list)
    #: How many objects there are of a kind and version.
    kinds: Counter[tuple[str, int]] = field(default_factory=Counter)
    sturdyrefs: int = 0
    #: By the names of the namespaces from the outermost in.
    namespaces: dict[tuple[str, ...], Keys] = field(default_factory=dict)
    #: What waits, by table: promises that an object is told of; messages, withdrawals and gives; deposited gifts.
    waiting: Counter[str] = field(default_factory=Counter)


@dataclass
class Pruned:
    """What was removed, or would be."""

    tombstones: list[Tombstone] = field(default_factory=list)
    aside: list[Aside] = field(default_factory=list)
    objects: Counter[tuple[str, int]] = field(default_factory=Counter)


def is_baggage(path: Path) -> bool:
    """Whether there is a baggage, whole or not, in the directory."""
    return any((path / name).exists() for name in (HEADER, STATE))


def files(path: Path) -> dict[str, int]:
    """The files of a baggage, and their sizes."""
    names = ("LOCK", HEADER, STATE, WAL, f"{STATE}-shm")
    return {name: (path / name).stat().st_size for name in names if (path / name).exists()}


def summary(rows: Rows) -> Summary:
    """What is in the baggage. Raises BaggageCorrupt."""
    found = Summary(list(sessions(rows)), list(tombstones(rows)), list(aside(rows)))
    for one in objects(rows):
        found.kinds[one.kind, one.version] += 1
    for _ in sturdyrefs(rows):
        found.sturdyrefs += 1
    for key, value in _all(rows, "user"):
        path, name = _user_key(key)
        keys = found.namespaces.setdefault(path, Keys())
        keys.count += 1
        keys.size += len(name.encode()) + len(value)
    for table in _NUMBERED:
        for _ in _all(rows, table):
            found.waiting[table] += 1
    return found


def sessions(rows: Rows) -> Iterator[Session]:
    """The sessions that are kept. Raises BaggageCorrupt."""
    for key, data in _all(rows, "session"):
        match _decoded("session", key, data):
            case [
                bytes(),
                bytes(),
                [str(transport), str(designator), dict(hints)],
                [bool(dialled), _, bool(agreed)],
                _,
                _,
            ] if len(key) == 32:
                pass
            case _:
                raise _corrupt("not the row of a session", "session", key)
        (epoch, _, sent, acked, received), _, cut_at = _progress(rows, key)
        kept = [len(frame) for number, frame, _ in _frames(rows, key) if number > acked]
        yield Session(
            id=key,
            transport=transport,
            designator=designator,
            hints=hints,
            dialled=dialled,
            agreed=agreed,
            epoch=epoch,
            sent=sent,
            acked=acked,
            received=received,
            cut_at=cut_at,
            outbox_frames=len(kept),
            outbox_bytes=sum(kept),
            exports=sum(1 for _ in _slots(rows, key, "export")),
            imports=sum(1 for _ in _slots(rows, key, "import")),
            questions=sum(1 for _ in _slots(rows, key, "question")),
            answers=sum(1 for _ in _slots(rows, key, "answer")),
        )


def tombstones(rows: Rows) -> Iterator[Tombstone]:
    """What is left of sessions that have ended. Raises BaggageCorrupt."""
    for key, data in _all(rows, "node", _TOMBSTONE):
        match _decoded("node", key, data):
            case [bytes(), bytes(), str(reason), int(received), int(until), *_]:
                yield Tombstone(key.removeprefix(_TOMBSTONE), reason, received, until)
            case _:
                raise _corrupt("not the row of a tombstone", "node", key)


def aside(rows: Rows) -> Iterator[Aside]:
    """What was found of sessions that could not be used. Raises BaggageCorrupt."""
    for key, data in _all(rows, "node", _ASIDE):
        match _decoded("node", key, data):
            case [str(reason), (str() | None) as peer, int(at)]:
                yield Aside(key.removeprefix(_ASIDE), reason, peer, at)
            case _:
                raise _corrupt("not the row of a session that was set aside", "node", key)


def objects(rows: Rows) -> Iterator[DurableObject]:
    """The durable objects, in the order in which they were first kept. Raises BaggageCorrupt."""
    for key, data in _all(rows, "object"):
        match _decoded("object", key, data):
            case [str(kind), int(version), dict(state)] if len(key) == 8:
                yield DurableObject(key_number(key), kind, version, state)
            case _:
                raise _corrupt("not the row of a durable object", "object", key)


def sturdyrefs(rows: Rows) -> Iterator[Sturdyref]:
    """The swiss numbers, and what each stands for. Raises BaggageCorrupt."""
    for key, data in _all(rows, "swiss"):
        yield Sturdyref(key, _decoded("swiss", key, data))


def user_keys(rows: Rows) -> Iterator[tuple[tuple[str, ...], str, Any]]:
    """The keys of the application: the namespaces from the outermost in, the key, the value as it is packed."""
    for key, data in _all(rows, "user"):
        path, name = _user_key(key)
        yield path, name, _decoded("user", key, data)


def mark_of(value: Any) -> tuple[str, Any] | None:
    """The mark of a packed value that stands for what CBOR has no form for, and what it marks; None for others."""
    if type(value) is dict and (mark := marked(value)) is not None:
        (content,) = value.values()
        return mark, content
    return None


def fields(value: dict[str, Any]) -> dict[str, Any]:
    """The fields of a packed dict by their own names."""
    return {unescaped(key): one for key, one in value.items()}


def check(rows: Rows, progress: Progress = lambda table, rows: None) -> int:
    """Whether the rows agree with each other, and how many were looked at. Raises BaggageCorrupt, naming one.

    Frames that a peer has not acknowledged are all there, and none else; slots and answers belong to sessions; the
    objects that rows name are there. Whether each row is what was written is for `verify`.
    """
    kept = {session.id: session for session in sessions(rows)}
    for session in kept.values():
        _check_frames(rows, session, _progress(rows, session.id)[1])
    known = {one.number for one in objects(rows)}
    held: Counter[tuple[bytes, int]] = Counter()
    for one in objects(rows):
        held.update(_holds(one.state))
    for session_id in kept:
        for kind, (table, _) in PLACES.items():
            found: set[int] = set()
            for key, position in _slots(rows, session_id, kind):
                if position in found:
                    raise _corrupt(f"the {kind} is in a page as well", table, key)
                found.add(position)
        for key, position, entry in _page_entries(rows, session_id, "import"):
            match entry:
                case int(_) if type(entry) is int:
                    holders = 0
                case [int(_), bool(_), int(holders)]:
                    pass
                case _:
                    raise _corrupt("not the entry of an import", "slot", key)
            if holders != held[session_id, position]:
                raise _corrupt("it miscounts the durable objects that hold an import", "slot", key)
    count = 0
    for table in TABLES:
        for key, data in _all(rows, table):
            count += 1
            if not count % _PAGE:
                progress(table, count)
            if table in ("progress", *_SLOTS, *_RAW) and key[:32] not in kept:
                raise _corrupt("it belongs to no session", table, key)
            if table in _SLOTS:
                paged = _PAGED.get((table, key[32:33]))
                if len(key) != 41 or paged is None:
                    raise _corrupt("not the key of a slot", table, key)
                if paged:
                    _page(table, key, data)
            if table == "user":
                _user_key(key)
            if not known.issuperset(named := _named(table, key, data)):
                missing = min(set(named) - known)
                raise _corrupt(f"it names the durable object {missing}, which is not there", table, key)
    for key, data in _all(rows, "node", _NEXT_OBJECT):
        if known and _decoded("node", key, data) <= max(known):
            raise _corrupt("it would give the number of an object to another", "node", key)
    for _ in tombstones(rows):
        pass
    for _ in aside(rows):
        pass
    return count


def prune(
    baggage: Baggage,
    now: float,
    *,
    dry_run: bool = False,
    progress: Progress = lambda table, rows: None,
) -> Pruned:
    """Removes what has expired by `now`, what is left of sessions that were set aside, and the durable objects that
    nothing leads to. Raises BaggageCorrupt.

    What leads to objects: sturdyrefs, values of the application, slots, answers, what waits, and such objects.
    """
    pruned = Pruned(aside=list(aside(baggage)))
    for tombstone in tombstones(baggage):
        if tombstone.until <= now:
            pruned.tombstones.append(tombstone)
    left = _unreferenced(baggage, progress)
    held: Counter[tuple[bytes, int]] = Counter()
    kinds = set()
    for one in objects(baggage):
        if one.number in left:
            pruned.objects[one.kind, one.version] += 1
            held.update(_holds(one.state))
        else:
            kinds.add(one.kind)
    if not dry_run:
        for tombstone in pruned.tombstones:
            baggage.remove("node", _TOMBSTONE + tombstone.id)
        for one_aside in pruned.aside:
            baggage.remove("node", _ASIDE + one_aside.id)
        for number in left:
            baggage.remove("object", number_key(number))
        for (session_id, position), holders in held.items():
            _let_go(baggage, session_id, position, holders)
        for kind, _ in pruned.objects:
            if kind not in kinds:
                baggage.remove("node", _KIND + kind.encode())
        baggage.scrub()
    return pruned


def _let_go(baggage: Baggage, session_id: bytes, position: int, holders: int) -> None:
    """So many fewer objects hold an import; its session may be over."""
    table, letter = PLACES["import"]
    key = session_id + letter + number_key(position // SIZE)
    data = baggage.read(table, key)
    if data is not None:
        page = _page(table, key, data)
        match page.get(position):
            case [count, promise, int(held)]:
                page[position] = [count, promise, held - holders]
                baggage.put(table, key, encode([list(page), list(page.values())]))


def _unreferenced(rows: Rows, progress: Progress) -> set[int]:
    if not KNOWN.issuperset(TABLES):
        raise AssertionError("a table may name objects in a way that is not known here")
    count = 0
    holds: dict[int, list[int]] = {}
    reached: list[int] = []
    for table in TABLES:
        for key, data in _all(rows, table):
            count += 1
            if not count % _PAGE:
                progress(table, count)
            named = _named(table, key, data)
            if table == "object":
                holds[key_number(key)] = named
            else:
                reached += named
    left = set(holds)
    while reached:
        number = reached.pop()
        if number in left:
            left.remove(number)
            reached += holds[number]
    return left


def _check_frames(rows: Rows, session: Session, digests: Any) -> None:
    """Those from `acked` to `sent` are there, and are those whose digest the session knows."""
    digest, _, last = digests
    due = session.acked
    for number, frame, key in _frames(rows, session.id):
        if number <= session.acked:
            continue
        due += 1
        if number != due or number > session.sent:
            raise _corrupt(f"frame {due} of the session should stand here", "outbox", key)
        digest = sha256(digest + frame).digest()
    if due != session.sent:
        raise _corrupt(
            f"of its frames that the peer has not acknowledged the last {session.sent - due} are missing",
            "session",
            session.id,
        )
    if digest != last:
        raise _corrupt("its frames are not those that were sent", "session", session.id)


def _slots(rows: Rows, session_id: bytes, kind: str) -> Iterator[tuple[bytes, int]]:
    """The slots of a kind, in pages or rows of their own: the key of the row, and position. Raises BaggageCorrupt."""
    for key, position, _ in _page_entries(rows, session_id, kind):
        yield key, position
    if kind in OWN:
        for key, _ in _all(rows, PLACES[kind][0], session_id + OWN[kind]):
            yield key, key_number(key[33:])


def _progress(rows: Rows, session_id: bytes) -> tuple[list[int], list[bytes], int]:
    """Of a session, the counts, the digests, and when it was cut. Raises BaggageCorrupt."""
    for key, data in _all(rows, "progress", session_id):
        match _decoded("progress", key, data):
            case [
                [int(_), int(_), int(_), int(_), int(_)] as counts,
                [bytes(_), bytes(_), bytes(_)] as digests,
                [int(_), int(_)],
                [int(_), int(_), list(_)],
                int(cut_at),
            ] if key == session_id:
                return counts, digests, cut_at
        raise _corrupt("not the counts of a session", "progress", key)
    raise _corrupt("its counts are missing", "session", session_id)


def _frames(rows: Rows, session_id: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """The frames of a session in the outbox, with their numbers and the keys of their rows. Raises BaggageCorrupt."""
    for key, data in _all(rows, "outbox", session_id):
        try:
            frames = unpack_frames(data)
        except ValueError as error:
            raise _corrupt(str(error), "outbox", key) from None
        for number, frame in enumerate(frames, key_number(key[32:])):
            yield number, frame, key


def _page(table: str, key: bytes, data: bytes) -> dict[int, Any]:
    """What a page says, by position. Raises BaggageCorrupt."""
    try:
        return entries(key_number(key[33:]), _decoded(table, key, data))
    except ValueError as error:
        raise _corrupt(str(error), table, key) from None


def _page_entries(rows: Rows, session_id: bytes, kind: str) -> Iterator[tuple[bytes, int, Any]]:
    """What the pages of a session say of one kind: the key of the page, position, entry. Raises BaggageCorrupt."""
    table, letter = PLACES[kind]
    for key, data in _all(rows, table, session_id + letter):
        for position, entry in _page(table, key, data).items():
            yield key, position, entry


def _named(table: str, key: bytes, data: bytes) -> list[int]:
    """The numbers of the objects that a row names."""
    if table in _RAW:
        return []
    value = _decoded(table, key, data)
    named: list[int] = []
    if table in _NUMBERED:
        first = value[0] if type(value) is list and value else ""
        if type(first) is int:
            named.append(first)
        elif table != "turn" or not (first is None or type(first) is list):
            raise _corrupt("it does not begin with the number of an object", table, key)
    _collect(value, named)
    return named


def _collect(value: Any, named: list[int]) -> None:
    mark = mark_of(value)
    if mark is not None and mark[0] == "o" and type(mark[1]) is int:
        named.append(mark[1])
    elif type(value) is list:
        for one in value:
            _collect(one, named)
    elif type(value) is dict:
        for one in value.values():
            _collect(one, named)


def _holds(value: Any) -> set[tuple[bytes, int]]:
    """The references to remote objects in a packed value: id of a session, position of the import."""
    mark = mark_of(value)
    if mark is not None and mark[0] == "r":
        session_id, position = mark[1]
        return {(session_id, position)}
    inner = value if type(value) is list else value.values() if type(value) is dict else ()
    return set().union(*map(_holds, inner))


def _user_key(row: bytes) -> tuple[tuple[str, ...], str]:
    path: list[str] = []
    rest = row
    try:
        while rest[:1] == b"n":
            end = 5 + int.from_bytes(rest[1:5], "big")
            if len(rest) <= end:
                break
            path.append(rest[5:end].decode())
            rest = rest[end:]
        if rest[:1] == b"k":
            return tuple(path), rest[1:].decode()
    except UnicodeDecodeError:
        pass
    raise _corrupt("not the key of an application", "user", row)


def _all(rows: Rows, table: str, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
    """Every row with that prefix, a page at a time."""
    after = None
    while page := rows.scan(table, prefix, after, _PAGE):
        yield from page
        if len(page) < _PAGE:
            return
        after = page[-1][0]


def _decoded(table: str, key: bytes, data: bytes) -> Any:
    return decode(data, table=table, row=row_name(key), max_depth=_MAX_DEPTH)


def _corrupt(why: str, table: str, key: bytes) -> BaggageCorrupt:
    return BaggageCorrupt(why, STATE, table, row_name(key))


__all__ = [
    "FORMAT",
    "KNOWN",
    "DurableObject",
    "Keys",
    "Progress",
    "Pruned",
    "Rows",
    "Session",
    "Sturdyref",
    "Summary",
    "Tombstone",
    "check",
    "fields",
    "files",
    "is_baggage",
    "mark_of",
    "objects",
    "prune",
    "sessions",
    "sturdyrefs",
    "summary",
    "tombstones",
    "user_keys",
]
