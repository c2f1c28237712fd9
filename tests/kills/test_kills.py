"""SIGKILL at random moments: `python -m tests.kills` is the longer campaign."""

from __future__ import annotations

from pathlib import Path

from tests.kills.__main__ import campaign


def test_fifty_kills_in_mid_stream(tmp_path: Path) -> None:
    campaign(tmp_path, 50, seed=1)
