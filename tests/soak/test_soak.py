"""Ten days of two supervised peers."""

from __future__ import annotations

import pytest

from tests.soak.nodes import soak
from tests.support import trio_test_within


@pytest.fixture(autouse=True)
def invariants() -> None:
    """Not watched after each commit: that takes as long as all the rest."""


def test_ten_days_of_cuts_kills_expiries_and_renewals() -> None:
    @trio_test_within(20 * 86_400.0)
    async def run() -> None:
        one = await soak("ten days", 10.0)
        for what in ("cut", "hold", "kill", "kill both", "close", "jump", "renewed", "held", "retried"):
            assert one.happened[what] > 0, f"{what} has not happened: {one.happened}"
        for status in ("connected", "suspended", "expired", "given_up"):
            assert one.statuses[status] > 0, f"{status} was never reached: {one.statuses}"
        assert one.answers["came"] > 1_000, one.answers

    run()
