"""Passphrases, key files and functions; and the data key in the header under them."""

from __future__ import annotations

import logging
import os
import stat
import threading
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from nacl.exceptions import CryptoError
from nacl.pwhash import argon2id

import durable.place
import durable.seals
from durable import (
    BaggageFailed,
    DirectoryStore,
    KeyFile,
    Passphrase,
    SealedStore,
    SealRefused,
)
from durable.header import (
    CALLER,
    KEY_FILE,
    MEMLIMITS,
    PASSPHRASE,
    Header,
    Sealing,
    Stretching,
    read_header,
)
from durable.seals import data_key_of, new_sealing
from tests.durable.support import FAST

STORE_ID = bytes(range(32))
DATA_KEY = bytes(range(100, 132))
SALT = bytes(16)
#: No key file of these tests is in it.
NOWHERE = Path("/nowhere/baggage")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "baggage"


def opened(seal: durable.Seal, header: Header) -> str:
    """What is said of a seal that does not open a header."""
    with pytest.raises(SealRefused) as caught:
        data_key_of(seal, header)
    return str(caught.value)


# The data key under a seal


@pytest.fixture(params=[PASSPHRASE, KEY_FILE, CALLER])
def seal(request: pytest.FixtureRequest, tmp_path: Path) -> durable.Seal:
    seals: dict[str, durable.Seal] = {
        PASSPHRASE: FAST,
        KEY_FILE: KeyFile(tmp_path / "key"),
        CALLER: lambda store_id: store_id[::-1],
    }
    return seals[request.param]


def test_a_data_key_comes_back(seal: durable.Seal) -> None:
    sealings = [new_sealing(seal, NOWHERE, STORE_ID, DATA_KEY) for _ in range(2)]
    for sealing in sealings:
        assert data_key_of(seal, Header(STORE_ID, sealing)) == DATA_KEY
        assert DATA_KEY not in sealing.wrapped
    assert sealings[0].wrapped != sealings[1].wrapped
    if sealings[0].stretching and sealings[1].stretching:
        assert sealings[0].stretching.salt != sealings[1].stretching.salt


def test_a_header_of_another_store_does_not_open(seal: durable.Seal) -> None:
    sealing = new_sealing(seal, NOWHERE, STORE_ID, DATA_KEY)
    assert opened(seal, Header(bytes(32), sealing)) == durable.seals._WRONG


def test_the_store_is_bound_beside_the_key() -> None:
    """A function may give all stores one key: still no wrapped key is good for another store."""
    key = durable.seals.wrapping_key(bytes(32), STORE_ID)
    box = durable.seals.wrap(DATA_KEY, key, bytes(32), CALLER, None)
    assert opened(lambda _: bytes(32), Header(STORE_ID, Sealing(CALLER, None, box))) == durable.seals._WRONG
    assert durable.seals.wrapping_key(bytes(32), bytes(32)) != key


def test_every_flipped_byte_of_a_wrapped_key(seal: durable.Seal) -> None:
    sealing = new_sealing(seal, NOWHERE, STORE_ID, DATA_KEY)
    for place in range(len(sealing.wrapped)):
        changed = bytearray(sealing.wrapped)
        changed[place] ^= 1 << place % 8
        header = Header(STORE_ID, Sealing(sealing.kind, sealing.stretching, bytes(changed)))
        assert opened(seal, header) == durable.seals._WRONG


def test_a_changed_kind_does_not_open(tmp_path: Path) -> None:
    """The same 32 bytes from a file and from a function are not the same seal."""
    file = KeyFile(tmp_path / "key")
    sealing = new_sealing(file, NOWHERE, STORE_ID, DATA_KEY)
    header = Header(STORE_ID, Sealing(CALLER, None, sealing.wrapped))
    assert opened(lambda _: file.key(), header) == durable.seals._WRONG
    assert opened(file, header) == durable.seals._WRONG


