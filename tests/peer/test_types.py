"""semantics.md, Types. Most of this file is checked by mypy, which the test command runs over it.

`assert_type` fails there if a type is another, and a `type: ignore` that is not needed is an error.
"""

from __future__ import annotations

from typing import Any, Protocol, assert_type

import pytest

from ocapn import (
    E,
    Peer,
    PeerLocator,
    Promise,
    Resolver,
    Session,
    SturdyRef,
    Symbol,
    Target,
    equal,
    field,
    index,
    is_settled,
    make_promise,
    method,
    parse_uri,
    send_only,
    target,
    untag,
    when_broken,
)
from ocapn.sending import Sender, SenderOnly
from ocapn.testing import linked_peers
from tests.peer.support import Echo, far
from tests.support import trio_test


class Greeter(Target):
    @method
    async def greet(self, name: str) -> str:
        return f"Hello, {name}!"

    @method(name="greet-loudly")
    async def loudly(self, name: str, times: int = 1) -> list[str]:
        return [f"HELLO, {name}!"] * times

    @method
    async def friend(self) -> Greeter:
        return self


class Greets(Protocol):
    """What a peer written by somebody else is known to take."""

    async def greet(self, name: str) -> str: ...


@trio_test
async def test_E_is_untyped() -> None:
    """`E(x)` is untyped: every name and every argument is right for the type checker."""
    async with linked_peers("a"):
        assert_type(E(Echo()), Sender)
        assert_type(E(Echo()).echo(1), Promise)
        assert_type(E(Echo())["echo"](1), Promise)
        assert_type(E(Echo())(Symbol("echo"), 1), Promise)
        assert_type(E(Echo()).echo(1).name(2), Promise)
        assert_type(await E(Echo()).echo(1), Any)
        assert_type(send_only(Echo()), SenderOnly)
        send_only(Echo()).anything(1, "two")


@trio_test
async def test_E_with_a_class_types_the_sends() -> None:
    """`E(x, Greeter)` types the sends by the class `Greeter`."""
    async with linked_peers("a", "b") as (a, b):
        remote: Any = await far(a, b, Greeter())
        for greeter in (Greeter(), remote):
            assert_type(E(greeter, Greeter), Greeter)
            greeting = await E(greeter, Greeter).greet("Bob")
            assert_type(greeting, str)
            assert greeting == "Hello, Bob!"
            friend = await E(greeter, Greeter).friend()
            assert_type(friend, Greeter)
            assert await E(friend, Greeter).greet("Carol") == "Hello, Carol!"

            # What is wrong is told by the type checker, before it is told at run time.
            with pytest.raises(Exception, match="no method is called 'insult'"):
                await E(greeter, Greeter).insult("Bob")  # type: ignore[attr-defined]
            with pytest.raises(Exception, match="greet takes 1 argument,"):
                await E(greeter, Greeter).greet("Bob", 2)  # type: ignore[call-arg]
            assert await E(greeter, Greeter).greet(3) == "Hello, 3!"  # type: ignore[arg-type]


@trio_test
async def test_E_with_a_protocol_types_the_sends() -> None:
    """Or by the Protocol `Greets`."""
    async with linked_peers("a", "b") as (a, b):
        remote: Any = await far(a, b, Greeter())
        assert_type(E(remote, Greets), Greets)
        assert_type(await E(remote, Greets).greet("Bob"), str)
        assert await E(remote, Greets).greet("Bob") == "Hello, Bob!"
        with pytest.raises(Exception, match="no method is called 'insult'"):
            await E(remote, Greets).insult()  # type: ignore[attr-defined]


@trio_test
async def test_the_helpers_are_typed() -> None:
    async with linked_peers("a") as (a,):
        promise, resolver = make_promise()
        assert_type(promise, Promise)
        assert_type(resolver, Resolver)
        resolver.fulfill({"x": [1]})
        assert_type(field(promise, "x"), Promise)
        assert_type(index(field(promise, "x"), 0), Promise)
        assert_type(untag(promise, "t"), Promise)
        assert_type(when_broken(promise), Promise)
        assert_type(is_settled(promise), bool)
        assert_type(await promise, Any)
        assert_type(a, Peer)
        assert_type(a.export(Echo()), SturdyRef)
        assert_type(a.locator(), PeerLocator)
        assert_type(a.sessions, list[Session])
        assert_type(parse_uri(a.locator().uri), PeerLocator | SturdyRef)
        assert_type(equal(1, 1), bool)
        assert await index(field(promise, "x"), 0) == 1


def test_decorators_keep_the_types_of_what_they_mark() -> None:
    def plain(one: int) -> str:
        return str(one)

    marked = method(plain)
    assert_type(marked(1), str)
    named = method(name="other")(plain)
    assert_type(named(1), str)
    assert_type(target(plain), Target)
    assert marked(1) == named(1) == "1"
