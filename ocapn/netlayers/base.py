"""What a netlayer offers to a peer: dial, listen, and channels that carry whole messages in order.

To write one, subclass `Netlayer`, `Listener` and `Channel`, and run `ocapn.testing.check_netlayer` on it.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod

import trio

from ocapn.codec.framing import BARE, BARE_WRITE, Framer
from ocapn.codec.messages import SYRUP, Codec
from ocapn.errors import ConnectFailed, RemoteProtocolError
from ocapn.limits import Limits
from ocapn.model.locators import PeerLocator

#: Bytes read from a socket at once.
_READ = 1 << 16


class ChannelBroken(Exception):
    """The connection under a channel failed: reset, timed out, gone. Never leaves the package."""


class Channel(ABC):
    """A connection that carries whole messages, in order, both ways.

    `send` and `receive` are each used by one task at a time. Both raise ChannelBroken when the connection fails;
    `receive` raises RemoteProtocolError when what arrives is no sequence of messages, or a message takes longer than
    `limits.frame_progress` from its first byte to its last.
    """

    #: What the netlayer proved of the other side's designator, or None if it proves nothing. Of a channel that was
    #: accepted this and `binding` are final after `begin`.
    authenticated: str | None = None
    #: Whether the transport vouches for whatever designator the other side says it has: it has proved to whom it
    #: belongs, and not which one it is.
    vouches: bool = False
    #: What ties a signature to this connection, so that a session may be resumed over it; empty where the transport
    #: has nothing but is safe enough. None: no session is durable over this connection (spec/resume.md, Channels).
    binding: bytes | None = None
    #: In which the two sides write their messages; final as the others are.
    codec: Codec = SYRUP
    #: Where the connection comes from, for the limit of connections a source; "" if all count as one.
    source: str = ""

    async def begin(self) -> None:
        """Exchanges what the transport itself has to say before messages. Called once, before anything else, of a
        channel that was accepted; `dial` has done it. Raises ChannelBroken, RemoteProtocolError."""
        await trio.lowlevel.checkpoint()

    @abstractmethod
    async def send(self, messages: list[bytes]) -> None:
        """Sends the messages. Returns when the transport has taken them."""

    @abstractmethod
    async def receive(self, most: int) -> list[bytes]:
        """One to `most` messages; an empty list at the end of what the other side sends. A checkpoint."""

    def send_now(self, messages: list[bytes]) -> int:
        """Sends as many of the messages, from the first, as the transport takes without waiting; says how many.

        Saves a pass of the loop where it can be done; used only while no `send` is under way. What went out of a
        message that did not go out whole is the channel's to complete, before anything else: it counts as sent if
        the channel keeps the rest, and then `unsent` is true. Raises ChannelBroken.
        """
        return 0

    @property
    def unsent(self) -> bool:
        """Whether something that `send_now` took waits for the next `send`, which may be of no messages."""
        return False

    @abstractmethod
    def set_max_message(self, size: int) -> None:
        """Messages of more than `size` bytes are refused from now on."""

    @abstractmethod
    async def send_eof(self) -> None:
        """Says that nothing more will be sent. Receiving goes on."""

    async def drain(self) -> None:
        """Receives and forgets until the other side has sent all, be it messages or not. Raises ChannelBroken."""
        try:
            while await self.receive(64):
                pass
        except RemoteProtocolError:
            pass

    @abstractmethod
    async def aclose(self) -> None:
        """Closes the connection at once."""


class Listener(ABC):
    """Accepts channels. `location` is the locator to give to others."""

    location: PeerLocator

    async def run(self) -> None:
        """What there is to do beside accepting, which needs it to be under way. Returns when the listener is closed, or
        at once if there is nothing to do; cancelled to stop."""
        await trio.lowlevel.checkpoint()

    @abstractmethod
    async def accept(self) -> Channel:
        """The next channel. Raises OSError for what passes (too many open files); cancelled to stop."""

    @abstractmethod
    async def aclose(self) -> None:
        """Stops accepting, ends connections not yet accepted, gives back what `listen` took (a port, a socket file)."""


class Netlayer(ABC):
    """One way to reach peers. A netlayer belongs to one peer, and is used in one `open_peer`.

    `location` is the locator that the peer gives as its own over this netlayer, also when it does not listen.
    """

    transport: str
    location: PeerLocator
    #: Whether `dial` proves that the peer which it has reached has that designator. Then nobody who dials in and proves
    #: nothing is taken for the peer that has it.
    proves: bool = False
    #: The TCP port that it listens at, if it does.
    port: int | None = None

    @property
    def identity(self) -> str:
        """What makes this the same peer to others, to be kept for `be_again`. It may be secret."""
        return self.location.designator

    def be_again(self, identity: str) -> None:
        """The identity that the peer had before it was restarted: taken unless another was given. Before `listen`.

        Raises ConnectFailed where it cannot be another.
        """
        return

    @abstractmethod
    async def listen(self, limits: Limits) -> Listener | None:
        """Begins to accept connections; None if this netlayer only dials. `location` is final afterwards."""

    @abstractmethod
    async def dial(self, locator: PeerLocator, limits: Limits) -> Channel:
        """A channel to the peer at `locator`. Raises ConnectFailed, with what to do about it."""


class StreamChannel(Channel):
    """A channel over a trio byte stream, with the framing of `ocapn.codec.framing`."""

    def __init__(
        self,
        stream: trio.abc.HalfCloseableStream,
        limits: Limits,
        framing: str | None,
        source: str = "",
        binding: bytes | None = None,
    ) -> None:
        self._stream = stream
        self._framer = Framer(limits, framing, limits.unauthenticated_frame)
        self._progress = limits.frame_progress
        self.source = source
        self.binding = binding
        self._rest = b""
        self._deadline: float | None = None  # for the end of a message that has begun to arrive
        self._fd = stream.socket.fileno() if isinstance(stream, trio.SocketStream) else -1

    @property
    def framing(self) -> str | None:
        return self._framer.framing

    def send_now(self, messages: list[bytes]) -> int:
        if self._fd < 0 or self._rest or self._framer.framing == BARE:
            return 0
        plain = self._framer.frame(messages)
        data = self._wrapped(plain)
        try:
            sent = os.write(self._fd, data)
        except BlockingIOError:
            if data is plain:
                return 0
            sent = 0  # what was wrapped goes out before anything else
        except OSError as error:
            raise ChannelBroken(str(error)) from error
        self._rest = data[sent:]
        return len(messages)

    @property
    def unsent(self) -> bool:
        return bool(self._rest)

    async def send(self, messages: list[bytes]) -> None:
        try:
            if self._rest:
                rest, self._rest = self._rest, b""
                await self._stream.send_all(rest)
            if not messages:
                return
            if self._framer.framing == BARE:
                for chunk in _chunks(messages):
                    await self._stream.send_all(chunk)
            else:
                await self._stream.send_all(self._wrapped(self._framer.frame(messages)))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ChannelBroken(str(error) or "the connection is closed") from error

    async def receive(self, most: int) -> list[bytes]:
        framer = self._framer
        if (
            framer.pending
        ):  # of what came at once a batch is taken in each pass of the loop, as others have work too
            await trio.lowlevel.checkpoint()
        messages = framer.take(most)
        while not messages:
            if not framer.pending and not self._within:
                self._deadline = None
                data = await self._receive_some()
            else:
                if self._deadline is None:
                    self._deadline = trio.current_time() + self._progress
                with trio.move_on_at(self._deadline) as in_time:
                    data = await self._receive_some()
                if in_time.cancelled_caught:
                    raise RemoteProtocolError(f"a message took more than {self._progress:g} s to arrive")
            if not data:
                if framer.pending or self._within:
                    raise ChannelBroken("the connection ended inside a message")
                return []
            framer.feed(self._unwrapped(data))
            messages = framer.take(most)
        self._deadline = None
        return messages

    # For streams that wrap what they carry

    def _wrapped(self, data: bytes) -> bytes:
        """What goes out for the bytes: all of them, as nothing is taken back."""
        return data

    def _unwrapped(self, data: bytes) -> bytes:
        """The bytes for what came in, as far as they are whole. Raises ChannelBroken."""
        return data

    @property
    def _within(self) -> bool:
        """Whether something has come in that is not whole."""
        return False

    async def _receive_some(self) -> bytes:
        try:
            if self._fd < 0:
                return bytes(await self._stream.receive_some())
            await trio.lowlevel.wait_readable(self._fd)
            return os.read(self._fd, _READ)
        except BlockingIOError:
            return bytes(await self._stream.receive_some())
        except OSError as error:
            raise ChannelBroken(str(error)) from error
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ChannelBroken(str(error.__cause__ or error) or "the connection is closed") from error

    def set_max_message(self, size: int) -> None:
        self._framer.max_message = size

    async def send_eof(self) -> None:
        try:
            await self._stream.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ChannelBroken("the connection is closed") from error

    async def drain(self) -> None:
        while await self._receive_some():
            pass

    async def aclose(self) -> None:
        self._fd = -1
        if isinstance(self._stream, trio.SocketStream):
            self._stream.socket.close()
            await trio.lowlevel.cancel_shielded_checkpoint()
        else:
            await trio.aclose_forcefully(self._stream)


def _chunks(messages: list[bytes]) -> list[bytes]:
    """Whole messages together, up to the size that deployed peers read at once from an unframed connection."""
    chunks: list[bytes] = []
    some: list[bytes] = []
    size = 0
    for message in messages:
        if some and size + len(message) > BARE_WRITE:
            chunks.append(b"".join(some))
            some, size = [], 0
        some.append(message)
        size += len(message)
    if some:
        chunks.append(b"".join(some))
    return chunks


def unreachable(locator: PeerLocator, error: BaseException) -> ConnectFailed:
    """A ConnectFailed for what the operating system said."""
    return ConnectFailed(f"cannot reach {locator.uri}: {error}")
