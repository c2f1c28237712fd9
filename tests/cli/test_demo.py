"""`ocapn demo`: what it shows, what it does when something is wrong, and that its children never outlive it."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

import ocapn
from ocapn.cli import ExitCode, baggages, demo, stage, survivors
from ocapn.cli.exits import Failure
from tests.cli.support import LIMIT, finished, line, run, started
from tests.support import trio_test, trio_test_real

pidfd = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux to watch processes of others")


def test_it_shows_what_it_promises_and_leaves_nothing_behind() -> None:
    with started("demo") as process:
        code, out, err = finished(process)
    assert (code, err) == (0, "")
    steps = re.findall(r"^(\d+)\. ", out, re.MULTILINE)
    assert steps == [str(number) for number in range(1, 11)]
    for text in (
        f"This process is Alice, {process.pid}.",
        "bob = await peer.enliven(sturdyref)     -> <Ref 1 of ocapn://",
        "-> 'Hello Alice, this is Bob, process ",
        "3 messages are under way and 0 answers have come",
        "await names                             -> ['Alice']",
        "bell.ring('Alice again')",
        "back is bell -> True",
        "-> ['Alice', 'Alice again', 'Carol']",
        "Carol had a session with Alice; now she has sessions with Alice and Bob.",
    ):
        assert text in out
    rows = re.findall(
        r"^     (\w+, with \w+) +(\d+ -> \d+ +\d+ -> \d+ +\d+ -> \d+ +\d+ -> \d+)$", out, re.MULTILINE
    )
    assert [row[0] for row in rows] == [
        *("Alice, with Bob", "Alice, with Carol", "Bob, with Alice"),
        *("Bob, with Carol", "Carol, with Alice", "Carol, with Bob"),
    ]
    assert set(re.findall(r"-> (\d+)", " ".join(row[1] for row in rows))) == {"0"}
    assert "   All sessions, and all three processes' tables, are empty.\n" in out
    _check_survivors(out)
    assert re.search(r"^Done in \d+\.\d s\.$", out, re.MULTILINE)
    assert max(map(len, out.splitlines())) <= 105
    secrets = re.findall(r"noise/s/(.*?)\?", out)
    assert secrets == ["…", "…"]


def _check_survivors(out: str) -> None:
    """What the second half prints: who was killed, and that every call took effect once."""
    killed = re.findall(
        r"^     (\w+), (\d+), at ([\d,]+) +(\d+) +\d+\.\d\d s(, both at once)?$", out, re.MULTILINE
    )
    assert [row[0] for row in killed] == ["Erik", "Dora", "Erik", "Dora", "Dora", "Erik"]
    for who in ("Dora", "Erik"):  # each is killed as the process that it was started as again
        rows = [row for row in killed if row[0] == who]
        assert [row[1] for row in rows[1:]] == [row[3] for row in rows[:-1]]
    assert [bool(row[4]) for row in killed] == [False] * 4 + [True] * 2
    counts = [int(row[2].replace(",", "")) for row in killed]
    assert all(0 < count < survivors.TOTAL for count in counts), "in mid-stream"
    table = dict(re.findall(r"^     ([a-z ]+?)  +(\d[\d,]* +\d[\d,]*)$", out, re.MULTILINE))
    assert {what: row.split() for what, row in table.items()} == {
        "calls sent": ["3,000", "3,000"],
        "entries in the ledger of who received": ["3,000", "3,000"],
        "doubled": ["0", "0"],
        "missing": ["0", "0"],
        "in wrong order": ["0", "0"],
        "times the sender was killed": ["3", "3"],
    }
    assert "   Sturdyrefs enlivened: 1. Sessions: 1, from the first call to the last, " in out
    found = re.search(r"a directory in (\S+),", out)
    assert found is not None
    assert not os.path.exists(found[1])


def test_the_trace_shows_what_alice_sees(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _without_survivors(monkeypatch)
    code, out, err = run(capsys, "demo", "--trace")
    assert code == 0
    assert "\n7. " in out
    assert '#1 -> <op:start-session "1.0" ' in err
    assert "['visit <desc:sig-envelope <desc:handoff-give " in err
    assert ":…(32 bytes)" in err


def _without_survivors(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_package() -> object:
        raise Failure(ExitCode.BAGGAGE, "a baggage cannot be kept on this system: No module named 'fcntl'")

    monkeypatch.setattr(baggages, "durable", no_package)


def test_where_a_baggage_cannot_be_kept_the_rest_is_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _without_survivors(monkeypatch)
    code, out, err = run(capsys, "demo")
    assert (code, err) == (0, "")
    assert "\n7. " in out
    assert "\n8. " not in out
    assert "\nWhat survives a killed process is not shown: a baggage cannot be kept on this system: " in out


# When something is wrong


def _children(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Makes the children run `code` instead."""
    monkeypatch.setattr(demo, "child_command", lambda name: [sys.executable, "-c", code])


