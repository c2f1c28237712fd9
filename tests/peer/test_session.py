"""Sessions: what applications learn of them, and that there is one for each pair of peers, whatever happens."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio

from ocapn import (
    Aborted,
    ConnectFailed,
    Disconnected,
    E,
    Limits,
    MemoryNetlayer,
    MemoryNetwork,
    OCapNError,
    Peer,
    PeerLocator,
    SturdyRef,
    TcpTestingNetlayer,
    make_promise,
    open_peer,
    send_only,
)
from ocapn.crypto import SessionKey
from ocapn.netlayers.base import Channel, ChannelBroken, Listener, Netlayer
from ocapn.netlayers.memory import Link
from ocapn.testing import linked_peers, quiet
from tests.peer.raw import LIMITS, Raw, abort, hello
from tests.peer.support import Box, Echo, Gate, Recorder, Trace, between, far, settle
from tests.support import trio_test, trio_test_real

# What can be asked of a session


@trio_test
async def test_a_session_says_who_where_and_whether_it_lives() -> None:
    async with linked_peers("a", "b") as (a, b):
        session = await b.connect(a.locator())
        assert session is await b.connect(a.locator().uri)
        assert b.sessions == [session]
        assert session.location == a.locator()
        assert session.netlayer == "memory"
        assert session.ended is None
        assert repr(session) == "<Session with ocapn://a.memory, live>"
        assert repr(b) == "<Peer ocapn://b.memory, 1 sessions>"
        session.end("done")
        assert str(session.ended) == "done"
        assert repr(session) == "<Session with ocapn://a.memory, ended: done>"
        assert b.sessions == []


@trio_test
async def test_stats_count_messages_bytes_and_slots() -> None:
    network = MemoryNetwork()
    async with linked_peers("a", "b", network=network, durable="never") as (a, b):
        gate = Gate()
        ref = await far(a, b, gate)
        await quiet(a, b)
        ours, theirs = between(b, a), between(a, b)
        before = ours.stats()
        (link,) = network.links_between("a", "b")
        link.hold()
        promise = E(ref).wait(Echo())
        pending, resolver = make_promise()
        send_only(ref).wait([pending])
        await settle()
        after = ours.stats()
        assert after["messages_sent"] == before["messages_sent"] + 2
        assert after["bytes_sent"] > before["bytes_sent"] + 50
        assert after["messages_received"] == before["messages_received"]
        assert (after["imports"], after["exports"], after["questions"]) == (1, 3, 1)  # one is a resolver
        link.release()
        await settle()
        there = theirs.stats()
        assert there["messages_received"] == after["messages_sent"]
        assert there["bytes_received"] == after["bytes_sent"]
        assert (there["imports"], there["exports"], there["answers"], there["resolvers"]) == (2, 1, 1, 1)
        gate.opened.set()
        resolver.fulfill(1)
        await promise
        await quiet(a, b)
        assert ours.stats()["questions"] == theirs.stats()["answers"] == 0
        assert all(value >= 0 for value in ours.stats().values())


@trio_test
async def test_stats_count_turns_and_messages_that_wait() -> None:
    async with linked_peers("a", "b", limits=Limits(slice_turns=1)) as (a, b):
        recorder = Recorder()
        ref = await far(a, b, recorder)
        seen: list[int] = []
        for _ in range(50):
            send_only(ref).note(1)
        while len(recorder.seen) < 50:
            seen.append(between(a, b).stats()["turns_waiting"])
            await trio.lowlevel.checkpoint()
        assert max(seen) > 10
        assert between(a, b).stats()["turns_waiting"] == 0

        promise, resolver = make_promise()
        box = Box()
        await E(await far(a, b, box)).put([promise])
        for _ in range(3):
            send_only(box.content[0]).note(2)
        await settle()
        assert between(b, a).stats()["messages_on_promises"] == 3
        resolver.fulfill(recorder)
        await settle()
        assert between(b, a).stats()["messages_on_promises"] == 0
        assert recorder.seen[50:] == [2, 2, 2]


@trio_test
async def test_dump_lists_every_slot_without_secrets() -> None:
    swiss = b"SwissNumberNobodyMaySee"
    async with linked_peers("a", "c", "b") as (a, c, b):
        gate = Gate()
        ref = await b.enliven(a.export(gate, swiss=swiss))
        await quiet(a, b)
        promise, _resolver = make_promise()
        asked = E(ref).wait([Echo(), promise])
        await E(await far(c, b, Box())).put(ref)  # a gift
        await settle()
        ours, theirs = between(b, a).dump(), between(a, b).dump()
        assert ours["peer"] == "ocapn://a.memory"
        assert ours["state"] == "live"
        assert ours["imports"] == {1: {"count": 1, "is": "object"}}
        exports: Any = ours["exports"]
        assert sorted(slot["is"] for slot in exports.values()) == [
            "Echo",
            "promise, pending",
            "resolver of answer 2",
        ]
        assert ours["questions"] == {2: "pending"}
        assert theirs["answers"] == {2: "pending"}
        assert {slot["is"] for slot in theirs["exports"].values()} == {"Gate"}  # type: ignore[attr-defined]
        for text in (repr(ours), repr(theirs), repr(between(a, c).dump())):
            assert "SwissNumber" not in text
            assert swiss.hex() not in text
        session = between(b, a)
        session.end("over")
        assert session.dump()["state"] == "ended: over"
        assert session.dump()["exports"] == {}
        del asked


@trio_test
async def test_check_names_the_invariant_that_does_not_hold() -> None:
    async with linked_peers("a", "b") as (a, b):
        ref = await far(a, b, Echo())
        between(b, a).check()
        b.check()
        imports = between(b, a)._core.tables.imports
        imports[1].count = 0
        for check in (between(b, a).check, b.check):
            with pytest.raises(AssertionError, match="import 1 is kept with count 0"):
                check()
        imports[1].count = 1
        exports = between(a, b)._core.tables.exports
        exports[1].count = 0
        with pytest.raises(AssertionError, match="export 1 is kept with count 0"):
            a.check()
        exports[1].count = 1
        a.check()
        assert await E(ref).echo(1) == 1


@trio_test
async def test_trace_is_in_the_notation_of_the_specification() -> None:
    async with linked_peers("a", "b", durable="never") as (a, b):
        ref = await far(a, b, Echo())
        await quiet(a, b)
        here, there = Trace(between(b, a)), Trace(between(a, b))
        await E(ref).echo([1, "two", b"three", {"four": 4.0}])
        await quiet(a, b)
        args = '[1 "two" :7468726565 { four: 4.0 }]'
        assert here.lines[:2] == [
            f"-> <op:deliver <desc:export 1> ['echo {args}] 2 <desc:import-object 2>>",
            f"<- <op:deliver <desc:export 2> ['fulfill {args}] f f>",
        ]
        assert sorted(here.lines[2:]) == ["-> <op:gc-answers [2]>", "<- <op:gc-exports [2] [1]>"]
        mirrored = {"->": "<-", "<-": "->"}
        assert sorted(there.lines) == sorted(mirrored[line[:2]] + line[2:] for line in here.lines)
        count = len(here.lines)
        between(b, a).trace(None)
        assert await E(ref).echo(1) == 1
        assert len(here.lines) == count


@pytest.mark.parametrize("secrets", [False, True])
def test_trace_leaves_secrets_out_unless_asked(secrets: bool) -> None:
    @trio_test
    async def run() -> None:
        swiss = b"SwissNumberNobodyMaySee"
        lines: list[str] = []
        async with linked_peers("a", "c", "b") as (a, c, b):
            for peer, other in itertools.permutations((a, b, c), 2):
                session = await peer.connect(other.locator())
                session.trace(lines.append, secrets=secrets)
            ref = await b.enliven(a.export(Echo(), swiss=swiss))
            box = Box()
            await E(await far(c, b, box)).put([ref, SturdyRef(a.locator(), swiss)])
            assert await E(box.content[0]).echo(1) == 1
            await quiet(a, b, c)
        text = "\n".join(lines)
        assert (swiss.hex() in text) is secrets
        assert ("…(23 bytes)" in text) is not secrets
        (deposit,) = [line for line in lines if "'deposit-gift" in line and line.startswith("->")]
        (give,) = [
            line for line in lines if "desc:handoff-give" in line and line.startswith("->") and "'put" in line
        ]
        gift_id = deposit.split("'deposit-gift ")[1].split()[0]
        if secrets:
            assert len(gift_id) == 65
            assert gift_id in give
        else:
            assert gift_id == ":…(32"
            assert ":…(32 bytes)>" in give

    run()


# One session for each pair


class Counting(Netlayer):
    """A memory netlayer that counts dials and can make them slow, or fail."""

    transport = "memory"

    def __init__(self, network: MemoryNetwork, name: str, *, takes: float = 0, fails: bool = False) -> None:
        self.inner = MemoryNetlayer(network, name)
        self.location = self.inner.location
        self.dials = 0
        self.takes = takes
        self.fails = fails

    async def listen(self, limits: Limits) -> Listener | None:
        return await self.inner.listen(limits)

    async def dial(self, locator: PeerLocator, limits: Limits) -> Channel:
        self.dials += 1
        await trio.sleep(self.takes)
        if self.fails:
            raise ConnectFailed("cannot be reached from here")
        return await self.inner.dial(locator, limits)


@trio_test
async def test_tasks_that_ask_for_the_same_peer_share_one_dial() -> None:
    network = MemoryNetwork()
    netlayer = Counting(network, "b", takes=1)
    async with open_peer([MemoryNetlayer(network, "a")]) as a, open_peer([netlayer]) as b:
        echo = Echo()
        refs = [a.export(echo) for _ in range(5)]
        got: list[Any] = []

        async def enliven(ref: SturdyRef) -> None:
            got.append(await b.enliven(ref))

        async with trio.open_nursery() as nursery:
            for ref in refs:
                nursery.start_soon(enliven, ref)
            await settle()
            nursery.start_soon(b.connect, a.locator())
        assert netlayer.dials == 1
        assert len(network.links_between("a", "b")) == 1
        assert len({id(one) for one in got}) == 1
        await b.connect(a.locator())
        assert netlayer.dials == 1


@trio_test
async def test_a_task_that_gives_up_leaves_the_dial_to_the_others() -> None:
    network = MemoryNetwork()
    netlayer = Counting(network, "b", takes=5)
    async with open_peer([MemoryNetlayer(network, "a")]) as a, open_peer([netlayer]) as b:
        ref = a.export(Echo())
        done = trio.Event()

        async def enliven() -> None:
            assert await E(await b.enliven(ref)).echo(1) == 1
            done.set()

        async with trio.open_nursery() as nursery:
            with trio.move_on_after(1):
                nursery.start_soon(enliven)
                await b.enliven(ref)
            await done.wait()
        assert netlayer.dials == 1


@trio_test
async def test_a_dial_that_fails_is_told_to_all_who_wait_and_tried_again_for_the_next() -> None:
    network = MemoryNetwork()
    netlayer = Counting(network, "b", takes=1, fails=True)
    async with open_peer([MemoryNetlayer(network, "a")]) as a, open_peer([netlayer]) as b:
        errors: list[ConnectFailed] = []

        async def connect() -> None:
            with pytest.raises(ConnectFailed, match="cannot be reached from here") as info:
                await b.connect(a.locator())
            errors.append(info.value)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(connect)
        assert len(errors) == 3
        assert netlayer.dials == 1
        netlayer.fails = False
        await b.connect(a.locator())
        assert netlayer.dials == 2


@trio_test
async def test_sessions_go_both_ways() -> None:
    """Who was dialled uses the same session."""
    network = MemoryNetwork()
    async with linked_peers("a", "b", network=network) as (a, b):
        await b.connect(a.locator())
        await quiet(a, b)
        assert await E(await far(b, a, Echo())).echo(1) == 1
        assert len(network.links_between("a", "b")) == 1


# Crossed hellos


async def _cross(a: Peer, b: Peer, later: float, order: str) -> None:
    """Both enliven an object of the other at about the same time; both succeed, with one session."""
    of_a, of_b = a.export(Echo()), b.export(Echo())

    async def enliven(peer: Peer, ref: SturdyRef, wait: float) -> None:
        await trio.sleep(wait)
        assert await E(await peer.enliven(ref)).echo("hello") == "hello"

    async with trio.open_nursery() as nursery:
        first = (a, of_b) if order == "a first" else (b, of_a)
        second = (b, of_a) if order == "a first" else (a, of_b)
        nursery.start_soon(enliven, *first, 0)
        nursery.start_soon(enliven, *second, later)


def _one_session(network: MemoryNetwork, a: Peer, b: Peer) -> None:
    (ours,), (theirs,) = a.sessions, b.sessions
    assert ours._core.id == theirs._core.id
    assert ours.ended is theirs.ended is None
    a.check()
    b.check()


DELAYS = (0.0, 0.4, 0.9)


@pytest.mark.parametrize("higher", ["a", "b"])
@pytest.mark.parametrize("later", [0.0, 0.1, 0.5])
def test_crossed_hellos_in_every_interleaving(later: float, higher: str) -> None:
    """Whatever the delays of the first messages each way, one session is left, and both enlivens succeed."""
    for delays in itertools.product(DELAYS, repeat=4):

        @trio_test
        async def run(delays: tuple[float, ...] = delays) -> None:
            ways = {("a", "b"): list(delays[:2]), ("b", "a"): list(delays[2:])}

            def delay(sender: str, receiver: str) -> float:
                left = ways[sender, receiver]
                return left.pop(0) if left else 0.3

            network = MemoryNetwork(delay=delay)
            async with linked_peers("a", "b", network=network) as (a, b):
                _choose_winner(a, b, higher)
                await _cross(a, b, later, "a first")
                await trio.sleep(5)
                _one_session(network, a, b)
                assert len(network.links_between("a", "b")) == 1

        run()


def _choose_winner(a: Peer, b: Peer, higher: str) -> None:
    """Makes the session keys of one peer have the higher identifiers."""
    seeds = sorted((SessionKey(bytes([n]) * 32).public_id, bytes([n]) * 32) for n in range(40))
    for peer, name, half in ((a, "a", seeds), (b, "b", seeds)):
        some = [seed for _, seed in (half[20:] if name == higher else half[:20])]
        iterator = iter(some)
        original = peer._node.random
        peer._node.random = lambda n, it=iterator, original=original: next(it, None) or original(n)  # type: ignore[misc]


@pytest.mark.parametrize("seed", range(40))
def test_crossed_hellos_with_random_delays_and_order(seed: int) -> None:
    @trio_test
    async def run() -> None:
        choose = random.Random(seed)
        network = MemoryNetwork(delay=lambda a, b: choose.choice([0, 0.1, 0.7]))
        async with linked_peers("a", "b", network=network) as (a, b):
            for _ in range(3):
                await _cross(a, b, choose.choice([0, 0, 0.1, 0.3]), choose.choice(["a first", "b first"]))
                await trio.sleep(5)
                _one_session(network, a, b)
                a.sessions[0].end("again")
                await trio.sleep(5)
                assert a.sessions == b.sessions == []
                assert network.links_between("a", "b") == []

    run()


@pytest.mark.parametrize("higher", ["a", "b"])
@pytest.mark.parametrize("releases", list(itertools.permutations(["a forth", "a back", "b forth", "b back"])))
def test_crossed_hellos_over_held_links(releases: tuple[str, ...], higher: str) -> None:
    """Both connections are there, all held; the four directions are released in every order."""

    @trio_test
    async def run() -> None:
        network = MemoryNetwork(delay=lambda a, b: 0.001)
        async with linked_peers("a", "b", network=network) as (a, b):
            _choose_winner(a, b, higher)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cross, a, b, 0.0, "a first")
                while len(network.links_between("a", "b")) < 2:
                    await trio.lowlevel.checkpoint()
                links: dict[str, Link] = {link.a: link for link in network.links}
                for link in links.values():
                    link.hold()
                await trio.sleep(0.1)
                held = {name: {"forth", "back"} for name in links}
                for release in releases:
                    name, way = release.split()
                    held[name].discard(way)
                    links[name].release()
                    links[name].hold(a_to_b="forth" in held[name], b_to_a="back" in held[name])
                    await trio.sleep(0.4)
            await trio.sleep(5)
            _one_session(network, a, b)

    run()


@pytest.mark.parametrize("higher", ["a", "b"])
@pytest.mark.parametrize("fails", [False, True])
def test_a_dial_that_has_not_got_through_does_not_refuse_the_one_that_has(fails: bool, higher: str) -> None:
    """While `a` cannot reach `b`, or not yet, `b` reaches `a`: then that is the session."""

    @trio_test
    async def run() -> None:
        network = MemoryNetwork()
        slow = Counting(network, "a", takes=3, fails=fails)
        async with open_peer([slow]) as a, open_peer([MemoryNetlayer(network, "b")]) as b:
            _choose_winner(a, b, higher)
            with trio.fail_after(1.5):
                await _cross(a, b, 1, "a first")
            await trio.sleep(10)
            _one_session(network, a, b)
            assert len(network.links_between("a", "b")) == 1

    run()


@pytest.mark.parametrize("higher", ["ours", "theirs"])
def test_of_crossed_hellos_the_one_with_the_higher_identifier_lives(higher: str) -> None:
    """The public identifiers of the two dialling sides' keys decide, as bytes; other implementations do the same."""

    @trio_test
    async def run() -> None:
        network = MemoryNetwork()
        theirs = MemoryNetlayer(network, "raw")
        listener = await theirs.listen(LIMITS)
        assert listener is not None
        by_identifier = sorted(range(10), key=lambda n: SessionKey(bytes([n]) * 32).public_id)
        async with open_peer([MemoryNetlayer(network, "a")]) as a, trio.open_nursery() as tasks:
            a._node.random = lambda size: bytes([by_identifier[5]]) * size
            tasks.start_soon(a.connect, theirs.location)
            incoming = await listener.accept()
            (first,) = await incoming.receive(1)  # the peer's hello
            seed = by_identifier[0 if higher == "ours" else 9]
            raw = await Raw.dial(network, "raw", a.locator(), seed=seed)
            await raw.hello()
            if higher == "ours":
                (told,) = await raw.receive()
                assert told == abort("crossed hellos: the other connection is the session")
                await incoming.send([hello(theirs.location, KEY)])
            else:
                assert await incoming.receive(1) == [
                    abort("crossed hellos: the other connection is the session")
                ]
                assert (await raw.channel.receive(1))[0].startswith(b"<16'op:start-session")
            await settle()
            (session,) = a.sessions
            assert session._core.dialled is (higher == "ours")
            assert first.startswith(b"<16'op:start-session")

    run()


