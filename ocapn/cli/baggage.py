"""`ocapn baggage`: what a baggage holds, whether it is whole, its values as JSON, what nobody needs, and its seal."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, NoReturn

from ocapn.cli import baggages, resealing, seals
from ocapn.cli.command import Command
from ocapn.cli.exits import ExitCode, Failure
from ocapn.cli.output import complain, printable, progress
from ocapn.cli.values import from_model
from ocapn.model.locators import PeerLocator, SturdyRef

#: Where `ocapn serve` keeps, in a baggage, the swiss numbers of what it serves.
SERVED_SWISS: Final = ("ocapn.serve", "swiss")

_CODES: Final = (ExitCode.MALFORMED, ExitCode.FILE, ExitCode.BAGGAGE, ExitCode.PIPE)


def _opened(given: argparse.Namespace, corrupt: ExitCode = ExitCode.BAGGAGE) -> AbstractContextManager[Any]:
    options = seals.asked(given)
    return baggages.opened(given.directory, lambda: seals.old_seal(given.directory, options), corrupt)


# inspect


def _inspect(given: argparse.Namespace) -> None:
    view = baggages.inspection()
    with _opened(given) as baggage:
        sizes = view.files(Path(given.directory))
        if given.json:
            _line(_document(view, baggage, sizes, given))
            return
        for line in _described(view, baggage, sizes, given):
            print(printable(line))


def _described(view: Any, baggage: Any, sizes: dict[str, int], given: argparse.Namespace) -> Iterator[str]:
    found = view.summary(baggage)
    now = time.time()
    yield f"{Path(given.directory).absolute()}"
    yield f"  format {view.FORMAT}, store {_id(baggage.store_id)}…, {_size(sum(sizes.values()))} in files"
    yield f"  {seals.described(_sealed_by(given))}"
    yield ""
    ended = f", and {_count(len(found.tombstones), 'tombstone')}" if found.tombstones else ""
    yield f"Sessions: {len(found.sessions)} kept{ended}"
    for session in found.sessions:
        yield from _session(session, now)
    for tombstone in found.tombstones:
        yield f"  ended    session {_id(tombstone.id)}…: {tombstone.reason}"
        yield f"    received {tombstone.received:,} frames; the tombstone goes {_when(tombstone.until, now)}"
    for one in found.aside:
        yield f"  aside    session {_id(one.id)}…, {_when(one.at, now)}: {one.peer or 'with an unknown peer'}"
        yield f"    {one.reason}"
    yield ""
    yield f"Durable objects: {sum(found.kinds.values()):,}"
    for (kind, version), count in sorted(found.kinds.items()):
        yield f"  {count:>10,}  {kind}, version {version}"
    waiting = {
        "promise": "promises that objects are told of",
        "turn": "messages or gifts on their way",
        "gift": "gifts",
    }
    if found.waiting:
        yield "Waiting: " + ", ".join(f"{found.waiting[table]:,} {waiting[table]}" for table in found.waiting)
    yield ""
    hidden = "" if given.secrets or not found.sturdyrefs else " (--secrets shows their swiss numbers)"
    yield f"Sturdyrefs: {found.sturdyrefs:,}{hidden}"
    if given.secrets:
        kinds = {one.number: one.kind for one in view.objects(baggage)}
        for ref in view.sturdyrefs(baggage):
            yield f"  {ref.swiss.hex()}  {_named(view, ref.value, kinds)}"
    yield ""
    yield f"Keys of the application: {sum(keys.count for keys in found.namespaces.values()):,}"
    for path, keys in sorted(found.namespaces.items()):
        yield f"  {keys.count:>10,}  {_size(keys.size):>10}  {'/'.join(path) or '(outside of namespaces)'}"


def _document(view: Any, baggage: Any, sizes: dict[str, int], given: argparse.Namespace) -> dict[str, object]:
    found = view.summary(baggage)
    document: dict[str, object] = {
        "directory": str(Path(given.directory).absolute()),
        "format": view.FORMAT,
        "store": _id(baggage.store_id),
        "sealed": _sealed_by(given),
        "files": sizes,
        "sessions": [_session_document(session) for session in found.sessions],
        "tombstones": [
            {"session": _id(one.id), "reason": one.reason, "received": one.received, "until": one.until}
            for one in found.tombstones
        ],
        "set_aside": [
            {"session": _id(one.id), "reason": one.reason, "peer": one.peer, "at": one.at}
            for one in found.aside
        ],
        "objects": [
            {"kind": kind, "version": version, "count": count}
            for (kind, version), count in sorted(found.kinds.items())
        ],
        "waiting": {table: found.waiting[table] for table in ("promise", "turn", "gift")},
        "sturdyrefs": found.sturdyrefs,
        "namespaces": [
            {"namespace": list(path), "keys": keys.count, "bytes": keys.size}
            for path, keys in sorted(found.namespaces.items())
        ],
    }
    if given.secrets:
        document["swiss"] = [_sturdyref(view, ref) for ref in view.sturdyrefs(baggage)]
    return document


def _sealed_by(given: argparse.Namespace) -> str | None:
    kind: str | None = baggages.durable().sealed_by(given.directory)
    return kind


def _session_document(session: Any) -> dict[str, object]:
    locator = PeerLocator(session.transport, session.designator, session.hints or None)
    counts = ("dialled", "agreed", "epoch", "sent", "acked", "received", "outbox_frames", "outbox_bytes")
    slots = ("exports", "imports", "answers", "questions")
    return {
        "session": _id(session.id),
        "peer": locator.uri,
        **{name: getattr(session, name) for name in (*counts, *slots)},
        "cut_at": session.cut_at or None,
    }


def _id(full: bytes) -> str:
    return full.hex()[:16]


def _session(session: Any, now: float) -> Iterator[str]:
    locator = PeerLocator(session.transport, session.designator, session.hints or None)
    role = "dialled by this peer" if session.dialled else "accepted by this peer"
    state = "kept" if session.agreed else "kept, not yet agreed on"
    yield f"  {state:<8} {locator.uri}"
    yield f"    session {_id(session.id)}…, {role}, epoch {session.epoch}"
    yield (
        f"    frames: {session.sent:,} sent, {session.acked:,} of them acknowledged; "
        f"{session.received:,} received"
    )
    yield f"    outbox: {_count(session.outbox_frames, 'frame')}, {_size(session.outbox_bytes)}"
    yield (
        f"    exports {session.exports:,}, imports {session.imports:,}, "
        f"answers {session.answers:,}, questions {session.questions:,}"
    )
    cut = _when(session.cut_at, now) if session.cut_at else "when this was written"
    yield f"    last connected {cut}"


def _named(view: Any, value: Any, kinds: dict[int, str]) -> str:
    mark = view.mark_of(value)
    if mark is not None and mark[0] == "o":
        return f"durable object {mark[1]}, {kinds.get(mark[1], 'which is missing')}"
    return json.dumps(_json(view, value, secrets=True))


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _size(size: int) -> str:
    return f"{size:,} bytes" if size < 10_000 else f"{size / 1024:,.0f} KiB"


def _when(at: float, now: float) -> str:
    date = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
    away = abs(now - at)
    for unit, seconds in (("day", 86_400), ("hour", 3_600), ("minute", 60), ("second", 1)):
        if away >= seconds or unit == "second":
            text = _count(round(away / seconds), unit)
            return f"{date} ({f'{text} ago' if at <= now else f'in {text}'})"
    raise AssertionError


# verify


def _verify(given: argparse.Namespace) -> None:
    try:
        rows, content = _verified(given)
    except Failure as failure:
        damage = baggages.damage(failure)
        if given.json and damage is not None:
            where = {"file": damage.file or None, "table": damage.table, "row": damage.row}
            _line({"whole": False, "why": str(damage), **where})
        raise
    if given.json:
        _line({"whole": True, "rows": rows, "content": content})
    elif content:
        print(f"{_count(rows, 'row')} checked: each is what was written, and they agree with each other")
    else:
        print(
            f"{_count(rows, 'row')} checked: each is what was written; the content is sealed, and was not checked"
        )


def _verified(given: argparse.Namespace) -> tuple[int, bool]:
    """How many rows there are, and whether their content could be checked."""
    view = baggages.inspection()
    options = seals.asked(given)
    with baggages.present(given.directory, ExitCode.FAILED):
        if not seals.openable(given.directory, options):
            with progress("ocapn baggage verify: reading all rows"):
                return baggages.durable().verify_sealed(given.directory), False
    with _opened(given, ExitCode.FAILED) as baggage:
        with progress("ocapn baggage verify: reading all rows"):
            rows: int = baggage.verify()
        with progress("ocapn baggage verify: comparing rows") as say:
            view.check(baggage, lambda table, count: say(f"{count:,} of {rows:,}, table {table},"))
    return rows, True


# export


def _export(given: argparse.Namespace) -> None:
    view = baggages.inspection()
    hidden = 0
    with _opened(given) as baggage:
        for path, key, value in view.user_keys(baggage):
            if path == SERVED_SWISS and not given.secrets:
                hidden += 1
                continue
            _line({"namespace": list(path), "key": key, "value": _json(view, value, secrets=given.secrets)})
        for ref in view.sturdyrefs(baggage):
            if given.secrets:
                _line(_sturdyref(view, ref))
            else:
                hidden += 1
    if hidden:
        complain(
            f"ocapn baggage export: {_count(hidden, 'line')} with swiss numbers left out; --secrets shows them"
        )


def _sturdyref(view: Any, ref: Any) -> dict[str, object]:
    return {"swiss": _json(view, ref.swiss), "value": _json(view, ref.value, secrets=True)}


def _line(data: dict[str, object]) -> None:
    print(json.dumps(data, allow_nan=False))


def _json(view: Any, value: Any, *, secrets: bool = False) -> object:
    """A packed value for `json.dumps`: as in `ocapn.cli.values`, with forms for what only a baggage has."""
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is list:
        return [_json(view, one, secrets=secrets) for one in value]
    mark = view.mark_of(value)
    if mark is not None:
        return _marked(view, *mark, secrets=secrets)
    if type(value) is dict:
        members = {key: _json(view, one, secrets=secrets) for key, one in view.fields(value).items()}
        return {"$struct": members} if any(key.startswith("$") for key in members) else members
    return from_model(value)  # bytes, floats


def _marked(view: Any, mark: str, content: Any, *, secrets: bool) -> object:
    match mark, content:
        case "o", _:
            return {"$object": content}
        case "r", [bytes(session), position]:
            return {"$ref": f"import {position} of session {session.hex()[:16]}"}
        case "s", _:
            return {"$symbol": content}
        case "t", list():
            return {"$tuple": [_json(view, one, secrets=secrets) for one in content]}
        case "g", [tag, inner]:
            return {"$tagged": [tag, _json(view, inner, secrets=secrets)]}
        case "u", [transport, designator, hints, bytes(swiss)]:
            locator = PeerLocator(transport, designator, hints or None)
            return {"$sturdyref": SturdyRef(locator, swiss).uri} if secrets else {"$peer": locator.uri}
        case "l", [transport, designator, hints]:
            return {"$peer": PeerLocator(transport, designator, hints or None).uri}
        case "n", _:
            return {"$null": True}
        case "e", [message, inner]:
            return {"$error": message, "value": _json(view, inner, secrets=secrets)}
    return {"$unknown": mark}


# prune


def _prune(given: argparse.Namespace) -> None:
    view = baggages.inspection()
    with _opened(given) as baggage:
        before = sum(view.files(Path(given.directory)).values())
        with progress("ocapn baggage prune: looking for what nothing leads to") as say:
            pruned = view.prune(
                baggage,
                time.time(),
                dry_run=given.dry_run,
                progress=lambda table, count: say(f"{count:,} rows, table {table},"),
            )
        after = sum(view.files(Path(given.directory)).values())
    did = "would be removed" if given.dry_run else "removed"
    print(f"{_count(len(pruned.tombstones), 'expired tombstone')} {did}")
    if pruned.aside:
        print(f"{_count(len(pruned.aside), 'session')} set aside {did}")
    print(f"{_count(sum(pruned.objects.values()), 'durable object')} that nothing leads to {did}")
    for (kind, version), count in sorted(pruned.objects.items()):
        print(printable(f"  {count:>10,}  {kind}, version {version}"))
    if not given.dry_run:
        print(f"What was deleted is overwritten; the files had {_size(before)}, and have {_size(after)}")


# The commands


def _directory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="the directory of the baggage")
    seals.add_arguments(parser)


def _inspect_arguments(parser: argparse.ArgumentParser) -> None:
    _secrets(parser, "shows the swiss numbers")
    _json_option(parser)


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    _directory(parser)
    _json_option(parser)


def _json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="prints one line of JSON, for programs")


def _secrets(parser: argparse.ArgumentParser, what: str) -> None:
    _directory(parser)
    parser.add_argument("--secrets", action="store_true", help=f"{what}: who knows one may use the object")


_INSPECT: Final = Command(
    name="baggage inspect",
    summary="what a baggage holds: sessions, durable objects, keys",
    usage="DIR [--secrets] [--json] [OPTIONS]",
    description=f"""