def _pids(out: str) -> list[int]:
    found = re.search(r"She starts Bob, (\d+), and Carol, (\d+)\.", out)
    assert found is not None, out
    return [int(found[1]), int(found[2])]


def _assert_gone(pids: Sequence[int]) -> None:
    """The processes have ended and were waited for."""
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_child_that_ends_by_itself(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _children(monkeypatch, "import sys; print('one\\nlast words', file=sys.stderr); sys.exit(7)")
    code, out, err = run(capsys, "demo")
    assert code == ExitCode.FAILED
    assert err == "ocapn demo: the process of Bob ended by itself, with exit code 7: last words\n"
    _assert_gone(_pids(out))


def test_a_child_that_cannot_be_started(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "child_command", lambda name: ["/nonexistent/python"])
    code, _, err = run(capsys, "demo")
    assert code == ExitCode.FAILED
    assert err.startswith("ocapn demo: cannot start a process for bob: ")
    assert err.count("\n") == 1


def test_a_child_that_cannot_be_reached_and_does_not_leave(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = "ocapn://" + 52 * "a" + ".noise"
    uri = f"{peer}/s/very-secret?addr=127.0.0.1:1"
    _children(monkeypatch, f"import time; print('\"{uri}\"', flush=True); time.sleep(1000)")
    monkeypatch.setattr(stage, "LEAVING", 0.05)
    code, out, err = run(capsys, "demo")
    assert code == ExitCode.NO_SESSION
    assert err.startswith(f"ocapn demo: cannot reach {peer}?addr=127.0.0.1%3A1: ")
    assert err.count("\n") == 1
    assert "very-secret" not in out + err
    _assert_gone(_pids(out))


def test_a_step_that_takes_too_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _children(monkeypatch, "import sys; sys.stdin.read()")
    monkeypatch.setattr(stage, "PATIENCE", 0.3)
    code, out, err = run(capsys, "demo")
    assert (code, err) == (ExitCode.FAILED, "ocapn demo: step 1 of the demo took over 0.3 s\n")
    _assert_gone(_pids(out))


def test_what_is_not_collected_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[object] = []

    enliven = ocapn.Peer.enliven

    async def keeping(peer: ocapn.Peer, sturdyref: ocapn.SturdyRef | str) -> object:
        kept.append(await enliven(peer, sturdyref))
        return kept[-1]

    monkeypatch.setattr(ocapn.Peer, "enliven", keeping)
    monkeypatch.setattr(demo, "_COLLECTING", 0.2)
    code, out, err = run(capsys, "demo")
    assert code == ExitCode.FAILED
    assert err.startswith("ocapn demo: not everything was collected: ")
    assert err.endswith("; please report this as a bug of ocapn\n")
    # How much else was still on its way by then is a matter of luck.
    for text in (
        r"Alice keeps \d imports of the session with Bob",
        r"Bob keeps \d exports of the session with Alice",
        r"Carol keeps \d exports of the session with Alice",
    ):
        assert re.search(text, err), err
    assert err.count("\n") == 1
    _assert_gone(_pids(out))


def test_an_answer_that_is_not_as_it_should_be() -> None:
    stage.expect("this", [1], [1])
    with pytest.raises(Failure) as caught:
        stage.expect("what stands there", ["Mallory"], ["Alice"])
    assert caught.value.code == ExitCode.FAILED
    assert caught.value.what == (
        "what stands there is ['Mallory'] and should be ['Alice']; please report this as a bug of ocapn"
    )


@pytest.mark.parametrize("slow", ["soon", "-1", "nan"])
def test_misuse(capsys: pytest.CaptureFixture[str], slow: str) -> None:
    code, out, err = run(capsys, "demo", "--slow", slow)
    assert (code, out) == (ExitCode.USAGE, "")
    assert err.startswith("ocapn demo: argument --slow: ")
    assert err.endswith("; 'ocapn demo --help' explains\n")


def _teller() -> stage.Teller:
    return stage.Teller(0, trio.CancelScope())


@pytest.mark.parametrize(
    ("ledger", "faults"),
    [
        ({0: [0], 1: [1], 2: [2]}, [0, 0, 0]),
        ({0: [0], 1: [1, 2], 2: [3]}, [1, 0, 0]),
        ({0: [0], 2: [1]}, [0, 1, 0]),
        ({0: [1], 1: [0], 2: [2]}, [0, 0, 1]),
        ({}, [0, 3, 0]),
    ],
)
def test_a_ledger_that_is_wrong(ledger: dict[int, list[int]], faults: list[int]) -> None:
    assert list(survivors._Account(ledger, {}, []).faults(3).values()) == faults


@trio_test
async def test_a_ledger_that_is_wrong_is_shown_and_ends_the_demo(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    states = {"ocapn.demo.stream": {"next": 2, "enlivened": 1}, "ocapn.demo.counter": {"value": 2}}
    accounts = {
        "dora": survivors._Account({0: [0], 1: [1]}, states, [2]),
        "erik": survivors._Account({0: [0, 1], 1: [2]}, states, [2]),
    }
    monkeypatch.setattr(survivors, "account", lambda path: accounts[path.name])
    lives = {name: survivors._Life(name, tmp_path) for name in survivors.NAMES}
    with pytest.raises(Failure) as caught:
        await survivors._compare(_teller(), lives, tmp_path)
    assert caught.value.code == ExitCode.FAILED
    assert caught.value.what == "of the calls to Erik, 1 are doubled; please report this as a bug of ocapn"
    assert re.search(r"^     doubled +1 +0$", capsys.readouterr().out, re.MULTILINE)


@trio_test_real
async def test_a_survivor_that_does_not_survive(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import sys; print(0, flush=True); print('gone', file=sys.stderr); sys.exit(9)"
    monkeypatch.setattr(survivors, "child_command", lambda name, directory: [sys.executable, "-c", code])
    with pytest.raises(Failure) as caught:
        await survivors.show(_teller())
    assert caught.value.code == ExitCode.FAILED
    assert caught.value.what == "the process of Erik ended by itself, with exit code 9: gone"


@trio_test_real
async def test_a_survivor_that_has_lost_what_it_had(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys; print(0, flush=True); print(700, flush=True); sys.stdin.read()"
    monkeypatch.setattr(survivors, "child_command", lambda name, directory: [sys.executable, "-c", code])
    with pytest.raises(Failure, match="Erik had 700 numbers, and 0 after a restart"):
        await survivors.show(_teller())


# Children never outlive their parent


def _running(process: subprocess.Popen[str]) -> str:
    """What a demo prints up to its first pause, when both children serve."""
    out = ""
    while "no lists of rights" not in out:
        out += line(process) + "\n"
    return out


@pytest.mark.parametrize(
    ("signum", "code", "said"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_ends_all_three(signum: signal.Signals, code: int, said: str) -> None:
    with started("demo", "--slow", "1000") as process:
        pids = _pids(_running(process))
        process.send_signal(signum)
        assert finished(process) == (code, "", f"ocapn demo: {said}\n")
        _assert_gone(pids)


def test_a_signal_while_the_children_start() -> None:
    with started("demo", "--slow", "1000") as process:
        out = "".join(line(process) + "\n" for _ in range(4))
        pids = _pids(out)
        process.send_signal(signal.SIGINT)
        code, _, err = finished(process)
        assert (code, err) == (130, "ocapn demo: interrupted\n")
        _assert_gone(pids)


def test_a_signal_while_survivors_are_killed() -> None:
    with started("demo") as process:
        out = ""
        while "Erik, " not in out.partition("killed by SIGKILL")[2]:
            out += line(process) + "\n"
        process.send_signal(signal.SIGINT)
        code, more, err = finished(process)
    assert (code, err) == (130, "ocapn demo: interrupted\n")
    found = re.search(r"Dora, (\d+), and Erik, (\d+)", out)
    again = re.findall(r"^     (?:Erik|Dora), \d+, at [\d,]+ +(\d+) ", out + more, re.MULTILINE)
    assert found is not None
    _assert_gone([int(pid) for pid in (*found.groups(), *again)])
    directory = re.search(r"a directory in (\S+),", out)
    assert directory is not None
    assert not os.path.exists(directory[1])


@pidfd
def test_children_end_also_when_the_parent_is_killed() -> None:
    with started("demo", "--slow", "1000") as process:
        pids = _pids(_running(process))
        watched = [os.pidfd_open(pid) for pid in pids]
        try:
            process.kill()
            for fd in watched:
                assert select.select([fd], [], [], LIMIT)[0], "a child outlives its parent"
        finally:
            for fd in watched:
                os.close(fd)
