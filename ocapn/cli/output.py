"""What goes to standard output and standard error: lines for people, free of secrets and control characters."""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

#: The swiss number of a sturdyref's URI, wherever one stands in a text.
_SWISS: Final = re.compile(r"(ocapn://[^\s/]*/s/)[^\s?#'\"]*", re.IGNORECASE)


def redact(text: str) -> str:
    """The text with the swiss numbers of all URIs left out."""
    return _SWISS.sub(r"\1…", text)


def printable(text: str) -> str:
    """The text on one line, with whatever a terminal would not print as it stands in Python's escapes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def debugging() -> bool:
    """Whether OCAPN_DEBUG asks for tracebacks."""
    return os.environ.get("OCAPN_DEBUG", "") not in ("", "0")


def complain(line: str) -> None:
    """One line on standard error; if that is gone too, there is nobody to tell."""
    try:
        print(printable(redact(line)), file=sys.stderr, flush=True)
    except (OSError, ValueError):
        pass


def complain_with_traceback(error: BaseException) -> None:
    """The traceback, which source lines and messages make up, without swiss numbers."""
    try:
        print(redact("".join(traceback.format_exception(error))), file=sys.stderr, end="", flush=True)
    except (OSError, ValueError):
        pass


@contextmanager
def progress(what: str) -> Iterator[Callable[[str], None]]:
    """While the block runs, a line on a terminal says what is done and since when; it is gone at the end.

    What the block calls says how far it is. On anything but a terminal nothing is shown.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda how_far: None
        return
    began = time.monotonic()
    ended = threading.Event()
    said = [""]

    def show() -> None:
        while not ended.wait(0.2):
            _overwrite(f"{what} … {said[0]} {time.monotonic() - began:.0f} s")

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield lambda how_far: said.__setitem__(0, how_far)
    finally:
        ended.set()
        thread.join()
        _overwrite("")


def _overwrite(text: str) -> None:
    try:
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
    except (OSError, ValueError):
        pass


class _Lines(logging.Handler):
    """Log records as single lines; tracebacks only for OCAPN_DEBUG."""

    def __init__(self, prog: str) -> None:
        super().__init__()
        self._prog = prog

    def emit(self, record: logging.LogRecord) -> None:
        line = f"{self._prog}: {record.getMessage()}"
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            line += f": {type(error).__name__}: {error}"
            if debugging():
                complain_with_traceback(error)
        complain(line)


@contextmanager
def logged(prog: str, *, verbose: bool) -> Iterator[None]:
    """While the block runs, warnings of the library (with `verbose`, all it does) go to standard error."""
    loggers = [logging.getLogger(name) for name in ("ocapn", "durable")]
    before = [(logger.level, logger.propagate) for logger in loggers]
    handler = _Lines(prog)
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO if verbose else logging.WARNING)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate


def flush_output() -> None:
    """Writes out what is buffered. Raises OSError, after which nothing more is written."""
    if sys.stdout is None:  # it was closed before Python started
        return
    try:
        sys.stdout.flush()
    except OSError:
        discard_output()
        raise


def discard_output() -> None:
    """Nobody takes the output any more: what is left of it must not fail a second time as Python exits."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    except (OSError, ValueError, AttributeError):
        pass