# A second connection


@trio_test
async def test_a_second_connection_from_a_location_with_a_live_session_is_refused() -> None:
    network = MemoryNetwork()
    async with linked_peers("a", "b", network=network) as (a, b):
        ref = await far(a, b, Echo())
        raw = await Raw.dial(network, "b", a.locator(), seed=1)
        await raw.hello()
        start, reason = await raw.receive()
        assert start.startswith(b"<16'op:start-session")
        assert reason == abort("there is a session with this location already")
        assert await E(ref).echo("the old one lives") == "the old one lives"
        async with open_peer([MemoryNetlayer(network, "b", listen=False)]) as impostor:
            with pytest.raises(Aborted, match="there is a session with this location already"):
                await far(a, impostor, Echo())
        assert len(a.sessions) == 1


@pytest.mark.parametrize("silent", [30, 44, 46, 1000])
def test_a_silent_old_connection_yields_after_45_seconds(silent: float) -> None:
    @trio_test
    async def run() -> None:
        network = MemoryNetwork()
        async with AsyncExitStack() as stack:
            a = await stack.enter_async_context(open_peer([MemoryNetlayer(network, "a")], durable="never"))
            b = await stack.enter_async_context(open_peer([MemoryNetlayer(network, "b")], durable="never"))
            ref = await far(a, b, Echo())
            theirs = await far(b, a, Echo())
            await quiet(a, b)
            old = between(a, b)
            (link,) = network.links_between("a", "b")
            link.hold()  # as if b's machine had lost its power
            await trio.sleep(silent)
            again = await stack.enter_async_context(
                open_peer([MemoryNetlayer(network, "b", listen=False)], durable="never")
            )
            if silent < 45:
                with pytest.raises(Aborted, match="there is a session with this location already"):
                    await far(a, again, Echo())
                assert old.ended is None
            else:
                echo = await far(a, again, Echo())
                assert await E(echo).echo("the new one") == "the new one"
                assert isinstance(old.ended, Disconnected)
                assert "silent" in old.ended.reason
                with pytest.raises(Disconnected):
                    await E(theirs).echo(1)
                assert len(a.sessions) == 1
            del ref

    run()


