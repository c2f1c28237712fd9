"""All checks, in one command: `python -m tests`. Arguments go to pytest.

The tests run twice, at the same time: on the source as it is, without the crash, kill and soak runs; and all of them
on a copy of the checkout in which ocapn is compiled (spec/building.md). Where nothing can be compiled, all run once.
`--pure` or `--compiled`, before any others, runs all tests on that one alone, and no other check.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CODE = ["ocapn", "durable", "examples", "tests", "spec", "setup.py"]
PYTHON = [sys.executable, "-m"]
PYTEST = [*PYTHON, "pytest"]


def main(arguments: Sequence[str]) -> int:
    """Runs the checks in turn, stops at the first that fails, and returns its exit code."""
    if arguments[:1] == ["--pure"]:
        return check("tests, pure Python", [*PYTEST, *arguments[1:]])
    if arguments[:1] == ["--compiled"]:
        return both(arguments[1:], pure=False)
    checks = [
        ("format", [*PYTHON, "ruff", "format", "--check", *CODE]),
        ("lint", [*PYTHON, "ruff", "check", *CODE]),
        ("types", [*PYTHON, "mypy"]),
        ("imports", [str(Path(sys.executable).parent / "lint-imports")]),
    ]
    for name, command in checks:
        code = check(name, command)
        if code:
            return code
    return both(arguments, pure=True)


def both(arguments: Sequence[str], pure: bool) -> int:
    """The tests on the compiled build and, meanwhile and if `pure`, most of them on the source as it is."""
    with tempfile.TemporaryDirectory(prefix="ocapn-compiled-") as directory:
        place = Path(directory)
        if not compile_into(place):
            return check("tests, pure Python", [*PYTEST, *arguments])
        if not pure:
            return check("tests, compiled", [*PYTEST, *arguments], place)
        output = place / "pure.txt"
        command = [*PYTEST, "--without-campaigns", *arguments]
        with (
            output.open("wb") as file,
            subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file) as other,
        ):
            try:
                code = check("tests, compiled", [*PYTEST, *arguments], place)
            except BaseException:
                other.kill()
                raise
            print("-- tests, pure Python, which ran meanwhile: pytest --without-campaigns", flush=True)
            pure_code = other.wait()
        print(output.read_text(errors="replace"), end="", flush=True)
    if pure_code == pytest.ExitCode.NO_TESTS_COLLECTED and not code:
        pure_code = 0  # all that was chosen are campaigns
    if pure_code:
        print("-- tests, pure Python, failed", file=sys.stderr)
    return code or pure_code


def check(name: str, command: Sequence[str], place: Path = ROOT) -> int:
    print(f"-- {name}: {' '.join(Path(part).name for part in command)}", flush=True)
    code = subprocess.run(command, cwd=place, check=False).returncode
    if code:
        print(f"-- {name} failed", file=sys.stderr)
    return code


def compile_into(place: Path) -> bool:
    """A copy of the checkout with ocapn as a wheel for this platform has it; False where there is no compiler."""
    compiler = (shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "") or ["cc"])[0]
    header = Path(sysconfig.get_path("include"), "Python.h")
    if sys.implementation.name != "cpython" or not shutil.which(compiler) or not header.exists():
        print(f"-- nothing is compiled here, for want of CPython, {compiler} or {header}", flush=True)
        return False
    print("-- building a wheel, which compiles for a minute or two", flush=True)
    hidden = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist")
    shutil.copytree(ROOT, place, ignore=hidden, dirs_exist_ok=True)
    wheels = place / "dist"
    build = [*PYTHON, "pip", "wheel", "-q", "--no-deps", "-w", str(wheels), str(place)]
    environment = {**os.environ, "OCAPN_COMPILED": "1", "OCAPN_PURE": ""}
    if subprocess.run(build, cwd=place, check=False, env=environment).returncode:
        sys.exit("-- it cannot be compiled: above is why")
    (wheel,) = wheels.iterdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)
    command = [*PYTHON, "ocapn", "--version"]
    found = subprocess.run(command, cwd=place, check=True, capture_output=True, text=True).stdout
    print(f"-- {found.strip()}: {wheel.name}", flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
