"""Byte streams in memory under the framing of real ones, so that what is slow can be tested on a mock clock."""

from __future__ import annotations

import trio
import trio.testing

from ocapn import Limits, PeerLocator
from ocapn.netlayers.base import Channel, Listener, Netlayer, StreamChannel

#: Either end of a stream.
Stream = trio.StapledStream[trio.testing.MemorySendStream, trio.testing.MemoryReceiveStream]


class PipeNetlayer(Netlayer):
    """Only accepts: `connect` gives a test the other end of a new connection."""

    transport = "pipe"

    def __init__(self, designator: str) -> None:
        self.location = PeerLocator("pipe", designator)
        self._send, self._accept = trio.open_memory_channel[Stream](100)

    async def listen(self, limits: Limits) -> Listener | None:
        return _PipeListener(self._accept, self.location, limits)

    async def dial(self, locator: PeerLocator, limits: Limits) -> Channel:
        raise NotImplementedError

    def connect(self) -> Stream:
        ours, theirs = trio.testing.memory_stream_pair()
        self._send.send_nowait(theirs)
        return ours


class _PipeListener(Listener):
    def __init__(
        self, accept: trio.MemoryReceiveChannel[Stream], location: PeerLocator, limits: Limits
    ) -> None:
        self._accept = accept
        self._limits = limits
        self.location = location

    async def accept(self) -> Channel:
        return StreamChannel(await self._accept.receive(), self._limits, None, "pipe")

    async def aclose(self) -> None:
        await self._accept.aclose()
