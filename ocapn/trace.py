"""The wire of one session, printed in the notation of the specification."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from ocapn.codec.notation import notation
from ocapn.errors import DecodeError


@final
class Tracer:
    """Prints each message: `<-` received, `->` sent. Secrets (swiss numbers, gift ids) are left out unless asked.

    `write` gets one line at a time, without its end.
    """

    def __init__(self, write: Callable[[str], object], *, secrets: bool = False) -> None:
        self._write = write
        self._secrets = secrets

    def __call__(self, direction: str, message: bytes) -> None:
        try:
            text = notation(message, secrets=self._secrets)
        except (DecodeError, RecursionError) as error:  # the session says what is wrong, if it is
            text = f"{len(message)} bytes without notation: {error}"
        self._write(f"{direction} {text}")
