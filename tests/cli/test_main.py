"""The command as a whole: help, versions, exit codes, standard output that fails, secrets in errors."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

import ocapn
from ocapn import compiled
from ocapn.cli import COMMANDS, ExitCode, command, exits
from ocapn.cli.exits import Failure, failure_of
from ocapn.cli.output import printable, redact
from tests.cli.support import LIMIT, environment, finished, run, started


def test_the_exit_codes_are_what_scripts_rely_on() -> None:
    assert {code.name: code.value for code in ExitCode} == {
        "OK": 0,
        "FAILED": 1,
        "USAGE": 2,
        "NO_SESSION": 3,
        "MALFORMED": 4,
        "TIMEOUT": 5,
        "FILE": 6,
        "BAGGAGE": 7,
        "BUG": 70,
        "INTERRUPTED": 130,
        "PIPE": 141,
        "TERMINATED": 143,
    }


@pytest.mark.parametrize("arguments", [["help"], ["--help"], ["-h"]])
def test_help_names_every_command_and_every_exit_code(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, err) == (0, "")
    for name, found in COMMANDS.items():
        assert f"  {name:<8} {found.summary}\n" in out
    for exit_code in ExitCode:
        assert re.search(rf"^ +{exit_code.value}  {re.escape(exits.MEANINGS[exit_code])}$", out, re.MULTILINE)
    assert "\nExample" in out


@pytest.mark.parametrize(
    "name", [name for one in COMMANDS.values() for name in (one.name, *(part.name for part in one.parts))]
)
def test_the_help_of_a_command_has_an_example_and_its_exit_codes(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    code, out, err = run(capsys, *name.split(), "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: ocapn {name} ")
    assert "\nExample" in out
    assert f"ocapn {name}" in out.partition("\nExample")[2]
    assert "\nExit codes:\n    0  " in out
    assert max(map(len, out.splitlines())) <= 100
    assert run(capsys, "help", *name.split()) == (code, out, err)


def test_without_a_command_the_help_is_printed_and_the_code_is_that_of_misuse(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, err = run(capsys)
    assert code == ExitCode.USAGE
    assert out == run(capsys, "help").out
    assert err == ""


BUILD = "compiled" if compiled else "pure Python"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == (0, f"ocapn {ocapn.__version__}, {BUILD}\n", "")


@pytest.mark.parametrize("arguments", [["cal"], ["help", "cal"], ["cal", "--help"]])
def test_an_unknown_command(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert run(capsys, *arguments) == (2, "", "ocapn: there is no command cal; 'ocapn help' lists them\n")


@pytest.mark.parametrize("module", ["ocapn", "ocapn.cli"])
def test_the_package_can_be_run(module: str) -> None:
    with started("--version", module=module) as process:
        assert finished(process) == (0, f"ocapn {ocapn.__version__}, {BUILD}\n", "")


def test_the_entry_point_is_main() -> None:
    text = (Path(ocapn.__file__).parent.parent / "pyproject.toml").read_text()
    found = re.search(r'^ocapn = "(.*):(.*)"$', text, re.MULTILINE)
    assert found is not None
    assert callable(getattr(importlib.import_module(found[1]), found[2]))


# What goes wrong


def _command(monkeypatch: pytest.MonkeyPatch, what: Callable[[], None]) -> None:
    """Makes `ocapn syrup` do `what`."""

    def body(given: argparse.Namespace) -> None:
        what()

    made = command.Command("syrup", "", "", "", "", (), lambda parser: None, body)
    monkeypatch.setitem(COMMANDS, "syrup", made)


def _raise(error: BaseException) -> Callable[[], None]:
    def what() -> None:
        raise error

    return what


_URI = "ocapn://p.unix/s/very-secret?path=x"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (Failure(ExitCode.TIMEOUT, "slow; wait"), 5, "slow; wait"),
        (
            AssertionError("never"),
            70,
            "a bug in ocapn: AssertionError: never; please report it with what OCAPN_DEBUG=1 shows",
        ),
        (
            KeyError(),
            70,
            "a bug in ocapn: KeyError; please report it with what OCAPN_DEBUG=1 shows",
        ),
        (ocapn.ConnectFailed("no way"), 3, "no way"),
        (ocapn.Aborted("bye"), 3, "the session ended: bye; is the other side still there?"),
        (ocapn.RemoteError("no"), 1, "the other side answered with an error: no"),
        (ocapn.TooBusy("full"), 1, "full"),
        (
            ocapn.BadLocator("wrong"),
            4,
            "wrong; a peer's URI is ocapn://DESIGNATOR.TRANSPORT?HINT=VALUE&..., "
            "an object's has /s/SWISS before the ?",
        ),
        (OSError(28, "No space left on device"), 6, "No space left on device: the output"),
        (SystemExit(3), 1, "code that was called here ended the process (SystemExit)"),
        (KeyboardInterrupt(), 1, "code that was called here ended the process (KeyboardInterrupt)"),
        (ValueError(f"not {_URI} then"), 70, "not ocapn://p.unix/s/…?path=x then"),
    ],
)
def test_errors_are_one_line_and_a_code(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    said: str,
) -> None:
    monkeypatch.delenv("OCAPN_DEBUG", raising=False)
    for raised in (
        error,
        BaseExceptionGroup("", [trio.Cancelled._create(), BaseExceptionGroup("", [error])]),
    ):
        if isinstance(raised, BaseExceptionGroup) and code == ExitCode.BUG:
            continue  # a cancellation that escaped is as much of a bug
        _command(monkeypatch, _raise(raised))
        got, out, err = run(capsys, "syrup")
        assert (got, out) == (code, "")
        assert err.count("\n") == 1
        assert err.startswith("ocapn syrup: ")
        assert said in err


def test_with_debugging_the_traceback_comes_first_and_holds_no_secret(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCAPN_DEBUG", "1")
    _command(monkeypatch, _raise(ocapn.ConnectFailed(f"not {_URI}")))
    code, out, err = run(capsys, "syrup")
    assert (code, out) == (3, "")
    assert err.startswith("Traceback (most recent call last):\n")
    assert err.endswith("\nocapn syrup: not ocapn://p.unix/s/…?path=x\n")
    assert "very-secret" not in err


def test_a_group_is_told_by_what_matters_in_it() -> None:
    group = ExceptionGroup("", [ValueError("noise"), ExceptionGroup("", [ocapn.ConnectFailed("this")])])
    assert failure_of(group).code == ExitCode.NO_SESSION
    assert failure_of(ExceptionGroup("", [BrokenPipeError(), ocapn.ConnectFailed("")])).code == ExitCode.PIPE


def test_lines_hold_neither_secrets_nor_what_moves_the_cursor() -> None:
    assert redact(f"{_URI} and OCAPN://q.onion/s/abc") == "ocapn://p.unix/s/…?path=x and OCAPN://q.onion/s/…"
    assert redact("'ocapn://p.unix/s/abc'") == "'ocapn://p.unix/s/…'"
    assert redact("/tmp/s/abc") == "/tmp/s/abc"
    assert printable("a\nb\x1b[31m\x7f\x9b é\ud800") == "a\\nb\\x1b[31m\\x7f\\x9b é\\ud800"


# Standard output that takes nothing


@pytest.fixture
def syrup(tmp_path: Path) -> str:
    """A file of Syrup whose text is more than a pipe holds."""
    file = tmp_path / "many"
    file.write_bytes(b"1+" * 100_000)
    return str(file)


def test_a_reader_that_leaves_is_no_error_to_tell_of(syrup: str) -> None:
    read, write = os.pipe()
    with open(write, "wb") as stdout, started("syrup", syrup, stdout=stdout) as process:
        stdout.close()
        os.read(read, 1)
        os.close(read)
        assert finished(process) == (ExitCode.PIPE, "", "")


def test_a_reader_that_leaves_ends_the_demo_too() -> None:
    with started("demo") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        process.stdout = None
        assert finished(process) == (ExitCode.PIPE, "", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk(syrup: str) -> None:
    with open("/dev/full", "wb") as stdout, started("syrup", syrup, stdout=stdout) as process:
        assert finished(process) == (ExitCode.FILE, "", "ocapn syrup: No space left on device: the output\n")


def test_standard_streams_that_are_closed(syrup: str) -> None:
    script = '"$0" -m ocapn.cli "$@" <&- >&-'
    for arguments, code, said in (
        ([syrup], 0, ""),
        (["-"], 6, "ocapn syrup: standard input is closed; give a file, or something to read\n"),
    ):
        done = subprocess.run(
            ["sh", "-c", script, sys.executable, "syrup", *arguments],
            env=environment(),
            stderr=subprocess.PIPE,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        assert (done.returncode, done.stderr) == (code, said)
