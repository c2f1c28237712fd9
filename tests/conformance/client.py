"""A CapTP peer for tests, made from the specifications alone: it shares no code with `ocapn`.

It has its own Syrup, its own framing and its own tables, and it is strict: whatever arrives must be canonical, with
the right fields, about positions that exist, and must count right. Every wait has a timeout that only a failure
reaches. It sends whatever a test wants, wrong or right.

A `Place` is a peer's place on the network: a designator and a listening socket. A `Client` is one of its connections.
"""

from __future__ import annotations

import os
import struct
from collections import Counter
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import trio
from nacl.signing import SigningKey

from . import cbor
from .encoding import (
    BOOTSTRAP,
    Incomplete,
    Rec,
    Sym,
    descriptors,
    encode,
    envelope,
    export,
    locator,
    locator_of,
    obj,
    own,
    public_id,
    public_key,
    read_one,
    session_id,
    signature,
    verify,
)

#: Seconds for anything to arrive. Only a failing test waits so long.
TIMEOUT = 5.0

_FIELDS = {
    "op:start-session": 4,
    "op:deliver": 4,
    "op:deliver-only": 2,
    "op:listen": 3,
    "op:get": 3,
    "op:index": 3,
    "op:untag": 3,
    "op:gc-exports": 2,
    "op:gc-export": 2,
    "op:gc-answers": 1,
    "op:gc-answer": 1,
    "op:abort": 1,
}
#: What a connection speaks: "syrup" or "cbor".
CODEC: ContextVar[str] = ContextVar("codec", default="syrup")
_GC = ("op:gc-exports", "op:gc-export", "op:gc-answers", "op:gc-answer")


@dataclass(frozen=True)
class Message:
    """An op:deliver or op:deliver-only that arrived; `answer` and `resolver` are None where not wanted."""

    to: Rec
    args: list[Any]
    answer: int | None
    resolver: Rec | None
    old_form: bool

    @staticmethod
    def of(operation: Rec) -> Message:
        if operation.label == "op:deliver-only":
            to, args = operation.fields
            return Message(to, args, None, None, True)
        assert operation.label == "op:deliver", f"{operation} came instead of a message"
        to, args, position, resolver = operation.fields
        return Message(
            to, args, None if position is False else position, None if resolver is False else resolver, False
        )


# Connections


