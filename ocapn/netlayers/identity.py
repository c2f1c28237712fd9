"""Where the identity of a peer comes from that no baggage keeps."""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from ocapn.crypto import KEY, Identity
from ocapn.errors import ConnectFailed


def new_identity() -> Identity:
    """One that nobody else has."""
    return Identity(secrets.token_bytes(KEY))


def to_keep(identity: Identity, *, drawn: bool) -> str:
    """What a baggage keeps of the identity of its peer: the secret, in hexadecimal digits, if it was drawn for it; else
    the designator."""
    return identity.seed.hex() if drawn else identity.designator


def kept(text: str, identity: Identity, *, drawn: bool) -> Identity:
    """The identity of a peer whose baggage has kept that text. Raises ConnectFailed if another was given.

    The sessions in a baggage are with one peer, and no other can resume them.
    """
    try:
        before = Identity(bytes.fromhex(text))
        designator = before.designator
    except ValueError:
        before, designator = identity, text
    if designator != identity.designator and not (drawn and before is not identity):
        what = "no identity was given" if drawn else f"{identity.designator} was given"
        raise ConnectFailed(f"the baggage is that of the peer {designator}, and {what}")
    return before


def identity_file(path: str | os.PathLike[str]) -> Identity:
    """The one in a file of 32 bytes that nobody else may read; made with mode 0600, whole, if there is none.

    Raises ConnectFailed if there is something else.
    """
    path = Path(path)
    try:
        if not path.exists():
            _make(path)
        return Identity(_read(path))
    except OSError as error:
        raise ConnectFailed(f"the identity in {path} cannot be used: {error.strerror}") from error


def _make(path: Path) -> None:
    """A file that is there meanwhile stays: unlike a rename, a link replaces nothing."""
    new = path.with_name(f"{path.name}.{secrets.token_hex(8)}.new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(new_identity().seed)
            file.flush()
            os.fsync(fd)
        with suppress(FileExistsError):
            os.link(new, path)
    finally:
        new.unlink()


def _read(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ConnectFailed(f"the identity {path} is no file")
        if stat.S_IMODE(status.st_mode) & 0o077:
            raise ConnectFailed(f"the identity {path} is open to other users: chmod 600 {path}")
        seed = os.read(fd, KEY + 1)
    finally:
        os.close(fd)
    if len(seed) != KEY:
        raise ConnectFailed(f"the identity {path} has not {KEY} bytes: it is another file")
    return seed
