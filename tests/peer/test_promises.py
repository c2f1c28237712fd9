"""semantics.md, A Promise is a place to send to."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import trio

from ocapn import (
    E,
    Limits,
    MemoryNetlayer,
    MemoryNetwork,
    Promise,
    Ref,
    RemoteError,
    Resolver,
    SessionEnded,
    Symbol,
    Tagged,
    Target,
    WrongContext,
    field,
    index,
    is_settled,
    make_promise,
    method,
    open_peer,
    send_only,
    target,
    untag,
    when_broken,
)
from ocapn.testing import linked_peers, quiet
from tests.peer.support import Box, Echo, Recorder, Trace, between, far, settle
from tests.support import trio_test


class Account(Target):
    def __init__(self, amount: int) -> None:
        self.amount = amount

    @method
    def balance(self) -> int:
        return self.amount


class Bank(Target):
    def __init__(self) -> None:
        self.accounts = {"a": Account(5), "b": Account(7)}

    @method
    def account(self, name: str) -> Account:
        return self.accounts[name]

    @method
    async def account_later(self, name: str) -> Account:
        await trio.sleep(1)
        return self.accounts[name]


# Sending to a promise


@trio_test
async def test_a_send_to_a_promise_is_a_send_to_what_it_will_become() -> None:
    """`p.name(args)` on a Promise is a send to what it will become, so chains read naturally."""
    async with linked_peers("a", "b") as (a, b):
        for bank in (Bank(), await far(a, b, Bank())):
            assert await E(bank).account("a").balance() == 5
            assert await E(bank).account_later("b").balance() == 7
            assert await E(E(bank).account("a")).balance() == 5


@trio_test
async def test_a_chain_goes_out_at_once_without_waiting_for_its_links() -> None:
    async with linked_peers("a", "b") as (a, b):
        bank = await far(a, b, Bank())
        await quiet(a, b)
        trace = Trace(between(b, a))
        balance = E(bank).account_later("a").balance()
        await settle()
        assert len(trace.sent("op:deliver")) == 2
        assert "<desc:answer" in trace.sent("op:deliver")[1]
        assert not trace.received()
        assert await balance == 5


@trio_test
async def test_a_promise_takes_bare_sends_and_names_in_brackets() -> None:
    async with linked_peers("a", "b") as (a, b):
        for echo in (target(lambda *args: list(args)), await far(a, b, target(lambda *args: list(args)))):
            promise = E(Echo()).echo(echo)
            assert await promise(1, 2) == [1, 2]
            assert await promise["any-name"](1) == [Symbol("any-name"), 1]


@trio_test
async def test_a_promise_has_no_public_attributes_of_its_own() -> None:
    """To keep every name free, a Promise has no public attributes of its own."""
    assert [name for name in dir(Promise) if not name.startswith("_")] == []


@pytest.mark.parametrize("name", ["value", "result", "send", "cancel", "then", "close", "resolve", "node"])
def test_every_name_is_free_to_be_sent(name: str) -> None:
    @trio_test
    async def run() -> None:
        async with linked_peers("a", "b") as (a, b):
            for names in (target(lambda *args: args[0].name), await far(a, b, target(lambda s: s.name))):
                promise, resolver = make_promise()
                sent = getattr(promise, name)()
                resolver.fulfill(names)
                assert await sent == name

    run()


@trio_test
async def test_messages_to_a_promise_wait_for_it_and_break_with_it() -> None:
    async with linked_peers("a", "b") as (a, b):
        recorder = Recorder()
        for final in (recorder, await far(a, b, recorder)):
            promise, resolver = make_promise()
            notes = [promise.note(i) for i in range(3)]
            await settle()
            assert not any(map(is_settled, notes))
            resolver.fulfill(final)
            for note in notes:
                await note
            assert recorder.seen == [0, 1, 2]
            recorder.seen.clear()

        promise, resolver = make_promise()
        note = promise.note(1)
        resolver.break_(ValueError("no recorder today"))
        with pytest.raises(RemoteError, match="no recorder today"):
            await note

        for data in (3, "text", ["list"], None):
            promise, resolver = make_promise()
            note = promise.note(1)
            resolver.fulfill(data)
            with pytest.raises(RemoteError, match="became data"):
                await note
            with pytest.raises(RemoteError, match="became data"):
                await promise.note(1)


@trio_test
async def test_a_broken_promise_breaks_the_chain_behind_it() -> None:
    async with linked_peers("a", "b") as (a, b):
        for bank in (Bank(), await far(a, b, Bank())):
            with pytest.raises(RemoteError, match="'c'"):
                await E(bank).account("c").owner().name()
        await quiet(a, b)


@trio_test
async def test_a_promise_is_no_boolean_and_no_sequence() -> None:
    """What looks like a value and is a promise of one is an error, not a surprise."""
    async with linked_peers("a"):
        promise, _resolver = make_promise()
        with pytest.raises(TypeError, match="await it first"):
            bool(promise)
        with pytest.raises(TypeError, match="await it first"):
            iter(promise)


# send_only


@trio_test
async def test_send_only_sends_without_an_answer(caplog: pytest.LogCaptureFixture) -> None:
    """`send_only(x).name(args)`: nothing comes back, and an error there is only logged there."""
    caplog.set_level(logging.WARNING, "ocapn.captp")
    calls: list[object] = []

    @target
    def broken(*args: object) -> None:
        calls.append(args)
        raise ValueError("this goes to the log")

    async with linked_peers("a", "b") as (a, b):
        remote = await far(a, b, broken)
        pending, resolver = make_promise()
        for receiver in (broken, remote, pending):
            run: Callable[..., object] = send_only(receiver).run
            assert run(1) is None
            send_only(receiver)["run"](1)
            send_only(receiver)(1)
        resolver.fulfill(remote)
        await quiet(a, b)
    assert len(calls) == 9
    assert len(caplog.records) == 9
    assert caplog.text.count("ValueError: this goes to the log") == 9


@trio_test
async def test_send_only_asks_for_no_answer_on_the_wire() -> None:
    async with linked_peers("a", "b", durable="never") as (a, b):
        ref = await far(a, b, Recorder())
        await quiet(a, b)
        trace = Trace(between(b, a))
        send_only(ref).note(1)
        await quiet(a, b)
        assert trace.lines == ["-> <op:deliver <desc:export 1> ['note 1] f f>"]


# field, index, untag


class Shop(Target):
    def __init__(self) -> None:
        self.stock = {"list": [Account(1), {"deep": Tagged("price", 12)}], "owner": Account(9)}

    @method
    def all(self) -> object:
        return self.stock

    @method
    async def later(self) -> object:
        await trio.sleep(1)
        return self.stock


@trio_test
async def test_field_index_and_untag_ask_for_parts() -> None:
    """`field(p, "x")`, `index(p, 0)`, `untag(p, "t")`."""
    async with linked_peers("a", "b") as (a, b):
        for shop in (Shop(), await far(a, b, Shop())):
            for whole in (E(shop).all(), E(shop).later()):
                deep = field(index(field(whole, "list"), 1), "deep")
                assert await untag(deep, "price") == 12
                await whole
                assert await untag(field(index(field(whole, "list"), 1), "deep"), "price") == 12
        await quiet(a, b)


@trio_test
async def test_a_part_is_a_promise_to_send_to() -> None:
    async with linked_peers("a", "b") as (a, b):
        for shop in (Shop(), await far(a, b, Shop())):
            assert await field(E(shop).later(), "owner").balance() == 9
            assert await E(index(field(E(shop).all(), "list"), 0)).balance() == 1


@trio_test
async def test_parts_that_are_held_are_told_together() -> None:
    """However they are awaited: one after the other takes no longer than one does."""
    async with linked_peers("a", "b", network=MemoryNetwork(delay=lambda a, b: 1.0)) as (a, b):
        shop = await far(a, b, Shop())
        start = trio.current_time()
        for part in [index(field(E(shop).all(), "list"), 1) for _ in range(10)]:
            assert await part == {"deep": Tagged("price", 12)}
        assert trio.current_time() - start < 3
        await quiet(a, b)


@trio_test
async def test_of_parts_that_are_not_held_or_only_sent_to_nothing_is_told() -> None:
    async with linked_peers("a", "b") as (a, b):
        shop = await far(a, b, Shop())
        await quiet(a, b)
        trace = Trace(between(b, a))
        part = field(E(shop).all(), "owner")
        sent = E(part).balance()
        field(E(shop).all(), "list")
        await settle()
        assert not trace.sent("op:listen")
        assert await sent == 9
        assert isinstance(await part, Ref)
        assert len(trace.sent("op:listen")) == 1
        await field(E(shop).all(), "list")  # which listens before the messages are taken
        assert len(trace.sent("op:listen")) == 2


@trio_test
async def test_of_parts_that_are_held_only_so_many_are_told_as_there_is_room_for() -> None:
    """The others are asked for when they are awaited, and are not broken meanwhile."""
    async with linked_peers("a", "b", limits=Limits(slots=20)) as (a, b):
        shop = await far(a, b, Shop())
        trace = Trace(between(b, a))
        whole = E(shop).all()
        parts = [field(whole, "owner") for _ in range(30)]
        await settle()
        assert 0 < len(trace.sent("op:listen")) <= 10
        assert not any("broken" in repr(part) for part in parts)
        del parts[:-1]
        await settle()
        assert isinstance(await parts[0], Ref)


@trio_test
async def test_parts_that_are_held_do_not_fill_the_outbox_further() -> None:
    """Who heeds Backpressure does not lose the session of a peer that reads slowly."""
    network = MemoryNetwork()
    limits = Limits(outbox_frames=100)
    async with (
        open_peer([MemoryNetlayer(network, "a")], limits=limits) as a,
        open_peer([MemoryNetlayer(network, "b")], limits=limits) as b,
    ):
        shop = await far(a, b, Shop())
        await trio.sleep(1)  # until the session is durable, and all is acknowledged
        (link,) = network.links_between("a", "b")
        link.hold()
        whole = E(shop).all()
        parts = [field(whole, "list") for _ in range(300)]
        await settle()
        held = [part for part in parts if not is_settled(part)]
        assert len(held) == 99
        assert between(b, a).stats()["frames_kept"] == 100
        link.release()
        for part in held:
            assert len(await part) == 2
        assert between(b, a).status == "live"


@trio_test
async def test_parts_are_asked_for_without_waiting() -> None:
    async with linked_peers("a", "b") as (a, b):
        shop = await far(a, b, Shop())
        await quiet(a, b)
        trace = Trace(between(b, a))
        balance = index(field(E(shop).later(), "list"), 0).balance()
        await settle()
        assert [line.split()[1] for line in trace.sent()] == [
            "<op:deliver",
            "<op:get",
            "<op:index",
            "<op:deliver",
        ]
        assert not trace.received()
        assert await balance == 1


@trio_test
async def test_a_part_that_is_not_there_breaks_the_promise_of_it() -> None:
    async with linked_peers("a", "b") as (a, b):
        for echo in (Echo(), await far(a, b, Echo())):
            cases: list[tuple[object, Callable[[Promise], Promise], str]] = [
                ({"x": 1}, lambda p: field(p, "y"), "no field 'y'"),
                ([1], lambda p: field(p, "y"), "wants a struct"),
                ([1], lambda p: index(p, 1), "no index 1"),
                ({"x": 1}, lambda p: index(p, 0), "wants a list"),
                (Tagged("t", 1), lambda p: untag(p, "u"), "tagged 't', not 'u'"),
                (1, lambda p: untag(p, "u"), "wants a tagged value"),
            ]
            for whole, part, why in cases:
                with pytest.raises(RemoteError, match=why):
                    await part(E(echo).echo(whole))


@trio_test
async def test_parts_of_what_is_no_promise_and_wrong_keys_are_refused_at_once() -> None:
    async with linked_peers("a"):
        promise, _resolver = make_promise()
        wrong: Any = None
        cases: list[tuple[Callable[[], Promise], type[Exception]]] = [
            (lambda: field(promise, wrong), TypeError),
            (lambda: index(promise, -1), ValueError),
            (lambda: index(promise, wrong), ValueError),
            (lambda: index(promise, True), ValueError),
            (lambda: untag(promise, wrong), TypeError),
        ]
        for ask, error in cases:
            with pytest.raises(error, match=r"is a str|an integer from 0"):
                ask()
        not_a_promise: Any = Echo()
        with pytest.raises(TypeError, match="only a promise has parts"):
            field(not_a_promise, "x")


# when_broken


@trio_test
async def test_when_broken_tells_that_a_reference_broke() -> None:
    network = MemoryNetwork()
    async with linked_peers("a", "b", network=network) as (a, b):
        ref = await far(a, b, Echo())
        broken = when_broken(ref)
        await settle()
        assert not is_settled(broken)
        between(b, a).end("had enough")
        error = await broken
        assert isinstance(error, SessionEnded)
        assert error.reason == "had enough"
        assert (await when_broken(ref)).reason == "had enough"


@trio_test
async def test_when_broken_tells_that_a_promise_broke() -> None:
    async with linked_peers("a"):
        promise, resolver = make_promise()
        broken = when_broken(promise)
        resolver.break_("it broke")
        assert str(await broken) == "it broke"
        assert str(await when_broken(promise)) == "it broke"


@trio_test
async def test_when_broken_follows_a_promise_to_the_reference_that_it_becomes() -> None:
    network = MemoryNetwork()
    async with linked_peers("a", "b", network=network, durable="never") as (a, b):
        promise = E(await far(a, b, Bank())).account_later("a")
        broken = when_broken(promise)
        await promise
        await settle()
        assert not is_settled(broken)
        network.cut("a", "b")
        assert isinstance(await broken, SessionEnded)


@trio_test
async def test_local_objects_and_data_never_break() -> None:
    async with linked_peers("a"):
        promise, resolver = make_promise()
        broken = [when_broken(Echo()), when_broken(promise)]
        resolver.fulfill(3)
        await settle()
        assert not any(map(is_settled, broken))


# is_settled, make_promise


@trio_test
async def test_is_settled() -> None:
    """`is_settled(p)`: whether `await p` would not wait."""
    async with linked_peers("a"):
        promise, resolver = make_promise()
        other, other_resolver = make_promise()
        assert not is_settled(promise)
        resolver.fulfill(other)
        assert not is_settled(promise)
        other_resolver.fulfill(3)
        assert is_settled(promise)
        broken, resolver = make_promise()
        resolver.break_("no")
        assert is_settled(broken)


@trio_test
async def test_a_resolver_decides_once() -> None:
    async with linked_peers("a"):
        promise, resolver = make_promise()
        resolver.fulfill(1)
        resolver.fulfill(2)
        resolver.break_("too late")
        assert await promise == 1
        promise, resolver = make_promise()
        resolver.break_("first")
        resolver.fulfill(2)
        with pytest.raises(RemoteError, match="first"):
            await promise


@trio_test
async def test_a_resolver_can_be_passed_on() -> None:
    async with linked_peers("a", "b") as (a, b):
        box = Box()
        remote = await far(a, b, box)
        promise, resolver = make_promise()
        assert type(resolver) is Resolver
        await E(remote).put(resolver)
        await E(box.content).fulfill({"x": 1})  # as a message from a to b's resolver
        assert await promise == {"x": 1}

        promise, resolver = make_promise()
        await E(remote).put(resolver)
        await E(box.content)["break"](RemoteError("broken from afar"))
        with pytest.raises(RemoteError, match="broken from afar"):
            await promise


@trio_test
async def test_a_promise_resolved_to_itself_breaks() -> None:
    async with linked_peers("a"):
        promise, resolver = make_promise()
        resolver.fulfill(promise)
        with pytest.raises(RemoteError, match="resolved to itself"):
            await promise
        one, resolve_one = make_promise()
        two, resolve_two = make_promise()
        resolve_one.fulfill(two)
        resolve_two.fulfill(one)
        for promise in (one, two):
            with pytest.raises(RemoteError, match="resolved to itself"):
                await promise


@trio_test
async def test_a_promise_resolved_to_itself_through_another_peer_does_not_live_forever() -> None:
    async with linked_peers("a", "b") as (a, b):
        echo = await far(a, b, Echo())
        promise, resolver = make_promise()
        resolver.fulfill(E(echo).echo(promise))
        with trio.fail_after(5), pytest.raises(RemoteError, match="resolved to itself"):
            await promise
        await quiet(a, b)


def test_make_promise_needs_a_peer() -> None:
    with pytest.raises(WrongContext, match="make_promise needs a peer"):
        make_promise()
