"""spec/supervision.md says what the code does."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from ocapn import Lease, Reconnect
from ocapn.captp.bootstrap import KEEPALIVE
from ocapn.control import VERSION
from ocapn.listeners import _EVENTS
from ocapn.reconcile import What
from ocapn.supervision import TRANSITIONS, ConnectionStatus, Happening
from tests.docs.test_pages import _rows

PAGE = (Path(__file__).resolve().parents[2] / "spec" / "supervision.md").read_text()


def test_the_transitions() -> None:
    rows = _rows(PAGE, "| status | what happens | then |")
    written = {(before.strip("`"), what): after.strip("`") for before, what, after in rows}
    assert written == dict(TRANSITIONS)
    assert len(rows) == len(written)
    for what in get_args(Happening):
        assert what in {what for _, what in TRANSITIONS}
        assert f"`{what}`" in PAGE or what in ("expired", "ended")


def test_the_statuses() -> None:
    rows = _rows(PAGE, "| status | what | session |")
    assert {status.strip("`") for status, *_ in rows} == {*get_args(ConnectionStatus)}


def test_the_defaults() -> None:
    policy, lease = Reconnect(), Lease()
    written = {name.strip("`"): value for name, value in _rows(PAGE, "| of `Reconnect` | by default |")}
    assert written.pop("attempts") == "for ever"
    assert policy.attempts is None
    assert {name: float(value) for name, value in written.items()} == {
        name: getattr(policy, name) for name in ("base", "factor", "cap", "jitter", "keepalive")
    }
    assert f"`within` seconds (by default {lease.within:g})" in PAGE
    assert f"`queue` messages (by default {lease.queue})" in PAGE
    assert f"more than {_EVENTS} unread" in PAGE
    assert f"`{KEEPALIVE.decode()}`" in PAGE


def test_what_is_compared() -> None:
    assert [what.strip("`") for what, _ in _rows(PAGE, "| what | of |")] == list(get_args(What))


def test_the_status_document() -> None:
    assert f"`version` ({VERSION})" in PAGE
    for key in ("pid", "peer", "connections", "sessions", "storage", "restored", "set_aside"):
        assert f"`{key}`" in PAGE
