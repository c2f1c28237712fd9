"""While batches are written in a thread, threads give way to each other sooner; else as the application has it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import durable
from durable.directory import DirectoryStore
from durable.store import Changes
from ocapn import MemoryNetlayer, MemoryNetwork, open_peer
from ocapn.commits import _GIVES_WAY, _Hurry, _hurry
from tests.support import trio_test_real

USUAL = 0.004


@pytest.fixture(autouse=True)
def interval() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(USUAL)
    yield
    sys.setswitchinterval(before)


def test_as_long_as_anybody_writes() -> None:
    hurry = _Hurry()
    for _ in range(2):
        hurry.begin()
        assert sys.getswitchinterval() == pytest.approx(_GIVES_WAY)
        hurry.begin()
        hurry.end()
        assert sys.getswitchinterval() == pytest.approx(_GIVES_WAY)
        hurry.end()
        assert sys.getswitchinterval() == pytest.approx(USUAL)


def test_what_the_application_sets_meanwhile_stays() -> None:
    hurry = _Hurry()
    hurry.begin()
    sys.setswitchinterval(0.003)
    hurry.end()
    assert sys.getswitchinterval() == pytest.approx(0.003)


def test_an_interval_that_is_shorter_still_stays() -> None:
    sys.setswitchinterval(_GIVES_WAY / 2)
    before = sys.getswitchinterval()
    hurry = _Hurry()
    hurry.begin()
    assert sys.getswitchinterval() == before
    hurry.end()
    assert sys.getswitchinterval() == before


def test_the_interval_does_not_dwindle() -> None:
    hurry = _Hurry()
    for microseconds in range(40, 6000):
        sys.setswitchinterval(microseconds * 1e-6)
        before = sys.getswitchinterval()
        hurry.begin()
        hurry.end()
        assert sys.getswitchinterval() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_that_is_forked_meanwhile_has_the_usual_interval() -> None:
    _hurry.begin()
    child = os.fork()
    if not child:
        usual = sys.getswitchinterval()
        _hurry.begin()
        _hurry.end()
        os._exit(0 if usual == sys.getswitchinterval() == pytest.approx(USUAL) else 1)
    _hurry.end()
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("fails", [False, True])
@trio_test_real
async def test_a_peer_hurries_while_it_writes_and_no_longer(
    fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    commit = DirectoryStore.commit

    def noting(store: DirectoryStore, changes: Changes) -> None:
        seen.append(sys.getswitchinterval())
        if fails:
            raise durable.BaggageFailed("no")
        commit(store, changes)

    monkeypatch.setattr(DirectoryStore, "commit", noting)
    baggage = durable.open_baggage(tmp_path / "baggage")
    try:
        async with open_peer([MemoryNetlayer(MemoryNetwork(), "a")], baggage=baggage) as peer:
            baggage["key"] = 1
            await peer.settled()
            assert sys.getswitchinterval() == pytest.approx(USUAL)
    except* durable.BaggageFailed:
        assert fails
    assert seen[0] == pytest.approx(_GIVES_WAY)
    assert sys.getswitchinterval() == pytest.approx(USUAL)
    monkeypatch.undo()
    baggage.close()
