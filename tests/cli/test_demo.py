"""`ocapn demo`: what it shows, what it does when something is wrong, and that its children never outlive it."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Sequence

import pytest

import ocapn
from ocapn.cli import ExitCode, demo
from ocapn.cli.exits import Failure
from tests.cli.support import LIMIT, finished, line, run, started

pidfd = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux to watch processes of others")


def test_it_shows_what_it_promises_and_leaves_nothing_behind() -> None:
    with started("demo") as process:
        code, out, err = finished(process)
    assert (code, err) == (0, "")
    steps = re.findall(r"^(\d)\. ", out, re.MULTILINE)
    assert steps == ["1", "2", "3", "4", "5", "6", "7"]
    for text in (
        f"This process is Alice, {process.pid}.",
        "bob = await peer.enliven(sturdyref)     -> <Ref 1 of ocapn://bob-",
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
    assert re.search(
        r"^All sessions, and all three processes' tables, are empty\. Done in \d\.\d s\.$", out, re.MULTILINE
    )
    assert max(map(len, out.splitlines())) <= 105
    secrets = re.findall(r"tcp-testing-only/s/(.*?)\?", out)
    assert secrets == ["…", "…"]


def test_the_trace_shows_what_alice_sees(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "demo", "--trace")
    assert code == 0
    assert "\n7. " in out
    assert '#1 -> <op:start-session "1.0" ' in err
    assert "['visit <desc:sig-envelope <desc:handoff-give " in err
    assert ":…(32 bytes)" in err


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
    uri = "ocapn://bob.tcp-testing-only/s/very-secret?host=127.0.0.1&port=1"
    _children(monkeypatch, f"import time; print('\"{uri}\"', flush=True); time.sleep(1000)")
    monkeypatch.setattr(demo, "_LEAVING", 0.05)
    code, out, err = run(capsys, "demo")
    assert code == ExitCode.NO_SESSION
    assert err.startswith("ocapn demo: cannot reach ocapn://bob.tcp-testing-only?host=127.0.0.1&port=1: ")
    assert err.count("\n") == 1
    assert "very-secret" not in out + err
    _assert_gone(_pids(out))


def test_a_step_that_takes_too_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _children(monkeypatch, "import sys; sys.stdin.read()")
    monkeypatch.setattr(demo, "_PATIENCE", 0.3)
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
    demo._expect("this", [1], [1])
    with pytest.raises(Failure) as caught:
        demo._expect("what stands there", ["Mallory"], ["Alice"])
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
