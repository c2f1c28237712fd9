"""`ocapn locator`."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from ocapn.cli import ExitCode
from tests.cli.support import run

TCP = "ocapn://bob.tcp-testing-only/s/very-secret?host=127.0.0.1&port=4711"


def test_a_sturdyref_part_by_part_without_its_secret(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "locator", TCP)
    assert (code, err) == (0, "")
    assert out == (
        "A sturdyref: it names an object of a peer, and who knows it may use the object. Keep it secret.\n"
        "  designator    bob  (a name that the peer gave itself; nothing proves it)\n"
        "  transport     tcp-testing-only  (TCP in clear, for tests and loopback)\n"
        "  secure        no: nothing is encrypted, nobody is authenticated\n"
        "  hint host     127.0.0.1  (the address to dial)\n"
        "  hint port     4711  (the TCP port to dial)\n"
        "  swiss number  11 bytes  (the secret, hidden; --secrets shows it)\n"
    )


def test_the_secret_is_shown_to_who_asks(capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "locator", "--secrets", TCP).out
    assert f"\n  swiss number  {b'very-secret'.hex()}  (11 bytes, in hexadecimal: the secret)\n" in out


def test_a_peer(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "locator", "ocapn://bob.unix?path=/run/x&other=1")
    assert code == 0
    assert out.startswith("A peer locator: ")
    assert "\n  hint path   /run/x  (the socket file)\n" in out
    assert "\n  hint other  1  (not known to this transport)\n" in out
    assert "swiss" not in out


@pytest.mark.parametrize(
    ("uri", "line"),
    [
        (
            "ocapn://bob.tcp-testing-only?host=::1",
            "hint port   missing  (without it the peer cannot be dialled)",
        ),
        ("ocapn://bob.websocket?url=ws:x", "wrong: it should be an Ed25519 key in base32, 52 of a-z and 2-7"),
        (f"ocapn://{'a' * 52}.noise?addr=x:1", "the peer's Ed25519 key, in base32: the connection proves it"),
        ("ocapn://bob.onion", "hidden; who dials it is not authenticated"),
        (
            "ocapn://bob.onion",
            "wrong: it should be the id of an onion service, 56 of a-z and 2-7 with a checksum",
        ),
        (
            "ocapn://duckduckgogg42xjoc72x3sjasowoarfbgcmvfimaftt6twagswzczad.onion",
            "the id of the onion service, version 3: the connection proves it",
        ),
        ("ocapn://bob.pigeon", "transport   pigeon  (not known to this version of ocapn)"),
        ("ocapn://bob.pigeon", "note        the ocapn command cannot dial pigeon peers yet"),
        ("ocapn://b%0Ab.pigeon?x=%1B", "designator  b\\nb  ("),
        ("ocapn://b.pigeon?x=%1B", "hint x      \\x1b  ("),
        ("ocapn://b.pigeon?x=", 'hint x      ""  ('),
    ],
)
def test_what_is_unusual_is_pointed_out(capsys: pytest.CaptureFixture[str], uri: str, line: str) -> None:
    code, out, err = run(capsys, "locator", uri)
    assert (code, err) == (0, "")
    assert line in out


@pytest.mark.parametrize("text", [TCP, f"  {TCP}\n\n", f"bob {TCP}\n"])
def test_a_uri_may_stand_in_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str) -> None:
    file = tmp_path / "ref"
    file.write_text(text)
    assert run(capsys, "locator", f"@{file}") == run(capsys, "locator", TCP)


def test_a_uri_may_come_from_standard_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(TCP.encode())))
    assert run(capsys, "locator", "@-") == run(capsys, "locator", TCP)


@pytest.mark.parametrize(
    ("uri", "code", "said"),
    [
        ("http://x", 4, "an OCapN URI begins with ocapn://; a peer's URI is ocapn://DESIGNATOR.TRANSPORT"),
        ("ocapn://x", 4, "ocapn:// is followed by <designator>.<transport>; there is no dot; "),
        (
            "ocapn://x.unix/s/very%secret",
            4,
            "the swiss number has a % that two hexadecimal digits do not follow",
        ),
        ("@", 2, "@ is followed by the name of a file, or by - for standard input"),
        ("@/nonexistent/file", 6, "cannot read /nonexistent/file: No such file or directory"),
        ("@/", 6, "cannot read /: Is a directory"),
    ],
)
def test_what_is_no_uri(capsys: pytest.CaptureFixture[str], uri: str, code: int, said: str) -> None:
    got, out, err = run(capsys, "locator", uri)
    assert (got, out) == (code, "")
    assert err.startswith(f"ocapn locator: {said}")
    assert err.count("\n") == 1
    assert "secret" not in err


@pytest.mark.parametrize(
    ("text", "has"), [("", "no ocapn:// URI"), (f"{TCP} {TCP}", "2 URIs"), ("\xff", "no ocapn:// URI")]
)
def test_a_file_without_one_uri(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, has: str
) -> None:
    file = tmp_path / "ref"
    file.write_bytes(text.encode("latin-1"))
    assert run(capsys, "locator", f"@{file}") == (
        ExitCode.MALFORMED,
        "",
        f"ocapn locator: {file} holds {has}; put exactly one there\n",
    )


def test_misuse(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "locator") == (
        2,
        "",
        "ocapn locator: the following arguments are required: URI; 'ocapn locator --help' explains\n",
    )
    code, _, err = run(capsys, "locator", TCP, TCP)
    assert code == ExitCode.USAGE
    assert "unrecognized arguments" in err
    assert "very-secret" not in err