@pytest.mark.parametrize(
    "change", [{"opslimit": 2}, {"memlimit": MEMLIMITS[0] + 1024}, {"salt": bytes(15) + b"\1"}]
)
def test_changed_parameters_do_not_open(change: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Though another key comes of them anyway: the parameters are authenticated too."""
    monkeypatch.setattr(Passphrase, "key", lambda self, how: bytes(32))
    sealing = new_sealing(FAST, NOWHERE, STORE_ID, DATA_KEY)
    assert sealing.stretching is not None
    assert data_key_of(FAST, Header(STORE_ID, sealing)) == DATA_KEY
    kept: dict[str, Any] = {"opslimit": 1, "memlimit": MEMLIMITS[0], "salt": sealing.stretching.salt}
    changed = Sealing(PASSPHRASE, Stretching(**kept | change), sealing.wrapped)
    assert opened(FAST, Header(STORE_ID, changed)) == durable.seals._WRONG


# Passphrases


def test_a_passphrase_in_either_unicode_form() -> None:
    composed, decomposed = (
        Passphrase(unicodedata.normalize(form, "é"), opslimit=1, memlimit=8 << 20) for form in ("NFC", "NFD")
    )
    sealing = new_sealing(composed, NOWHERE, STORE_ID, DATA_KEY)
    assert data_key_of(decomposed, Header(STORE_ID, sealing)) == DATA_KEY


def test_the_parameters_are_those_of_the_header() -> None:
    sealing = new_sealing(FAST, NOWHERE, STORE_ID, DATA_KEY)
    other = Passphrase("right passphrase", opslimit=2, memlimit=16 << 20)
    assert data_key_of(other, Header(STORE_ID, sealing)) == DATA_KEY
    again = new_sealing(other, NOWHERE, STORE_ID, DATA_KEY).stretching
    assert again is not None
    assert (again.opslimit, again.memlimit) == (2, 16 << 20)


def test_the_default_is_what_libsodium_calls_moderate() -> None:
    how = Passphrase("x").new_stretching()
    assert (how.opslimit, how.memlimit) == (argon2id.OPSLIMIT_MODERATE, argon2id.MEMLIMIT_MODERATE)


@pytest.mark.parametrize("text", ["", "\ud800"])
def test_what_is_no_passphrase(text: str) -> None:
    with pytest.raises(ValueError, match=r"a passphrase is not empty|a lone surrogate"):
        Passphrase(text)
    with pytest.raises(TypeError):
        Passphrase(b"bytes")  # type: ignore[arg-type]


def test_no_memory_for_a_passphrase(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SealedStore(path, FAST).close()

    def kdf(*arguments: object) -> bytes:
        raise CryptoError("Key derivation failed.")

    monkeypatch.setattr(argon2id, "kdf", kdf)
    with pytest.raises(BaggageFailed, match="it takes 8 MiB of memory"):
        SealedStore(path, FAST)


# Key files


def test_a_key_file_is_made_with_the_baggage(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "key"
    with closing(SealedStore(path, KeyFile(file))) as store:
        store.commit({("user", b"k"): b"v"})
    key = file.read_bytes()
    assert len(key) == 32
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["baggage", "key"]
    with closing(SealedStore(path, KeyFile(str(file)))) as store:
        assert store.get("user", b"k") == b"v"
    SealedStore(tmp_path / "other", KeyFile(file)).close()  # which may have the same
    assert file.read_bytes() == key


def test_a_key_file_is_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        KeyFile(tmp_path / "key").make()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


def test_a_key_file_is_on_disk_before_the_header_is(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a crash would leave a baggage that nothing opens."""
    steps: list[str] = []
    real = durable.place.sync

    def syncing(directory: Path) -> None:
        steps.append(f"{(tmp_path / 'key').exists()} {(path / 'header.cbor').exists()}")
        real(directory)

    monkeypatch.setattr(durable.seals, "sync", syncing)
    SealedStore(path, KeyFile(tmp_path / "key")).close()
    assert steps == ["True False"]


def test_what_was_left_of_making_a_key_file(tmp_path: Path) -> None:
    """By a process that died: it is nobody's key, and in nobody's way."""
    left = tmp_path / "key.0123456789abcdef.new"
    left.write_bytes(b"half")
    KeyFile(tmp_path / "key").make()
    assert len(KeyFile(tmp_path / "key").key()) == 32
    assert {entry.name for entry in tmp_path.iterdir()} == {"key", left.name}


def test_a_key_file_that_another_made_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, link = tmp_path / "key", os.link

    def linking(source: Path, target: Path) -> None:
        file.write_bytes(bytes(32))
        link(source, target)

    monkeypatch.setattr(os, "link", linking)
    KeyFile(file).make()
    assert file.read_bytes() == bytes(32)


def replaced(file: Path, make: Callable[[Path], object]) -> None:
    file.unlink()
    make(file)


def spoiled() -> Iterator[tuple[Callable[[Path], object], str]]:
    yield lambda file: file.unlink(), "is not there"
    yield lambda file: file.chmod(0o640), "is open to other users: chmod 600"
    yield lambda file: file.chmod(0o602), "is open to other users: chmod 600"
    yield lambda file: file.write_bytes(bytes(31)), "has not 32 bytes"
    yield lambda file: file.write_bytes(bytes(33)), "has not 32 bytes"
    yield lambda file: file.write_bytes(b""), "has not 32 bytes"
    yield lambda file: replaced(file, Path.mkdir), "cannot be read|is no file"
    yield lambda file: replaced(file, os.mkfifo), "is no file"


@pytest.mark.parametrize("number", range(8))
def test_a_key_file_that_is_refused(path: Path, tmp_path: Path, number: int) -> None:
    file = tmp_path / "key"
    SealedStore(path, KeyFile(file)).close()
    key = file.read_bytes()
    spoil, why = list(spoiled())[number]
    spoil(file)
    with pytest.raises(SealRefused, match=why) as caught:
        SealedStore(path, KeyFile(file))
    assert str(file) in str(caught.value)
    assert file.exists() == (number != 0), "a key file was made for a baggage that has another"
    if file.is_file():
        file.unlink()
        file.write_bytes(key)
        file.chmod(0o400)
        SealedStore(path, KeyFile(file)).close()


def test_a_key_file_in_the_baggage_is_refused(path: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(path)
    for place in (path, tmp_path / "link"):
        with pytest.raises(SealRefused, match="would be in the baggage, and in every copy of it"):
            SealedStore(path, KeyFile(place / "key"))
        assert not (path / "key").exists()
    DirectoryStore(path).close()
    with pytest.raises(SealRefused, match="would be in the baggage"):
        durable.seal(path, KeyFile(path / "key"))
    DirectoryStore(path).close()


def test_a_key_file_that_cannot_be_made(path: Path, tmp_path: Path) -> None:
    with pytest.raises(BaggageFailed, match="cannot be made: No such file"):
        SealedStore(path, KeyFile(tmp_path / "nosuch" / "key"))
    SealedStore(path, KeyFile(tmp_path / "key")).close()  # nothing was lost


# Functions


def test_a_function_is_given_the_id_of_the_store(path: Path) -> None:
    asked: list[bytes] = []

    def key(store_id: bytes) -> bytes:
        asked.append(store_id)
        return bytes(range(32))

    for _ in range(2):
        with closing(SealedStore(path, key)) as store:
            store.commit({("user", b"k"): b"v"})
            assert store.get("user", b"k") == b"v"
    assert asked == [store.store_id] * 2
    assert len(store.store_id) == 32


@pytest.mark.parametrize(
    ("returned", "what"),
    [
        (b"", "0 bytes"),
        (bytes(31), "31 bytes"),
        (bytes(33), "33 bytes"),
        ("0" * 32, "a str"),
        (None, "a None"),
    ],
)
def test_a_function_that_returns_no_key(path: Path, returned: Any, what: str) -> None:
    for _ in range(2):  # as the baggage is made, and once more
        with pytest.raises(SealRefused, match=f"returned {what}.*, not 32 bytes") as caught:
            SealedStore(path, lambda store_id: returned)
        assert "0" * 32 not in str(caught.value)
    assert read_header(path) is None
    SealedStore(path, FAST).close()
    with closing(DirectoryStore(path, sealed=True)) as store:
        assert store.header.sealing is not None


def test_what_a_function_raises_comes_through(path: Path) -> None:
    def key(store_id: bytes) -> bytes:
        raise LookupError("no keyring")

    with pytest.raises(LookupError, match="no keyring"):
        SealedStore(path, key)
    SealedStore(path, FAST).close()


# Secrets


def test_secrets_are_in_no_text(path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "correct horse battery staple"
    seal = Passphrase(secret, opslimit=1, memlimit=8 << 20)
    file = KeyFile(tmp_path / "key")
    assert repr(seal) == str(seal) == "Passphrase(…)"
    assert repr(file) == f"KeyFile({str(tmp_path / 'key')!r})"
    with closing(SealedStore(path, seal)) as store:
        store.commit({("user", b"k"): b"v"})
        texts = [repr(store), repr(store.rows), repr(store.inner), repr(store.inner.header)]
        for secrets in (store.rows.data_key, store.rows._box.__bytes__()):
            texts = [text.replace(repr(secrets), "LEAKED") for text in texts]
    for wrong in (Passphrase("wrong staple"), file, lambda store_id: b"short staple"):
        with pytest.raises(SealRefused) as caught:
            SealedStore(path, wrong)
        error: BaseException | None = caught.value
        while error is not None:
            texts.append(repr(error))
            error = error.__cause__
    assert [text for text in texts if "staple" in text or "LEAKED" in text] == []
    assert "staple" not in caplog.text


def test_many_makers_of_one_key_file_make_one_key(tmp_path: Path) -> None:
    for number in range(50):
        key = KeyFile(tmp_path / f"{number}.key")
        errors: list[BaseException] = []

        def make(key: KeyFile = key, errors: list[BaseException] = errors) -> None:
            try:
                key.make()
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=make) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert len(key.key()) == 32
        assert [file.name for file in tmp_path.iterdir() if file.name.endswith(".new")] == []