Shows what is in a baggage: the sessions with other peers and how far they are, what is left of
those that have ended, how many durable objects there are of each kind, and the keys of the
application by namespace. Needs no code of the application, and changes nothing in it.
{baggages.ALONE}
""",
    epilog="""
What the counts of a session mean:
  epoch      how often it was resumed on a new connection, at least
  sent       frames, that is messages, of this peer, from the first on
  outbox     frames that the other peer has not yet acknowledged as being on its disk
  exports    objects of this peer that the other holds; imports: those of the other held here
  answers    promises that the other peer may still send to; questions: those that it owes

With --json: times are seconds since 1970, cut_at is null of a session that was connected; waiting
has promises that objects are told of, messages (turn) and gifts; values are as in the lines of
'ocapn baggage export'.

Examples:
  $ ocapn baggage inspect /var/lib/hello
  $ ocapn baggage inspect --json /var/lib/hello | jq '.sessions[].peer'
""",
    codes=_CODES,
    add_arguments=_inspect_arguments,
    run=_inspect,
)

_VERIFY: Final = Command(
    name="baggage verify",
    summary="whether a baggage is whole",
    usage="DIR [--json] [OPTIONS]",
    description=f"""
Reads a whole baggage and says whether it is what was written: every row has its digest, none is
missing, SQLite finds its pages in order; frames that a peer has not acknowledged are all there,
slots belong to sessions, and the objects that rows name are there. The exit code is 1 if not,
and the row is named: by a digest of its key, as keys may be secrets. Of a sealed baggage whose key
is not at hand, only the digests, the count, and SQLite's pages are checked: the output says so.
{baggages.ALONE}
""",
    epilog="""
