"""Exit codes, and the one exception that carries them to `main`."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import Final

from ocapn.errors import (
    BadLocator,
    ConnectFailed,
    OCapNError,
    RemoteError,
    RemoteProtocolError,
    SessionEnded,
)


class ExitCode(IntEnum):
    """What the `ocapn` command exits with. Scripts may rely on the numbers."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NO_SESSION = 3
    MALFORMED = 4
    TIMEOUT = 5
    FILE = 6
    BAGGAGE = 7
    BUG = 70
    INTERRUPTED = 130
    PIPE = 141
    TERMINATED = 143


MEANINGS: Final = {
    ExitCode.OK: "all went well",
    ExitCode.FAILED: "the other side answered with an error, or a check of the demo or of a baggage failed",
    ExitCode.USAGE: "the command line is not right",
    ExitCode.NO_SESSION: "no connection could be made or listened for, or the session ended",
    ExitCode.MALFORMED: "a URI, JSON or Syrup is malformed",
    ExitCode.TIMEOUT: "no answer within --timeout",
    ExitCode.FILE: "a file cannot be read or written",
    ExitCode.BAGGAGE: "a baggage cannot be used: it is in use, refused, sealed, damaged or of a later version",
    ExitCode.BUG: "a bug in ocapn; please report it",
    ExitCode.INTERRUPTED: "interrupted (SIGINT, Ctrl-C)",
    ExitCode.PIPE: "whoever read the output stopped reading",
    ExitCode.TERMINATED: "terminated (SIGTERM)",
}


def table(*codes: ExitCode) -> str:
    """The exit codes, all unless some are named, a line each: for help texts."""
    return "\n".join(f"  {code.value:>3}  {MEANINGS[code]}" for code in codes or ExitCode)


class Failure(Exception):
    """Ends a command with one line on standard error: what was wrong; what to do."""

    def __init__(self, code: ExitCode, what: str) -> None:
        super().__init__(what)
        self.code = code
        self.what = what


class Stopped(BaseException):
    """A signal came. Not an Exception, so that no code in between takes it for an error of its own."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


_URI: Final = (
    "a peer's URI is ocapn://DESIGNATOR.TRANSPORT?HINT=VALUE&..., an object's has /s/SWISS before the ?"
)


def failure_of(error: BaseException) -> Failure:
    """What to tell of an exception, which may be a group as trio's nurseries make them."""
    found = list(leaves(error))
    for kind in (Failure, BrokenPipeError, OCapNError, OSError, SystemExit, KeyboardInterrupt):
        for leaf in found:
            if isinstance(leaf, kind):
                return _told(leaf)
    return _told(found[0])


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The exceptions of a group, and of groups in it; one that is none is alone."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def _told(error: BaseException) -> Failure:
    match error:
        case Failure():
            return error
        case BrokenPipeError():
            return Failure(ExitCode.PIPE, "")
        case BadLocator():
            return Failure(ExitCode.MALFORMED, f"{error}; {_URI}")
        case ConnectFailed():
            return Failure(ExitCode.NO_SESSION, f"{error}")
        case SessionEnded() | RemoteProtocolError():
            return Failure(ExitCode.NO_SESSION, f"the session ended: {error}; is the other side still there?")
        case RemoteError():
            return Failure(ExitCode.FAILED, f"the other side answered with an error: {error}")
        case OCapNError():
            return Failure(ExitCode.FAILED, f"{error}")
        case SystemExit() | KeyboardInterrupt():
            what = f"code that was called here ended the process ({type(error).__name__})"
            return Failure(ExitCode.FAILED, what)
        case OSError():
            return Failure(ExitCode.FILE, f"{error.strerror or error}: {error.filename or 'the output'}")
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return Failure(ExitCode.BUG, f"a bug in ocapn: {what}; please report it with what OCAPN_DEBUG=1 shows")
