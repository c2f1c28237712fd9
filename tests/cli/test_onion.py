"""The commands over Tor: `ocapn serve --listen onion` and calls of what it serves."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from unittest import mock

import pytest
import trio

from ocapn import Identity, SturdyRef
from ocapn.cli import ExitCode
from ocapn.cli.call import seconds_for
from ocapn.cli.serve import _password_in
from ocapn.cli.wires import Asked, limits_for
from ocapn.netlayers.tor import expanded
from tests.cli.support import SERVED, Outcome, finished, run, serving, started
from tests.netlayers.tor import fake_tor, name_of
from tests.support import trio_test_real

PASSWORD = "correct horse"


def called(uri: str, socks: str, *options: str) -> Outcome:
    with started("call", uri, "-", "2", "3", "--tor-socks", socks, *options) as process:
        return finished(process)


def test_served_and_called_and_the_same_after_a_restart(tmp_path: Path) -> None:
    @trio_test_real
    async def over_tor() -> None:
        async with fake_tor() as tor:
            tor.methods, tor.proofs = "METHODS=HASHEDPASSWORD", {PASSWORD.encode().hex()}
            (tmp_path / "password").write_text(f"{PASSWORD}\nand more\n")
            (tmp_path / "password").chmod(0o600)
            options = ["--listen", "onion", "--tor-socks", tor.socks, "--tor-control", tor.control]
            options += [
                "--tor-password-file",
                str(tmp_path / "password"),
                "--baggage",
                str(tmp_path / "baggage"),
            ]

            def serve() -> str:
                with serving("add", options=[*options, "--seal", "none"]) as (_, (uri,)):
                    assert called(uri, tor.socks) == (0, "5\n", "")
                    return uri

            first, second = [await trio.to_thread.run_sync(serve) for _ in range(2)]
            assert first == second
            assert [name for name, _ in tor.dialled] == 2 * [
                f"{SturdyRef.parse(first).peer.designator}.onion"
            ]

    over_tor()


def test_the_identity_of_a_file(tmp_path: Path) -> None:
    seed = bytes([7]) * 32
    (tmp_path / "key").write_bytes(seed)
    (tmp_path / "key").chmod(0o600)

    @trio_test_real
    async def over_tor() -> None:
        async with fake_tor() as tor:
            options = ["--listen", "onion", "--tor-control", tor.control, "--identity", str(tmp_path / "key")]

            def serve() -> str:
                with serving("add", options=options) as (_, (uri,)):
                    return uri

            uri = await trio.to_thread.run_sync(serve)
            assert SturdyRef.parse(uri).peer.designator == name_of(expanded(seed))

    over_tor()


def test_without_tor(capsys: pytest.CaptureFixture[str]) -> None:
    uri = f"ocapn://{name_of(expanded(Identity(bytes(32)).seed))}.onion/s/AA"
    code, out, err = run(capsys, "call", uri, "--tor-socks", "127.0.0.1:1")
    assert (code, out) == (ExitCode.NO_SESSION, "")
    assert err.endswith(
        "no Tor is at 127.0.0.1:1: Connection refused; start Tor, or say where it is: socks=HOST:PORT\n"
    )
    code, _, err = run(capsys, "call", uri, "--tor-socks", "9050")
    assert code == ExitCode.USAGE
    assert "where Tor is: an address is host:port" in err


@pytest.mark.parametrize(
    ("listen", "transport", "package"),
    [("onion", "onion", "python-socks"), ("ws://127.0.0.1", "websocket", "wsproto")],
)
def test_without_the_package(
    capsys: pytest.CaptureFixture[str], listen: str, transport: str, package: str
) -> None:
    with mock.patch.object(importlib.util, "find_spec", return_value=None):
        code, _, err = run(capsys, "serve", "--export", f"a={SERVED}:add", "--listen", listen)
        assert code == ExitCode.USAGE
        assert f"{transport} needs the package {package}: pip install 'ocapn[{transport}]'" in err
        code, _, err = run(capsys, "call", f"ocapn://x.{transport}/s/AA")
        assert code == ExitCode.NO_SESSION
        assert f"this peer has no netlayer {transport}" in err
        code, _, err = run(capsys, "call", "ocapn://x.unix/s/AA", "--tor-socks", "127.0.0.1:1")
        assert code == ExitCode.USAGE
        assert "onion needs the package python-socks" in err


@pytest.mark.parametrize(
    "held", [b"", b"\nsecond line", b"\xff", b"x" * 1025, b"x" * 5000, "é".encode() * 513]
)
def test_what_is_no_password(held: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "password"
    file.write_bytes(held)
    file.chmod(0o600)
    options = ["--listen", "onion", "--tor-password-file", str(file)]
    code, out, err = run(capsys, "serve", "--export", f"add={SERVED}:add", *options)
    assert (code, out) == (ExitCode.MALFORMED, "")
    assert err == f"ocapn serve: {file} holds no password: its first line is one, of up to 1,024 bytes\n"


def test_the_longest_password(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.touch(0o600)
    file.write_bytes(b"x" * 1024 + b"\r\n")
    assert _password_in(str(file)) == "x" * 1024


def test_a_call_through_tor_is_given_time() -> None:
    assert (seconds_for(None, "onion"), seconds_for(None, "noise")) == (90, 30)
    assert seconds_for(7.0, "onion") == seconds_for(7.0, "noise") == 7


def test_a_password_that_others_may_read_is_warned_of_and_never_shown(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "password"
    file.write_text(PASSWORD)
    file.chmod(0o644)
    options = ["--listen", "onion", "--tor-control", "127.0.0.1:1", "--tor-password-file", str(file)]
    code, _, err = run(capsys, "serve", "--export", f"a={SERVED}:add", *options)
    assert code == ExitCode.NO_SESSION
    assert err.startswith(
        f"ocapn serve: warning: other users may read the secret in {file}; chmod 600 ends that\n"
    )
    assert PASSWORD not in err
    assert PASSWORD not in repr(Asked(password=PASSWORD))


def test_who_dials_through_tor_is_given_time() -> None:
    assert limits_for(["noise", "onion"]).handshake == 60
    assert limits_for(["noise"]).handshake == 10
