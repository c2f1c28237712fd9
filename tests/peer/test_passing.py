"""semantics.md, Passing; every type of the model, identity, copies, and refusals with their path."""

from __future__ import annotations

import enum
import io
import math
import os
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from ocapn import (
    E,
    Limits,
    NotPassable,
    Null,
    Peer,
    PeerLocator,
    Promise,
    Ref,
    RemoteError,
    SturdyRef,
    Symbol,
    Tagged,
    Target,
    equal,
    make_promise,
    method,
    send_only,
    target,
)
from ocapn.testing import linked_peers, quiet
from tests.peer.support import Box, Echo, between, far
from tests.support import trio_test

HERE = PeerLocator("memory", "somewhere", {"hint": "value"})

MODEL: dict[str, list[object]] = {
    "Undefined": [None],
    "Null": [Null],
    "Boolean": [True, False],
    "Integer": [0, 1, -1, 1023, 1024, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 10**255, -(10**200)],
    "Float64": [0.0, -0.0, 1.5, -1e300, math.inf, -math.inf, math.nan, 5e-324],
    "String": ["", "text", "été 🌞\0", "x" * 5000],
    "ByteArray": [b"", b"\x00\xff", b"x" * 5000],
    "Symbol": [Symbol("s"), Symbol(""), Symbol("été 🌞")],
    "List": [[], [1, [2.0, ["three"]]], [True, 1, 1.0]],
    "Struct": [{}, {"x": 1, "": None, "été": {"y": [b"z"]}}, {"b": 1, "aa": 2}],
    "Tagged": [Tagged("t", 1), Tagged("", [Tagged("été", {"x": Null})])],
    "Error": [RemoteError("something is wrong"), RemoteError("")],
    "SturdyRef": [SturdyRef(HERE, b"\x00swiss"), SturdyRef(PeerLocator("onion", "abc"), b"s")],
    "peer locator": [HERE, PeerLocator("memory", "no hints")],
}
VALUES = [value for values in MODEL.values() for value in values]


async def echoes(ours: Peer, theirs: Peer, far_away: Peer) -> dict[str, Any]:
    """Ways to send a value and have it back: `ours` is the peer of the current context."""
    promise, resolver = make_promise()
    resolver.fulfill(Echo())
    remote = await far(theirs, ours, Echo())
    relay = await far(theirs, ours, Relay(await far(far_away, theirs, Echo())))
    return {
        "local": Echo(),
        "remote": remote,
        "local promise": promise,
        "remote answer": E(remote).echo(remote),
        "two steps": relay,
    }


class Relay(Target):
    def __init__(self, behind: object) -> None:
        self.behind = behind

    @method
    def echo(self, value: object) -> Promise:
        return E(self.behind).echo(value)


@trio_test
async def test_every_type_of_the_model_passes_and_comes_back_the_same() -> None:
    async with linked_peers("far", "theirs", "ours") as (far_away, theirs, ours):
        for way, echo in (await echoes(ours, theirs, far_away)).items():
            for value in VALUES:
                back = await E(echo).echo(value)
                assert equal(back, value), f"{way}: {value!r} came back as {back!r}"
                assert type(back) is type(value)
            back = await E(echo).echo(VALUES)
            assert equal(back, VALUES)


@trio_test
async def test_every_type_of_the_model_passes_as_a_result_and_through_a_resolver() -> None:
    async with linked_peers("theirs", "ours") as (theirs, ours):
        for value in VALUES:
            for box in (Box(value), await far(theirs, ours, Box(value))):
                assert equal(await E(box).get(), value)
            promise, resolver = make_promise()
            resolver.fulfill(value)
            assert equal(await promise, value)
            assert equal(await E(Echo()).echo(promise), value) or isinstance(value, RemoteError)


def test_the_order_of_a_struct_is_not_part_of_it() -> None:
    assert equal({"a": 1, "b": 2}, {"b": 2, "a": 1})


class Colour(str, enum.Enum):  # noqa: UP042  # its str() is not its text, unlike a StrEnum's
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Pair(NamedTuple):
    x: int
    y: str