class Client:
    """One connection to the peer under test, and the session on it."""

    def __init__(self, place: Place, stream: trio.SocketStream, framing: str, *, text_order: bool) -> None:
        self.place = place
        self.framing = framing
        self.text_order = text_order
        self.cbor = CODEC.get() == "cbor"
        self.key = SigningKey.generate()
        self.peer_key = b""
        self.peer_location: Any = None
        #: What we exported: how often each position was sent and not returned. Resolvers stand here too.
        self.exported: Counter[int] = Counter()
        self.returned: Counter[int] = Counter()
        #: What the peer exported: how often each position came and was not given back; and what it is.
        self.imported: Counter[int] = Counter()
        self.kinds: dict[int, str] = {}
        self.owed: set[int] = set()  # answers that the peer asked for
        self.released: set[int] = set()  # of those, what it gave up
        self.gc_labels: list[str] = []
        self._stream = stream
        self._buffer = b""
        self._inbox: list[Rec] = []
        self._next_export = 1
        self._next_answer = 1

    # Bytes

    async def send_bytes(self, *messages: bytes) -> None:
        """Sends whole messages, framed, in one write."""
        if self.framing == "none":
            data = b"".join(messages)
        else:
            comma = b"," if self.framing == "netstring" else b""
            data = b"".join(b"%d:%b%b" % (len(message), message, comma) for message in messages)
        await self.send_unframed(data)

    def send_now(self, operation: Rec) -> None:
        """Sends a small operation without letting other tasks run."""
        assert self.framing == "syrup"
        data = self.encode(operation)
        os.write(self._stream.socket.fileno(), b"%d:%b" % (len(data), data))

    async def send_unframed(self, data: bytes) -> None:
        with trio.fail_after(TIMEOUT):
            await self._stream.send_all(data)

    async def receive_bytes(self) -> bytes:
        """The next message; b"" at the end."""
        with trio.fail_after(TIMEOUT):
            while (message := self._cut()) is None:
                data = await self._stream.receive_some()
                if not data:
                    assert not self._buffer, f"the connection ended inside a message: {self._buffer!r}"
                    return b""
                self._buffer += data
        return message

    def _cut(self) -> bytes | None:
        buffer = self._buffer
        if self.framing == "none":
            try:
                _, end = read_one(buffer)
            except Incomplete:
                return None
            self._buffer = buffer[end:]
            return buffer[:end]
        head, colon, rest = buffer.partition(b":")
        if not colon:
            assert not head or head.isdigit(), f"no frame: {buffer[:40]!r}"
            return None
        assert head == b"%d" % int(head), f"no frame: {buffer[:40]!r}"
        size = int(head)
        comma = self.framing == "netstring"
        if len(rest) < size + comma:
            return None
        assert not comma or rest[size : size + 1] == b",", "a netstring without its comma"
        self._buffer = rest[size + comma :]
        return rest[:size]

    def reset(self) -> None:
        """Resets the connection, as one that crashed does."""
        socket = self._stream.socket
        socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, struct.pack("ii", 1, 0))
        socket.close()

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def close(self) -> None:
        await trio.aclose_forcefully(self._stream)

    async def end(self) -> None:
        """Ends the session with op:abort, and waits until the peer has closed the connection."""
        await self.send(Rec("op:abort", "the test is done"))
        await self.ends()

    async def ends(self) -> None:
        """The peer closes the connection, whatever it sent before."""
        while await self.receive_bytes():
            pass
        await self.close()

    # Operations

    def encode(self, value: Any) -> bytes:
        """What is sent for a message, and signed of a location."""
        return cbor.encode(value) if self.cbor else encode(value, self.text_order)

    async def send(self, *operations: Rec) -> None:
        """Sends operations in one write, and keeps count of what they hold."""
        for operation in operations:
            self._count_sent(operation)
        await self.send_bytes(*(self.encode(operation) for operation in operations))

    async def receive(self) -> Rec:
        """The next operation, garbage collection included, checked and counted. Fails at the end."""
        data = await self.receive_bytes()
        assert data, "the peer closed the connection"
        if self.cbor:
            operation = cbor.read(data)
        else:
            operation, end = read_one(data)
            assert end == len(data), "there are bytes after the message"
        assert self.encode(operation) == data, f"not canonical: {data!r}"
        assert isinstance(operation, Rec)
        assert operation.label in _FIELDS, f"unknown operation {operation.label}"
        assert len(operation.fields) == _FIELDS[operation.label], f"fields of {operation}"
        self._count_received(operation)
        return operation

    def _count_sent(self, operation: Rec) -> None:
        for descriptor in descriptors(operation):
            position = descriptor.fields[0]
            if descriptor.label in ("desc:import-object", "desc:import-promise"):
                self.exported[position] += 1

    def _count_received(self, operation: Rec) -> None:
        label, fields = operation.label, operation.fields
        if label in ("op:gc-exports", "op:gc-export"):
            self.gc_labels.append(label)
            for position, delta in zip(*fields, strict=True):
                assert position > 0, "the bootstrap object is never returned"
                assert 0 < delta <= self.exported[position], f"{operation}, and we count {self.exported}"
                self.exported[position] -= delta
                self.returned[position] += delta
            return
        if label in ("op:gc-answers", "op:gc-answer"):
            self.gc_labels.append(label)
            for position in fields[0]:
                assert position in self.owed, f"{operation}, and we owe {self.owed}"
                self.owed.remove(position)
                self.released.add(position)
            return
        for descriptor in descriptors(operation):
            position = descriptor.fields[0]
            assert type(position) is int
            assert position >= 0
            if descriptor.label == "desc:export":
                assert position == 0 or self.exported[position] > 0, f"{descriptor} is not there"
            elif descriptor.label == "desc:answer":
                assert position in self.owed, f"{descriptor} was not asked for, or is released"
            else:
                self.imported[position] += 1
                known = self.kinds.setdefault(position, descriptor.label)
                assert known == descriptor.label, f"{descriptor} was sent as {known}"
        if label in ("op:get", "op:index", "op:untag"):
            self._owe(fields[2])
        elif label == "op:deliver":
            if fields[2] is not False:
                self._owe(fields[2])
            assert fields[3] is False or fields[3].label in ("desc:import-object", "desc:import-promise")

    def _owe(self, position: Any) -> None:
        assert type(position) is int
        assert position > 0, "deployed peers refuse answer 0"
        assert position not in self.owed, f"answer {position} is in use"
        self.owed.add(position)

    async def next(self) -> Rec:
        """The next operation that is no garbage collection."""
        if self._inbox:
            return self._inbox.pop(0)
        while (operation := await self.receive()).label in _GC:
            pass
        return operation

    async def message_to(self, to: Rec) -> Message:
        """The next message to something of ours; what comes before it is kept for `next`."""
        for i, operation in enumerate(self._inbox):
            if operation.fields[0] == to and operation.label.startswith("op:deliver"):
                return Message.of(self._inbox.pop(i))
        while True:
            operation = await self.receive()
            assert operation.label != "op:abort", f"the peer aborted: {operation.fields[0]}"
            if operation.label in ("op:deliver", "op:deliver-only") and operation.fields[0] == to:
                return Message.of(operation)
            if operation.label not in _GC:
                self._inbox.append(operation)

    async def aborted(self) -> str:
        """The peer ends the session, next of all, and closes the connection: the reason."""
        operation = await self.next()
        assert operation.label == "op:abort", f"{operation} came instead of op:abort"
        assert await self.receive_bytes() == b""
        await self.close()
        reason = operation.fields[0]
        assert isinstance(reason, str)
        return reason

    # The session

    @property
    def public_key(self) -> bytes:
        return bytes(self.key.verify_key)

    @property
    def public_id(self) -> bytes:
        return public_id(self.public_key)

    @property
    def peer_id(self) -> bytes:
        return public_id(self.peer_key)

    @property
    def session_id(self) -> bytes:
        return session_id(self.public_id, self.peer_id)

    def start(
        self,
        version: str = "1.0",
        *,
        key: bytes | None = None,
        location: Any = None,
        signed: bytes | None = None,
    ) -> Rec:
        """Our op:start-session, or one that is wrong somewhere."""
        location = self.place.location if location is None else location
        if signed is None:
            signed = self.encode(Rec("my-location", location))
        return Rec(
            "op:start-session",
            version,
            public_key(key or self.public_key),
            location,
            signature(self.key, signed),
        )

    async def their_start(self) -> None:
        """Reads and judges the peer's op:start-session."""
        operation = await self.receive()
        assert operation.label == "op:start-session", f"{operation} came instead of op:start-session"
        version, key, location, sig_val = operation.fields
        assert version == "1.0"
        self.peer_key = key[1][3][1]
        assert key == public_key(self.peer_key)
        self.peer_location = location
        verify(self.peer_key, self.encode(Rec("my-location", location)), sig_val)

    async def shake_hands(self) -> None:
        await self.send(self.start())
        await self.their_start()

    def position(self) -> int:
        """A new position for something of ours."""
        self._next_export += 1
        return self._next_export - 1

    def answer_position(self) -> int:
        self._next_answer += 1
        return self._next_answer - 1

    async def tell(self, to: Rec, *args: Any, old_form: bool = False) -> None:
        """A message that wants no answer."""
        if old_form:
            await self.send(Rec("op:deliver-only", to, list(args)))
        else:
            await self.send(Rec("op:deliver", to, list(args), False, False))

    async def ask(self, to: Rec, *args: Any, answer: int | bool = False) -> Rec:
        """A message that wants an answer; returns the resolver that is told, as the peer addresses it."""
        resolver = self.position()
        await self.send(Rec("op:deliver", to, list(args), answer, obj(resolver)))
        return export(resolver)

    async def listen(self, to: Rec, *partial: bool) -> Rec:
        """Listens with two fields, or three; returns the resolver, as the peer addresses it."""
        resolver = self.position()
        await self.send(Rec("op:listen", to, obj(resolver), *partial))
        return export(resolver)

    async def outcome(self, resolver: Rec) -> tuple[str, Any]:
        """What the resolver is told: `("fulfill", value)` or `("break", error)`."""
        message = await self.message_to(resolver)
        assert message.answer is None
        assert message.resolver is None
        verb, value = message.args
        assert verb in (Sym("fulfill"), Sym("break"))
        return verb.name, value

    async def settled(self, resolver: Rec) -> tuple[str, Any]:
        """As `outcome`, but listens on if it is a promise of the peer."""
        verb, value = await self.outcome(resolver)
        while isinstance(value, Rec) and value.label == "desc:import-promise":
            verb, value = await self.outcome(await self.listen(export(value.fields[0]), False))
        return verb, value

    async def fulfilled(self, resolver: Rec) -> Any:
        verb, value = await self.outcome(resolver)
        assert verb == "fulfill", f"broken with {value}"
        return value

    async def broken(self, resolver: Rec) -> Any:
        verb, value = await self.outcome(resolver)
        assert verb == "break", f"fulfilled with {value}"
        return value

    async def call(self, to: Rec, *args: Any) -> Any:
        """The answer to a message."""
        return await self.fulfilled(await self.ask(to, *args))

    async def fetch(self, swiss: bytes) -> Rec:
        """An object of the peer, as we address it."""
        return own(await self.call(BOOTSTRAP, Sym("fetch"), swiss))

    async def nothing_else(self) -> None:
        """Nothing more comes: a marker is sent, and its answer is next. Turns run in the order that they came."""
        assert not self._inbox, f"there is more: {self._inbox}"
        resolver = await self.ask(BOOTSTRAP, Sym("fetch"), b"no object has this")
        found = Message.of(await self.next())
        assert found.to == resolver, f"{found} came"
        assert found.args[0] == Sym("break")

    async def give_back(self, *references: Rec) -> None:
        """Returns all that came of these objects of the peer."""
        positions = [reference.fields[0] for reference in references]
        await self.send(Rec("op:gc-exports", positions, [self.imported.pop(p) for p in positions]))

    async def release(self, *positions: int) -> None:
        """Gives up answers."""
        await self.send(Rec("op:gc-answers", list(positions)))

    async def until_returned(self, position: int, count: int) -> None:
        """Waits until the peer has returned a position of ours `count` times in all."""
        while self.returned[position] < count:
            operation = await self.receive()
            if operation.label not in _GC:
                self._inbox.append(operation)
        assert self.returned[position] == count

    async def until_released(self, position: int) -> None:
        """Waits until the peer has given up an answer that it asked for."""
        while position not in self.released:
            operation = await self.receive()
            if operation.label not in _GC:
                self._inbox.append(operation)

    # Certificates

    def give(self, receiver_key: bytes, exporter: Client, gift_id: bytes, **wrong: Any) -> Rec:
        """A signed handoff-give by us, the gifter, who are `self` to the exporter; `wrong` replaces fields."""
        named = {
            "location": exporter.peer_location,
            "session": self.session_id,
            "side": self.public_id,
        } | wrong
        signed = Rec(
            "desc:handoff-give",
            public_key(receiver_key),
            named["location"],
            named["session"],
            named["side"],
            gift_id,
        )
        return envelope(named.get("key", self.key), signed, self.text_order)

    def claim(self, receiver: SigningKey, give: Rec, count: int = 0, **wrong: Any) -> Rec:
        """A signed handoff-receive by `receiver`'s key, for this session with the exporter."""
        signed = Rec(
            "desc:handoff-receive",
            wrong.get("session", self.session_id),
            wrong.get("side", self.public_id),
            count,
            give,
        )
        return envelope(receiver, signed, self.text_order)


