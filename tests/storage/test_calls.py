"""`current_session` and `current_storage`: who calls, whatever runs meanwhile and in whatever task."""

from __future__ import annotations

import gc
from typing import Any

import attrs
import pytest
import trio

import durable
import ocapn
from ocapn import (
    E,
    Limits,
    MemoryNetlayer,
    MemoryNetwork,
    RemoteError,
    Session,
    StorageLimits,
    Target,
    WrongContext,
    current_session,
    current_storage,
    make_promise,
    method,
    open_peer,
    send_only,
)
from ocapn.testing import linked_peers, quiet
from tests.peer.support import between, far
from tests.support import trio_test


def caller() -> str:
    """The designator of who calls."""
    try:
        return current_session().location.designator
    except WrongContext:
        return "nobody"


class Who(Target):
    """Says who has called."""

    def __init__(self, nursery: trio.Nursery | None = None) -> None:
        self.seen: list[str] = []
        self.nursery = nursery
        self.go = trio.Event()
        self.sessions: list[Session] = []

    @method
    def now(self) -> str:
        self.sessions.append(current_session())
        return caller()

    @method
    async def later(self) -> list[str]:
        said = [caller()]
        await self.go.wait()
        said.append(caller())
        return said

    @method
    async def in_a_thread(self) -> str:
        return await trio.to_thread.run_sync(caller)

    @method
    async def in_tasks(self) -> list[str]:
        said = []

        async def task() -> None:
            await self.go.wait()
            said.append(caller())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(task)
            nursery.start_soon(task)
        return said

    @method
    def starts(self) -> None:
        """A task that outlives the method, in a nursery of the application's."""
        assert self.nursery is not None

        async def task() -> None:
            await self.go.wait()
            self.seen.append(caller())

        self.nursery.start_soon(task)

    @method
    def tell(self, other: Any) -> object:
        """What another object says of who calls it, and what this one says afterwards."""
        answer = E(other).now()
        assert caller() != "nobody"
        return answer

    @method
    def fails(self) -> None:
        raise ValueError("as it is meant to")


def test_outside_of_methods_nobody_calls() -> None:
    for ask in (current_session, current_storage, ocapn.current_async_storage):
        with pytest.raises(WrongContext, match="no session has called"):
            ask()


@trio_test
async def test_each_caller_in_methods_tasks_and_threads() -> None:
    async with linked_peers("a", "b", "c") as (a, b, c), trio.open_nursery() as nursery:
        who = Who(nursery)
        from_b, from_c = await far(a, b, who), await far(a, c, who)
        for _ in range(3):
            assert (await E(from_b).now(), await E(from_c).now()) == ("b", "c")
        assert who.sessions[-2] is between(a, b)
        assert who.sessions[-1] is between(a, c)
        assert (await E(from_b).in_a_thread(), await E(from_c).in_a_thread()) == ("b", "c")
        answers = [E(ref).later() for ref in (from_b, from_c)] + [
            E(ref).in_tasks() for ref in (from_b, from_c)
        ]
        for ref in (from_c, from_b, from_c):
            send_only(ref).starts()
        with pytest.raises(RemoteError):
            await E(from_b).fails()
        await quiet(a, b, c)
        assert caller() == "nobody"
        who.go.set()
        assert [await answer for answer in answers] == [["b", "b"], ["c", "c"], ["b", "b"], ["c", "c"]]
        await quiet(a, b, c)
        assert sorted(who.seen) == ["b", "c", "c"]
        assert caller() == "nobody"


@trio_test
async def test_a_method_that_was_called_locally_has_no_caller() -> None:
    async with linked_peers("a", "b") as (a, b):
        who = Who()
        with pytest.raises(RemoteError, match="no session has called"):
            await E(who).now()
        ref = await far(a, b, who)
        with pytest.raises(RemoteError, match="no session has called"):
            await E(ref).tell(ref)  # b calls the one, which calls the other
        who.go.set()
        assert await E(who).later() == ["nobody", "nobody"]


