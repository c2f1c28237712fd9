"""semantics.md, One way to send."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio

from ocapn import E, MemoryNetwork, Peer, Promise, Symbol, Target, make_promise, method, send_only, target
from ocapn.testing import linked_peers, quiet
from tests.peer.support import Echo, Recorder, between, far, settle
from tests.support import trio_test


async def receivers(ours: Peer, theirs: Peer, obj: Target) -> dict[str, Any]:
    """An object of `ours` as each kind of receiver; `ours` is the peer of the current context."""
    remote = await far(ours, theirs, obj)
    pending, resolver = make_promise()
    fulfilled, fulfil = make_promise()
    fulfil.fulfill(obj)
    box = await far(theirs, ours, Echo())
    answer = E(box).echo(obj)
    resolver.fulfill(obj)
    return {
        "local object": obj,
        "remote reference": remote,
        "promise": pending,
        "fulfilled promise": fulfilled,
        "pending answer": answer,
    }


@trio_test
async def test_E_works_alike_for_a_local_object_a_remote_reference_and_a_promise() -> None:
    async with linked_peers("theirs", "ours") as (theirs, ours):
        for name, receiver in (await receivers(ours, theirs, Echo())).items():
            assert await E(receiver).echo(name) == name


@trio_test
async def test_a_named_send_is_the_symbol_and_the_arguments() -> None:
    """`E(x).name(args)` sends the symbol `name` and the arguments."""
    seen: list[tuple[object, ...]] = []
    async with linked_peers("theirs", "ours") as (theirs, ours):
        for receiver in (await receivers(ours, theirs, target(lambda *args: seen.append(args)))).values():
            await E(receiver).name(1, "two")
        await quiet(ours, theirs)
    assert seen == [(Symbol("name"), 1, "two")] * 5
    assert all(type(args[0]) is Symbol for args in seen)


@trio_test
async def test_a_bare_send_is_the_arguments_alone() -> None:
    """`E(x)(args)` sends the arguments alone."""
    seen: list[tuple[object, ...]] = []
    async with linked_peers("theirs", "ours") as (theirs, ours):
        for receiver in (await receivers(ours, theirs, target(lambda *args: seen.append(args)))).values():
            await E(receiver)(1, "two")
            await E(receiver)()
    assert seen == [(1, "two"), ()] * 5


class Oddly(Target):
    @method(name="any-name")
    def dashed(self) -> str:
        return "dashed"

    @method(name="_hidden")
    def hidden(self) -> str:
        return "hidden"

    @method(name="")
    def nameless(self) -> str:
        return "nameless"

    @method(name="été 🌞")
    def summer(self) -> str:
        return "summer"


@trio_test
async def test_a_name_in_brackets_reaches_names_that_are_no_identifiers() -> None:
    """`E(x)["any-name"](args)` reaches names that are no identifiers or that begin with an underscore."""
    async with linked_peers("theirs", "ours") as (theirs, ours):
        for receiver in (await receivers(ours, theirs, Oddly())).values():
            sends = [E(receiver)[name]() for name in ("any-name", "_hidden", "", "été 🌞")]
            assert [await send for send in sends] == ["dashed", "hidden", "nameless", "summer"]


@trio_test
async def test_an_underscore_is_no_send_and_the_error_says_how_to_send_it() -> None:
    async with linked_peers("a") as (_,):
        promise, _resolver = make_promise()
        for receiver in (E(Oddly()), promise, send_only(Oddly())):
            with pytest.raises(AttributeError, match=r"E\(x\)\['_hidden'\]"):
                receiver._hidden  # noqa: B018
        assert not hasattr(promise, "__len__")  # so that Python's own protocols find nothing


@trio_test
async def test_a_send_never_waits() -> None:
    """A send never waits: not for the network, not for a promise, not for a busy object."""
    network = MemoryNetwork()
    async with linked_peers("a", "b", network=network) as (a, b):
        echo = await far(a, b, Echo())
        (link,) = network.links_between("a", "b")
        link.hold()
        answers = [E(echo).echo(i) for i in range(100)]  # a send is no coroutine: it cannot wait
        assert between(b, a).stats()["messages_sent"] >= 100
        link.release()
        assert [await answer for answer in answers] == list(range(100))


@trio_test
async def test_a_send_never_runs_code_of_the_target_in_the_callers_stack() -> None:
    async with linked_peers("theirs", "ours") as (theirs, ours):
        recorder = Recorder()
        for receiver in (await receivers(ours, theirs, recorder)).values():
            await settle()
            recorder.seen.clear()
            E(receiver).note("sent")
            send_only(receiver).note("sent only")
            assert recorder.seen == []
            await quiet(ours, theirs)
            assert recorder.seen == ["sent", "sent only"]


@trio_test
async def test_a_method_that_sends_to_another_local_object_is_not_interrupted_by_it() -> None:
    seen: list[str] = []

    class First(Target):
        @method
        def run(self, second: object) -> None:
            E(second).run()
            seen.append("first goes on")

    class Second(Target):
        @method
        def run(self) -> None:
            seen.append("second")

    async with linked_peers("a"):
        await E(First()).run(Second())
        await settle()
    assert seen == ["first goes on", "second"]


@trio_test
async def test_a_send_returns_a_promise() -> None:
    async with linked_peers("theirs", "ours") as (theirs, ours):
        for receiver in (await receivers(ours, theirs, Echo())).values():
            for sent in (E(receiver).echo(1), E(receiver)["echo"](1), E(receiver)(Symbol("echo"), 1)):
                assert type(sent) is Promise
                assert await sent == 1


@trio_test
async def test_keyword_arguments_are_a_type_error_and_nothing_is_sent() -> None:
    """Keyword arguments are a `TypeError`."""
    async with linked_peers("theirs", "ours") as (theirs, ours):
        recorder = Recorder()
        for receiver in (await receivers(ours, theirs, recorder)).values():
            sends: list[Callable[..., object]] = [
                E(receiver).note,
                E(receiver)["note"],
                E(receiver),
                send_only(receiver).note,
                send_only(receiver)["note"],
                send_only(receiver),
            ]
            for send in sends:
                with pytest.raises(TypeError, match="no keyword arguments: value"):
                    send(value=1)
        promise, resolver = make_promise()
        resolver.fulfill(recorder)
        for promised in (promise.note, promise["note"], promise):
            with pytest.raises(TypeError, match="no keyword arguments: value"):
                promised(value=1)
        await quiet(ours, theirs)
        assert recorder.seen == []


@trio_test
async def test_what_is_no_receiver_is_a_type_error_that_says_what_it_is() -> None:
    async with linked_peers("a") as (peer,):
        for wrong, what in (
            (3, "an int"),
            (print, r"a function \(wrap it with ocapn.target\)"),
            (None, "a NoneType"),
            (peer, "a Peer"),
            (Echo, r"a class \(Echo\)"),
        ):
            for send in (E(wrong).echo, send_only(wrong).echo):
                with pytest.raises(TypeError, match=f"not to {what}"):
                    send(1)


@trio_test
async def test_every_send_is_a_message_of_its_own_in_the_order_sent() -> None:
    async with linked_peers("a", "b") as (a, b):
        recorder = Recorder()
        ref = await far(a, b, recorder)
        greet = E(ref).note  # a send can be kept and made many times
        for i in range(5):
            greet(i)
            send_only(ref).note(-i)
        with trio.fail_after(1):
            await E(ref).note("end")
        assert recorder.seen == [0, 0, 1, -1, 2, -2, 3, -3, 4, -4, "end"]
