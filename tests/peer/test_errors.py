"""semantics.md, Errors."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NoReturn

import pytest
import trio

import ocapn
from ocapn import (
    Aborted,
    E,
    Limits,
    MemoryNetlayer,
    MemoryNetwork,
    Peer,
    RemoteError,
    SessionEnded,
    SturdyRef,
    Target,
    method,
    open_peer,
    send_only,
)
from ocapn.captp.delivery import crossing
from ocapn.netlayers.base import Channel, Listener, Netlayer
from ocapn.testing import linked_peers, quiet
from tests.peer.support import Box, Echo, Gate, Trace, between, far, settle
from tests.support import trio_test


class Refused(ocapn.PassableError):
    """As in semantics.md."""


class Private(Exception):
    """Its name is nobody's business."""

    def __init__(self, message: str, secret: str) -> None:
        super().__init__(message)
        self.secret = secret


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError("no text for you")


class Raises(Target):
    """Raises what it was made with, in every kind of method."""

    def __init__(self, error: Callable[[], BaseException]) -> None:
        self.error = error
        self.count = 0

    def _run(self) -> NoReturn:
        self.count += 1
        secret_local = "do not tell"  # noqa: F841
        raise self.error()

    @method
    def sync(self, *args: object) -> None:
        self._run()

    @method
    async def at_once(self, *args: object) -> None:
        self._run()

    @method
    async def later(self, *args: object) -> None:
        await trio.sleep(1)
        self._run()


KINDS = ["sync", "at_once", "later"]


def _cause() -> BaseException:
    try:
        raise OSError("cause do-not-tell")
    except OSError as cause:
        error = ValueError("the message")
        error.__cause__ = cause
        error.add_note("a note do-not-tell")
        return error


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (lambda: ValueError("the message"), "the message"),
        (lambda: Private("the message", "do-not-tell"), "the message"),
        (lambda: Refused("the message"), "Refused: the message"),
        (lambda: RemoteError("the message"), "the message"),
        (_cause, "the message"),
        (lambda: ValueError(), ""),
        (lambda: ExceptionGroup("several", [ValueError("x")]), "several (1 sub-exception)"),
        (lambda: StopIteration("stopped"), "stopped"),
        (lambda: StopAsyncIteration("stopped"), "stopped"),
        (lambda: Aborted("not from the session"), "not from the session"),
    ],
    ids=["ValueError", "private", "passable", "remote", "cause", "empty", "group", "stop", "astop", "own"],
)
def test_any_exception_breaks_the_answer_with_its_message_alone(
    kind: str, error: Callable[[], Exception], message: str
) -> None:
    """The message crosses the wire, type name, traceback and arguments do not, unless the class says it may."""

    @trio_test
    async def run() -> None:
        expected = message
        if isinstance(error(), StopIteration) and kind != "sync":
            expected = "coroutine raised StopIteration"  # Python's own rule for coroutines
        async with linked_peers("a", "b") as (a, b):
            raises = Raises(error)
            remote = await far(a, b, raises)
            trace = Trace(between(b, a))
            for receiver in (raises, remote):
                with pytest.raises(RemoteError) as info:
                    await E(receiver)[kind]("argument do-not-tell"[:8])
                assert type(info.value) is RemoteError
                assert str(info.value) == expected
            told = " ".join(trace.received())
            assert f'<desc:error "{expected}">' in told
            for secret in ("do-not-tell", "Private", "ValueError", "test_errors", "Traceback", "argument"):
                assert secret not in told or secret in expected
            await quiet(a, b)
            assert a.sessions  # an error of an application never ends the session

    run()


@pytest.mark.parametrize("kind", KINDS)
def test_exceptions_that_cannot_be_told_break_the_answer_all_the_same(kind: str) -> None:
    @trio_test
    async def run() -> None:
        async with linked_peers("a", "b", limits=Limits(frame=10_000)) as (a, b):
            for error in (
                Unprintable(),
                ValueError("\ud800"),
                ValueError("x" * 20_000),
                RemoteError("x", {"not": "passable", "at": [print]}),
            ):
                raises = Raises(lambda error=error: error)  # type: ignore[misc]
                for receiver in (raises, await far(a, b, raises)):
                    with pytest.raises(RemoteError):
                        await E(receiver)[kind]()
            assert await E(await far(a, b, Echo())).echo("alive") == "alive"

    run()