That all files are as they were at some earlier time cannot be seen: the peers that know more see
it when a session resumes.

Example:
  $ ocapn baggage verify /var/lib/hello
  3,120 rows checked: each is what was written, and they agree with each other
  $ ocapn baggage verify --json /var/lib/hello
  {"whole": true, "rows": 3120, "content": true}
""",
    codes=(ExitCode.FAILED, *_CODES),
    add_arguments=_verify_arguments,
    run=_verify,
)

_EXPORT: Final = Command(
    name="baggage export",
    summary="the values of the application as lines of JSON",
    usage="DIR [--secrets] [OPTIONS]",
    description=f"""
Prints what the application keeps in a baggage, a line of JSON for each key, in order: the names
of its namespaces from the outermost in, the key, the value. Swiss numbers are left out unless
asked for; with them come the sturdyrefs and what they stand for.
{baggages.ALONE}
""",
    epilog="""
What JSON has not is an object with one telling key:
  {"$bytes": "aGk="}       bytes, in base64
  {"$float": "nan"}        "nan", "inf" or "-inf"
  {"$symbol": "x"}, {"$tagged": ["t", 1]}, {"$null": true}, {"$tuple": [1]}
  {"$object": 7}           a durable object, by its number
  {"$ref": "..."}          a reference to an object of another peer
  {"$peer": "uri"}         a peer; also in place of a sturdyref, without --secrets
  {"$sturdyref": "uri"}    a sturdyref
  {"$struct": {"$a": 1}}   a dict with a key that begins with $

