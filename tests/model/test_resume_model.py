"""The durable-session protocol, as modelled in `spec.models`: no invariant is hurt, and each rule is needed."""

from __future__ import annotations

import functools
from collections import Counter

import pytest

from spec.models.group_commit import search_commits
from spec.models.mutants import GROUP_COMMIT, MUTANTS, Mutant, run
from spec.models.resume import CONFIGS, Config, Result, search


@functools.cache
def ordinary(config: Config) -> Result:
    return search(config)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_no_invariant_is_hurt(config: Config) -> None:
    result = ordinary(config)
    assert not result.violation, "\n".join([result.violation, *result.trace])
    assert result.complete
    assert result.outcomes.total() == result.states * len(config.schedules)


def test_group_commit_hurts_no_invariant() -> None:
    result = search_commits(frames=3, crashes=2)
    assert not result.violation, "\n".join([result.violation, *result.trace])
    assert result.ends


def test_the_search_is_large_and_visits_every_refusal() -> None:
    results = [ordinary(config) for config in CONFIGS]
    assert sum(result.states for result in results) >= 100_000
    refusals: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    for result in results:
        refusals += result.refusals
        outcomes += result.outcomes
    assert {text.partition(":")[0] for text in refusals} == {
        "retry", "crossed", "policy", "stale", "ended", "expired", "unknown",
        "you-rolled-back", "i-rolled-back", "diverged",
    }  # fmt: skip
    assert {"live", "live, copy", "live, ordinary"} < set(outcomes)


@pytest.mark.parametrize("mutant", [m for m in MUTANTS if not m.survives], ids=lambda mutant: mutant.name)
def test_a_mutant_is_caught(mutant: Mutant) -> None:
    verdict = run(mutant)
    assert verdict.violation, mutant.rule
    assert verdict.trace


SURVIVORS = [
    m for m in MUTANTS if m.survives and m.config in (GROUP_COMMIT, "crossed", "policy", "negotiation")
]


@pytest.mark.parametrize("mutant", SURVIVORS, ids=lambda mutant: mutant.name)
def test_a_rule_that_another_covers(mutant: Mutant) -> None:
    """What is said to survive does: a rule that begins to matter is to be listed as such."""
    assert run(mutant).violation == ""
