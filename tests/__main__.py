"""All checks, in one command: `python -m tests`. Arguments go to pytest.

`--compiled`, before any others, runs the tests alone, against a copy of the checkout in which ocapn is compiled
(spec/building.md).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CODE = ["ocapn", "durable", "examples", "tests", "spec", "setup.py"]
PYTHON = [sys.executable, "-m"]


def main(arguments: Sequence[str]) -> int:
    """Runs the checks in turn, stops at the first that fails, and returns its exit code."""
    if arguments[:1] == ["--compiled"]:
        with tempfile.TemporaryDirectory(prefix="ocapn-compiled-") as directory:
            compile_into(Path(directory))
            return check("tests, compiled", [*PYTHON, "pytest", *arguments[1:]], Path(directory))
    checks = [
        ("format", [*PYTHON, "ruff", "format", "--check", *CODE]),
        ("lint", [*PYTHON, "ruff", "check", *CODE]),
        ("types", [*PYTHON, "mypy"]),
        ("imports", [str(Path(sys.executable).parent / "lint-imports")]),
        ("tests", [*PYTHON, "pytest", *arguments]),
    ]
    for name, command in checks:
        code = check(name, command)
        if code:
            return code
    return 0


def check(name: str, command: Sequence[str], place: Path = ROOT) -> int:
    print(f"-- {name}: {' '.join(Path(part).name for part in command)}", flush=True)
    code = subprocess.run(command, cwd=place, check=False).returncode
    if code:
        print(f"-- {name} failed", file=sys.stderr)
    return code


def compile_into(place: Path) -> None:
    """A copy of the checkout with ocapn as a wheel for this platform has it. Exits where that cannot be compiled."""
    print("-- building a wheel, which compiles for a minute or two", flush=True)
    hidden = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist")
    shutil.copytree(ROOT, place, ignore=hidden, dirs_exist_ok=True)
    wheels = place / "dist"
    build = [*PYTHON, "pip", "wheel", "-q", "--no-deps", "-w", str(wheels), str(place)]
    subprocess.run(build, cwd=place, check=True, env={**os.environ, "OCAPN_COMPILED": "1"})
    (wheel,) = wheels.iterdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)
    command = [*PYTHON, "ocapn", "--version"]
    found = subprocess.run(command, cwd=place, check=True, capture_output=True, text=True).stdout
    print(f"-- {found.strip()}: {wheel.name}", flush=True)
    if "compiled" not in found:
        sys.exit("-- nothing was compiled")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