@trio_test
async def test_a_connection_over_which_something_comes_is_not_silent() -> None:
    network = MemoryNetwork()
    async with linked_peers("a", "b", network=network) as (a, b):
        ref = await far(a, b, Echo())
        for _ in range(10):
            await trio.sleep(30)
            await E(ref).echo(1)
        raw = await Raw.dial(network, "b", a.locator())
        await raw.hello()
        assert (await raw.receive())[-1] == abort("there is a session with this location already")


@pytest.mark.parametrize("end", ["abort", "eof"])
def test_what_is_readable_on_the_old_connection_counts_before_the_new_one_is_judged(end: str) -> None:
    """A peer that comes back at once is not refused because the end of its old connection was not read yet."""

    @trio_test
    async def run() -> None:
        network = MemoryNetwork()
        async with open_peer([MemoryNetlayer(network, "a")]) as a:
            old = await Raw.dial(network, "b", a.locator(), seed=1)
            await old.hello()
            assert (await old.channel.receive(1))[0].startswith(b"<16'op:start-session")
            await settle()
            assert len(a.sessions) == 1
            new = await Raw.dial(network, "b", a.locator(), seed=2)
            await settle()
            # The new connection's hello and the old one's end can be read in the same pass of the loop.
            links = network.links_between("a", "b")
            assert len(links) == 2
            for link in links:
                link.hold()
            if end == "abort":
                await old.send(abort("restarting"))
            else:
                await old.channel.send_eof()
            await new.hello()
            for link in reversed(links):
                link.release()
            assert (await new.channel.receive(1))[0].startswith(b"<16'op:start-session")
            await settle()
            (session,) = a.sessions
            assert session._core.peer_key == new.key.public_key

    for _ in range(10):  # trio wakes tasks in no fixed order
        run()


