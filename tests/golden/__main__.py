"""Writes the golden stores of this version: `python -m tests.golden 0.1.0`. Done once, when it is released."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.golden.contents import FILES, SEALS, write


def main(version: str) -> None:
    place = Path(__file__).resolve().parent / version
    place.mkdir()
    for name, seal in SEALS.items():
        with TemporaryDirectory() as keys:
            write(place / name, seal(Path(keys)))
        for file in (place / name).iterdir():
            if file.name not in FILES:
                file.unlink()
        print(f"{place / name} was written")


if __name__ == "__main__":
    main(*sys.argv[1:])
