"""Every failing case that the machine found, by name."""

from __future__ import annotations

from tests.model.script import Script
from tests.model.world import play


def test_the_error_of_a_broken_promise_kept_references_alive() -> None:
    """An error's traceback holds frames, and those held the arguments of a message: a promise was never returned."""
    script = Script(
        (
            (227, 2, 1, 0, 1),
            (101, 0, 0, 0, 0),
            (59, 2, 0, 0, 0),
            (10, 2, 4, 3, 0),
            (234, 2, 0, 0, 0),
            (10, 2, 3, 0, 1),
            (254, 2, 0, 0, 0),
            (253, 2, 0, 0, 0),
            (85, 2, 0, 0, 0),
        ),
        peers=3, links=2, seed=0, delays=False, cuts=False,
    )
    play(script)


def test_an_abort_to_a_connection_that_was_dropped_meanwhile() -> None:
    """It ended the whole peer with a KeyError from the table of transitions."""
    script = Script(
        (
            (140, 0, 0, 0, 0),
            (244, 0, 1, 0, 0),
            (111, 0, 0, 0, 0),
            (18, 0, 0, 0, 0),
            (58, 1, 0, 0, 0),
        ),
        peers=2, links=6, seed=49547, delays=False, cuts=False,
    )
    play(script)


def test_a_dial_that_begins_after_the_session_came_in() -> None:
    """The dial's hello crossed the answer to the other side's, and both sides dropped another connection."""
    script = Script(
        (
            (133, 0, 0, 0, 0),
            (195, 1, 0, 0, 1),
            (195, 0, 0, 0, 0),
            (133, 0, 19, 0, 0),
            (252, 1, 43, 88, 250),
            (252, 2, 0, 2, 0),
            (154, 0, 0, 0, 0),
            (252, 2, 0, 0, 0),
            (252, 2, 0, 0, 0),
            (195, 2, 0, 0, 0),
            (133, 0, 1, 0, 0),
            (195, 1, 1, 0, 0),
            (195, 1, 213, 24, 0),
            (252, 1, 0, 0, 0),
            (195, 1, 0, 0, 0),
            (154, 0, 0, 0, 0),
            (229, 0, 0, 0, 0),
            (252, 1, 159, 0, 0),
            (154, 0, 0, 0, 0),
            (195, 1, 108, 0, 0),
            (154, 0, 0, 0, 0),
            (154, 0, 0, 0, 0),
            (252, 0, 0, 0, 0),
            (252, 2, 0, 0, 0),
        ),
        peers=3, links=5, seed=7898, delays=True, cuts=False,
    )
    play(script)


def test_a_dial_that_begins_after_the_session_came_in_and_is_refused() -> None:
    """As above; the other side took the dial for the session, and this one refused it."""
    script = Script(
        (
            (67, 4, 0, 0, 0),
            (4, 4, 0, 0, 2),
            (59, 0, 1, 0, 0),
            (4, 1, 1, 0, 1),
            (4, 1, 1, 0, 0),
            (67, 2, 0, 0, 0),
            (59, 1, 0, 0, 0),
            (244, 2, 1, 0, 0),
            (59, 1, 0, 0, 0),
            (244, 0, 0, 0, 0),
            (4, 0, 0, 0, 0),
            (4, 0, 0, 0, 0),
            (244, 1, 1, 0, 0),
            (4, 1, 0, 0, 0),
            (59, 0, 1, 0, 0),
            (67, 1, 2, 0, 0),
            (59, 0, 0, 0, 0),
            (244, 1, 0, 0, 0),
            (59, 2, 0, 0, 0),
            (67, 0, 0, 0, 0),
        ),
        peers=3, links=5, seed=6087, delays=True, cuts=False,
    )
    play(script)
