"""The examples do what they say, over real connections."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import trio_test_real

ROOT = Path(__file__).resolve().parents[2]

SAID = {
    "greeter": ["Hello, Bob!", "Hello, Carol!"],
    "car_factory": ["Vroom! I am a red zoomracer car!"],
    "chat": [
        "refused: NameTaken: Bob is here already",
        "Carol hears Bob: hello, all",
        "Carol hears Bob: a word between us",
        "Bob's peer has a session with Carol's: True",
    ],
    "attenuation": ["Draft", "Final", "no method is called 'write'"],
    "supervision": [
        "connecting → connected",
        "tick 1",
        "connected → expired",
        "waiting: 1",
        "tick 2",
        "expired → connected",
        "tick 3",
        "connected → suspended",
        "suspended → connected",
        "restored: ocapn://clock.memory",
        "changed: []",
    ],
    "sealed": [
        "in use by a process that is known: True",
        "the note is in the files: False",
        "rows that are as they were written: 1",
        "notes is sealed: it opens with its passphrase or key",
        "the seal does not open this baggage: another passphrase or key does, or its header was changed",
        "opened: nobody else's business",
    ],
    "versions": [
        "{'text': 'Shopping milk eggs'}",
        "{'title': 'Shopping', 'words': ('milk', 'eggs')}",
        "{'title': 'Shopping', 'words': ('milk', 'eggs')}",
        "the kind 'example.note' has format 2, this version reads 1: use a later version of what wrote it",
    ],
    "revocation": ["page 1", "Revoked: this was given for a while, and the while is over"],
}


def test_every_example_is_tested() -> None:
    files = {path.stem for path in (ROOT / "examples").glob("*.py")} - {"__init__"}
    assert files == set(SAID)


@pytest.mark.parametrize("name", SAID)
def test_example(name: str) -> None:
    example = importlib.import_module(f"examples.{name}")
    results: list[object] = []

    @trio_test_real
    async def run() -> None:
        results.append(await example.main())

    run()
    assert results == [SAID[name] if name != "car_factory" else SAID[name][0]]


def test_an_example_runs_as_a_program() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "examples.chat"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert ran.stdout.splitlines() == SAID["chat"]
