"""Peers over each netlayer: they call each other, introduce each other, and are cut and go on."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.lowlevel

import ocapn
from ocapn import Backpressure, E, Limits, Target, is_settled, method, open_peer, send_only
from ocapn.netlayers.unix import CREDENTIALS
from ocapn.testing import MakeNetlayer
from tests.netlayers import makers
from tests.netlayers.tor import fake_tor
from tests.peer.support import Echo, between, far
from tests.support import trio_test_real

#: By transport, whether who dials is authenticated too, and who listens.
PROVED = {
    "noise": (True, True),
    "noise in CBOR": (True, True),
    "relay": (True, True),
    "websocket": (False, True),
    "onion": (False, True),
    "tcp": (False, False),
    "unix": (CREDENTIALS, CREDENTIALS),
}


@asynccontextmanager
async def making(transport: str, directory: Path) -> AsyncIterator[MakeNetlayer]:
    if transport == "onion":
        async with fake_tor() as tor:
            yield tor.netlayer
        return
    if transport == "relay":
        async with makers.relayed() as make:
            yield make
        return
    made: dict[str, MakeNetlayer] = {
        "noise": makers.noise,
        "noise in CBOR": makers.noise_in_cbor,
        "websocket": makers.websocket,
        "tcp": makers.tcp("syrup"),
        "unix": makers.unix(directory),
    }
    yield made[transport]


class Caller(Target):
    @method
    def who(self) -> object:
        session = ocapn.current_session()
        assert session is not None
        return [session.location.designator, session.authenticated]

    @method
    def meet(self, other: Any) -> object:
        return E(other).who()


@pytest.mark.parametrize("count", [2, 3, 20])
@pytest.mark.parametrize("transport", PROVED)
def test_peers_that_call_each_other_and_introduce_each_other(
    transport: str, count: int, tmp_path: Path
) -> None:
    who_dials, who_listens = PROVED[transport]

    @trio_test_real
    async def run() -> None:
        async with making(transport, tmp_path) as make, AsyncExitStack() as stack:
            everybody = [
                await stack.enter_async_context(open_peer([make(listen=True)])) for _ in range(count)
            ]
            first = everybody[0]
            refs = {peer: await first.enliven(peer.export(Caller())) for peer in everybody[1:]}
            name = first.locator().designator
            for ref in refs.values():
                assert await E(ref).who() == [name, who_dials]
            for one, other in itertools.pairwise(refs):  # each is handed a reference to the next
                assert await E(refs[one]).meet(refs[other]) == [one.locator().designator, who_dials]
            assert len(first.sessions) == count - 1
            assert {session.authenticated for session in first.sessions} == {who_listens}
            for peer in everybody:
                peer.check()

    run()


@pytest.mark.parametrize("transport", PROVED)
def test_a_peer_that_does_not_read_holds_up_its_own_session_alone(transport: str, tmp_path: Path) -> None:
    """Who sends to it fails, or waits, with a bounded number of bytes; and goes on when it reads."""
    limits = Limits(outbox_bytes=1 << 20)

    @trio_test_real
    async def run() -> None:
        async with (
            making(transport, tmp_path) as make,
            open_peer([make(listen=True)]) as slow,
            open_peer([make(listen=True)]) as other,
            open_peer([make(listen=False)], limits=limits) as a,
        ):
            to_slow, to_other = await far(slow, a, Echo()), await far(other, a, Echo())
            session = between(a, slow)
            reads = trio.Event()
            (connection,) = slow._connections.values()
            channel, real = connection.channel, connection.channel.receive

            async def receive(most: int) -> list[bytes]:
                await reads.wait()
                return await real(most)

            channel.receive = receive  # type: ignore[method-assign]
            data = bytes(20_000)
            sent = [E(to_slow).echo(data)]  # the one that it still reads
            refused = 0
            with trio.fail_after(20):
                while refused < 200:  # one after the other: the network takes more for a while
                    answer = E(to_slow).echo(data)
                    assert await E(to_other).echo(1) == 1
                    try:
                        if is_settled(answer):
                            await answer
                        sent.append(answer)
                        refused = 0
                    except Backpressure:
                        refused += 1
                    assert session.stats()["outbox_bytes"] <= limits.outbox_bytes + len(data) + 1000
            assert len(sent) > 20
            waited = trio.Event()

            async def wait() -> None:
                await session.writable()
                waited.set()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await trio.sleep(0.05)
                assert not waited.is_set()
                reads.set()
            for answer in sent:
                assert await answer == data

    run()


@pytest.mark.parametrize("transport", PROVED)
def test_a_fast_sender_does_not_starve_others(transport: str, tmp_path: Path) -> None:
    """What it has sent before is what others wait for, and that is bounded, however much it goes on to send."""

    class Sink(Target):
        taken = 0

        @method
        def take(self, data: bytes) -> None:
            self.taken += 1

    @trio_test_real
    async def run() -> None:
        async with (
            making(transport, tmp_path) as make,
            open_peer([make(listen=True)]) as there,
            open_peer([make(listen=False)]) as fast,
            open_peer([make(listen=False)]) as other,
        ):
            sink = Sink()
            to_sink, echo = await far(there, fast, sink), await far(there, other, Echo())
            session = between(fast, there)

            async def flood() -> None:
                while True:
                    await session.writable()
                    with suppress(Backpressure):
                        while True:
                            send_only(to_sink).take(bytes(200))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(flood)
                while sink.taken < 5000:
                    await trio.lowlevel.checkpoint()
                behind = []
                for n in range(20):
                    before = sink.taken
                    assert await E(echo).echo(n) == n
                    behind.append(sink.taken - before)
                nursery.cancel_scope.cancel()
            assert max(behind) > 0, "nothing came of the fast one meanwhile"
            assert (
                max(behind) < 1500
            )  # a few of what is taken from a connection at once (`ocapn.connection._BATCH`)

    run()