Example:
  $ ocapn baggage export /var/lib/hello
  {"namespace": ["ledger"], "key": "00000001", "value": {"who": "Ann", "sum": 5}}
""",
    codes=_CODES,
    add_arguments=lambda parser: _secrets(parser, "shows swiss numbers and sturdyrefs"),
    run=_export,
)


def _prune_arguments(parser: argparse.ArgumentParser) -> None:
    _directory(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="says what would be removed, and removes nothing"
    )


_PRUNE: Final = Command(
    name="baggage prune",
    summary="removes what nobody needs any more",
    usage="DIR [--dry-run] [OPTIONS]",
    description=f"""
Removes from a baggage the tombstones of ended sessions that have expired, what is left of
sessions that were set aside, and the durable objects that nothing leads to any more: no
sturdyref, no key of the application, no peer that holds a reference, nothing that waits, and no
durable object that something leads to. Then what was deleted is overwritten in the files.
{baggages.ALONE}
""",
    epilog="""
Example:
  $ ocapn baggage prune --dry-run /var/lib/hello
  1 expired tombstone would be removed
  12 durable objects that nothing leads to would be removed
          12  chat.message, version 1
""",
    codes=_CODES,
    add_arguments=_prune_arguments,
    run=_prune,
)

_PARTS: Final = (
    *(_INSPECT, _VERIFY, _EXPORT, _PRUNE),
    *(resealing.SEAL, resealing.UNSEAL, resealing.ROTATE),
)
_NAMES: Final = ", ".join(part.name.split()[1] for part in _PARTS)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", metavar="ACTION", nargs="?", help=f"one of {_NAMES}")
    parser.add_argument("rest", nargs="*", help=argparse.SUPPRESS)


def _no_action(given: argparse.Namespace) -> NoReturn:
    what = "an action is missing" if given.action is None else f"there is no action {given.action}"
    raise Failure(ExitCode.USAGE, f"{what}; it is one of {_NAMES}; 'ocapn baggage --help' explains")


COMMAND: Final = Command(
    name="baggage",
    summary="look into the state that a peer has on disk, check it, tidy it up",
    usage="ACTION DIR [OPTIONS]",
    description=f"""
A baggage is a directory with the state of one peer and of its application, which outlives the
process: 'ocapn serve --baggage DIR' and durable.open_baggage make one.
{baggages.ALONE}
{seals.HELP}
Actions, each with a --help of its own:
"""
    + "\n".join(f"  {part.name.split()[1]:<8} {part.summary}" for part in _PARTS),
    epilog="""
Example:
  $ ocapn serve --baggage /var/lib/hello --export hello=hello:Hello
  ^C
  $ ocapn baggage inspect /var/lib/hello
  $ ocapn baggage verify --help
""",
    codes=(ExitCode.FAILED, *_CODES),
    add_arguments=_arguments,
    run=_no_action,
    parts=_PARTS,
)
