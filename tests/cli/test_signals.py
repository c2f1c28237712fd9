"""How a first and a second signal are taken, without sending any to a command. Those are tested with each command."""

from __future__ import annotations

import signal

import pytest
import trio

import ocapn
from ocapn.cli.exits import Stopped
from ocapn.cli.signals import Signals


async def _forever() -> None:
    async with ocapn.open_peer([ocapn.MemoryNetlayer(ocapn.MemoryNetwork(), "alice")]):
        await trio.sleep_forever()


def _handlers() -> list[object]:
    return [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]


def test_outside_the_event_loop_a_signal_raises() -> None:
    before = _handlers()
    signals = Signals()
    try:
        with pytest.raises(Stopped) as caught, signals:
            signal.raise_signal(signal.SIGTERM)
        assert caught.value.signum == signal.SIGTERM
        # The process is about to end: nothing that comes now may change its exit code.
        assert _handlers() == [signal.SIG_IGN, signal.SIG_IGN]
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert _handlers() == before


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Signals():
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_IGN, signal.SIG_DFL)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_inside_it_everything_is_cancelled() -> None:
    signals = Signals()

    async def function() -> None:
        signals._handle(signal.SIGINT, None)
        await _forever()

    with pytest.raises(Stopped) as caught:
        signals.run(function)
    assert caught.value.signum == signal.SIGINT


def test_a_signal_as_the_event_loop_starts_is_not_lost() -> None:
    signals = Signals()
    signals._in_loop = True
    signals._handle(signal.SIGTERM, None)
    with pytest.raises(Stopped):
        signals.run(_forever)


def test_a_signal_counts_for_more_than_the_errors_in_its_wake() -> None:
    signals = Signals()

    async def function() -> None:
        signals._handle(signal.SIGINT, None)
        try:
            await _forever()
        finally:
            raise ValueError

    with pytest.raises(Stopped):
        signals.run(function)


def test_without_a_signal_results_and_errors_pass() -> None:
    before = _handlers()

    async def function() -> int:
        await trio.lowlevel.checkpoint()
        return 7

    async def failing() -> None:
        await trio.lowlevel.checkpoint()
        raise LookupError

    with Signals() as signals:
        assert _handlers() != before
        assert signals.run(function) == 7
        with pytest.raises(LookupError):
            signals.run(failing)
    assert _handlers() == before


def test_a_second_signal_ends_the_process_unless_it_is_the_twin_of_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    ended: list[int] = []
    monkeypatch.setattr("ocapn.cli.signals.time.monotonic", lambda: now[0])
    monkeypatch.setattr("ocapn.cli.signals.os._exit", ended.append)
    signals = Signals()
    signals._in_loop = True
    signals._handle(signal.SIGTERM, None)
    now[0] += 0.09
    signals._handle(signal.SIGTERM, None)
    assert ended == []
    now[0] += 0.02
    signals._handle(signal.SIGINT, None)
    assert ended == [130]