@trio_test_real
async def test_a_peer_that_restarts_is_taken_again_over_real_sockets() -> None:
    async with open_peer([TcpTestingNetlayer()]) as a:
        ref = a.export(Echo())
        for _ in range(3):
            async with open_peer([TcpTestingNetlayer(designator="b", listen=False)]) as b:
                assert await E(await b.enliven(ref)).echo(1) == 1


# Aborts and worse, at every stage


OWN = PeerLocator("memory", "raw")
KEY = SessionKey(b"\1" * 32)
GARBAGE = b"<16'op:start-session"

FIRST: dict[str, tuple[Callable[[PeerLocator], list[bytes]], str | None]] = {
    "abort": (lambda peer: [abort("changed my mind")], None),
    "garbage": (lambda peer: [b"garbage"], "malformed"),
    "half a record": (lambda peer: [GARBAGE], "malformed"),
    "another operation": (
        lambda peer: [b"<10'op:deliver<11'desc:export0+>[]ff>"],
        "the first message of a connection is op:start-session",
    ),
    "another version": (
        lambda peer: [hello(OWN, KEY, version="2.0")],
        "the version is '2.0', and this peer speaks '1.0'",
    ),
    "another signer": (
        lambda peer: [hello(OWN, KEY, signer=SessionKey(b"\2" * 32))],
        "the signature of the location is not by the session key",
    ),
    "a key of small order": (
        lambda peer: [hello(OWN, KEY, wire_key=b"\1" + bytes(31))],
        "the signature of the location is not by the session key",
    ),
    "the peer's own location": (lambda peer: [hello(peer, KEY)], "this is our own location"),
    "too long": (lambda peer: [b"<1'x" + b"1+" * 10_000 + b">"], "a message of more than 8192 bytes"),
}