@trio_test
async def test_peers_of_one_process_that_call_each_other() -> None:
    async with linked_peers("a", "b", "c") as (a, b, c):
        asked, asks = Who(), Who()
        assert await E(await far(b, c, asks)).tell(asked) == "b"  # where it was handed on
        promise, resolver = make_promise()
        answer = E(await far(b, c, asks)).tell(promise)
        resolver.fulfill(await far(a, c, asked))
        assert await answer == "c"  # which has forwarded it: it is c's promise
        await quiet(a, b, c)


@trio_test
async def test_a_method_that_was_pipelined_or_queued_was_called_all_the_same() -> None:
    class Factory(Target):
        @method
        def make(self) -> Who:
            return Who()

        @method
        def promise(self) -> Any:
            return promised

    async with linked_peers("a", "b") as (a, b):
        promised, resolver = make_promise()
        factory = await far(a, b, Factory())
        assert await E(E(factory).make()).now() == "b"
        answer = E(E(factory).promise()).now()
        await quiet(a, b)
        resolver.fulfill(Who())
        assert await answer == "b"


@trio_test
async def test_after_the_session_has_ended_it_is_still_the_one_that_called() -> None:
    class Runs(Target):
        def __init__(self) -> None:
            self.go = trio.Event()
            self.sessions: list[Session] = []

        @method
        async def run(self) -> None:
            self.sessions.append(current_session())
            await self.go.wait()
            self.sessions.append(current_session())

    async with linked_peers("a", "b") as (a, b):
        runs = Runs()
        send_only(await far(a, b, runs)).run()
        await quiet(a, b)
        between(b, a).end()
        await quiet(a, b)
        assert a.sessions == []
        send_only(await far(a, b, runs)).run()
        await quiet(a, b)
        runs.go.set()
        await quiet(a, b)
        first, second, *after = runs.sessions
        assert first is not second
        assert first.ended is not None
        assert second.ended is None
        assert {id(one) for one in after} == {id(first), id(second)}


@trio_test
async def test_a_session_that_is_over_and_was_not_looked_at_is_one_session_too() -> None:
    class Queued(Target):
        @method
        def look(self) -> None:
            sessions.append(current_session())

    sessions: list[Session] = []
    async with linked_peers("a", "b") as (a, b):
        promise, resolver = make_promise()

        class Promises(Target):
            @method
            def get(self) -> Any:
                return promise

        later = E(await far(a, b, Promises())).get()
        for _ in range(2):
            send_only(later).look()
        await quiet(a, b)
        between(b, a).end()
        await quiet(a, b)
        gc.collect()
        resolver.fulfill(Queued())
        await quiet(a, b)
        assert len(sessions) == 2
        assert sessions[0] is sessions[1]
        assert sessions[0].ended is not None
        assert sessions[0].location == b.locator()
        assert a._registry.publics == {}  # and nothing else is kept of it


@pytest.mark.parametrize("kept", [False, True])
def test_between_turns_nobody_calls(kept: bool) -> None:
    """What is traced is so in the tasks that read, before the turns and between them."""

    @trio_test
    async def run() -> None:
        network = MemoryNetwork()
        baggage = durable.MemoryBaggage() if kept else None
        async with (
            linked_peers("b", network=network) as (b,),
            open_peer([MemoryNetlayer(network, "a")], baggage=baggage) as a,
        ):
            who = Who()
            ref = await far(a, b, who)
            callers: list[str] = []

            def trace(line: str) -> None:
                if line.startswith("<-"):  # what is sent is traced in the turn that sends it
                    callers.append(caller())

            between(a, b).trace(trace)
            for _ in range(3):
                answers = [E(ref).now() for _ in range(5)]
                answers.append(E(ref).later())
                assert [await answer for answer in answers[:5]] == ["b"] * 5
            who.go.set()
            assert await answers[5] == ["b", "b"]
            assert len(callers) > 15
            assert set(callers) == {"nobody"}
            await quiet(a, b)

    run()


