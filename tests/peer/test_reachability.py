"""semantics.md, Reachability."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from ocapn import (
    ConnectFailed,
    E,
    PeerLocator,
    RemoteError,
    SturdyRef,
    Symbol,
    Target,
    make_promise,
    method,
    target,
)
from ocapn.testing import linked_peers
from tests.peer.support import Echo, Recorder, far
from tests.support import trio_test


class Base(Target):
    ran: ClassVar[list[str]] = []

    @method
    def inherited(self) -> str:
        return "inherited"

    @method
    def overridden(self) -> str:
        self.ran.append("base")
        return "base"

    @method
    def overridden_and_marked(self) -> str:
        return "base"

    def helper(self) -> str:
        self.ran.append("helper")
        return "helper"


class Mixin:
    @method
    def mixed_in(self) -> str:
        return "mixed in"

    def mixin_helper(self) -> None:
        Base.ran.append("mixin_helper")


class Child(Mixin, Base):
    attribute = "value"

    def __init__(self) -> None:
        self.callback = lambda: self.ran.append("callback")
        self.other = Echo()

    def overridden(self) -> str:  # not marked
        self.ran.append("child")
        return "child"

    @method
    def overridden_and_marked(self) -> str:
        return "child"

    @property
    def property(self) -> str:
        self.ran.append("property")
        return "property"

    @classmethod
    def class_method(cls) -> None:
        cls.ran.append("class_method")

    @staticmethod
    def static_method() -> None:
        Child.ran.append("static_method")

    def unmarked(self) -> None:
        self.ran.append("unmarked")

    def __call__(self) -> None:
        self.ran.append("__call__")

    def __getattr__(self, name: str) -> Any:
        self.ran.append(f"__getattr__ {name}")
        raise AttributeError(name)

    @method(name="by-name")
    def python_name(self) -> str:
        return "by name"


REACHED = {
    "inherited": "inherited",
    "overridden_and_marked": "child",
    "mixed_in": "mixed in",
    "by-name": "by name",
}
UNREACHED = [
    "attribute",
    "ran",
    "callback",
    "other",
    "property",
    "class_method",
    "static_method",
    "unmarked",
    "overridden",
    "helper",
    "mixin_helper",
    "python_name",
    "__call__",
    "__init__",
    "__class__",
    "__dict__",
    "__getattribute__",
    "__repr__",
    "__reduce__",
    "_ocapn_entry",
    "_ocapn_methods",
    "call",
    "nothing of that name",
    "",
]


@trio_test
async def test_only_what_is_marked_can_be_called_from_outside() -> None:
    """Only methods marked `@ocapn.method` on a `Target`: never an attribute, a dunder, an inherited helper."""
    Base.ran.clear()
    async with linked_peers("a", "b") as (a, b):
        child = Child()
        for receiver in (child, await far(a, b, child)):
            for name, answer in REACHED.items():
                assert await E(receiver)[name]() == answer
                assert await E(receiver)(name) == answer  # a string names a method as a symbol does
            for name in UNREACHED:
                for send in (E(receiver)[name], lambda n=name, r=receiver: E(r)(n)):
                    with pytest.raises(RemoteError) as info:
                        await send()
                    assert str(info.value) == f"no method is called {name!r}"
    assert Base.ran == []


@trio_test
async def test_a_message_that_names_no_method_is_refused() -> None:
    async with linked_peers("a", "b") as (a, b):
        for receiver in (Child(), await far(a, b, Child())):
            for args in ([], [3], [["inherited"]], [b"inherited"], [None], [Echo()]):
                with pytest.raises(RemoteError, match="begins with the name of a method"):
                    await E(receiver)(*args)


class Counts(Target):
    @method
    def two(self, one: object, other: object) -> str:
        return "two"

    @method
    def some(self, one: object, other: object = 2, /, *, keyword: int = 3) -> str:
        return "some"

    @method
    def any(self, one: object, *more: object) -> str:
        return "any"


@trio_test
async def test_the_number_of_arguments_is_checked_before_the_method_runs() -> None:
    async with linked_peers("a", "b") as (a, b):
        for counts in (Counts(), await far(a, b, Counts())):
            for name, right, wrong, takes in (
                ("two", [2], [0, 1, 3], "2 arguments"),
                ("some", [1, 2], [0, 3], "1 to 2 arguments"),
                ("any", [1, 2, 9], [0], "at least 1 argument"),
            ):
                for number in right:
                    assert await E(counts)[name](*range(number)) == name
                for number in wrong:
                    with pytest.raises(RemoteError) as info:
                        await E(counts)[name](*range(number))
                    assert str(info.value) == f"{name} takes {takes}, {number} given"


def test_a_method_that_messages_could_never_call_is_refused_when_it_is_written() -> None:
    with pytest.raises(
        TypeError, match="run: messages have no keyword arguments, and keyword has no default"
    ):

        class Wrong(Target):
            @method
            def run(self, *, keyword: int) -> None: ...

    with pytest.raises(TypeError, match="@method marks functions"):
        method(3)  # type: ignore[call-overload]


@trio_test
async def test_callables_wrapped_by_target_can_be_called() -> None:
    """And callables wrapped by `target(fn)`."""

    @target
    def add(one: int, other: int = 5) -> int:
        return one + other

    @target
    async def later(*args: object) -> list[object]:
        return list(args)

    async with linked_peers("a", "b") as (a, b):
        for receiver in (add, await far(a, b, add)):
            assert await E(receiver)(1, 2) == 3
            assert await E(receiver)(1) == 6
            with pytest.raises(RemoteError, match="add takes 1 to 2 arguments, 3 given"):
                await E(receiver)(1, 2, 3)
        for receiver in (later, await far(a, b, later)):
            assert await E(receiver).name(1) == [Symbol("name"), 1]
        assert await E(await far(a, b, target(max)))([1, 3, 2]) == 3  # a builtin tells no signature
    with pytest.raises(TypeError, match="target wraps a callable, not int"):
        target(3)  # type: ignore[arg-type]


# Sturdyrefs


@trio_test
async def test_export_draws_32_random_bytes() -> None:
    """`peer.export(obj)` draws 32 random bytes unless given a swiss number."""
    async with linked_peers("a", "b") as (a, b):
        echo = Echo()
        refs = [a.export(echo) for _ in range(20)]
        assert {len(ref.swiss) for ref in refs} == {32}
        assert len({ref.swiss for ref in refs}) == 20
        assert {ref.peer for ref in refs} == {a.locator()}
        enlivened = [await b.enliven(ref) for ref in refs]
        assert all(one is enlivened[0] for one in enlivened)
        assert await b.enliven(refs[0].uri) is await b.enliven(refs[0])


@trio_test
async def test_export_takes_a_swiss_number() -> None:
    async with linked_peers("a", "b") as (a, b):
        echo = Echo()
        ref = a.export(echo, swiss=b"known")
        assert ref == SturdyRef(a.locator(), b"known")
        assert a.export(echo, swiss=b"known") == ref  # the same object: nothing new
        assert await E(await b.enliven(ref)).echo(1) == 1
        with pytest.raises(ValueError, match="in use for another object; unexport it first"):
            a.export(Echo(), swiss=b"known")
        for wrong in (b"", b"x" * 1025, "text", 3):
            with pytest.raises(ValueError, match="1 to 1,024 bytes"):
                a.export(Echo(), swiss=wrong)  # type: ignore[arg-type]
        assert await E(await b.enliven(a.export(echo, swiss=b"x" * 1024))).echo(1) == 1


@trio_test
async def test_references_and_promises_can_be_exported_and_nothing_else() -> None:
    async with linked_peers("a", "c", "b") as (a, c, b):
        there = await far(a, b, Echo())
        assert await E(await c.enliven(b.export(there))).echo("handed over") == "handed over"
        promise, resolver = make_promise()
        ref = b.export(promise)
        resolver.fulfill(Echo())
        assert await E(await c.enliven(ref)).echo(1) == 1
        for wrong, what in ((print, "a function"), (3, "an int"), ([Echo()], "a list"), (Echo, "a class")):
            with pytest.raises(TypeError, match=f"{what}.* cannot be exported: subclass ocapn.Target"):
                a.export(wrong)


@trio_test
async def test_unexport_ends_a_sturdyref() -> None:
    """`peer.unexport(sturdyref)` ends it; what was enlivened before stays held by those who hold it."""
    async with linked_peers("a", "b") as (a, b):
        echo = Echo()
        ref, other = a.export(echo), a.export(echo)
        held = await b.enliven(ref)
        a.unexport(ref)
        for peer in (b, a):
            with pytest.raises(RemoteError, match="no object has that swiss number"):
                await peer.enliven(ref)
        assert await E(held).echo("still held") == "still held"
        assert await b.enliven(other) is held  # each sturdyref for itself
        for gone in (ref, SturdyRef(b.locator(), other.swiss)):
            with pytest.raises(KeyError, match="not exported here"):
                a.unexport(gone)


@trio_test
async def test_a_sturdyref_is_not_guessed_and_not_told() -> None:
    async with linked_peers("a", "b") as (a, b):
        ref = a.export(Echo())
        for guess in (b"", b"\0" * 32, ref.swiss[:-1], ref.swiss + b"\0"):
            with pytest.raises(RemoteError, match="no object has that swiss number") as info:
                await b.enliven(SturdyRef(a.locator(), guess))
            assert guess.hex() not in str(info.value) or not guess
        for text in (repr(ref), str(ref), f"{ref}", repr([ref])):
            assert "hidden" in text
            assert ref.uri.split("/s/")[1] not in text


@trio_test
async def test_enliven_says_what_is_wrong_with_its_argument() -> None:
    async with linked_peers("a") as (a,):
        with pytest.raises(TypeError, match="enliven takes a SturdyRef or its URI, not a PeerLocator"):
            await a.enliven(a.locator())  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="names a peer, not an object"):
            await a.enliven(a.locator().uri)
        with pytest.raises(ConnectFailed, match="has no netlayer onion; it has memory"):
            await a.enliven(SturdyRef(PeerLocator("onion", "x"), b"s"))
        with pytest.raises(ConnectFailed, match="nobody listens there"):
            await a.enliven(SturdyRef(PeerLocator("memory", "nobody"), b"s"))
        with pytest.raises(ConnectFailed, match="this peer itself"):
            await a.connect(a.locator())


@trio_test
async def test_an_object_that_was_not_given_is_out_of_reach() -> None:
    """What the application does not pass, or mark, is not on the wire: exports hold what was sent alone."""
    async with linked_peers("a", "b") as (a, b):
        recorder = Recorder()
        await E(await far(a, b, Child())).inherited()
        (session,) = a.sessions
        exports: Any = session.dump()["exports"]
        assert {slot["is"] for slot in exports.values()} <= {"Child"}
        assert recorder.seen == []