@pytest.mark.parametrize("case", FIRST)
def test_what_is_no_hello_is_refused_with_the_reason(case: str) -> None:
    @trio_test
    async def run() -> None:
        first, reason = FIRST[case]
        network = MemoryNetwork()
        async with open_peer([MemoryNetlayer(network, "a")]) as a:
            raw = await Raw.dial(network, "raw", a.locator())
            await raw.send(*first(a.locator()))
            received = await raw.receive()
            if reason is None:
                assert received == []
            else:
                (told,) = received
                assert told.startswith(b"<8'op:abort")
                assert reason.encode() in told
            assert a.sessions == []
            await _well(network, a)

    run()


async def _well(network: MemoryNetwork, peer: Peer) -> None:
    """The peer keeps nothing of what failed, and takes the next connection."""
    await trio.sleep(2)
    await quiet(peer)
    assert peer.sessions == []
    assert peer._connections == {}
    assert peer._acceptor.unauthenticated == {}
    assert peer._dialler._wanted == {}
    assert peer._node.dials == {}
    assert not network.links_between("raw", peer.locator().designator)
    ref = peer.export(Echo())
    async with open_peer([MemoryNetlayer(network, "raw")]) as next_one:
        assert await E(await next_one.enliven(ref)).echo(1) == 1


