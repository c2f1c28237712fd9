"""spec/baggage.md says what the code does."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from durable import TABLES, MemoryBaggage
from durable.encoding import digest_of, digest_start
from durable.header import Header, read_header, write_header
from ocapn.cli import serve
from ocapn.cli.baggage import SERVED_SWISS

PAGE = (Path(__file__).resolve().parents[2] / "spec" / "baggage.md").read_text()
STORE_ID = bytes(range(32))


def _table(header: str) -> str:
    return PAGE[PAGE.index(header) :].split("\n\n")[0]


def test_the_tables() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", _table("| table | key |"), re.MULTILINE)
    assert tuple(dict.fromkeys(rows)) == ("meta", *TABLES)


def test_the_namespaces_of_the_commands() -> None:
    source = inspect.getsource(serve)
    assert f"inside `{serve._SPACE}`" in PAGE
    for name in re.findall(r"^\| `(\w+)`", _table("| namespace | key | value |"), re.MULTILINE):
        assert f'"{name}"' in source
    assert SERVED_SWISS == (serve._SPACE, "swiss")


def test_the_header(tmp_path: Path) -> None:
    written = bytes.fromhex("".join(re.findall(r"^    ([0-9a-f ]+)$", PAGE, re.MULTILINE)))
    write_header(tmp_path, Header(STORE_ID))
    assert (tmp_path / "header.cbor").read_bytes() == written
    assert read_header(tmp_path) == Header(STORE_ID)


def test_a_row_of_the_application_and_its_digest() -> None:
    found = re.search(r"table `user`, key `(\w+)`, value `(\w+)` it is\n`(\w+)`", PAGE)
    assert found is not None
    key, value, digest = map(bytes.fromhex, found.groups())
    baggage = MemoryBaggage()
    baggage["count"] = 3
    assert baggage.scan("user") == [(key, value)]
    assert digest_of(digest_start(STORE_ID, "user"), key, value) == digest
    baggage.namespace("a").namespace("é")["k"] = None
    assert baggage.scan("user")[1] == (b"n\x00\x00\x00\x01an\x00\x00\x00\x02\xc3\xa9kk", b"\xf6")
