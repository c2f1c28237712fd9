"""What opens a sealed baggage: a passphrase, a file with a key, or a function; and the data key under it.

A seal gives a key of 32 bytes. It never leaves this module: with it the data key is wrapped, which stands in the header
(spec/sealing.md). No repr and no error holds a passphrase, a key or anything made of them.
"""

from __future__ import annotations

import os
import secrets
import stat
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from hashlib import blake2b
from os import PathLike
from pathlib import Path
from typing import Final

from nacl.exceptions import CryptoError
from nacl.pwhash import argon2id
from nacl.secret import Aead

from durable.errors import BaggageFailed, SealRefused
from durable.header import (
    CALLER,
    KEY_FILE,
    PASSPHRASE,
    SALT_SIZE,
    Header,
    Sealing,
    Stretching,
    key_source,
)
from durable.place import sync
from durable.records import encode

KEY_SIZE: Final = Aead.KEY_SIZE
_LABEL: Final = b"ocapn-baggage-key"
_PERSON: Final = b"ocapn wrapping"
#: The one thing that is said of a seal that does not fit: not which part of it, nor of the header, was wrong.
_WRONG: Final = (
    "the seal does not open this baggage: another passphrase or key does, or its header was changed"
)


class Passphrase:
    """A passphrase, of which Argon2id makes the key.

    Its Unicode form does not matter (NFC is taken). `opslimit` and `memlimit` are for baggages that are sealed anew; by
    default a try takes about 0.6 s and 256 MiB. Raises ValueError for an empty one and for parameters out of bounds.
    """

    def __init__(
        self,
        passphrase: str,
        *,
        opslimit: int = argon2id.OPSLIMIT_MODERATE,
        memlimit: int = argon2id.MEMLIMIT_MODERATE,
    ) -> None:
        if not isinstance(passphrase, str):
            raise TypeError("a passphrase is a str")
        try:
            self._secret = unicodedata.normalize("NFC", passphrase).encode()
        except UnicodeEncodeError:
            raise ValueError("a lone surrogate is no text") from None
        if not self._secret:
            raise ValueError("a passphrase is not empty")
        self._limits = Stretching(opslimit, memlimit, bytes(SALT_SIZE))

    def __repr__(self) -> str:
        return "Passphrase(…)"

    def new_stretching(self) -> Stretching:
        """How a baggage that is sealed now makes the key: with a salt of its own."""
        return Stretching(self._limits.opslimit, self._limits.memlimit, secrets.token_bytes(SALT_SIZE))

    def key(self, how: Stretching) -> bytes:
        """Takes a while. Raises BaggageFailed where there is not enough memory."""
        try:
            return argon2id.kdf(KEY_SIZE, self._secret, how.salt, how.opslimit, how.memlimit)
        except (CryptoError, MemoryError):
            raise BaggageFailed(
                f"no key can be made of the passphrase: it takes {how.memlimit >> 20} MiB of memory"
            ) from None


class KeyFile:
    """A file with 32 random bytes that nobody else may read. Made, with mode 0600, when a baggage is sealed with it.

    A file that is there is never written over: several baggages may have the same one.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"KeyFile({str(self.path)!r})"

    def make(self) -> None:
        """Makes the file if it is not there. Raises BaggageFailed."""
        new = self.path.with_name(f"{self.path.name}.{secrets.token_hex(8)}.new")
        try:
            if self.path.exists():
                return
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                file.write(secrets.token_bytes(KEY_SIZE))
                file.flush()
                os.fsync(fd)
            try:
                os.link(new, self.path)  # which, other than a rename, replaces nothing
            except FileExistsError:  # somebody else was quicker
                pass
            sync(self.path.parent)
        except OSError as error:
            raise BaggageFailed(f"the key file {self.path} cannot be made: {error.strerror}") from error
        finally:
            with suppress(OSError):
                new.unlink(missing_ok=True)

    def key(self) -> bytes:
        """Raises SealRefused if the file is not there, not private, or no key."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode):
                    raise SealRefused(f"the key file {self.path} is no file")
                if stat.S_IMODE(status.st_mode) & 0o077:
                    raise SealRefused(
                        f"the key file {self.path} is open to other users: chmod 600 {self.path}"
                    )
                key = os.read(fd, KEY_SIZE + 1)
            finally:
                os.close(fd)
        except FileNotFoundError:
            raise SealRefused(
                f"the key file {self.path} is not there: what it seals is lost without it"
            ) from None
        except OSError as error:
            raise SealRefused(f"the key file {self.path} cannot be read: {error.strerror}") from error
        if len(key) != KEY_SIZE:
            raise SealRefused(f"the key file {self.path} has not {KEY_SIZE} bytes: it is another file")
        return key