@trio_test
async def test_a_connection_that_says_nothing_is_closed_after_ten_seconds() -> None:
    network = MemoryNetwork()
    async with open_peer([MemoryNetlayer(network, "a")]) as a:
        raw = await Raw.dial(network, "raw", a.locator())
        start = trio.current_time()
        (reason,) = await raw.receive()
        assert reason == abort("no op:start-session within 10 s")
        assert 10 <= trio.current_time() - start <= 11.5
        await raw.channel.aclose()
        await _well(network, a)


@pytest.mark.parametrize("how", ["eof", "close", "cut"])
@pytest.mark.parametrize("stage", ["before the hello", "after the hello", "live"])
def test_a_connection_that_ends_at_any_stage_leaves_nothing(stage: str, how: str) -> None:
    @trio_test
    async def run() -> None:
        network = MemoryNetwork()
        async with open_peer([MemoryNetlayer(network, "a")]) as a:
            raw = await Raw.dial(network, "raw", a.locator())
            if stage != "before the hello":
                await raw.hello()
            if stage == "live":
                await settle()
                assert len(a.sessions) == 1
            if how == "eof":
                await raw.channel.send_eof()
                await raw.receive()
                await raw.channel.aclose()
            elif how == "close":
                await raw.channel.aclose()
            else:
                network.cut("a", "raw")
            await trio.sleep(2)
            await _well(network, a)

    run()


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"", "op:start-session came a second time on this connection"),
        (b"garbage", "malformed"),
        (
            b"<10'op:deliver<11'desc:export7+>[]ff>",
            "a message to export 7, which was never exported or is freed",
        ),
        (b"<10'op:deliver<11'desc:answer7+>[]ff>", "answer 7 was never asked for or is released"),
        (b"<10'op:unknown1+>", "malformed"),
        (b"<13'op:gc-exports[1+][1+]>", "gc of export 1, which was never exported or is freed"),
    ],
    ids=["hello again", "garbage", "no export", "no answer", "unknown", "gc"],
)
def test_breaking_the_protocol_aborts_the_session_with_the_reason(message: bytes, reason: str) -> None:
    @trio_test
    async def run() -> None:
        network = MemoryNetwork()
        async with open_peer([MemoryNetlayer(network, "a")]) as a:
            raw = await Raw.dial(network, "raw", a.locator())
            await raw.hello()
            await settle()
            (session,) = a.sessions
            await raw.send(message or hello(raw.location, raw.key))
            start, told = await raw.receive()
            assert start.startswith(b"<16'op:start-session")
            assert told.startswith(b"<8'op:abort")
            assert reason.encode() in told
            assert session.ended is not None
            assert reason in session.ended.reason
            await _well(network, a)

    run()


