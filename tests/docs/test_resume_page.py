"""spec/resume.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import attrs

from ocapn import Limits
from ocapn.captp import frames, resume, session
from ocapn.captp.frames import Terms, read_terms, terms_of
from ocapn.captp.resume import KEPT, TRANSITIONS
from ocapn.codec.resumption import REASONS, Claims, ResumeAccept, ResumeSession, Transcript
from ocapn.connection import _TRIES
from ocapn.dialling import _UNKNOWN, _USUAL
from ocapn.peer import _EXPIRY
from tests.conformance.encoding import Rec, Sym, read_one

PAGE = (Path(__file__).resolve().parents[2] / "spec" / "resume.md").read_text()


def _rows(header: str, page: str = PAGE) -> list[list[str]]:
    """The rows of the table that begins with `header`, cells stripped."""
    rows = []
    for line in page[page.index(header) :].splitlines()[2:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_the_states() -> None:
    header = "| state | event | next | what is sent | a crash here |"
    initiator, responder = PAGE[PAGE.index("Initiator:\n") :].split("Responder:\n")
    written = {}
    for part, first in ((initiator, "asked"), (responder, "listening")):
        rows = _rows(header, part)
        assert rows[0][0] == first
        for state, event, following, sent, crash in rows:
            assert (state, event) not in written
            written[state, event] = following
            assert sent
            assert crash
    assert written == {
        (state.value, event.value): following.value for (state, event), following in TRANSITIONS.items()
    }


def test_the_refusals() -> None:
    rows = _rows("| reason | sent by | when | signed |")
    assert tuple(reason.strip("`") for reason, *_ in rows) == REASONS
    assert {reason.strip("`"): signed for reason, _, _, signed, _ in rows} == {
        reason: "no" if reason == "unknown" else "yes" for reason in REASONS
    }
    kept = {reason.strip("`") for reason, *_, afterwards in rows if not afterwards.startswith("ends")}
    assert kept | {"unknown"} == set(KEPT)


def test_the_terms() -> None:
    rows = _rows("| term | least | default |")
    names = [name for name, *_ in rows]
    assert names == ["life", "frames", "bytes"]
    least = Terms(*(int(value) for _, value, _ in rows))
    assert attrs.astuple(least) == frames._LEAST
    assert read_terms(least.value) == least
    for at in range(3):
        below = least.value
        below[2 + at] = attrs.astuple(least)[at] - 1
        assert read_terms(below) is None
    assert Terms(*(int(value) for *_, value in rows)) == terms_of(Limits())


def test_the_limits_and_timers() -> None:
    limits = Limits()
    times, seconds = _UNKNOWN
    expected: dict[str, float | str] = {
        "a suspended session": limits.suspended,
        "a suspended session that holds nothing": session._EMPTY_LIFE,
        "frames that are kept": limits.outbox_frames,
        "bytes that are kept": limits.outbox_bytes,
        "the answer whether a session is durable": session._ANSWER_WITHIN,
        "between acknowledgements": session._ALIVE,
        "frames that are acknowledged at once": frames._ACK_AFTER,
        "silence that is a cut": limits.silence,
        "a handshake": limits.handshake,
        "a crossing": resume._CROSSING,
        "before the second try, at first": _USUAL.base,
        "between tries, at most": _USUAL.cap,
        "refusals `unknown` without proof": f"{times} in {seconds:g}",
        "processes that one frame may end": _TRIES,
        "tombstones": limits.tombstones,
        "a tombstone": limits.tombstone_life,
        "suspended sessions that other peers began, or with peers that nobody authenticated": limits.suspended_sessions,
    }
    written: dict[str, Any] = {}
    for what, value, by in _rows("| what | value | set by |"):
        value = value.removesuffix(" s")
        written[what] = value if " in " in value else float(value)
        for name in re.findall(r"`Limits\.(\w+)`", by):
            assert getattr(limits, name) == written[what]
    assert written == expected
    assert f"every {_EXPIRY:g} s" in PAGE


def test_what_is_signed() -> None:
    """The fields of each record, by distinct values."""
    transcript = Transcript(b"session", "memory", b"binding", b"I", b"R")
    claims = [Claims(1, 2, 3, 4, 5, b"i"), Claims(6, 7, 8, 9, 10, b"r")]
    first = ResumeSession(b"session", b"nonce-i", {"hints": "i"}, claims[0], b"")
    accept = ResumeAccept(b"nonce-r", 11, {"hints": "r"}, claims[1], b"")
    signed = {
        "resume": transcript.resume(first.nonce, first.hints, first.claims),
        "accept": transcript.accept(first, accept.nonce, accept.epoch, accept.hints, accept.claims),
        "confirm": transcript.confirm(first, accept),
        "refuse": transcript.refuse(b"nonce", b"sender", b"reader", "retry", 12),
    }
    values = {
        "session": b"session",
        "channel": [Sym("memory"), b"binding"],
        "nonce-i": b"nonce-i",
        "nonce-r": b"nonce-r",
        "I": b"I",
        "R": b"R",
        "epoch": 11,
        "hints-i": {"hints": "i"},
        "hints-r": {"hints": "r"},
        "claims-i": [1, 2, 3, 4, 5, b"i"],
        "claims-r": [6, 7, 8, 9, 10, b"r"],
        "nonce": b"nonce",
        "sender": b"sender",
        "reader": b"reader",
        "reason": Sym("retry"),
        "received": 12,
    }
    rows = _rows("| record | fields |")
    assert len(rows) == len(signed)
    for label, names in rows:
        record, _ = read_one(signed[label.strip("`").removeprefix("ocapn-durable-1:")])
        assert record == Rec(label.strip("`"), *(values[name] for name in names.split(", ")))


def test_the_claims() -> None:
    fields = [field.name for field in attrs.fields(Claims)]
    assert f"`[{' '.join(fields)}]`" in PAGE
