"""Running the programs that stand in pages."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def check_first_example(text: str, directory: Path) -> None:
    """The first program of a page prints what stands in the block after it."""
    program, printed = re.findall(r"```(?:python)?\n(.*?)```", text, flags=re.DOTALL)[:2]
    file = directory / "example.py"
    file.write_text(program)
    ran = subprocess.run(
        [sys.executable, str(file)],
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert ran.stdout == printed
