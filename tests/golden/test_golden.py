"""Each released version's store opens, with all that is in it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import ocapn
from tests.golden.contents import FILES, SEALS, check, write

PLACE = Path(__file__).resolve().parent
VERSIONS = sorted(path.name for path in PLACE.iterdir() if (path / "plain").is_dir())


@pytest.mark.parametrize("name", SEALS)
@pytest.mark.parametrize("version", VERSIONS)
def test_a_golden_store_opens(version: str, name: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir(mode=0o700)
    for file in FILES:
        shutil.copyfile(PLACE / version / name / file, copy / file)
    for _ in range(2):  # also what it was brought to
        check(copy, SEALS[name])


@pytest.mark.parametrize("name", SEALS)
def test_what_this_version_writes_can_be_read_so_too(name: str, tmp_path: Path) -> None:
    write(tmp_path / "made", SEALS[name])
    check(tmp_path / "made", SEALS[name])


def test_there_is_one_of_this_version() -> None:
    assert ocapn.__version__ in VERSIONS
