"""Every exception that `ocapn` raises.

    OCapNError
    ├── BadLocator            a locator or sturdyref, as a value or a URI, is malformed (also ValueError)
    ├── NotPassable           a value cannot be sent; says where it stands in the arguments (also TypeError)
    ├── WrongContext          a send without a peer to do it, or from another thread (also RuntimeError)
    ├── ConnectFailed         no session to that peer could be had
    ├── SessionEnded          the session is over, and with it the reference or the answer
    │   ├── Aborted           the other peer ended it with op:abort; `reason` is what it said
    │   ├── Disconnected      the connection ended without op:abort
    │   ├── SessionExpired    its time was over, and nobody renewed it
    │   └── SessionLost       a durable session cannot go on; says what was delivered
    │       └── RolledBack    one of the two peers has lost what it had committed
    ├── Backpressure          the outbox of the session is full
    ├── TooBusy               a limit of the peer that was asked to do something
    ├── StorageError          what a peer keeps for its callers cannot be had
    │   ├── NotAuthenticated  it is not known who calls, and so not whose storage it would be
    │   ├── StorageRefused    storage does not take that key, value or argument (also ValueError)
    │   ├── StorageFull       the caller, or all callers together, keep as much as they may
    │   └── StorageFailed     where it is kept has failed, or has not answered in time
    ├── RemoteError           the answer broke; carries what the other side sent
    ├── PassableError         base of application errors whose class name may cross the wire
    │   ├── PeerRestarted     what was asked of a process ended with it
    │   └── ObjectLost        the object that a message was for ended with its process
    └── RemoteProtocolError   the peer broke the protocol: the session is aborted with this reason
        └── DecodeError       malformed bytes; names the offset and the rule

Errors of the protocol are for the session; application code meets `RemoteError` (a method raised on the other
side), `SessionEnded`, `ConnectFailed`, `Backpressure` and `NotPassable`.
"""

from __future__ import annotations


class OCapNError(Exception):
    """Base of all exceptions of this package."""


class BadLocator(OCapNError, ValueError):
    """A peer locator or sturdyref that no peer could use (Locators specification)."""


class NotPassable(OCapNError, TypeError):
    """A value that cannot cross to another object, local or remote.

    `path` says where it stands, in Python notation from the arguments: `args[0]["file"]`.
    """

    def __init__(self, why: str, path: str = "") -> None:
        super().__init__(f"{path}: {why}" if path else why)
        self.why = why
        self.path = path


class WrongContext(OCapNError, RuntimeError):
    """`E` was used where no peer can be found, or from a thread that is not the peer's."""


class ConnectFailed(OCapNError):
    """No session to the wanted peer could be established. `lasting`: nor will it be, however often it is tried."""

    def __init__(self, message: str, *, lasting: bool = False) -> None:
        super().__init__(message)
        self.lasting = lasting


class SessionEnded(OCapNError):
    """The session that a reference or an answer belonged to is over."""

    def __init__(self, reason: str = "session ended") -> None:
        super().__init__(reason)
        self.reason = reason


class Aborted(SessionEnded):
    """The other peer sent `op:abort` (CapTP specification, op:abort); `reason` is its text."""


class Disconnected(SessionEnded):
    """The connection ended, or fell silent, without `op:abort`."""


class SessionExpired(SessionEnded):
    """The time of the session was over and it was not renewed: this was not sent, or is not answered."""


class SessionLost(SessionEnded):
    """A durable session cannot be resumed. The other side learns it too, when it tries.

    Of the messages that were sent, `delivered` are known to have been accepted by the peer, the first that were
    sent; then come `uncertain` of which it is not known, and `never_delivered` that it will never accept.
    """

    def __init__(self, reason: str, delivered: int = 0, never_delivered: int = 0, uncertain: int = 0) -> None:
        super().__init__(reason)
        self.delivered = delivered
        self.never_delivered = never_delivered
        self.uncertain = uncertain

    def __str__(self) -> str:
        if not (self.delivered or self.never_delivered or self.uncertain):
            return self.reason
        return (
            f"{self.reason} (messages sent: {self.delivered} delivered, "
            f"{self.uncertain} uncertain, {self.never_delivered} never delivered)"
        )


class RolledBack(SessionLost):
    """A peer resumed with less than it had committed, as from an old backup: the session ended."""


class Backpressure(OCapNError):
    """More is waiting to be sent on the session than its limits allow: `await session.writable()`."""


class TooBusy(OCapNError):
    """The peer that was asked runs as many methods, or keeps as many things, as its limits allow."""


class StorageError(OCapNError):
    """Base of what `current_storage` and its methods raise. The text names no key and no value."""


class NotAuthenticated(StorageError):
    """The netlayer does not prove who calls, and the application does not say it either: there is no storage."""


class StorageRefused(StorageError, ValueError):
    """A key, value, ttl, limit or cursor that storage does not take."""


class StorageFull(StorageError):
    """The quota of the caller, or what is kept for all callers together, is used up. Nothing was changed."""


class StorageFailed(StorageError):
    """The backend has raised something, or not answered in time. What was to be set may be set or not."""


class RemoteError(OCapNError):
    """What broke an answer, and the Error value of the OCapN model.

    `value` is what the other side sent to `break`: for an Error it is None and the text is in `str(error)`;
    anything else that was sent (a symbol, a struct) is `value`. A method may return or pass a RemoteError: it
    is then an Error value, `<desc:error "message">` on the wire (Model specification, Error).
    """

    def __init__(self, message: str, value: object = None) -> None:
        super().__init__(message)
        self.message = message
        self.value = value


class PassableError(OCapNError):
    """Base for application errors whose class name is meant for the other side.

    Of any other exception only the message crosses the wire; of these it is `ClassName: message`.
    """


class PeerRestarted(PassableError):
    """The process that owed this answer has ended, and a new one has gone on with the session."""


class ObjectLost(PassableError):
    """The object ended with the process that it was in. What was sent to it before may have reached it."""


class RemoteProtocolError(OCapNError):
    """The peer sent what the protocol forbids; its session is aborted with this text."""


class DecodeError(RemoteProtocolError):
    """Malformed bytes. `offset` counts bytes from the start of the message, `rule` is what they break."""

    def __init__(self, rule: str, offset: int) -> None:
        super().__init__(f"malformed at byte {offset}: {rule}")
        self.rule = rule
        self.offset = offset


def shown(text: object) -> str:
    """The text for a log: on one line and not long, whatever another peer has written into it."""
    line = str(text)
    if len(line) > 300:
        line = line[:300] + "…"
    return line if line.isprintable() else repr(line)[1:-1]


def fresh(error: BaseException) -> BaseException:
    """A new exception equal to `error`, so that each `await` of a broken promise raises its own traceback."""
    copy = type(error).__new__(type(error), *error.args)
    copy.args = error.args
    copy.__dict__.update(error.__dict__)
    copy.__cause__ = error.__cause__
    return copy