@trio_test
async def test_an_abort_ends_a_live_session_with_its_reason() -> None:
    network = MemoryNetwork()
    async with open_peer([MemoryNetlayer(network, "a")]) as a:
        raw = await Raw.dial(network, "raw", a.locator())
        await raw.hello()
        await settle()
        (session,) = a.sessions
        await raw.send(abort("so long"))
        received = await raw.receive()
        assert len(received) == 1  # the hello: an abort is not answered
        assert isinstance(session.ended, Aborted)
        assert session.ended.reason == "so long"
        await _well(network, a)


@trio_test
async def test_what_comes_after_an_abort_in_the_same_read_is_not_acted_on() -> None:
    network = MemoryNetwork()
    recorder = Recorder()
    async with open_peer([MemoryNetlayer(network, "a")]) as a:
        a.export(recorder, swiss=b"s")
        raw = await Raw.dial(network, "raw", a.locator())
        await raw.hello()
        await settle()
        fetch = b"<10'op:deliver<11'desc:export0+>[5'fetch1:s]1+f>"
        note = b"<10'op:deliver<11'desc:answer1+>[4'note%d+]ff>"
        await raw.send(fetch, note % 1, abort("the end"), note % 2)
        await settle()
    assert 2 not in recorder.seen


@trio_test
async def test_connections_without_a_session_are_limited_in_all() -> None:
    network = MemoryNetwork()
    limits = Limits(unauthenticated_in_all=3)
    async with open_peer([MemoryNetlayer(network, "a")], limits=limits) as a:
        raws = [await Raw.dial(network, f"raw{n}", a.locator(), seed=n) for n in range(5)]
        await settle()
        assert [link.alive for link in network.links if link.a.startswith("raw")] == 3 * [True] + 2 * [False]
        await raws[0].hello()  # a session, which counts no more
        await settle()
        late = await Raw.dial(network, "late", a.locator())
        await late.hello()
        await settle()
        assert len(a.sessions) == 2


@trio_test
async def test_connections_without_a_session_are_limited_by_source() -> None:
    network = MemoryNetwork()
    async with open_peer([MemoryNetlayer(network, "a")], limits=Limits(unauthenticated_per_source=3)) as a:
        raws = [await Raw.dial(network, "raw", a.locator(), seed=n) for n in range(5)]
        await settle()
        assert sum(not link.alive for link in network.links if link.a == "raw") == 2
        other = await Raw.dial(network, "other", a.locator())
        await other.hello()
        await settle()
        assert len(a.sessions) == 1
        for raw in raws[:3]:
            await raw.channel.aclose()
        await settle()
        late = await Raw.dial(network, "raw", a.locator())
        await late.hello()
        await settle()
        assert len(a.sessions) == 2


