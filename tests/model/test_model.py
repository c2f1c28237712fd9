"""The machine, on scripts that Hypothesis makes: the same ones in every run of the checks."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.model.script import Script, random_script
from tests.model.world import play

_numbers = st.integers(0, 20)


@st.composite
def scripts(draw: st.DrawFn, *, cuts: bool, durable: bool = False) -> Script:
    """Few kinds of steps in one script: more of what only many of a kind bring about."""
    kinds = draw(st.lists(st.integers(0, 63), min_size=3, max_size=12))
    steps = draw(
        st.lists(
            st.tuples(st.sampled_from(kinds), _numbers, _numbers, _numbers, _numbers), min_size=3, max_size=50
        )
    )
    return Script(
        tuple(steps),
        peers=draw(st.sampled_from((2, 3))),
        links=draw(st.integers(0, 7)),
        seed=draw(st.integers(0, 1 << 16)),
        delays=draw(st.booleans()),
        cuts=cuts,
        durable=durable,
        cbor=draw(st.booleans()),
    )


@settings(max_examples=500)
@given(scripts(cuts=False))
def test_peers_do_what_the_shadow_says(script: Script) -> None:
    play(script)


@settings(max_examples=300)
@given(scripts(cuts=True))
def test_sessions_may_end_and_nothing_else_is_lost(script: Script) -> None:
    play(script)


def test_random_scripts_as_the_campaigns_have_them() -> None:
    random = Random(7)  # a seed by which the machine found what was wrong with the order, when it was
    for _ in range(600):
        play(random_script(random))


def test_a_run_is_always_the_same() -> None:
    """What is found can be found again."""
    script = random_script(Random(4), longest=60)
    logs: list[list[str]] = [[], []]
    for log in logs:
        play(script, log.append)
    assert logs[0] == logs[1]
    assert len(logs[0]) > 20


@settings(max_examples=300)
@given(scripts(cuts=False, durable=True))
def test_a_cut_of_a_durable_session_changes_nothing(script: Script) -> None:
    play(script)
