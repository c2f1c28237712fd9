"""What one session has to send: messages in order, and the garbage that its peer has to be told of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

import attrs

from ocapn.codec.resumption import write_ack

if TYPE_CHECKING:
    from ocapn.captp.session import Session

#: Positions in one message of garbage collection: it stays under what unframed peers read at once.
_BATCH: Final = 500
#: Bytes that are handed to the network together, unless one message has more: what is made of them is made in one go,
#: and nothing else runs meanwhile.
_PART: Final = 1 << 18
#: Bytes that wait for the end of a pass of the loop: with more, they go out at once, and the other side begins with
#: them while this one goes on.
_MUCH: Final = 1 << 13
#: So much garbage goes with the next message; less waits a little, as it is dearer to send than to keep.
_WORTH: Final = 100


@final
@attrs.frozen
class Sealed:
    """Messages that wait for a commit, and the connection that they were to go out on, by number."""

    messages: list[bytes]
    connection: int


@final
class Outbox:
    """`frames` and `size` (bytes) count what the network has not taken yet, `messages` included. `fresh` counts bytes
    that were appended since `take` or `seen`.

    Of a durable session, op:ack waits and goes as garbage does. While it is suspended nothing is here.
    """

    __slots__ = (
        "_ack",
        "_answers",
        "_connection",
        "_due",
        "_exports",
        "_held",
        "_known",
        "_listed",
        "_session",
        "frames",
        "fresh",
        "messages",
        "size",
    )

    def __init__(self, session: Session) -> None:
        self._session = session
        self.messages: list[bytes] = []
        self._held: list[bytes] = []  # with a baggage: not committed yet
        self._connection = 0
        self.frames = 0
        self.size = 0
        self.fresh = 0
        self._exports: dict[int, int] = {}  # imports to return: position to delta
        self._answers: dict[int, None] = {}  # answers to release
        self._listed = False  # with the node, as a session that has something to send
        self._known = False  # with the node, as a session that has garbage
        self._due = False  # garbage has waited long enough
        self._ack = False  # op:ack has

    def append(self, message: bytes) -> None:
        """One more message."""
        session = self._session
        if session.attached:  # else it is kept among the frames, and goes out when the session resumes
            (self.messages if session.node.keeper is None else self._held).append(message)
            self.frames += 1
            self.size += len(message)
            self.fresh += len(message)
        self._list()

    def _at_once(self, message: bytes) -> None:
        """One more message, which no crash undoes."""
        self.messages.append(message)
        self.frames += 1
        self.size += len(message)
        self._list()

    def _list(self) -> None:
        if not self._listed:
            self._listed = True
            self._session.node.dirty(self._session)

    def acknowledge(self, *, at_once: bool = False) -> None:
        """There are frames to acknowledge: soon, or at once."""
        if at_once:
            self._ack = True
            self._list()
        else:
            self._collect_later()

    def returned(self, position: int, count: int) -> None:
        """An import that nobody holds any more, and how often it came."""
        self._exports[position] = self._exports.get(position, 0) + count
        self._collect_later()

    def released(self, position: int) -> None:
        """An answer that is not needed any more."""
        self._answers[position] = None
        self._collect_later()

    def owed(self, position: int) -> int:
        """How often an import is to be returned that the peer was not told of."""
        return self._exports.get(position, 0)

    def releases(self, position: int) -> bool:
        """Whether an answer is to be released, and the peer was not told."""
        return position in self._answers

    def touch_all(self) -> None:
        """What the peer was not told of counts as changed."""
        for position in self._exports:
            self._session.tables.touch("import", position)
        for position in self._answers:
            self._session.tables.touch("question", position)

    @property
    def unreleased(self) -> int:
        """How many answers are not needed any more, without the peer having been told."""
        return len(self._answers)

    def _collect_later(self) -> None:
        """There is garbage: it goes with other messages once there is enough, or when the node says so."""
        if not self._known:
            self._known = True
            self._session.node.has_garbage(self._session)

    def collect(self) -> None:
        """Garbage has waited long enough."""
        self._known = False
        if self._exports or self._answers:
            self._due = True
            self._list()
        frames = self._session.frames
        if frames is not None and frames.untold:
            self._ack = True
            self._list()

    def take(self) -> list[bytes]:
        """What is to be sent, in order; garbage last, in as few messages as possible. Of much, the first part."""
        session = self._session
        self._listed = True  # what is sent here is taken here
        if session.node.keeper is None:
            self._gather()
        if self._ack:
            self._ack = False
            frames = session.frames
            if frames is not None and session.ended is None and session.attached:
                self._at_once(write_ack(frames.tell(session.node.now())))
        self._listed = False
        self.fresh = 0
        taken, self.messages = self.messages, []
        if self.size > _PART:
            size = 0
            for number, message in enumerate(taken):
                size += len(message)
                if size > _PART and number:
                    self.messages = taken[number:]
                    return taken[:number]
        return taken

    def _gather(self) -> None:
        """Sends the garbage that has waited long enough."""
        session = self._session
        if session.ended is None and (self._due or len(self._exports) + len(self._answers) >= _WORTH):
            self._due = False
            gone, self._exports = self._exports, {}
            positions = list(gone)
            tables = session.tables
            for position in positions:
                tables.touch("import", position)
            for i in range(0, len(positions), _BATCH):
                some = positions[i : i + _BATCH]
                deltas = [gone[position] for position in some]
                session.send(session.codec.gc_exports(some, deltas, session.form))
            answers, self._answers = list(self._answers), {}
            for position in answers:
                tables.touch("question", position)
            for i in range(0, len(answers), _BATCH):
                session.send(session.codec.gc_answers(answers[i : i + _BATCH], session.form))

    def seal(self) -> Sealed:
        """With a baggage: what was sent since the last time, to be held until it is committed."""
        self._listed = True
        self._gather()
        self._listed = False
        held, self._held = self._held, []
        return Sealed(held, self._connection)

    def release(self, sealed: Sealed) -> None:
        """What was sealed is committed. If the connection is another by now, it went out there, or will."""
        if sealed.connection == self._connection:
            self.messages += sealed.messages

    def begin(self, messages: list[bytes], uncommitted: list[bytes]) -> None:
        """The session resumes on a new connection, and these go first; then others, once they are committed."""
        self.suspend()
        for message in messages:
            self._at_once(message)
        for message in uncommitted:
            self.append(message)
        if self._exports or self._answers:
            self._collect_later()

    def suspend(self) -> None:
        """The connection is gone. What was on its way is kept among the frames."""
        self.messages = []
        self._held = []
        self._connection += 1
        self.frames = self.size = 0
        self._ack = False

    def seen(self) -> None:
        """The network cannot take more yet: the node is told again of what is appended meanwhile."""
        self._listed = False
        self.fresh = 0

    def put_back(self, messages: list[bytes]) -> None:
        """The network did not take these, the last that `take` returned."""
        self.messages[:0] = messages

    def written(self, messages: list[bytes]) -> None:
        """The network has taken these, which `take` returned."""
        self.frames -= len(messages)
        self.size -= sum(map(len, messages))

    @property
    def much(self) -> bool:
        """Whether so much is here that it is to go out at once (`Node.hasten`)."""
        return self.fresh >= _MUCH

    @property
    def full(self) -> bool:
        """Whether applications have to wait before they send more."""
        frames = self._session.frames
        if frames is not None:
            return frames.full
        limits = self._session.node.limits
        return self.frames >= limits.outbox_frames or self.size >= limits.outbox_bytes

    @property
    def overflown(self) -> bool:
        """Whether so much waits that the session must end: its peer does not read."""
        frames = self._session.frames
        if frames is not None:
            return frames.overflown
        limits = self._session.node.limits
        return self.frames >= 2 * limits.outbox_frames or self.size >= 2 * limits.outbox_bytes

    def forget_garbage(self) -> None:
        """The session has ended: there is nothing to tell."""
        self._exports.clear()
        self._answers.clear()