# The other side of it: dialling somebody who answers badly


async def _answer(listener: Listener, answers: list[bytes], end: bool) -> None:
    """Answers every hello with the same."""
    while True:
        channel = await listener.accept()
        with contextlib.suppress(ChannelBroken):
            if await channel.receive(1):
                await channel.send(answers)
                if end:
                    await channel.send_eof()
            while await channel.receive(1):
                pass
        await channel.aclose()


BAD = PeerLocator("memory", "bad")
ANSWERS: dict[str, tuple[list[bytes], bool, str]] = {
    "abort": ([abort("not today")], True, "not today"),
    "garbage": ([b"garbage"], False, "malformed"),
    "nothing": ([], True, "the connection ended before op:start-session"),
    "silence": ([], False, r"no op:start-session within 10 s|did not answer within 10 s"),
    "another location": ([hello(OWN, KEY)], False, "was dialled, and ocapn://raw.memory answered"),
    "another signer": ([hello(BAD, KEY, signer=SessionKey(b"\2" * 32))], False, "not by the session key"),
    "an operation": ([b"<10'op:deliver<11'desc:export0+>[]ff>"], False, "the first message"),
    "a hello and an abort": ([hello(BAD, KEY), abort("go away")], True, "go away"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_who_answers_a_dial_badly_is_no_session(case: str) -> None:
    @trio_test
    async def run() -> None:
        answers, end, reason = ANSWERS[case]
        network = MemoryNetwork()
        listener = await MemoryNetlayer(network, "bad").listen(LIMITS)
        assert listener is not None
        async with open_peer([MemoryNetlayer(network, "a")]) as a, trio.open_nursery() as tasks:
            tasks.start_soon(_answer, listener, answers, end)
            start = trio.current_time()
            with pytest.raises(OCapNError, match=reason) as info:
                await a.enliven(SturdyRef(BAD, b"swiss"))
            if case == "a hello and an abort":
                assert isinstance(info.value, Aborted)
            else:
                assert isinstance(info.value, ConnectFailed)
            assert trio.current_time() - start < 13
            await trio.sleep(2)
            tasks.cancel_scope.cancel()
            assert a._connections == {}
            assert a._dialler._wanted == {}
            assert a._node.dials == {}

    run()


@trio_test
async def test_our_own_key_sent_back_is_refused() -> None:
    """A mirror is no peer."""
    network = MemoryNetwork()
    netlayer = MemoryNetlayer(network, "mirror")
    listener = await netlayer.listen(LIMITS)
    assert listener is not None
    async with trio.open_nursery() as tasks, open_peer([MemoryNetlayer(network, "a")]) as a:

        @tasks.start_soon
        async def _() -> None:
            channel = await listener.accept()
            while messages := await channel.receive(10):
                await channel.send(messages)

        with pytest.raises(ConnectFailed, match=r"our own (session key|location)"):
            await a.connect(netlayer.location)
        tasks.cancel_scope.cancel()


@trio_test
async def test_a_peer_may_go_while_somebody_waits_for_its_answer() -> None:
    network = MemoryNetwork()
    async with linked_peers("a", "b", network=network) as (a, b), trio.open_nursery() as tasks:
        await b.connect(a.locator())
        network.links_between("a", "b")[0].hold()

        @tasks.start_soon
        async def _() -> None:
            with pytest.raises(Disconnected):
                await b.enliven(SturdyRef(a.locator(), b"swiss"))

        await settle()
        network.cut("a", "b")


@trio_test
async def test_a_session_that_is_always_busy_is_not_heard_out_for_ever() -> None:
    """Else nobody who names the same location would be judged in time."""
    network = MemoryNetwork()
    async with open_peer([MemoryNetlayer(network, "a")]) as a, open_peer([MemoryNetlayer(network, "b")]) as b:
        await a.connect(b.locator())
        core = between(a, b)._core
        rounds = 0

        async def busy() -> None:
            nonlocal rounds
            for rounds in range(10_000):  # noqa: B007
                core.bytes_in += 1
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(busy)
            await a.hear_out(b.locator())
            nursery.cancel_scope.cancel()
        assert 100 < rounds < 1000