#: What opens a sealed baggage. A function is given the id of the store and returns a key of 32 bytes, of a keyring say.
Seal = Passphrase | KeyFile | Callable[[bytes], bytes]


def kind_of(seal: Seal) -> str:
    """As the header has it. Raises TypeError for what is no seal."""
    if isinstance(seal, Passphrase):
        return PASSPHRASE
    if isinstance(seal, KeyFile):
        return KEY_FILE
    if callable(seal):
        return CALLER
    raise TypeError(f"a seal is a Passphrase, a KeyFile or a function, not a {type(seal).__qualname__}")


def new_sealing(seal: Seal, directory: Path, store_id: bytes, data_key: bytes) -> Sealing:
    """The data key of the store in a directory, under a seal that is new to it. Makes a key file that is not there.

    Raises SealRefused, BaggageFailed.
    """
    kind = kind_of(seal)
    stretching = seal.new_stretching() if isinstance(seal, Passphrase) else None
    if isinstance(seal, KeyFile):
        if directory.resolve() in seal.path.resolve().parents:
            raise SealRefused(f"the key file {seal.path} would be in the baggage, and in every copy of it")
        seal.make()
    key = _wrapping_key(seal, store_id, stretching)
    return Sealing(kind, stretching, wrap(data_key, key, store_id, kind, stretching))


def data_key_of(seal: Seal, header: Header) -> bytes:
    """The data key that a header holds. Raises SealRefused, BaggageFailed."""
    sealing = header.sealing
    if sealing is None:
        raise SealRefused("the baggage is not sealed: open it without a seal")
    kind = kind_of(seal)
    if kind != sealing.kind:
        raise SealRefused(_WRONG)
    key = _wrapping_key(seal, header.store_id, sealing.stretching)
    about = _about(header.store_id, kind, sealing.stretching)
    try:
        data_key: bytes = Aead(key).decrypt(sealing.wrapped, about)
    except CryptoError:
        raise SealRefused(_WRONG) from None
    return data_key


def wrap(
    data_key: bytes,
    key: bytes,
    store_id: bytes,
    kind: str,
    stretching: Stretching | None,
    nonce: bytes | None = None,
) -> bytes:
    """The data key as the header has it, under the wrapping key. The nonce is drawn, other than for examples."""
    return bytes(Aead(key).encrypt(data_key, _about(store_id, kind, stretching), nonce))


def wrapping_key(key: bytes, store_id: bytes) -> bytes:
    """What wraps the data key of a store, made of what a seal gives: of one seal each store has another."""
    return blake2b(store_id, digest_size=KEY_SIZE, key=key, person=_PERSON).digest()


def lengths(*parts: bytes) -> bytes:
    """The parts, each after its length in 8 bytes."""
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)


def _about(store_id: bytes, kind: str, stretching: Stretching | None) -> bytes:
    """What is authenticated with a wrapped key: in another header it does not open."""
    return lengths(_LABEL, store_id, encode(key_source(kind, stretching)))


def _wrapping_key(seal: Seal, store_id: bytes, stretching: Stretching | None) -> bytes:
    if isinstance(seal, Passphrase):
        assert stretching is not None
        key = seal.key(stretching)
    elif isinstance(seal, KeyFile):
        key = seal.key()
    else:
        key = seal(store_id)
        if type(key) is not bytes or len(key) != KEY_SIZE:
            what = f"{len(key)} bytes" if type(key) is bytes else f"a {type(key).__qualname__}"
            raise SealRefused(f"the function that seals the baggage returned {what}, not {KEY_SIZE} bytes")
    return wrapping_key(key, store_id)
