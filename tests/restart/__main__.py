"""A campaign by hand: `python -m tests.restart --examples 10000 --seed 1`. A failing run is shrunk and printed."""

from __future__ import annotations

import argparse
import sys
import warnings

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.restart.test_machine import STEPS, Step, play
from tests.support import trio_test


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.restart", description=__doc__)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=int, default=40, help="steps in a run, at most")
    options = parser.parse_args()
    warnings.simplefilter("ignore", RuntimeWarning)  # methods that had not begun when their process crashed

    @seed(options.seed)
    @settings(
        max_examples=options.examples,
        deadline=None,
        database=None,
        derandomize=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(STEPS, min_size=3, max_size=options.longest), st.sampled_from((0.0, 0.003)))
    def campaign(steps: list[Step], delay: float) -> None:
        trio_test(play)(steps, delay)

    campaign()
    print(f"{options.examples} examples of seed {options.seed}, no failure")
    return 0


if __name__ == "__main__":
    sys.exit(main())