@trio_test
async def test_what_dials_for_a_caller_is_not_called_by_it() -> None:
    """`authenticate` of a peer that dials because of what a method does."""

    class Sends(Target):
        @method
        async def send(self, other: ocapn.SturdyRef) -> object:
            return E(await a.enliven(other)).now()

    asked: list[str] = []

    def authenticate(introduction: ocapn.Introduction) -> bool:
        asked.append(caller())
        return True

    network = MemoryNetwork()
    async with (
        linked_peers("b", "c", network=network) as (b, c),
        open_peer([MemoryNetlayer(network, "a")], authenticate=authenticate) as a,
    ):
        assert await E(await far(a, b, Sends())).send(c.export(Who())) == "a"
        assert asked == ["nobody", "nobody"]
        await quiet(a, b, c)


# Storage


class Shelf(Target):
    """Keeps things for those who call."""

    @method
    def put(self, key: str, value: object, ttl: float | None = None) -> None:
        current_storage().set(key, value, ttl=ttl)

    @method
    def get(self, key: str) -> object:
        return current_storage().get(key, "nothing")

    @method
    async def get_slowly(self, key: str) -> object:
        await trio.sleep(1)
        return await ocapn.current_async_storage().get(key, "nothing")

    @method
    def take(self, key: str) -> bool:
        return current_storage().delete(key)

    @method
    def keys(self) -> object:
        return current_storage().list(keys_only=True)[0]


def proved(network: MemoryNetwork, name: str, **options: Any) -> Any:
    """A peer that is authenticated."""
    return open_peer([MemoryNetlayer(network, name, authenticates=True)], **options)


@trio_test
async def test_no_peer_sees_what_another_keeps() -> None:
    network = MemoryNetwork()
    async with proved(network, "a") as a, proved(network, "b") as b, proved(network, "c") as c:
        shelf = Shelf()
        from_b, from_c = await far(a, b, shelf), await far(a, c, shelf)
        await E(from_b).put("k", {"of": "b", "list": [1, None, 2.5, b"x"]})
        assert await E(from_b).get("k") == {"of": "b", "list": [1, None, 2.5, b"x"]}
        assert await E(from_c).get("k") == "nothing"
        assert await E(from_c).keys() == []
        assert await E(from_c).take("k") is False
        await E(from_c).put("k", "of c")
        assert await E(from_b).take("k") is True
        assert await E(from_b).get("k") == "nothing"
        assert await E(from_c).get_slowly("k") == "of c"
        stats = a.storage_stats()
        assert stats is not None
        assert (stats.peers, stats.keys) == (1, 1)
        with pytest.raises(RemoteError, match="no session has called"):
            await E(shelf).get("k")
        await quiet(a, b, c)


@trio_test
async def test_a_peer_finds_what_it_has_kept_in_its_next_session() -> None:
    network = MemoryNetwork()
    async with proved(network, "a") as a, proved(network, "b") as b:
        shelf = Shelf()
        await E(await far(a, b, shelf)).put("k", 1)
        between(b, a).end()
        await quiet(a, b)
        assert await E(await far(a, b, shelf)).get("k") == 1
        await quiet(a, b)


@trio_test
async def test_who_is_not_authenticated_has_no_storage_unless_the_application_says_so() -> None:
    network = MemoryNetwork()
    names: dict[str, str | None] = {"b": "Bob", "c": "Bob", "d": None, "e": ""}

    def identity(session: Session) -> str | None:
        assert not session.authenticated
        return names[session.location.designator]

    async with (
        linked_peers("b", "c", "d", "e", "f", network=network) as (b, c, d, e, f),
        open_peer([MemoryNetlayer(network, "a")], storage_identity=identity) as a,
    ):
        shelf = Shelf()
        await E(await far(a, b, shelf)).put("k", "Bob's")
        assert await E(await far(a, c, shelf)).get("k") == "Bob's"
        with pytest.raises(RemoteError, match="nobody has proved who calls"):
            await E(await far(a, d, shelf)).get("k")
        with pytest.raises(RemoteError, match="what storage_identity returns may not be empty"):
            await E(await far(a, e, shelf)).get("k")
        for use in ("get", "get_slowly"):
            with pytest.raises(RemoteError, match="nobody has proved who calls"):
                await getattr(E(await far(f, b, shelf)), use)("k")
        await quiet(a, b, c, d, e, f)


