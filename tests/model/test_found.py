"""Every failing case that the machine found, by name."""

from __future__ import annotations

from tests.model.script import Script
from tests.model.world import play


def test_the_error_of_a_broken_promise_kept_references_alive() -> None:
    """An error's traceback holds frames, and those held the arguments of a message: a promise was never returned."""
    script = Script(
        (
            ("do_send", 2, 1, 0, 1),
            ("do_pause", 0, 0, 0, 0),
            ("do_send", 2, 0, 0, 0),
            ("do_send_twice", 2, 4, 3, 0),
            ("do_send_twice", 2, 0, 0, 0),
            ("do_send_twice", 2, 3, 0, 1),
            ("do_part", 2, 0, 0, 0),
            ("do_part", 2, 0, 0, 0),
            ("do_part", 2, 0, 0, 0),
        ),
        peers=3,
        links=2,
        seed=0,
        delays=False,
        cuts=False,
    )
    play(script)


def test_an_abort_to_a_connection_that_was_dropped_meanwhile() -> None:
    """It ended the whole peer with a KeyError from the table of transitions."""
    script = Script(
        (
            ("do_talk", 0, 0, 0, 0),
            ("do_enliven", 0, 1, 0, 0),
            ("do_pause", 0, 0, 0, 0),
            ("do_talk", 0, 0, 0, 0),
            ("do_enliven", 1, 0, 0, 0),
        ),
        peers=2,
        links=6,
        seed=49547,
        delays=False,
        cuts=False,
    )
    play(script)


def test_a_dial_that_begins_after_the_session_came_in() -> None:
    """The dial's hello crossed the answer to the other side's, and both sides dropped another connection."""
    script = Script(
        (
            ("do_send_twice", 0, 0, 0, 0),
            ("do_send_twice", 1, 0, 0, 1),
            ("do_send_twice", 0, 0, 0, 0),
            ("do_send_twice", 0, 19, 0, 0),
            ("do_send", 1, 43, 88, 250),
            ("do_send", 2, 0, 2, 0),
            ("do_await", 0, 0, 0, 0),
            ("do_send", 2, 0, 0, 0),
            ("do_send", 2, 0, 0, 0),
            ("do_send_twice", 2, 0, 0, 0),
            ("do_send_twice", 0, 1, 0, 0),
            ("do_send_twice", 1, 1, 0, 0),
            ("do_send_twice", 1, 213, 24, 0),
            ("do_send", 1, 0, 0, 0),
            ("do_send_twice", 1, 0, 0, 0),
            ("do_await", 0, 0, 0, 0),
            ("do_hold", 0, 0, 0, 0),
            ("do_send", 1, 159, 0, 0),
            ("do_await", 0, 0, 0, 0),
            ("do_send_twice", 1, 108, 0, 0),
            ("do_await", 0, 0, 0, 0),
            ("do_await", 0, 0, 0, 0),
            ("do_send", 0, 0, 0, 0),
            ("do_send", 2, 0, 0, 0),
        ),
        peers=3,
        links=5,
        seed=7898,
        delays=True,
        cuts=False,
    )
    play(script)


def test_a_dial_that_begins_after_the_session_came_in_and_is_refused() -> None:
    """As above; the other side took the dial for the session, and this one refused it."""
    script = Script(
        (
            ("do_send", 4, 0, 0, 0),
            ("do_send", 4, 0, 0, 2),
            ("do_enliven", 0, 1, 0, 0),
            ("do_send", 1, 1, 0, 1),
            ("do_send", 1, 1, 0, 0),
            ("do_send", 2, 0, 0, 0),
            ("do_enliven", 1, 0, 0, 0),
            ("do_enliven", 2, 1, 0, 0),
            ("do_enliven", 1, 0, 0, 0),
            ("do_enliven", 0, 0, 0, 0),
            ("do_send", 0, 0, 0, 0),
            ("do_send", 0, 0, 0, 0),
            ("do_enliven", 1, 1, 0, 0),
            ("do_send", 1, 0, 0, 0),
            ("do_enliven", 0, 1, 0, 0),
            ("do_send", 1, 2, 0, 0),
            ("do_enliven", 0, 0, 0, 0),
            ("do_enliven", 1, 0, 0, 0),
            ("do_enliven", 2, 0, 0, 0),
            ("do_send", 0, 0, 0, 0),
        ),
        peers=3,
        links=5,
        seed=6087,
        delays=True,
        cuts=False,
    )
    play(script)
