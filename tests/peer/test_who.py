"""semantics.md, Who is there."""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

import pytest

from ocapn import (
    ConnectFailed,
    Limits,
    MemoryNetlayer,
    MemoryNetwork,
    PeerLocator,
    TcpTestingNetlayer,
    UnixNetlayer,
    open_peer,
)
from ocapn.netlayers.base import Channel, Listener, Netlayer
from ocapn.netlayers.unix import CREDENTIALS
from ocapn.testing import quiet
from tests.peer.support import between
from tests.peer.test_durable import agreed
from tests.support import trio_test, trio_test_real


@pytest.mark.parametrize("dialler", [False, True])
@pytest.mark.parametrize("listener", [False, True])
def test_authenticated_is_about_the_peer_as_seen_from_here(dialler: bool, listener: bool) -> None:
    """`session.authenticated` is about the peer as seen from here: each side has its own answer.

    A netlayer that authenticates the side that listens alone (`websocket`, `onion`) is `dialler=True,
    listener=False` here: an inbound session over it is not authenticated. `noise` is both.
    """

    @trio_test
    async def run() -> None:
        network = MemoryNetwork()
        async with (
            open_peer([MemoryNetlayer(network, "a", authenticates=dialler)]) as a,
            open_peer([MemoryNetlayer(network, "b", authenticates=listener)]) as b,
        ):
            outbound = await a.connect(b.locator())
            await quiet(a, b)
            assert outbound.authenticated is dialler
            assert between(b, a).authenticated is listener
            assert outbound.netlayer == "memory"
            assert outbound.location == b.locator()
            assert between(b, a).location == a.locator()

    run()


@trio_test_real
async def test_tcp_testing_only_authenticates_nobody() -> None:
    async with open_peer([TcpTestingNetlayer()]) as a, open_peer([TcpTestingNetlayer(listen=False)]) as b:
        outbound = await b.connect(a.locator())
        (inbound,) = a.sessions
        assert outbound.authenticated is False
        assert inbound.authenticated is False
        assert outbound.netlayer == "tcp-testing-only"


@trio_test_real
async def test_unix_sockets_authenticate_who_runs_as_the_same_user(tmp_path: Path) -> None:
    """The kernel tells the user of the other process, which may have any designator then; and go on as that alone."""
    async with open_peer([UnixNetlayer(tmp_path / "a")]) as a, open_peer([UnixNetlayer(tmp_path / "b")]) as b:
        outbound = await b.connect(a.locator())
        inbound = between(a, b)
        assert outbound.authenticated is inbound.authenticated is CREDENTIALS
        await agreed(a, b)
        events = inbound.events()
        for connection in list(a._connections.values()):
            await connection.channel.aclose()
        assert [(await events.receive()).status for _ in range(2)] == ["suspended", "live"]
        assert outbound.authenticated is inbound.authenticated is CREDENTIALS


@trio_test_real
async def test_unix_sockets_do_not_authenticate_another_user(tmp_path: Path) -> None:
    """Nor is it taken for the peer that it says it is, where a dial would tell."""
    async with open_peer([UnixNetlayer(tmp_path / "a")]) as a, open_peer([UnixNetlayer(tmp_path / "b")]) as b:
        with mock.patch("os.geteuid", return_value=os.geteuid() + 1):
            outbound = await b.connect(a.locator())
        (inbound,) = a.sessions
        assert not outbound.authenticated
        assert not inbound.authenticated
        assert inbound._core.unproved is CREDENTIALS


class Claims(Netlayer):
    """Says that it has another designator than the one that its channels prove."""

    transport = "memory"

    def __init__(self, network: MemoryNetwork, proves: str, claims: str) -> None:
        self.inner = MemoryNetlayer(network, proves, authenticates=True)
        self.location = PeerLocator("memory", claims)

    async def listen(self, limits: Limits) -> Listener | None:
        return await self.inner.listen(limits)

    async def dial(self, locator: PeerLocator, limits: Limits) -> Channel:
        return await self.inner.dial(locator, limits)


@trio_test
async def test_the_location_check_follows_authentication() -> None:
    """Who was authenticated as one designator does not get a session as another; the location check follows it."""
    for authenticates, accepted in ((True, False), (False, True)):
        network = MemoryNetwork()
        async with (
            open_peer([MemoryNetlayer(network, "honest", authenticates=authenticates)]) as honest,
            open_peer([Claims(network, "mallory", claims="bob")]) as mallory,
        ):
            if accepted:
                await mallory.connect(honest.locator())
                assert [session.location.designator for session in honest.sessions] == ["bob"]
                assert not honest.sessions[0].authenticated
            else:
                with pytest.raises(ConnectFailed, match="not the one that the netlayer authenticated"):
                    await mallory.connect(honest.locator())
                assert honest.sessions == []


@trio_test
async def test_whoever_answers_must_be_the_one_that_was_dialled() -> None:
    """Also where nothing is authenticated."""
    network = MemoryNetwork()
    async with (
        open_peer([MemoryNetlayer(network, "honest")]) as honest,
        open_peer([Claims(network, "mallory", claims="bob")]),
    ):
        with pytest.raises(
            ConnectFailed, match=r"mallory\.memory was dialled, and ocapn://bob\.memory answered"
        ):
            await honest.connect(PeerLocator("memory", "mallory"))
