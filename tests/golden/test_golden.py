"""Each released version's store opens, with all that is in it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import ocapn
from durable.header import CALLER, KEY_FILE, PASSPHRASE, read_header
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
        check(copy, SEALS[name](tmp_path))


@pytest.mark.parametrize("name", SEALS)
def test_what_this_version_writes_can_be_read_so_too(name: str, tmp_path: Path) -> None:
    seal = SEALS[name](tmp_path)
    write(tmp_path / "made", seal)
    check(tmp_path / "made", seal)


@pytest.mark.parametrize("version", VERSIONS)
def test_there_is_one_of_every_kind_of_seal(version: str) -> None:
    kinds = {}
    for name in SEALS:
        header = read_header(PLACE / version / name)
        assert header is not None
        kinds[name] = header.sealing and header.sealing.kind
    assert kinds == {"plain": None, "passphrase": PASSPHRASE, "key-file": KEY_FILE, "caller": CALLER}


def test_there_is_one_of_this_version() -> None:
    assert ocapn.__version__ in VERSIONS
