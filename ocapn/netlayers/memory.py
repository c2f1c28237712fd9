"""`memory`: peers in one process, for tests and simulation, over links that can be cut, delayed and held.

A `MemoryNetwork` is where peers find each other. Each direction of each connection delivers in order; delays
differ from link to link, so that links overtake each other, as networks do.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from typing import final

import trio

from ocapn.errors import ConnectFailed, RemoteProtocolError
from ocapn.limits import Limits
from ocapn.model.locators import PeerLocator
from ocapn.netlayers.base import Channel, ChannelBroken, Listener, Netlayer

TRANSPORT = "memory"


@final
class _Pipe:
    """One direction of a connection."""

    def __init__(self) -> None:
        self.queue: deque[tuple[float, bytes]] = deque()
        self.eof = False
        self.broken = False
        self.held = False
        self.changed = trio.Event()

    def change(self) -> None:
        self.changed.set()
        self.changed = trio.Event()


@final
class Link:
    """One connection, as the simulation sees it: `a` dialled `b`."""

    def __init__(self, a: str, b: str, ends: tuple[_Pipe, _Pipe]) -> None:
        self.a = a
        self.b = b
        self._pipes = ends

    def cut(self) -> None:
        """Breaks the connection: what is under way is lost, and both ends are told."""
        for pipe in self._pipes:
            pipe.broken = True
            pipe.queue.clear()
            pipe.change()

    def hold(self, *, a_to_b: bool = True, b_to_a: bool = True) -> None:
        """Delivers nothing in these directions until `release`."""
        self._pipes[0].held = a_to_b or self._pipes[0].held
        self._pipes[1].held = b_to_a or self._pipes[1].held

    def release(self) -> None:
        for pipe in self._pipes:
            pipe.held = False
            pipe.change()

    @property
    def alive(self) -> bool:
        return not any(pipe.broken for pipe in self._pipes)

    @property
    def under_way(self) -> int:
        """Messages sent and not yet received, both ways."""
        return sum(len(pipe.queue) for pipe in self._pipes)


@final
class MemoryNetwork:
    """Where memory netlayers meet.

    `delay(a, b)` gives the seconds that a message from designator `a` to `b` takes; none by default. Order within
    one direction of one link is kept whatever it returns. `capacity` is how many messages a direction holds before
    the sender waits.
    """

    def __init__(self, *, delay: Callable[[str, str], float] | None = None, capacity: int = 1 << 16) -> None:
        self.delay = delay
        self.capacity = capacity
        self.links: list[Link] = []
        self._listeners: dict[str, _MemoryListener] = {}

    def links_between(self, a: str, b: str) -> list[Link]:
        """The connections between two designators, whoever dialled, that are not cut."""
        return [link for link in self.links if {link.a, link.b} == {a, b} and link.alive]

    def cut(self, a: str, b: str) -> int:
        """Cuts every connection between two designators; returns how many there were."""
        links = self.links_between(a, b)
        for link in links:
            link.cut()
        self.links = [link for link in self.links if link.alive]
        return len(links)


@final
class MemoryNetlayer(Netlayer):
    """A peer's place in a `MemoryNetwork`. `listen=False` makes it one that others cannot dial.

    `authenticates` makes channels name the other side's designator as proved, as secure netlayers do.
    """

    transport = TRANSPORT

    def __init__(
        self, network: MemoryNetwork, designator: str, *, listen: bool = True, authenticates: bool = False
    ) -> None:
        self.network = network
        self.designator = designator
        self._listen = listen
        self._authenticates = authenticates
        self.location = PeerLocator(TRANSPORT, designator)

    async def listen(self, limits: Limits) -> Listener | None:
        if not self._listen:
            return None
        if self.designator in self.network._listeners:
            raise ConnectFailed(f"the memory network has a peer called {self.designator!r} already")
        listener = _MemoryListener(self, limits)
        self.network._listeners[self.designator] = listener
        return listener

    async def dial(self, locator: PeerLocator, limits: Limits) -> Channel:
        await trio.lowlevel.checkpoint()
        network = self.network
        listener = network._listeners.get(locator.designator)
        if listener is None:
            raise ConnectFailed(f"cannot reach {locator.uri}: nobody listens there")
        forth, back = _Pipe(), _Pipe()
        network.links = [link for link in network.links if link.alive]
        network.links.append(Link(self.designator, locator.designator, (forth, back)))
        ours = MemoryChannel(network, self.designator, locator.designator, back, forth, limits)
        theirs = MemoryChannel(network, locator.designator, self.designator, forth, back, listener.limits)
        if self._authenticates:
            ours.authenticated = locator.designator
        if listener.authenticates:
            theirs.authenticated = self.designator
        if not listener.push(theirs):
            await ours.aclose()
            raise ConnectFailed(f"cannot reach {locator.uri}: too many connections wait there to be accepted")
        return ours


@final
class _MemoryListener(Listener):
    def __init__(self, netlayer: MemoryNetlayer, limits: Limits) -> None:
        self._netlayer = netlayer
        self.authenticates = netlayer._authenticates
        self.limits = limits
        self.location = netlayer.location
        self._send, self._receive = trio.open_memory_channel[Channel](1 << 16)

    def push(self, channel: Channel) -> bool:
        """Whether there was room for one more that waits to be accepted."""
        try:
            self._send.send_nowait(channel)
        except trio.WouldBlock:
            return False
        return True

    async def accept(self) -> Channel:
        return await self._receive.receive()

    async def aclose(self) -> None:
        listeners = self._netlayer.network._listeners
        if listeners.get(self._netlayer.designator) is self:  # otherwise another listens there by now
            del listeners[self._netlayer.designator]
        self._send.close()
        waiting: list[Channel] = []
        with contextlib.suppress(trio.WouldBlock, trio.EndOfChannel):
            while True:
                waiting.append(self._receive.receive_nowait())
        for channel in waiting:  # nobody accepts them any more: who dialled is told, as by a socket
            await channel.aclose()
        await trio.lowlevel.checkpoint()


@final
class MemoryChannel(Channel):
    """One end of a link."""

    binding = b""

    def __init__(
        self, network: MemoryNetwork, own: str, other: str, incoming: _Pipe, outgoing: _Pipe, limits: Limits
    ) -> None:
        self._network = network
        self._own = own
        self._other = other
        self._in = incoming
        self._out = outgoing
        self._max_message = limits.unauthenticated_frame
        self._closed = False
        self.source = other

    async def send(self, messages: list[bytes]) -> None:
        await trio.lowlevel.checkpoint()
        pipe = self._out
        delay = self._network.delay
        for message in messages:
            while not (pipe.broken or self._closed) and len(pipe.queue) >= self._network.capacity:
                pipe.change()  # the receiver is to make room
                await pipe.changed.wait()
            if pipe.broken or self._closed or pipe.eof:
                raise ChannelBroken("the link was cut")
            due = trio.current_time() + (delay(self._own, self._other) if delay else 0.0)
            if pipe.queue:
                due = max(due, pipe.queue[-1][0])
            pipe.queue.append((due, message))
        pipe.change()

    async def receive(self, most: int) -> list[bytes]:
        await trio.lowlevel.checkpoint()
        pipe = self._in
        while True:
            if pipe.broken or self._closed:
                raise ChannelBroken("the link was cut")
            now = trio.current_time()
            messages: list[bytes] = []
            if not pipe.held:
                while pipe.queue and pipe.queue[0][0] <= now and len(messages) < most:
                    message = pipe.queue[0][1]
                    if len(message) > self._max_message:
                        if messages:
                            break
                        raise RemoteProtocolError(f"a message of more than {self._max_message} bytes")
                    pipe.queue.popleft()
                    messages.append(message)
                if messages:
                    pipe.change()
                    return messages
                if pipe.eof and not pipe.queue:
                    return []
            changed = pipe.changed
            due = pipe.queue[0][0] if pipe.queue and not pipe.held else float("inf")
            with trio.move_on_at(due):
                await changed.wait()

    def set_max_message(self, size: int) -> None:
        self._max_message = size

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()
        self._out.eof = True
        self._out.change()

    async def aclose(self) -> None:
        self._closed = True
        self._out.eof = True
        self._out.change()
        self._in.broken = True
        self._in.queue.clear()
        self._in.change()
        await trio.lowlevel.checkpoint()
