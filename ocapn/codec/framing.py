"""Where one message ends and the next begins in a stream of bytes (wire.md, Netlayers).

Three framings are in use: none (`bare`: one Syrup record after another), Syrup byte strings
(`<length>:<message>`), and netstrings (`<length>:<message>,`). A reader tells them apart: a bare message
begins with `<`, a framed one with a digit, and a comma after the first frame makes it a netstring.
"""

from __future__ import annotations

from typing import Final, final

from ocapn.codec.syrup import Decoder
from ocapn.errors import RemoteProtocolError
from ocapn.limits import Limits

BARE: Final = "none"
SYRUP: Final = "syrup"
NETSTRING: Final = "netstring"
FRAMINGS: Final = (BARE, SYRUP, NETSTRING)

#: Deployed peers take each read of an unframed connection for whole messages, of at most this size.
BARE_WRITE: Final = 16 << 10


@final
class Framer:
    """Cuts a stream into messages, and frames what is sent. `framing` is None until it is known.

    `max_message` may be raised at any time: it is small until the peer has authenticated.
    """

    __slots__ = (
        "_bare",
        "_buffer",
        "_failure",
        "_limits",
        "_need",
        "_partial",
        "_pos",
        "_undecided",
        "framing",
        "max_message",
    )

    def __init__(self, limits: Limits, framing: str | None = None, max_message: int | None = None) -> None:
        if framing is not None and framing not in FRAMINGS:
            raise ValueError(f"no framing is called {framing!r}; there are {', '.join(FRAMINGS)}")
        self._limits = limits
        self.max_message = limits.frame if max_message is None else max_message
        self.framing = framing
        self._undecided = framing is None  # whether a comma may still turn `syrup` into `netstring`
        self._buffer = b""  # what arrived last, of which all before `_pos` is taken
        self._pos = 0
        self._partial = bytearray()  # in its place, a frame that arrives in parts
        self._need = 0  # how many bytes that frame has, if it is known and not all are there
        self._bare: Decoder | None = Decoder(limits) if framing == BARE else None
        self._failure: RemoteProtocolError | None = None

    def feed(self, data: bytes) -> None:
        """Appends what arrived."""
        if self._bare is not None:
            self._bare.feed(data)
            return
        if self._buffer or self._partial:
            self._partial += self._buffer[self._pos :]
            self._partial += data
            self._buffer = b""
            self._pos = 0
        elif self.framing is None and data[:1] == b"<":
            self.framing = BARE
            self._bare = Decoder(self._limits)
            self._bare.feed(data)
        else:
            self._buffer = data

    def take(self, most: int) -> list[bytes]:
        """Up to `most` whole messages. Raises RemoteProtocolError once those before the error are taken."""
        if self._failure is not None:
            raise self._failure
        messages: list[bytes] = []
        try:
            if self._bare is not None:
                self._take_records(self._bare, most, messages)
            else:
                self._take_frames(most, messages)
        except RemoteProtocolError as error:
            self._failure = error
            if not messages:
                raise
        return messages

    def _take_records(self, decoder: Decoder, most: int, messages: list[bytes]) -> None:
        while decoder.pending and len(messages) < most:
            found = decoder.next_value()
            if found is None:
                if decoder.needed > self.max_message:
                    raise self._too_long()
                return
            if len(found[1]) > self.max_message:
                raise self._too_long()
            messages.append(found[1])

    def _take_frames(self, most: int, messages: list[bytes]) -> None:
        if self._partial:
            if len(self._partial) < self._need:
                return
            self._buffer = bytes(self._partial)
            self._partial = bytearray()
        buffer = self._buffer
        size = len(buffer)
        pos = self._pos
        tail = 1 if self.framing == NETSTRING else 0
        self._need = 0
        while pos < size:
            if self._undecided and self.framing is not None:
                # The byte after the first frame: a comma, or the head of the second.
                self._undecided = False
                if buffer[pos] == 44:
                    self.framing = NETSTRING
                    tail = 1
                    pos += 1
                    continue
            if len(messages) >= most:
                break
            length = 0
            start = pos
            while start < size:
                digit = buffer[start]
                if digit == 58 and start > pos:
                    break
                if not 48 <= digit <= 57 or (start > pos and length == 0):
                    raise RemoteProtocolError("a frame begins with its length in decimal digits and a colon")
                length = 10 * length + digit - 48
                if length > self.max_message:
                    raise self._too_long()
                start += 1
            if start == size:
                break
            if length == 0:
                raise RemoteProtocolError("an empty frame holds no message")
            start += 1
            end = start + length
            if end + tail > size:
                self._need = end + tail - pos
                break
            if tail and buffer[end] != 44:
                raise RemoteProtocolError("a netstring ends with a comma")
            messages.append(buffer[start:end])
            pos = end + tail
            if self.framing is None:
                self.framing = SYRUP  # unless the byte after this frame turns out to be a comma
        if 2 * pos >= size:  # not each time: much may be here, of which little is taken at once
            buffer = buffer[pos:]
            pos = 0
        self._buffer = buffer
        self._pos = pos

    def _too_long(self) -> RemoteProtocolError:
        return RemoteProtocolError(f"a message of more than {self.max_message} bytes")

    @property
    def pending(self) -> int:
        """Bytes of an unfinished message that have arrived, with its frame's head."""
        if self._bare is not None:
            return self._bare.pending
        return len(self._buffer) - self._pos + len(self._partial)

    def frame(self, messages: list[bytes]) -> bytes:
        """The bytes that carry `messages`, in the connection's framing; Syrup frames until it is known."""
        if self.framing == BARE:
            return b"".join(messages)
        tail = b"," if self.framing == NETSTRING else b""
        return b"".join([b"%d:%b%b" % (len(message), message, tail) for message in messages])
