"""The Hypothesis profiles: `checks` for every run, `campaign` (HYPOTHESIS_PROFILE=campaign) for long ones."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

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
