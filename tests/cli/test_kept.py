"""`ocapn serve --baggage`: it goes on where it was stopped."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

import durable
import durable.objects
import ocapn
from durable.header import Header, write_header
from ocapn import E, SturdyRef
from ocapn.cli import ExitCode
from ocapn.netlayers.noise import parse_address
from tests.cli.support import Outcome, finished, line, run, started
from tests.support import trio_test_real

KEPT = "tests.cli.kept"


@contextmanager
def serving(
    baggage: Path, *exports: str, options: Sequence[str] = ()
) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """`ocapn serve --baggage` with things of `tests.cli.kept`, and the URIs that it prints."""
    places = [f"--export={name}={KEPT}:{place}" for name, _, place in (one.partition("=") for one in exports)]
    with started("serve", f"--baggage={baggage}", *places, *options) as process:
        yield process, [line(process).partition(" ")[2] for _ in exports]


def called(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    code, out, err = run(capsys, "call", *arguments)
    return out.strip() if code == 0 else err.strip()


@trio_test_real
async def test_killed_and_started_again_it_goes_on_and_so_does_a_reference_to_it(tmp_path: Path) -> None:
    baggage = tmp_path / "baggage"
    exports = ("counter=Counter", "hello=hello")
    async with ocapn.open_peer([ocapn.NoiseNetlayer(listen=False)]) as peer:
        with serving(baggage, *exports) as (process, before):
            counter = await peer.enliven(before[0])
            hello = await peer.enliven(before[1])
            assert await E(counter).add(1) == 1
            assert await E(hello)("Ann") == "Hello, Ann!"
            process.kill()
            process.wait()
        answer = E(counter).add(10)  # to a process that is gone
        (session,) = peer.sessions
        assert session.durable
        with serving(baggage, *exports) as (process, after):
            assert after == before
            assert await answer == 11
            assert await E(counter).add(100) == 111
            assert session.status == "live"
            # What is of no kind was made anew: the reference is over, the sturdyref is not.
            with pytest.raises(ocapn.RemoteError, match=r"ObjectLost|ended with the process"):
                await E(hello)("Ann")
            assert await E(await peer.enliven(after[1]))("Ann") == "Hello, Ann!"


@trio_test_real
async def test_told_to_stop_and_started_again_it_goes_on(tmp_path: Path) -> None:
    baggage = tmp_path / "baggage"
    before: list[str] = []
    for number, value in ((1, 1), (10, 11), (100, 111)):
        with serving(baggage, "counter=Counter") as (process, uris):
            assert uris == (before or uris)
            before = uris
            async with ocapn.open_peer([ocapn.NoiseNetlayer(listen=False)]) as peer:
                assert await E(await peer.enliven(uris[0])).add(number) == value
            process.send_signal(signal.SIGTERM)
            ended = await trio.to_thread.run_sync(finished, process)
            said = ended.err.splitlines()
            assert (ended.code, ended.out, said[-1]) == (143, "", "ocapn serve: terminated")
            assert ["was made: keep a copy" in one for one in said[:-1]] == ([True] if value == 1 else [])


def test_over_a_socket_file_an_object_of_the_module_is_kept_too(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = ["--listen", f"unix://{tmp_path}/socket", "--trace"]
    for number, value in ((1, 101), (2, 103)):
        with serving(tmp_path / "baggage", "c=counter", options=options) as (process, (uri,)):
            assert called(capsys, uri, "add", str(number)) == str(value)
            process.kill()


@trio_test_real
async def test_with_the_trace_sessions_are_durable_too(tmp_path: Path) -> None:
    with serving(tmp_path / "baggage", "c=Counter", options=["--trace"]) as (process, (uri,)):
        async with ocapn.open_peer([ocapn.NoiseNetlayer(listen=False)]) as peer:
            assert await E(await peer.enliven(uri)).add(1) == 1
            (session,) = peer.sessions
            assert session.durable
        process.send_signal(signal.SIGTERM)
        _, _, err = await trio.to_thread.run_sync(finished, process)
        assert SturdyRef.parse(uri).swiss.hex() not in err


def test_what_is_not_exported_any_more_is_not_served_and_keeps_its_number(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    baggage = tmp_path / "baggage"
    with serving(baggage, "a=Counter", "b=Counter") as (_, (a, b)):
        assert called(capsys, a, "add", "1") == "1"
    with serving(baggage, "b=Counter") as (_, (same,)):
        assert same == b
        assert "the peer does not give the object" in called(capsys, a, "add", "1")
    with serving(baggage, "a=Counter") as (_, (again,)):
        assert again == a
        assert called(capsys, a, "add", "1") == "2"


def test_a_swiss_number_from_a_file_takes_the_place_of_the_one_before(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    baggage = tmp_path / "baggage"
    file = tmp_path / "swiss"
    with serving(baggage, "a=Counter") as (_, (before,)):
        pass
    with serving(baggage, "a=Counter", options=[f"--swiss=a=@{file}"]) as (_, (after,)):
        assert SturdyRef.parse(after).swiss == file.read_bytes()
        assert called(capsys, after, "add", "1") == "1"
        assert "the peer does not give the object" in called(capsys, before, "add", "1")
    with serving(baggage, "a=Counter") as (_, (kept,)):
        assert kept == after
    code, _, err = run(
        capsys,
        *("serve", f"--baggage={baggage}", f"--export=b={KEPT}:hello", f"--export=a={KEPT}:Counter"),
        f"--swiss=b=@{file}",
    )
    assert code == ExitCode.USAGE
    assert err == "ocapn serve: b and a have the same swiss number; use another file\n"


def address(sturdyref: SturdyRef) -> tuple[str, int]:
    return parse_address(sturdyref.peer.hints["addr"])


def test_a_port_that_is_taken_meanwhile(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with serving(tmp_path / "baggage", "a=Counter") as (_, (before,)):
        pass
    ours = SturdyRef.parse(before)
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", address(ours)[1]))
        taken.listen()
        with serving(tmp_path / "baggage", "a=Counter") as (process, (after,)):
            other = SturdyRef.parse(after)
            assert (other.peer.designator, other.swiss) == (ours.peer.designator, ours.swiss)
            assert address(other)[1] != address(ours)[1]
            assert called(capsys, after, "add", "1") == "1"
            process.send_signal(signal.SIGTERM)
            _, _, err = finished(process)
    assert err.startswith("ocapn serve: warning: ")
    assert "not at the port of the last time" in err
    assert err.count("\n") == 2
    with serving(tmp_path / "baggage", "a=Counter") as (_, (again,)):
        assert again == after


def test_an_object_that_becomes_a_function_is_that_under_the_same_sturdyref(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with serving(tmp_path / "baggage", "a=Counter") as (_, (before,)):
        pass
    with serving(tmp_path / "baggage", "a=hello") as (_, (after,)):
        assert after == before
        assert called(capsys, after, "-", '"Ann"') == "'Hello, Ann!'"
    with serving(tmp_path / "baggage", "a=Counter") as (_, (again,)):
        assert again == before
        assert called(capsys, again, "add", "3") == "3"


# What goes wrong


@pytest.fixture
def baggage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A baggage, of which nothing is known yet; `ocapn serve` in this process leaves no traces."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.delenv("OCAPN_DEBUG", raising=False)
    path = tmp_path / "baggage"
    durable.open_baggage(path).close()
    return path


def failed(capsys: pytest.CaptureFixture[str], path: Path, *options: str, place: str = "Counter") -> Outcome:
    outcome = run(capsys, "serve", f"--baggage={path}", f"--export=a={KEPT}:{place}", *options)
    assert outcome.err.count("\n") == 1, outcome
    assert outcome.out == ""
    return outcome


def test_one_that_is_in_use(capsys: pytest.CaptureFixture[str], baggage: Path) -> None:
    with durable.open_baggage(baggage):
        assert failed(capsys, baggage) == (
            ExitCode.BAGGAGE,
            "",
            f"ocapn serve: {baggage} is in use by process {os.getpid()}: end it, or choose another directory\n",
        )


def test_one_that_is_refused(capsys: pytest.CaptureFixture[str], baggage: Path, tmp_path: Path) -> None:
    baggage.chmod(0o755)
    code, _, err = failed(capsys, baggage)
    assert code == ExitCode.BAGGAGE
    assert err == (
        f"ocapn serve: {baggage} is open to other users, and keys will be in it: chmod 700 {baggage}\n"
    )
    other = tmp_path / "other"
    other.mkdir(mode=0o700)
    (other / "file").touch()
    code, _, err = failed(capsys, other)
    assert code == ExitCode.BAGGAGE
    assert err == f"ocapn serve: {other} holds something else (file): choose an empty directory\n"


def test_one_that_cannot_be_made(capsys: pytest.CaptureFixture[str], baggage: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, _, err = failed(capsys, tmp_path / "file" / "baggage")
    assert code == ExitCode.BAGGAGE
    assert err.startswith(f"ocapn serve: cannot open {tmp_path}/file/baggage: ")


def test_one_that_is_damaged(capsys: pytest.CaptureFixture[str], baggage: Path) -> None:
    (baggage / "header.cbor").write_bytes(b"nonsense")
    code, _, err = failed(capsys, baggage)
    assert code == ExitCode.BAGGAGE
    assert err.startswith("ocapn serve: the baggage is damaged: header.cbor: ")
    assert err.endswith("; go back to a copy of it, if there is one\n")


def test_one_of_a_later_version(capsys: pytest.CaptureFixture[str], baggage: Path) -> None:
    write_header(baggage, Header(bytes(32)), 2)
    code, _, err = failed(capsys, baggage)
    assert code == ExitCode.BAGGAGE
    assert err == (
        f"ocapn serve: {baggage} has format 2, this version reads 1: use a later version of what wrote it\n"
    )


def test_a_kind_that_is_not_registered(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def hello(name): return name\n")
    (tmp_path / "kinds.py").write_text(
        "import attrs, durable, ocapn\n@durable.kind('mine.thing')\n@attrs.define\n"
        "class Thing(ocapn.Target):\n    value: int = 0\n"
    )
    with started("serve", "--baggage=b", "--export=t=kinds:Thing", cwd=tmp_path) as process:
        line(process)
    with started("serve", "--baggage=b", "--export=h=mine:hello", cwd=tmp_path) as process:
        assert finished(process) == (
            ExitCode.USAGE,
            "",
            "ocapn serve: the baggage holds objects of the kind 'mine.thing': import the module that registers it, "
            "with @durable.kind('mine.thing', …), before the peer is opened; "
            "'ocapn serve' imports it with --import MODULE\n",
        )
    with started("serve", "--baggage=b", "--export=h=mine:hello", "--import=kinds", cwd=tmp_path) as process:
        line(process)
    with started("serve", "--baggage=b", "--export=h=mine:hello", "--import=nosuch", cwd=tmp_path) as process:
        code, _, err = finished(process)
        assert code == ExitCode.USAGE
        assert err.startswith("ocapn serve: there is no module nosuch; ")


def test_a_kind_of_a_later_version(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, baggage: Path
) -> None:
    with serving(baggage, "a=Counter"):
        pass
    run(capsys, "serve", "--export=a=tests.cli.kept:nosuch")  # imports it
    known = durable.objects.kinds["test.cli.counter"]
    monkeypatch.setattr(known, "version", 3)
    code, _, err = failed(capsys, baggage)
    assert code == ExitCode.USAGE
    assert err.startswith(
        "ocapn serve: the baggage holds version 1 of the kind 'test.cli.counter': register "
    )
    monkeypatch.setattr(known, "version", 0)
    code, _, err = failed(capsys, baggage)
    assert code == ExitCode.BAGGAGE
    assert err.startswith("ocapn serve: the kind 'test.cli.counter' has format 1, this version reads 0: ")


def test_another_kind_under_the_same_name(capsys: pytest.CaptureFixture[str], baggage: Path) -> None:
    with serving(baggage, "a=Counter"):
        pass
    assert failed(capsys, baggage, place="Other") == (
        ExitCode.USAGE,
        "",
        "ocapn serve: the baggage has a Counter as a, and tests.cli.kept:Other is something else; "
        "choose another name\n",
    )


def test_an_object_that_no_baggage_takes(capsys: pytest.CaptureFixture[str], baggage: Path) -> None:
    code, _, err = failed(capsys, baggage, place="Unfit")
    assert code == ExitCode.USAGE
    assert err.startswith("ocapn serve: ")
    assert "a list can change without being noticed" in err


def test_the_port_that_was_listened_at_is_kept_and_not_the_one_that_is_advertised(tmp_path: Path) -> None:
    advertised = ["--advertise", "example.org:443"]
    with serving(tmp_path / "baggage", "a=Counter", options=advertised) as (_, (first,)):
        assert address(SturdyRef.parse(first)) == ("example.org", 443)
    with serving(tmp_path / "baggage", "a=Counter") as (_, (second,)):
        host, port = address(SturdyRef.parse(second))
    assert (host, port == 443) == ("127.0.0.1", False)
    with serving(tmp_path / "baggage", "a=Counter") as (_, (third,)):
        assert third == second
    assert SturdyRef.parse(third) == SturdyRef.parse(first)