@trio_test
async def test_whom_the_netlayer_has_proved_the_application_does_not_name() -> None:
    network = MemoryNetwork()
    async with (
        proved(network, "a", storage_identity=lambda session: "everybody") as a,
        proved(network, "b") as b,
        proved(network, "c") as c,
    ):
        shelf = Shelf()
        await E(await far(a, b, shelf)).put("k", 1)
        assert await E(await far(a, c, shelf)).get("k") == "nothing"
        await quiet(a, b, c)


@trio_test
async def test_a_full_quota_is_told_to_the_caller_and_the_others_keep_theirs() -> None:
    network = MemoryNetwork()
    limits = Limits(storage=StorageLimits(peer_keys=2))
    async with proved(network, "a", limits=limits) as a, proved(network, "b") as b, proved(network, "c") as c:
        shelf = Shelf()
        from_b, from_c = await far(a, b, shelf), await far(a, c, shelf)
        await E(from_c).put("secret", 1)
        for key in ("1", "2"):
            await E(from_b).put(key, 1)
        with pytest.raises(RemoteError, match=r"^the caller may keep 2 keys, of 4,194,304 bytes") as failed:
            await E(from_b).put("secret", 1)
        assert "secret" not in str(failed.value)
        assert await E(from_b).keys() == ["1", "2"]
        assert await E(from_c).get("secret") == 1
        await quiet(a, b, c)


@trio_test
async def test_time_passes_and_a_read_begins_it_again() -> None:
    network = MemoryNetwork()
    async with proved(network, "a") as a, proved(network, "b") as b:
        ref = await far(a, b, Shelf())
        await E(ref).put("k", 1, 60.0)
        for _ in range(3):
            await trio.sleep(50)
            assert await E(ref).get("k") == 1
        await trio.sleep(61)
        assert await E(ref).get("k") == "nothing"
        await E(ref).put("k", 1, 60.0)
        await trio.sleep(70)
        stats = a.storage_stats()
        assert stats is not None
        assert (stats.peers, stats.keys, stats.size) == (0, 0, 0)  # nobody has asked for it
        await quiet(a, b)


@durable.kind("test.calls.waits", version=1)
@attrs.define(eq=False)
class Waits(Target):
    """Notes who has called as it is told what a promise became."""

    seen: tuple[str, ...] = ()

    def told(self, value: object) -> None:
        try:
            who = current_session().location.designator
        except WrongContext:
            who = "nobody"
        self.seen = (*self.seen, who)


class Fulfils(Target):
    def __init__(self) -> None:
        self.promise, self._resolver = make_promise()

    @method
    def go(self) -> None:
        self._resolver.fulfill(1)


@trio_test
async def test_nobody_calls_what_is_told_of_a_promise() -> None:
    network = MemoryNetwork()
    async with (
        open_peer([MemoryNetlayer(network, "a", authenticates=True)], baggage=durable.MemoryBaggage()) as a,
        open_peer([MemoryNetlayer(network, "c", authenticates=True)]) as c,
    ):
        waits, fulfils = Waits(), Fulfils()
        a.export(waits)
        ref = await far(a, c, fulfils)
        durable.when(fulfils.promise, waits, "told", None)
        await trio.sleep(1.0)
        send_only(ref).go()
        await trio.sleep(1.0)
        assert waits.seen == ("nobody",)