@dataclass
class Place:
    """A designator and a listening socket, and the connections of that peer."""

    designator: str
    listener: trio.SocketListener
    location: Rec
    clients: list[Client] = field(default_factory=list)

    @staticmethod
    async def open(designator: str, **hints: str) -> Place:
        """`hints` are besides host and port."""
        listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
        host, port = listener.socket.getsockname()
        return Place(designator, listener, locator(designator, {"host": host, "port": str(port), **hints}))

    @property
    def uri(self) -> str:
        hints = self.location.fields[2]
        return f"ocapn://{self.designator}.tcp-testing-only?host={hints['host']}&port={hints['port']}"

    def sturdyref(self, swiss: bytes) -> Rec:
        return Rec("ocapn-sturdyref", self.location, swiss)

    async def connect(
        self, uri: str, framing: str = "syrup", *, text_order: bool = False, key: SigningKey | None = None
    ) -> Client:
        """A connection to the peer at `uri`, on which nothing was sent yet."""
        hints = locator_of(uri).fields[2]
        with trio.fail_after(TIMEOUT):
            stream = await trio.open_tcp_stream(hints["host"], int(hints["port"]))
        return self._client(stream, framing, text_order, key)

    async def session(self, uri: str, framing: str = "syrup", *, text_order: bool = False) -> Client:
        """A session with the peer at `uri`."""
        client = await self.connect(uri, framing, text_order=text_order)
        await client.shake_hands()
        return client

    async def accept(self, framing: str = "syrup", *, text_order: bool = False) -> Client:
        """A connection that the peer opened to us. It sends its op:start-session at once: that is read."""
        with trio.fail_after(TIMEOUT):
            stream = await self.listener.accept()
        client = self._client(stream, framing, text_order, None)
        await client.their_start()
        return client

    async def accepted(self, framing: str = "syrup", *, text_order: bool = False) -> Client:
        """A session that the peer opened to us."""
        client = await self.accept(framing, text_order=text_order)
        await client.send(client.start())
        return client

    def _client(
        self, stream: trio.SocketStream, framing: str, text_order: bool, key: SigningKey | None
    ) -> Client:
        client = Client(self, stream, framing, text_order=text_order)
        if key is not None:
            client.key = key
        self.clients.append(client)
        return client

    async def close(self) -> None:
        for client in self.clients:
            await client.close()
        await self.listener.aclose()
