"""Where the identity of a peer comes from that no baggage keeps."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from ocapn.crypto import KEY, Identity
from ocapn.errors import ConnectFailed


def new_identity() -> Identity:
    """One that nobody else has."""
    return Identity(secrets.token_bytes(KEY))


def identity_file(path: str | os.PathLike[str]) -> Identity:
    """The one in a file of 32 bytes that nobody else may read; made with mode 0600 if there is none.

    Raises ConnectFailed if there is something else.
    """
    path = Path(path)
    try:
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            return Identity(_read(path))
        seed = secrets.token_bytes(KEY)
        with open(fd, "wb") as file:
            file.write(seed)
            file.flush()
            os.fsync(fd)
        return Identity(seed)
    except OSError as error:
        raise ConnectFailed(f"the identity in {path} cannot be used: {error.strerror}") from error


def _read(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ConnectFailed(f"the identity {path} is no file")
        if stat.S_IMODE(status.st_mode) & 0o077:
            raise ConnectFailed(f"the identity {path} is open to other users: chmod 600 {path}")
        seed = file.read(KEY + 1)
    if len(seed) != KEY:
        raise ConnectFailed(
            f"the identity {path} has not {KEY} bytes: it is another file, or was not written to the end"
        )
    return seed
