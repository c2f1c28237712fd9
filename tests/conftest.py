"""The Hypothesis profiles: `checks` for every run, `campaign` (HYPOTHESIS_PROFILE=campaign) for long ones.

And the watch over the invariants of durable sessions, for every test.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from ocapn import compiled
from tests.invariants import Watch, watching

settings.register_profile("checks", derandomize=True, max_examples=100, deadline=None, database=None)
settings.register_profile(
    "campaign",
    max_examples=5_000,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "checks"))


@pytest.fixture(autouse=True)
def invariants() -> Iterator[Watch]:
    """I3, I7, I8, I9: see `tests.invariants`. For tests that break one themselves, to excuse it.

    Functions of a compiled class cannot be wrapped: there, nothing is watched.
    """
    if compiled:
        yield Watch()
        return
    with watching() as watch:
        yield watch
