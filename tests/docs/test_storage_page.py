"""spec/storage.md and the README say of storage what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
import pytest

import durable
from durable.storage import BaggageStorage
from ocapn import AsyncStorageBackend, Quota, Storage, StorageBackend, StorageError, StorageLimits, errors
from ocapn.storage import backend, checks
from tests.docs.support import ROOT, check_first_example

PAGE = (ROOT / "spec" / "storage.md").read_text()
README = (ROOT / "README.md").read_text()


def _rows(header: str) -> list[list[str]]:
    """The rows of the table that begins with `header`, cells stripped."""
    rows = []
    for line in PAGE[PAGE.index(header) :].splitlines()[2:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


@pytest.mark.parametrize("text", [PAGE, README[README.index("## Something kept for each who calls") :]])
def test_the_example_prints_what_it_is_said_to_print(text: str, tmp_path: Path) -> None:
    check_first_example(text, tmp_path)


def test_the_limits() -> None:
    rows = {field.strip("`"): float(default) for _, field, default in _rows("| what | field | default |")}
    assert rows == attrs.asdict(StorageLimits())
    assert f"at most {checks.MAX_PAGE:,} entries" in PAGE
    assert f"at most {checks.MAX_TTL:,.0f}" in PAGE


def test_the_errors_and_the_methods() -> None:
    named = {error.strip("`") for error, _ in _rows("| error | when |")}
    tree = {error.__name__ for error in StorageError.__subclasses__()}
    assert named == tree | {"WrongContext"}
    assert all(hasattr(errors, name) for name in named)
    listed = PAGE[PAGE.index("## What is kept") :].split("\n\n")[1]
    methods = {name for name in vars(Storage) if not name.startswith("_")}
    assert set(re.findall(r"`(\w+)\(", listed.replace("\n", " "))) == methods
    required = {name for name in vars(StorageBackend) if not name.startswith("_")}
    assert required == {name for name in vars(AsyncStorageBackend) if not name.startswith("_")}
    assert required == {"get", "set", "delete", "list"}


def test_the_rows_in_the_baggage() -> None:
    baggage = durable.MemoryBaggage()
    storage = BaggageStorage(baggage, now=lambda: 0.0, wall=lambda: 1e9)
    storage.set(backend.name_of("memory", "a"), "k", checks.encode(1, 100, 1), 10.0, Quota(9, 99))
    rows = [[f"`{key.hex()}`", f"`{value.hex()}`"] for key, value in baggage.scan("user")]
    assert _rows("| key | value |\n| --- | --- |\n| `") == rows
