"""What a header may say of a seal, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from nacl.pwhash import argon2id

import durable.header
from durable import (
    BaggageCorrupt,
    Passphrase,
    SealedStore,
    SealRefused,
)
from durable.header import (
    CALLER,
    FORMAT,
    KEY_FILE,
    MEMLIMITS,
    OPSLIMITS,
    PASSPHRASE,
    Header,
    read_header,
    write_header,
)
from durable.records import decode, encode
from tests.durable.support import FAST

STORE_ID = bytes(range(32))
SALT = bytes(16)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "baggage"


def written(directory: Path, sealing: object) -> None:
    """A header with a right digest, whatever it says."""
    body = encode({"store": STORE_ID, "sealing": sealing})
    data = encode(["ocapn-baggage", FORMAT, body, durable.header._digest(FORMAT, body)])
    (directory / "header.cbor").write_bytes(data)


WRAPPED = bytes(72)
STRETCHED = [PASSPHRASE, OPSLIMITS[0], MEMLIMITS[0], SALT]


@pytest.mark.parametrize(
    "source",
    [
        [KEY_FILE],
        [CALLER],
        STRETCHED,
        [PASSPHRASE, OPSLIMITS[1], MEMLIMITS[1], SALT],
    ],
)
def test_headers_that_are_right(tmp_path: Path, source: list[Any]) -> None:
    written(tmp_path, {"source": source, "key": WRAPPED})
    header = read_header(tmp_path)
    assert header is not None
    assert header.sealing is not None
    assert durable.header.key_source(header.sealing.kind, header.sealing.stretching) == source
    data = (tmp_path / "header.cbor").read_bytes()
    write_header(tmp_path, header)
    assert (tmp_path / "header.cbor").read_bytes() == data


@pytest.mark.parametrize(
    "sealing",
    [
        False,
        [],
        {},
        {"source": [KEY_FILE]},
        {"key": WRAPPED},
        {"source": [KEY_FILE], "key": WRAPPED, "more": None},
        {"source": [KEY_FILE], "key": WRAPPED[1:]},
        {"source": [KEY_FILE], "key": WRAPPED + b"\0"},
        {"source": [KEY_FILE], "key": "0" * 72},
        {"source": KEY_FILE, "key": WRAPPED},
        {"source": [], "key": WRAPPED},
        {"source": [1], "key": WRAPPED},
        {"source": ["another"], "key": WRAPPED},
        {"source": [PASSPHRASE], "key": WRAPPED},
        {"source": [KEY_FILE, *STRETCHED[1:]], "key": WRAPPED},
        {"source": STRETCHED[:3], "key": WRAPPED},
        {"source": [*STRETCHED, 1], "key": WRAPPED},
        *(
            {"source": [PASSPHRASE, opslimit, MEMLIMITS[0], SALT], "key": WRAPPED}
            for opslimit in (0, -1, OPSLIMITS[1] + 1, 1 << 32, 1 << 80, 1.0, True, "1", None)
        ),
        *(
            {"source": [PASSPHRASE, 1, memlimit, SALT], "key": WRAPPED}
            for memlimit in (0, -1024, MEMLIMITS[0] - 1024, MEMLIMITS[0] + 1, MEMLIMITS[1] + 1024)
        ),
        *(
            {"source": [PASSPHRASE, 1, memlimit, SALT], "key": WRAPPED}
            for memlimit in (1 << 40, 1 << 80, float(MEMLIMITS[0]), None)
        ),
        *(
            {"source": [PASSPHRASE, 1, MEMLIMITS[0], salt], "key": WRAPPED}
            for salt in (b"", bytes(15), bytes(17), "0" * 16, None, 7)
        ),
    ],
)
def test_headers_that_ask_for_something_else(
    tmp_path: Path, sealing: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No key is made of a passphrase as such a header asks for it: that could take all memory, or a year."""
    monkeypatch.setattr(argon2id, "kdf", lambda *arguments: pytest.fail("it was asked for a key"))
    tmp_path.chmod(0o700)
    (tmp_path / "state.db").touch()
    written(tmp_path, sealing)
    with pytest.raises(BaggageCorrupt, match="not a header of this format"):
        read_header(tmp_path)
    with pytest.raises(BaggageCorrupt, match="not a header of this format"):
        SealedStore(tmp_path, FAST)


@pytest.mark.parametrize(
    "change", [{"opslimit": 0}, {"opslimit": 11}, {"memlimit": 1 << 40}, {"memlimit": 1000 << 13}]
)
def test_a_passphrase_is_made_with_what_can_be_read(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="limit is"):
        Passphrase("x", **change)


def test_a_header_without_end(tmp_path: Path) -> None:
    write_header(tmp_path, Header(STORE_ID))
    with open(tmp_path / "header.cbor", "ab") as file:
        file.truncate(1 << 40)
    with pytest.raises(BaggageCorrupt, match="longer than any header"):
        read_header(tmp_path)


def test_every_flipped_byte_of_a_sealed_header(path: Path) -> None:
    SealedStore(path, FAST).close()
    data = (path / "header.cbor").read_bytes()
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        (path / "header.cbor").write_bytes(changed)
        with pytest.raises(BaggageCorrupt):
            SealedStore(path, FAST)


def test_every_flipped_byte_of_what_a_header_says_of_its_seal(path: Path) -> None:
    """With the digest of the header right again, as whoever changes it on purpose would have it."""
    SealedStore(path, FAST).close()
    label, number, body, _ = decode((path / "header.cbor").read_bytes())
    for place in range(len(body)):
        changed = bytearray(body)
        changed[place] ^= 1 << place % 8
        digest = durable.header._digest(number, bytes(changed))
        (path / "header.cbor").write_bytes(encode([label, number, bytes(changed), digest]))
        with pytest.raises((BaggageCorrupt, SealRefused)):
            SealedStore(path, FAST)


def test_a_header_from_another_store(path: Path, tmp_path: Path) -> None:
    for place in (path, tmp_path / "other"):
        SealedStore(place, FAST).close()
    other = read_header(tmp_path / "other")
    ours = read_header(path)
    assert other is not None
    assert ours is not None
    (path / "header.cbor").write_bytes((tmp_path / "other" / "header.cbor").read_bytes())
    with pytest.raises(BaggageCorrupt, match="another header"):
        SealedStore(path, FAST)
    write_header(path, Header(ours.store_id, other.sealing))
    with pytest.raises(SealRefused, match="the seal does not open"):
        SealedStore(path, FAST)
    write_header(path, ours)
    SealedStore(path, FAST).close()
