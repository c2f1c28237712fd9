"""spec/sealing.md says what the code does."""

from __future__ import annotations

import re
from hashlib import blake2b
from pathlib import Path

from nacl.pwhash import argon2id

from durable import Passphrase
from durable.header import (
    CALLER,
    KEY_FILE,
    MEMLIMITS,
    OPSLIMITS,
    PASSPHRASE,
    SALT_SIZE,
    WRAPPED_SIZE,
    Header,
    Sealing,
    Stretching,
    read_header,
    write_header,
)
from durable.sealing import SCHEMA, Rows
from durable.seals import _LABEL, wrap, wrapping_key

PAGE = (Path(__file__).resolve().parents[2] / "spec" / "sealing.md").read_text()
STORE_ID, FILE, DATA_KEY, NONCE = (
    bytes(range(first, last)) for first, last in ((0, 32), (32, 64), (64, 96), (96, 120))
)


def after(text: str) -> bytes:
    """The next hexadecimal number in the page after a text."""
    found = re.search(r"`([0-9a-f]{32,})`", PAGE[PAGE.index(text) :])
    assert found is not None
    return bytes.fromhex(found[1])


def test_the_inputs_of_the_examples() -> None:
    said = PAGE[PAGE.index("For the store id") :].split(", and the file")[0]
    ends = re.findall(r"`(\w{6})…(\w\w)`", said)
    assert [(value[:3].hex(), value[-1:].hex()) for value in (STORE_ID, FILE, DATA_KEY, NONCE)] == ends


def test_the_header(tmp_path: Path) -> None:
    key = wrapping_key(FILE, STORE_ID)
    assert (
        key
        == after("the wrapping key is")
        == blake2b(STORE_ID, key=FILE, digest_size=32, person=b"ocapn wrapping").digest()
    )
    header = Header(STORE_ID, Sealing(KEY_FILE, None, wrap(DATA_KEY, key, STORE_ID, KEY_FILE, None, NONCE)))
    write_header(tmp_path, header)
    written = bytes.fromhex("".join(re.findall(r"^    ([0-9a-f]+)$", PAGE, re.MULTILINE)))
    assert (tmp_path / "header.cbor").read_bytes() == written
    assert read_header(tmp_path) == header
    assert f"parts(`{_LABEL.decode()}`, store id, CBOR of source)" in PAGE


def test_a_passphrase() -> None:
    how = Stretching(1, 8 << 20, bytes(range(16)))
    assert Passphrase("correct horse").key(how) == after("Of the passphrase `correct horse`")


def test_a_row() -> None:
    rows = Rows(DATA_KEY, STORE_ID)
    found = re.search(r"table `user`, key `(\w+)`, value `(\w+)`, mac and", PAGE)
    assert found is not None
    key, value = map(bytes.fromhex, found.groups())
    mac, sealed = after("| mac | `"), after("| sealed | `")
    assert rows.seal("user", key, value, NONCE) == (mac, sealed)
    assert rows.open("user", mac, sealed) == (key, value)


def test_the_numbers() -> None:
    assert f"opslimit from {OPSLIMITS[0]} to {OPSLIMITS[1]};" in PAGE
    assert f"memlimit from {MEMLIMITS[0] >> 20} MiB to {MEMLIMITS[1] >> 20} MiB" in PAGE
    assert f"the salt has {SALT_SIZE} bytes" in PAGE
    assert f"`wrapped` has {WRAPPED_SIZE} bytes" in PAGE
    assert f"The schema is {SCHEMA}, in 4 bytes" in PAGE
    moderate = f"the default is {argon2id.OPSLIMIT_MODERATE} and {argon2id.MEMLIMIT_MODERATE >> 20} MiB"
    assert moderate in PAGE
    kinds = re.findall(r"^\| `\[\"([\w-]+)\"", PAGE, re.MULTILINE)
    assert kinds == [PASSPHRASE, KEY_FILE, CALLER]
