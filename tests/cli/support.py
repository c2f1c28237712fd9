"""The command in this process and in processes of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import pytest

from ocapn.cli import main

ROOT = Path(__file__).resolve().parents[2]
#: Seconds that a process may take; only failures take as long.
LIMIT = 60
SERVED = "tests.cli.served"


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> Outcome:
    """`ocapn` with these arguments, in this process."""
    capsys.readouterr()
    code = main(arguments)
    out, err = capsys.readouterr()
    return Outcome(code, out, err)


def environment(**more: str) -> dict[str, str]:
    """The environment in which a process finds the package, wherever it runs."""
    kept = {name: value for name, value in os.environ.items() if name not in ("OCAPN_DEBUG", "PYTHONPATH")}
    return {**kept, "PYTHONPATH": str(ROOT), **more}


@contextmanager
def started(
    *arguments: str,
    cwd: Path = ROOT,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] = subprocess.PIPE,
    module: str = "ocapn.cli",
) -> Iterator[subprocess.Popen[str]]:
    """`ocapn` with these arguments as a process; it is killed at the end of the block, or after LIMIT seconds."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=cwd,
        env=environment(),
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )
    timer = threading.Timer(LIMIT, process.kill)
    timer.start()
    try:
        with process:
            try:
                yield process
            finally:
                process.kill()
    finally:
        timer.cancel()


def line(process: subprocess.Popen[str]) -> str:
    """The next line that a process prints; fails with what it said if there is none."""
    assert process.stdout is not None
    text = process.stdout.readline()
    if not text:
        raise AssertionError(f"the process ended: {finished(process)}")
    return text.rstrip("\n")


def finished(process: subprocess.Popen[str]) -> Outcome:
    """What a process left behind at its end."""
    out, err = process.communicate(timeout=LIMIT)
    return Outcome(process.returncode, out or "", err or "")


@contextmanager
def serving(*exports: str, options: Sequence[str] = ()) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """`ocapn serve` with things of `tests.cli.served`, and the URIs that it prints."""
    places = [f"--export={name}={SERVED}:{name}" for name in exports]
    with started("serve", *places, *options) as process:
        yield process, [line(process).partition(" ")[2] for _ in exports]
