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

#: What runs long, and on the compiled build where both run.
CAMPAIGNS = {"crash", "kills", "soak"}


def pytest_addoption(parser: pytest.Parser) -> None:
    what = f"leave out {', '.join(sorted(CAMPAIGNS))}, but for what the compiled build cannot run"
    parser.addoption("--without-campaigns", action="store_true", help=what)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen = []
    for item in items:
        interpreted = item.get_closest_marker("interpreted")
        if interpreted and compiled:
            item.add_marker(pytest.mark.skip(reason="changes the core, which is compiled"))
        campaign = item.path.parent.name in CAMPAIGNS
        if interpreted or not (campaign and config.getoption("--without-campaigns")):
            chosen.append(item)
    if len(chosen) < len(items):
        left_out = set(items).difference(chosen)
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = chosen


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
