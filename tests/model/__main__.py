"""A campaign by hand: `python -m tests.model --examples 10000 --seed 1`. Failing scripts are shrunk and printed."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from random import Random
from types import FrameType

from tests.model.script import Script, random_script, shrink
from tests.model.world import ModelError, named, play


class Stuck(Exception):
    """A run took far too long: something goes round and round."""


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[None]:
    def ring(_: int, __: FrameType | None) -> None:
        raise Stuck("the run does not end")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def why(script: Script) -> str | None:
    """What is wrong with a run of the script, as the first line of it, or None."""
    try:
        with alarm(10):
            play(script)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, ModelError):
            return f"{error}"
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error} ({last.filename}:{last.lineno})"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=__doc__)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=int, default=60, help="steps in a script, at most")
    parser.add_argument("--cuts", choices=("yes", "no", "some"), default="some")
    parser.add_argument("--durable", action="store_true", help="durable sessions: a cut changes nothing")
    parser.add_argument("--failures", type=int, default=1, help="stop after so many")
    parser.add_argument("--no-shrink", action="store_true")
    options = parser.parse_args()
    cuts = {"yes": True, "no": False, "some": None}[options.cuts]
    random = Random(options.seed)
    began = time.monotonic()
    found = 0
    for number in range(1, options.examples + 1):
        script = random_script(random, cuts=cuts, longest=options.longest, durable=options.durable)
        reason = why(script)
        if reason is not None:
            found += 1
            print(f"\nexample {number} of seed {options.seed}: {reason}", flush=True)
            if not options.no_shrink:
                script = shrink(script, lambda candidate: why(candidate) is not None)
                print(f"shrunk: {why(script)}")
                print(named(script), flush=True)
            if found >= options.failures:
                break
        if number % 100 == 0:
            rate = number / (time.monotonic() - began)
            print(f"\r{number} examples, {found} failures, {rate:.0f}/s", end="", file=sys.stderr, flush=True)
    print(f"\n{number} examples of seed {options.seed}, {found} failures, {time.monotonic() - began:.0f} s")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
