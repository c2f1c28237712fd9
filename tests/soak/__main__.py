"""Longer than in the checks: `python -m tests.soak --days 300 --seed 7`."""

from __future__ import annotations

import argparse
import time

from tests.soak.nodes import DAY, soak
from tests.support import trio_test_within


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--days", type=float, default=100.0, help="of mock time")
    parser.add_argument("--seed", default="1")
    given = parser.parse_args()
    began = time.monotonic()

    @trio_test_within(2 * given.days * DAY)
    async def run() -> None:
        await soak(given.seed, given.days, lambda line: print(line, flush=True))

    run()
    print(f"nothing lost, doubled or overtaken, nothing has grown; {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