@trio_test
async def test_an_error_passes_on_through_other_peers() -> None:
    class Relay(Target):
        def __init__(self, behind: object) -> None:
            self.behind = behind

        @method
        def promise(self) -> object:
            return E(self.behind).sync()

        @method
        async def awaits(self) -> object:
            return await E(self.behind).sync()

    async with linked_peers("a", "b", "c") as (a, b, c):
        for error, message in ((ValueError("far away"), "far away"), (Refused("no"), "Refused: no")):
            end = Raises(lambda error=error: error)  # type: ignore[misc]
            relay = await far(b, c, Relay(await far(a, b, end)))
            for send in (E(relay).promise, E(relay).awaits):
                with pytest.raises(RemoteError) as info:
                    await send()
                assert str(info.value) == message  # told once, as it was


@trio_test
async def test_errors_pass_as_values_too() -> None:
    async with linked_peers("a", "b") as (a, b):
        for box in (Box(), await far(a, b, Box())):
            await E(box).put([RemoteError("a value")])
            (error,) = await E(box).get()
            assert type(error) is RemoteError
            assert error.message == "a value"


# What is no Exception


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["local", "remote"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_keyboard_interrupt_and_system_exit_propagate(
    kind: str, where: str, error: type[BaseException]
) -> None:
    """`KeyboardInterrupt`, `SystemExit` propagate, out of `open_peer`."""

    @trio_test
    async def run() -> None:
        network = MemoryNetwork()
        async with open_peer([MemoryNetlayer(network, "caller")], durable="never") as caller:
            with pytest.RaisesGroup(error, flatten_subgroups=True):
                async with open_peer([MemoryNetlayer(network, "victim")]) as victim:
                    raises = Raises(error)
                    receiver = raises if where == "local" else await far(victim, caller, raises)
                    send_only(receiver)[kind]()
                    await trio.sleep_forever()
            if where == "remote":
                assert caller.sessions == []

    run()


@trio_test
async def test_cancelled_propagates() -> None:
    """A method that is cancelled ends cancelled, and does not turn it into an answer."""
    events: list[str] = []

    class Waits(Target):
        @method
        async def wait(self) -> None:
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                events.append("cancelled")
                raise
            finally:
                events.append("finally")

        @method
        async def with_a_timeout(self) -> str:
            with trio.move_on_after(1):
                await trio.sleep_forever()
            return "on"

    async with linked_peers("a"):
        waits = Waits()
        assert await E(waits).with_a_timeout() == "on"
        E(waits).wait()
        await settle()
    assert events == ["cancelled", "finally"]


@trio_test
async def test_a_method_that_raises_rolls_nothing_back() -> None:
    """A method that raises rolls nothing back by itself."""
    async with linked_peers("a", "b") as (a, b):
        for kind in KINDS:
            raises = Raises(lambda: ValueError("x"))
            for receiver in (raises, await far(a, b, raises)):
                with pytest.raises(RemoteError):
                    await E(receiver)[kind]()
            assert raises.count == 2


# Closing


@trio_test
async def test_closing_breaks_first_what_is_owed_then_cancels_what_runs() -> None:
    events: list[str] = []

    class Waits(Target):
        def __init__(self, gate: object) -> None:
            self.gate = gate

        @method
        async def wait(self) -> None:
            try:
                await E(self.gate).wait()
            except SessionEnded as error:
                events.append(f"broken: {error}")
            try:
                await trio.sleep_forever()
            finally:
                events.append("cancelled")

    network = MemoryNetwork()
    async with open_peer([MemoryNetlayer(network, "a")]) as a:
        gate = Gate()
        ref = a.export(gate)
        async with open_peer([MemoryNetlayer(network, "b")]) as b:
            waits = Waits(await b.enliven(ref))
            by_a = E(await far(b, a, waits)).wait()
            await trio.sleep(1)
            assert gate.waiting == 1
        assert events == ["broken: the peer was closed", "cancelled"]
        with pytest.raises(Aborted, match="the peer was closed"):
            await by_a


@trio_test
async def test_a_method_whose_nursery_fails_as_it_is_cancelled_ends_only_itself() -> None:
    """The group that it raises has a cancellation in it, and is no Exception."""

    class Unclean(Target):
        @method
        async def run(self) -> None:
            async def child() -> None:
                try:
                    await trio.sleep_forever()
                finally:
                    raise ZeroDivisionError("on the way out")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(child)
                await trio.sleep_forever()

    async with open_peer([MemoryNetlayer(MemoryNetwork(), "a")]):
        answer = E(Unclean()).run()
        await settle()
    with pytest.raises(RemoteError):
        await answer


@trio_test
async def test_a_method_that_is_cancelled_with_tasks_of_its_own_breaks_its_answer() -> None:
    """trio raises a group of nothing but cancellations."""

    class Busy(Target):
        @method
        async def run(self) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                nursery.start_soon(trio.sleep_forever)

    async with open_peer([MemoryNetlayer(MemoryNetwork(), "a")]):
        answer = E(Busy()).run()
        await settle()
    with pytest.raises(RemoteError, match="the method was cancelled"):
        await answer


@trio_test
async def test_closing_breaks_what_tasks_outside_wait_for() -> None:
    """What another task waits for by this peer breaks too, and does not wait for ever."""
    network = MemoryNetwork()
    errors: list[Exception] = []

    async def wait_for(promise: Any) -> None:
        with pytest.raises((SessionEnded, ocapn.ConnectFailed)) as info:
            await promise
        errors.append(info.value)

    async with linked_peers("a", "silent", network=network) as (a, silent), trio.open_nursery() as nursery:
        async with open_peer([MemoryNetlayer(network, "b")]) as b:
            nursery.start_soon(wait_for, E(await far(a, b, Gate())).wait())
            enlivening = b.enliven(SturdyRef(silent.locator(), b"swiss"))
            nursery.start_soon(wait_for, enlivening)
            await settle_holding(network)
        assert a.sessions == []
    assert sorted(type(error).__name__ for error in errors) == ["ConnectFailed", "SessionEnded"]


async def settle_holding(network: MemoryNetwork) -> None:
    """Runs one pass, and holds the connection to `silent` as soon as it is there."""
    while not network.links_between("b", "silent"):
        await trio.lowlevel.checkpoint()
    for link in network.links_between("b", "silent"):
        link.hold()
    await settle()


# Bugs


class Buggy(Netlayer):
    """A netlayer with a bug: its listener raises what no listener may."""

    transport = "memory"

    def __init__(self, network: MemoryNetwork, name: str) -> None:
        self.inner = MemoryNetlayer(network, name)
        self.location = self.inner.location

    async def listen(self, limits: Limits) -> Listener | None:
        listener = await self.inner.listen(limits)
        assert listener is not None
        return _BuggyListener(listener)

    async def dial(self, locator: ocapn.PeerLocator, limits: Limits) -> Channel:
        return await self.inner.dial(locator, limits)


class _BuggyListener(Listener):
    def __init__(self, inner: Listener) -> None:
        self.inner = inner
        self.location = inner.location

    async def accept(self) -> Channel:
        await self.inner.accept()
        raise ZeroDivisionError("a bug")

    async def aclose(self) -> None:
        await self.inner.aclose()


@trio_test
async def test_a_bug_inside_the_library_leaves_open_peer_in_an_exception_group() -> None:
    """A bug inside the library leaves `open_peer` as it is in trio: in an exception group with the rest."""
    network = MemoryNetwork()
    cancelled = False
    async with open_peer([MemoryNetlayer(network, "other")]) as other:
        with pytest.RaisesGroup(pytest.RaisesExc(ZeroDivisionError, match="a bug"), flatten_subgroups=True):
            async with open_peer([Buggy(network, "buggy")]) as buggy:
                ref = buggy.export(Echo())
                with pytest.raises(ocapn.ConnectFailed), trio.CancelScope(shield=True):
                    await other.enliven(ref)
                try:
                    await trio.sleep_forever()
                finally:
                    cancelled = True
    assert cancelled


@trio_test
async def test_an_exception_of_the_body_leaves_open_peer_as_it_is_and_closes_in_order() -> None:
    network = MemoryNetwork()
    ended: list[ocapn.Promise] = []

    async def fails(a: Peer) -> None:
        async with open_peer([MemoryNetlayer(network, "b")]) as b:
            ended.append(ocapn.when_broken(await a.enliven(b.export(Echo()))))
            raise LookupError("of the body")

    async with open_peer([MemoryNetlayer(network, "a")]) as a:
        with pytest.raises(LookupError, match="of the body"):
            await fails(a)
        assert isinstance(await ended[0], Aborted)


# Loggers


@trio_test
async def test_nothing_secret_passes_the_loggers(caplog: pytest.LogCaptureFixture) -> None:
    """Loggers: `ocapn.session`, `ocapn.netlayer`, `ocapn.captp`, `durable`; nothing secret passes them."""
    caplog.set_level(logging.DEBUG)
    network = MemoryNetwork()
    swiss = b"SwissNumberNobodyMaySee"
    async with linked_peers("a", "b", "c", network=network) as (a, b, c):
        ref = a.export(Box(), swiss=swiss)
        box = await b.enliven(ref)
        await E(await far(b, c, Box())).put(box)  # a handoff
        with pytest.raises(RemoteError):
            await b.enliven(SturdyRef(a.locator(), swiss + b"2"))
        with pytest.raises(ValueError, match="in use"):
            a.export(Echo(), swiss=swiss)
        send_only(box).no_such_method(SturdyRef(a.locator(), swiss))
        raises = await far(a, b, Raises(lambda: ValueError("logged")))
        send_only(raises).sync()
        with pytest.raises(RemoteError):
            await E(raises).sync()
        await quiet(a, b, c)
        network.cut("a", "b")
        await quiet(a, b, c)
    with pytest.raises(ocapn.BadLocator):
        SturdyRef.parse("ocapn://x.memory/s/" + swiss.decode() + "/")
    ours = [record for record in caplog.records if record.name.split(".")[0] in ("ocapn", "durable")]
    assert {record.name for record in ours} >= {"ocapn.session", "ocapn.captp"}
    assert {record.name for record in ours} <= {"ocapn.session", "ocapn.netlayer", "ocapn.captp", "durable"}
    formatter = logging.Formatter()
    for record in ours:
        text = formatter.format(record)
        assert "SwissNumber" not in text
        assert swiss.hex() not in text


@trio_test
async def test_an_error_that_nobody_is_told_is_logged_with_its_traceback_here_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with linked_peers("a", "b") as (a, b):
        remote = await far(a, b, Raises(lambda: ValueError("told to the log")))
        trace = Trace(between(b, a))
        for kind in KINDS:
            send_only(remote)[kind]()
        await trio.sleep(2)
        await quiet(a, b)
        assert not trace.received("op:deliver")
    assert caplog.text.count("ValueError: told to the log") == 3
    assert "in _run" in caplog.text


def test_the_exceptions_are_one_tree() -> None:
    public = [getattr(ocapn, name) for name in ocapn.__all__]
    errors = [thing for thing in public if isinstance(thing, type) and issubclass(thing, BaseException)]
    assert len(errors) == 24
    assert all(issubclass(error, ocapn.OCapNError) for error in errors)
    assert all(error.__name__ in (ocapn.errors.__doc__ or "") for error in errors)
    assert Peer.__module__ == "ocapn.peer"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            FileNotFoundError(2, "No such file or directory", "/home/alice/secret"),
            "No such file or directory",
        ),
        (ValueError("one", "two"), "an error with arguments that are not passed on"),
        (OSError("in so many words"), "in so many words"),
        (ValueError(), ""),
    ],
)
def test_the_message_of_an_error_holds_no_arguments(error: Exception, message: str) -> None:
    """The message crosses the wire, type name, traceback and arguments do not."""
    assert crossing(error).message == message
