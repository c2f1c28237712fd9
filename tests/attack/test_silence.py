"""Connections that died without a word: they are found, and do not lock their peer out (durable.md, Limits)."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

import ocapn
from ocapn import (
    Aborted,
    ConnectFailed,
    Disconnected,
    E,
    MemoryNetlayer,
    MemoryNetwork,
    RemoteError,
    SessionEnded,
    when_broken,
)
from ocapn.netlayers.base import StreamChannel
from tests.support import trio_test, trio_test_real

from .support import SWISS, Friend, Victim, scene

#: How one is told that there is a session with its location: the connection is a session for a moment.
TAKEN = (Aborted, ConnectFailed)


@trio_test_real
async def test_keepalive_is_on_at_both_ends() -> None:
    async with scene() as here:
        for peer in (here.peer, here.friend.peer):
            (connection,) = peer._connections.values()
            channel = connection.channel
            assert isinstance(channel, StreamChannel)
            stream = channel._stream
            assert isinstance(stream, trio.SocketStream)
            assert stream.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            idle = stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
            interval = stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL)
            count = stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT)
            assert isinstance(idle, int)
            assert isinstance(interval, int)
            assert isinstance(count, int)
            assert idle + interval * count <= 120


class Place:
    """The victim, a friend, and a peer whose machine is about to fail: nobody is told."""

    def __init__(self, network: MemoryNetwork, peer: ocapn.Peer, victim: Victim, friend: Friend) -> None:
        self.network = network
        self.peer = peer
        self.victim = victim
        self.friend = friend
        self.sturdyref = ocapn.SturdyRef(peer.locator(), SWISS)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[tuple[ocapn.Peer, Any]]:
        """The peer `client`, connected to the victim."""
        async with ocapn.open_peer(
            [MemoryNetlayer(self.network, "client", listen=False)], durable="never"
        ) as peer:
            yield peer, await peer.enliven(self.sturdyref)

    def hold(self) -> None:
        """What the client and the victim send to each other gets nowhere, and neither is told."""
        for link in self.network.links_between("client", "victim"):
            link.hold()

    @property
    def session(self) -> ocapn.Session:
        (found,) = [one for one in self.peer.sessions if one.location.designator == "client"]
        return found


@asynccontextmanager
async def place() -> AsyncIterator[Place]:
    network = MemoryNetwork()
    async with ocapn.open_peer([MemoryNetlayer(network, "victim")]) as peer:
        victim = Victim()
        sturdyref = peer.export(victim, SWISS)
        async with ocapn.open_peer([MemoryNetlayer(network, "friend")]) as other:
            friend = Friend(other, await other.enliven(sturdyref), "friend")
            yield Place(network, peer, victim, friend)
            await friend.check(victim)
            peer.check()


@trio_test
async def test_a_peer_that_came_back_gets_in_after_45_seconds_of_silence() -> None:
    async with place() as here, here.client() as (old, ref):
        await E(ref).keep(Victim())
        kept = here.victim.things[0]
        broken = when_broken(kept)
        dead = here.session
        here.hold()
        began = trio.current_time()
        # The client is started again. Its old session still stands, as far as the victim knows.
        with pytest.raises(TAKEN, match="there is a session with this location already"):
            async with here.client():
                raise AssertionError("it got in")
        assert dead in here.peer.sessions
        await trio.sleep(began + 44 - trio.current_time())
        with pytest.raises(TAKEN, match="there is a session with this location already"):
            async with here.client():
                raise AssertionError("it got in")
        await here.friend.served()
        await trio.sleep(began + 45 - trio.current_time())
        async with here.client() as (_, again):
            await E(again).note("client", 1)
            assert here.victim.heard["client"] == [1]
            assert isinstance(dead.ended, Disconnected)
            assert "silent" in str(dead.ended)
            assert isinstance(await broken, Disconnected)
            with pytest.raises(SessionEnded):
                await E(kept).note("nobody", 1)
            assert here.session is not dead
        for link in here.network.links_between("client", "victim"):
            link.release()
        with pytest.raises(SessionEnded):
            await E(ref).me()
        assert old.sessions == []


@trio_test
async def test_a_peer_that_is_heard_is_not_replaced() -> None:
    """A stranger that says it is at the same place does not get in while the session is in use."""
    async with place() as here, here.client() as (client, ref):
        for number in range(10):
            await trio.sleep(20)
            await E(ref).note("client", number)
            with pytest.raises(TAKEN, match="there is a session with this location already"):
                async with here.client():
                    raise AssertionError("it got in")
        assert here.victim.heard["client"] == list(range(10))
        assert len(client.sessions) == 1


@trio_test
async def test_what_is_on_its_way_counts_as_heard() -> None:
    """The old connection's last message is read before the new one is judged."""
    async with place() as here, here.client() as (_, ref):
        here.hold()
        await trio.sleep(60)
        answer = E(ref).note("client", 1)
        await trio.testing.wait_all_tasks_blocked()
        for link in here.network.links_between("client", "victim"):
            link.release()
        with pytest.raises(TAKEN, match="there is a session with this location already"):
            async with here.client():
                raise AssertionError("it got in")
        await answer
        assert here.victim.heard["client"] == [1]


@trio_test
async def test_answers_owed_by_a_dead_session_break_when_it_yields() -> None:
    async with place() as here, here.client() as (_, ref):
        await E(ref).keep(Victim())
        asked = E(here.victim.things[0]).me()
        await asked
        here.hold()
        asked = E(here.victim.things[0]).me()
        await trio.sleep(46)
        async with here.client():
            with pytest.raises((SessionEnded, RemoteError)):
                await asked
