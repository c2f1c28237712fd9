"""Accepting: the connections that come in, until they are sessions."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final, final

import trio

from ocapn.captp.handshake import Handshake
from ocapn.codec.operations import Form
from ocapn.connection import Connection, Owner
from ocapn.dialling import Dialler
from ocapn.errors import OCapNError, shown
from ocapn.netlayers.base import Channel, Listener, Netlayer

log: Final = logging.getLogger("ocapn.netlayer")


@final
class Acceptor:
    """Where a peer listens. `form` is how to write to peers that have not shown what they read."""

    def __init__(self, peer: Owner, netlayers: Iterable[Netlayer], form: Form, dialler: Dialler) -> None:
        self._peer = peer
        self._netlayers = netlayers
        self._form = form
        self._dialler = dialler
        self._listeners: list[tuple[Netlayer, Listener]] = []
        self._nursery: trio.Nursery | None = None
        #: Connections that are no sessions yet, by where they come from.
        self.unauthenticated: dict[str, int] = {}

    async def listen(self) -> None:
        """Begins to listen wherever the peer can; from here on it knows its own locators. Raises ConnectFailed."""
        node = self._peer.node
        for netlayer in self._netlayers:
            if node.keeper is not None:
                netlayer.be_again(node.keeper.identity(netlayer.transport, netlayer.identity))
            listener = await netlayer.listen(self._peer.limits)
            if listener is not None:
                self._listeners.append((netlayer, listener))
        listening = [netlayer for netlayer, _ in self._listeners]
        others = [netlayer for netlayer in self._netlayers if netlayer not in listening]
        node.own = [netlayer.location for netlayer in [*listening, *others]]

    async def stop(self) -> None:
        """Listens no more."""
        with trio.CancelScope(shield=True):
            for _, listener in self._listeners:
                await listener.aclose()

    def run_in(self, nursery: trio.Nursery) -> None:
        """Accepts in the nursery from now on."""
        self._nursery = nursery
        for netlayer, listener in self._listeners:
            nursery.start_soon(listener.run)
            nursery.start_soon(self._accept_loop, netlayer, listener)

    async def _accept_loop(self, netlayer: Netlayer, listener: Listener) -> None:
        assert self._nursery is not None
        while True:
            try:
                channel = await listener.accept()
            except OSError as error:
                log.warning("%s: cannot accept: %s", netlayer.transport, error)
                await trio.sleep(0.1)
                continue
            self._nursery.start_soon(self._accepted, netlayer, channel)

    async def _accepted(self, netlayer: Netlayer, channel: Channel) -> None:
        connection = Connection(self._peer, netlayer, channel)
        source = f"{netlayer.transport} {channel.source}"
        count = self.unauthenticated.get(source, 0)
        limits = self._peer.limits
        in_all = sum(self.unauthenticated.values())
        if count >= limits.unauthenticated_per_source or in_all >= limits.unauthenticated_in_all:
            log.warning("%s: too many connections without a session; one is closed", source)
            await channel.aclose()
            return
        self.unauthenticated[source] = count + 1
        try:
            await self._begun(connection, netlayer)
        except OCapNError as error:
            log.info("%s: no session: %s", source, shown(error))
            return
        finally:
            self._dialler.attempted(connection)
            left = self.unauthenticated[source] - 1
            if left:
                self.unauthenticated[source] = left
            else:
                del self.unauthenticated[source]
        await connection.run()

    async def _begun(self, connection: Connection, netlayer: Netlayer) -> None:
        """From a connection that came in to a session. Raises OCapNError, the connection then being closed."""
        deadline = trio.current_time() + self._peer.limits.handshake
        await connection.begin(deadline)
        channel = connection.channel
        handshake = Handshake(
            self._peer.node,
            netlayer.location,
            dialled=None,
            authenticated=channel.authenticated,
            form=self._form,
            binding=channel.binding,
            vouches=channel.vouches,
            codec=channel.codec,
        )
        await connection.shake_hands(handshake, deadline)