@pytest.mark.parametrize(
    ("given", "received"),
    [
        ((1, (2, "x")), [1, [2, "x"]]),
        (Pair(1, "y"), [1, "y"]),
        (Colour.RED, "red"),
        (Level.HIGH, 3),
        (OrderedDict(x=1), {"x": 1}),
        ({Colour.RED: Level.HIGH}, {"red": 3}),
        (bytearray(b"x"), b"x"),
        (memoryview(b"x"), b"x"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_subclasses_and_relatives_of_the_models_types_arrive_as_those(
    given: object, received: object
) -> None:
    """`list`/`tuple` out, `list` in; what a subclass adds does not cross."""

    @trio_test
    async def run() -> None:
        async with linked_peers("far", "theirs", "ours") as (far_away, theirs, ours):
            for echo in (await echoes(ours, theirs, far_away)).values():
                back = await E(echo).echo([given])
                assert equal(back, [received])
                assert type(back[0]) is type(received)

    run()


# Identity


@trio_test
async def test_targets_keep_identity_wherever_they_stand() -> None:
    async with linked_peers("far", "theirs", "ours") as (far_away, theirs, ours):
        mine = Box()
        remote = await far(theirs, ours, Box())
        for way, echo in (await echoes(ours, theirs, far_away)).items():
            back = await E(echo).echo([mine, {"x": mine}, Tagged("t", [mine]), remote, remote])
            arrived = [back[0], back[1]["x"], back[2].value[0], back[3], back[4]]
            if way == "two steps":  # what a third peer hands over may come as a promise of it
                arrived = [one if one is mine else await one for one in arrived]
            assert all(one is mine for one in arrived[:3]), way
            assert all(one is remote for one in arrived[3:]), way


@trio_test
async def test_two_objects_are_two_references_and_two_arrivals_of_one_are_one() -> None:
    async with linked_peers("a", "b") as (a, b):
        one, other = Box(), Box()
        pair = await E(await far(a, b, Box([one, other, one]))).get()
        assert pair[0] is pair[2]
        assert pair[0] is not pair[1]
        assert all(type(ref) is Ref for ref in pair)


@trio_test
async def test_a_promise_passes_as_a_promise() -> None:
    """A Promise that is passed is not waited for: the receiver gets a promise of the same."""
    seen: list[Any] = []
    keep = target(lambda value: seen.append(value))
    async with linked_peers("theirs", "ours") as (theirs, ours):
        for receiver in (keep, await far(theirs, ours, keep)):
            promise, resolver = make_promise()
            await E(receiver)([promise])
            (arrived,) = seen.pop()
            assert type(arrived) is Promise
            resolver.fulfill({"x": 1})
            assert await arrived == {"x": 1}


@trio_test
async def test_a_promise_that_is_settled_with_a_reference_passes_as_the_reference() -> None:
    async with linked_peers("theirs", "ours") as (theirs, ours):
        box = Box()
        keep = await far(theirs, ours, box)
        promise, resolver = make_promise()
        resolver.fulfill(Echo())
        await E(keep).put([promise])
        assert type(box.content[0]) is Ref


# Copies


@trio_test
async def test_lists_structs_and_bytes_are_copied() -> None:
    """Local sends obey the rules of remote ones: lists, structs and bytes are copied."""
    async with linked_peers("theirs", "ours") as (theirs, ours):
        for there in (Box(), Box()):
            receivers: list[Any] = [there, await far(theirs, ours, there)]
            pending, resolver = make_promise()
            for receiver in [*receivers, pending]:
                content: list[Any] = [[1], {"x": [2]}, bytearray(b"3"), Tagged("t", [4])]
                sent = E(receiver).put(content)
                content[0].append("changed after the send")
                content[1]["x"].append("changed after the send")
                content[2] += b" changed after the send"
                content[3].value.append("changed after the send")
                content.append("changed after the send")
                if receiver is pending:
                    resolver.fulfill(there)
                await sent
                assert equal(there.content, [[1], {"x": [2]}, b"3", Tagged("t", [4])])


@trio_test
async def test_results_are_copied() -> None:
    async with linked_peers("theirs", "ours") as (theirs, ours):

        class Later(Box):
            @method
            async def get_later(self) -> object:
                return self.content

        for own in (Later([[1]]), Later([[1]])):
            for box in (own, await far(theirs, ours, own)):
                for name in ("get", "get_later"):
                    got = await E(box)[name]()
                    got[0].append("changed by the caller")
                    got.append("changed by the caller")
                    assert own.content == [[1]]
        promise, resolver = make_promise()
        value = [[1]]
        resolver.fulfill(value)
        value[0].append(2)
        assert await promise == [[1]]


@trio_test
async def test_two_receivers_share_nothing() -> None:
    async with linked_peers("a"):
        one, other = Box(), Box()
        content = [[1]]
        await E(one).put(content)
        await E(other).put(content)
        assert one.content == other.content == [[1]]
        assert one.content is not other.content
        assert one.content[0] is not other.content[0]


# Refusals


def _generator() -> Any:
    yield 1


class _Plain:
    pass


class _Own(Exception):
    pass


def _nested(depth: int, innermost: object = 1) -> object:
    value: object = innermost
    for _ in range(depth):
        value = [value]
    return value


REFUSED: list[tuple[Callable[[], object], str]] = [
    (lambda: io.StringIO(), "an open file cannot be passed"),
    (lambda: sys.stdout.buffer, "an open file cannot be passed"),
    (lambda: print, r"a function \(wrap it with ocapn.target\) cannot be passed"),
    (lambda: lambda: None, r"a function \(wrap it with ocapn.target\) cannot be passed"),
    (lambda: Box().get, r"a function \(wrap it with ocapn.target\) cannot be passed"),
    (lambda: {1, 2}, r"a set \(make a list of it\) cannot be passed"),
    (lambda: frozenset(), r"a set \(make a list of it\) cannot be passed"),
    (_generator, r"a generator \(make a list of it\) cannot be passed"),
    (lambda: os, "a module cannot be passed"),
    (lambda: Box, r"a class \(Box\) cannot be passed"),
    (lambda: _Plain(), "a _Plain cannot be passed"),
    (lambda: _Own("x"), r"an exception \(_Own; raise it, or pass a RemoteError\) cannot be passed"),
    (lambda: 1j, "a complex cannot be passed"),
    (lambda: object(), "an object cannot be passed"),
    (lambda: {1: 2}, "a struct's keys are strings, not int"),
    (lambda: {None: 2}, "a struct's keys are strings, not NoneType"),
    (lambda: "\ud800", "a string with a surrogate is not text"),
    (lambda: RemoteError("\ud800"), "surrogate"),
    (lambda: RemoteError(3), "an error's message is a str, not int"),  # type: ignore[arg-type]
    (lambda: Tagged("\ud800", 1), "surrogate"),
    (lambda: {"\ud800": 1}, "surrogate"),
    (lambda: 10**256, "an integer of more than 256 digits"),
    (lambda: -(10**256), "an integer of more than 256 digits"),
    (lambda: _nested(64), "nested more than 64 deep"),
]


@pytest.mark.parametrize(("make", "why"), REFUSED, ids=[why[:24] for _, why in REFUSED])
def test_what_cannot_be_passed_is_refused_at_the_send_with_the_path_to_it(
    make: Callable[[], object], why: str
) -> None:
    @trio_test
    async def run() -> None:
        called: list[object] = []
        async with linked_peers("theirs", "ours") as (theirs, ours):
            keep = target(lambda *args: called.append(args))
            remote = await far(theirs, ours, keep)
            promise, resolver = make_promise()
            fulfilled, fulfil = make_promise()
            fulfil.fulfill(keep)
            answer = E(await far(theirs, ours, Echo())).echo(remote)
            await quiet(theirs, ours)
            before = between(ours, theirs).stats()
            for receiver in (keep, remote, promise, fulfilled, answer):
                for send in (E(receiver), send_only(receiver)):
                    sends: list[Callable[..., object]] = [send.put, send["put"], send]
                    for call in sends:
                        with pytest.raises(NotPassable, match=why) as info:
                            call(1, {"file": make()})
                        assert info.value.path.startswith("args[1]['file']"[: len(info.value.path)])
                        assert info.value.path.startswith("args[1]")
                        assert str(info.value) == f"{info.value.path}: {info.value.why}"
                        with pytest.raises(TypeError):
                            call([make()])
            await quiet(theirs, ours)
            resolver.fulfill(keep)
            await quiet(theirs, ours)
            assert called == []
            after = between(ours, theirs).stats()
            assert {name: after[name] for name in after if "messages_sent" in name or name == "exports"} == {
                name: before[name] for name in before if "messages_sent" in name or name == "exports"
            }

    run()


@trio_test
async def test_the_path_counts_the_arguments_that_were_given() -> None:
    """`args[0]["file"]: an open file cannot be passed`: the name of the method is no argument."""
    async with linked_peers("theirs", "ours") as (theirs, ours):
        file = io.BytesIO()
        for box in (Box(), await far(theirs, ours, Box())):
            cases: dict[str, list[object]] = {
                "args[0]": [file],
                "args[1]": [1, file],
                "args[0]['file']": [{"file": file}],
                "args[0][2]['a'].value[0]": [[1, 2, {"a": Tagged("t", [file])}]],
            }
            for path, args in cases.items():
                sends: list[Callable[..., object]] = [E(box).put, E(box), send_only(box).put]
                for send in sends:
                    with pytest.raises(NotPassable) as info:
                        send(*args)
                    assert str(info.value) == f"{path}: an open file cannot be passed"


@trio_test
async def test_a_result_that_cannot_be_passed_breaks_the_answer_and_says_where() -> None:
    class Wrong(Target):
        @method
        def sync(self) -> object:
            return {"x": [print]}

        @method
        async def task(self) -> object:
            return {"x": [print]}

    async with linked_peers("theirs", "ours") as (theirs, ours):
        for wrong in (Wrong(), await far(theirs, ours, Wrong())):
            for send in (E(wrong).sync, E(wrong).task):
                with pytest.raises(RemoteError, match=r"^the result\['x'\]\[0\]: a function"):
                    await send()
    async with linked_peers("a"):
        _, resolver = make_promise()
        with pytest.raises(NotPassable, match=r"^value\[0\]: a function"):
            resolver.fulfill([print])


@trio_test
async def test_local_and_remote_sends_allow_the_same_nesting() -> None:
    async with linked_peers("theirs", "ours", limits=Limits(nesting=12)) as (theirs, ours):
        innermost = [
            1,
            [],
            {},
            None,
            Null,
            Tagged("t", 1),
            RemoteError("e"),
            Box(),
            HERE,
            SturdyRef(HERE, b"s"),
        ]
        for inner in innermost:
            least: dict[str, int] = {}
            for name, echo in (("local", Echo()), ("remote", await far(theirs, ours, Echo()))):
                for depth in range(14):
                    try:
                        await E(echo).echo(_nested(depth, inner))
                    except NotPassable:
                        with pytest.raises(NotPassable, match="nested more than 12 deep"):
                            E(echo).echo(_nested(depth, inner))
                        least[name] = depth
                        break
            assert least["local"] == least["remote"], inner


@trio_test
async def test_a_message_over_the_limit_of_a_frame_is_refused_at_the_send() -> None:
    async with linked_peers("theirs", "ours", limits=Limits(frame=10_000)) as (theirs, ours):
        box = Box()
        remote = await far(theirs, ours, box)
        with pytest.raises(NotPassable, match="over the limit of 10000"):
            E(remote).put(b"x" * 10_000)
        await E(remote).put(b"x" * 9_000)
        assert len(box.content) == 9_000


@trio_test
async def test_a_refused_send_leaves_nothing_behind() -> None:
    async with linked_peers("theirs", "ours") as (theirs, ours):
        remote = await far(theirs, ours, Box())
        other = await far(theirs, ours, Echo())
        await quiet(theirs, ours)
        before = between(ours, theirs).stats()
        for _ in range(10):
            with pytest.raises(NotPassable):
                E(remote).put([Box(), E(other).echo, print])
            with pytest.raises(NotPassable):
                send_only(remote).put([Box(), make_promise()[0], print])
        await quiet(theirs, ours)
        assert between(ours, theirs).stats() == before
