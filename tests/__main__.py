"""All checks, in one command: `python -m tests`. Arguments go to pytest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CODE = ["ocapn", "durable", "examples", "tests", "spec"]


def main() -> int:
    """Runs the checks in turn, stops at the first that fails, and returns its exit code."""
    python = [sys.executable, "-m"]
    scripts = Path(sys.executable).parent
    checks = [
        ("format", [*python, "ruff", "format", "--check", *CODE]),
        ("lint", [*python, "ruff", "check", *CODE]),
        ("types", [*python, "mypy"]),
        ("imports", [str(scripts / "lint-imports")]),
        ("tests", [*python, "pytest", *sys.argv[1:]]),
    ]
    for name, command in checks:
        print(f"-- {name}: {' '.join(Path(part).name for part in command)}", flush=True)
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        if code:
            print(f"-- {name} failed", file=sys.stderr)
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
