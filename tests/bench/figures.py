"""What a benchmark gives: two rates, measured in turn, and their ratio; and the process that is measured against."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import attrs

ROUNDS = 5

Measure = Callable[[], Awaitable[float]]


@attrs.frozen
class Figure:
    """What was measured: how often a second, unless there is another `unit`."""

    rate: float
    baseline: float
    unit: str = "/s"

    @classmethod
    def of(cls, rates: Sequence[float], baselines: Sequence[float]) -> Figure:
        """From single measurements."""
        return cls(statistics.median(rates), statistics.median(baselines))

    @property
    def ratio(self) -> float:
        return self.rate / self.baseline


async def rate(count: int, work: Callable[[int], Awaitable[None]]) -> float:
    """How often a second, of so many."""
    start = time.perf_counter()
    await work(count)
    return count / (time.perf_counter() - start)


async def pair(ours: Measure, baseline: Measure) -> Figure:
    """Both, measured in turn."""
    await ours()  # warm up
    await baseline()
    rates, baselines = [], []
    for _ in range(ROUNDS):
        rates.append(await ours())
        baselines.append(await baseline())
    return Figure.of(rates, baselines)


def thousands(count: float) -> int:
    """About so many, in whole thousands, one at least."""
    return max(1000, int(count) // 1000 * 1000)


@contextmanager
def server(*options: str) -> Iterator[tuple[str, int]]:
    """The served process: the sturdyref's URI, and the port of the raw echo."""
    with served(*options) as told:
        yield told["uri"], told["raw"]


@contextmanager
def served(*options: str) -> Iterator[dict[str, Any]]:
    """The served process: what it says first."""
    command = [sys.executable, "-m", "tests.bench.server", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
