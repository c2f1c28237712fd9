"""The searches, in tables: `python -m spec.models [--long | --mutants] [--traces]`. Exit status 1 if anything fails."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence

from spec.models.group_commit import search_commits
from spec.models.mutants import LIMIT, MUTANTS, Mutant, Verdict, run
from spec.models.resume import CONFIGS, LARGER, Config, Result, search

LONG_LIMIT = 500_000  # states of one configuration


def show_trace(trace: Sequence[str]) -> None:
    for number, line in enumerate(trace, 1):
        print(f"    {number:3}  {line}")


def show_result(result: Result, seconds: float) -> None:
    how = "" if result.complete else "  (stopped at the limit, not complete)"
    print(
        f"{result.config.name:16} {result.states:9,} {result.transitions:11,} {seconds:7.1f}{how}", flush=True
    )
    if result.violation:
        print(f"  VIOLATION {result.violation}")
        show_trace(result.trace)


def show_counts(title: str, counts: Counter[str]) -> None:
    print(f"\n{title}")
    for text, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        print(f"  {count:11,}  {text}")


def explore(configs: Sequence[Config], frames: int, crashes: int) -> bool:
    """Searches all, prints the tables, and says whether no invariant was hurt."""
    print(f"{'configuration':16} {'states':>9} {'transitions':>11} {'seconds':>7}")
    outcomes: Counter[str] = Counter()
    refusals: Counter[str] = Counter()
    states = transitions = 0
    good = True
    begun = time.monotonic()
    for config in configs:
        before = time.monotonic()
        result = search(config, limit=LONG_LIMIT)
        show_result(result, time.monotonic() - before)
        outcomes += result.outcomes
        refusals += result.refusals
        states += result.states
        transitions += result.transitions
        good = good and not result.violation
    before = time.monotonic()
    commits = search_commits(frames=frames, crashes=crashes)
    print(
        f"{'group-commit':16} {commits.states:9,} {commits.transitions:11,} {time.monotonic() - before:7.1f}"
    )
    if commits.violation:
        print(f"  VIOLATION {commits.violation}")
        show_trace(commits.trace)
    states += commits.states
    transitions += commits.transitions
    print(f"{'together':16} {states:9,} {transitions:11,} {time.monotonic() - begun:7.1f}")
    show_counts(
        "outcomes of fair runs (of every state, by every schedule; a session's two ends, low / high)",
        outcomes,
    )
    show_counts("refusals read, and what came of them", refusals)
    good = good and not commits.violation
    print("\nno violation" if good else "\nVIOLATIONS, see above")
    return good


def show_mutant(mutant: Mutant, verdict: Verdict, seconds: float, *, traces: bool) -> bool:
    """One line, and whether the mutant did what is said of it."""
    found = verdict.violation or "survives"
    expected = bool(verdict.violation) != bool(mutant.survives)
    mark = " " if expected else "!"
    length = str(len(verdict.trace)) if verdict.violation else "-"
    print(
        f"{mark} {mutant.name:38} {verdict.config:14} {verdict.states:7,} {length:>4} {seconds:5.1f}  {found}",
        flush=True,
    )
    if mutant.survives and expected:
        print(f"      {mutant.rule}: {mutant.survives}")
    if verdict.violation and (traces or not expected):
        show_trace(verdict.trace)
    return expected


def try_mutants(*, everywhere: bool, traces: bool) -> bool:
    """All mutants in their configurations; the survivors, if `everywhere`, in all the ordinary ones too."""
    print(f"  {'mutant':38} {'configuration':14} {'states':>7} {'len':>4} {'sec':>5}  violation, or why none")
    good = True
    caught = 0
    for mutant in MUTANTS:
        before = time.monotonic()
        verdict = run(mutant)
        good = show_mutant(mutant, verdict, time.monotonic() - before, traces=traces) and good
        caught += bool(verdict.violation)
        if everywhere and mutant.survives and verdict.config != "group-commit":
            for config in CONFIGS:
                before = time.monotonic()
                verdict = run(mutant, config)
                if verdict.violation:
                    good = show_mutant(mutant, verdict, time.monotonic() - before, traces=traces) and good
    print(
        f"\n{len(MUTANTS)} mutants, {caught} caught, {len(MUTANTS) - caught} survive (searches of {LIMIT:,} states)"
    )
    print("as listed" if good else "NOT as listed: the lines marked !")
    return good


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m spec.models", description=__doc__)
    parser.add_argument("--long", action="store_true", help="the larger configurations too (6 minutes or so)")
    parser.add_argument("--mutants", action="store_true", help="the mutants, instead")
    parser.add_argument("--everywhere", action="store_true", help="survivors in every configuration")
    parser.add_argument("--traces", action="store_true", help="with the mutants: their traces")
    options = parser.parse_args()
    if options.mutants:
        good = try_mutants(everywhere=options.everywhere, traces=options.traces)
    elif options.long:
        good = explore(CONFIGS + LARGER, frames=4, crashes=3)
    else:
        good = explore(CONFIGS, frames=3, crashes=2)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
