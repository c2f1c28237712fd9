"""For the tests of the public API."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="package", autouse=True)
def _collect_only_what_tests_made() -> Iterator[None]:
    """`quiet` runs the garbage collector, thousands of times here: modules and tools need no looking at."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
