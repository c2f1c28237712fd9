"""`ocapn relay`, and peers that are served through it."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from ocapn import PeerLocator
from ocapn.cli import ExitCode
from ocapn.cli.relay import _total
from tests.cli.support import SERVED, finished, run, serving, started

URI = "ocapn://yefpmv7wos5qbhwsseysrtcozb3ok5c6pr7i454imrrxqczhfvga.noise?addr=127.0.0.1%3A1"


def test_a_peer_that_listens_nowhere_is_called_through_it(tmp_path: Path) -> None:
    key = str(tmp_path / "relay.key")
    with started("relay", "--identity", key, "-v") as relay:
        assert relay.stdout is not None
        uri = relay.stdout.readline().strip()
        with serving("add", options=["--listen", "noise", "--relay", uri]) as (_, (served,)):
            assert "?relay=127.0.0.1%3A" in served
            with started("call", served, "-", "2", "3") as call:
                assert finished(call) == (0, "5\n", "")
        relay.terminate()
        code, _, err = finished(relay)
    assert code == ExitCode.TERMINATED
    assert "has registered, from 127.0.0.1" in err
    assert (tmp_path / "relay.key").stat().st_mode & 0o777 == 0o600
    with started("relay", "--identity", key, "--advertise", "example.org:4711") as again:
        assert again.stdout is not None
        locator = PeerLocator.parse(again.stdout.readline().strip())
        assert locator == PeerLocator.parse(uri)
        assert locator.hints == {"addr": "example.org:4711"}


def test_a_peer_that_is_not_allowed() -> None:
    allowed = PeerLocator.parse(URI).designator
    with started("relay", "--allow", allowed) as relay:
        assert relay.stdout is not None
        uri = relay.stdout.readline().strip()
        options = ["--export", f"add={SERVED}:add", "--listen", "noise", "--relay", uri]
        with started("serve", *options) as serve:
            code, out, err = finished(serve)
    assert (code, out) == (ExitCode.NO_SESSION, "")
    assert err.endswith("this relay is for others\n")


def test_there_are_no_more_connections_than_files(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[tuple[int, int]] = []
    allowed = [100, 1064]
    infinity = resource.RLIM_INFINITY
    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(allowed))
    monkeypatch.setattr(resource, "setrlimit", lambda _, both: given.append(both))
    assert _total(400) == 400
    assert given == [(864, 1064)]  # no more than it needs
    assert capsys.readouterr().err == ""
    assert _total(None) == 500
    assert given.pop() == (1064, 1064)
    assert capsys.readouterr().err == ""  # nobody has asked for more
    assert _total(501) == 500
    assert "500 connections in all, not 501: this process may open 1,064 files" in capsys.readouterr().err
    allowed[:] = 1064, 1064
    given.clear()
    assert _total(500) == 500
    assert given == []
    allowed[:] = 10, infinity
    assert _total(None) == 10_000
    assert given == [(20_064, infinity)]
    allowed[:] = infinity, infinity
    assert _total(None) == 10_000
    allowed[:] = 10, 10
    assert _total(None) == 1


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--listen", "x"], "an address is host:port"),
        (["--listen", "0.0.0.0:1"], "address of this machine; --advertise says at which others find it"),
        (["--listen", "127.0.0.1:70000"], "an address is host:port"),
        (["--advertise", "x"], "an address is host:port"),
        (["--allow", "x"], "the designator is no Ed25519 key"),
        (["--clients", "0"], "clients must be above zero, not 0"),
        (["--rate", "-1"], "rate must be above zero, not -1"),
        (["--total", "-2"], "total must be above zero, not -2"),
        (["--per-source", "x"], "invalid int value"),
    ],
)
def test_what_is_wrong_on_the_command_line(
    options: list[str], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "relay.key"
    code, out, err = run(capsys, "relay", "--identity", str(key), *options)
    assert (code, out) == (ExitCode.USAGE, "")
    assert why in err
    assert err.count("\n") == 1
    assert not key.exists()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--listen", "noise"], "a peer that listens nowhere is reached through a relay: --relay URI"),
        (["--listen", "unix:///x", "--relay", URI], "--relay is for --listen noise://, or --listen noise"),
        (["--relay", "x"], "--relay: "),
        (["--relay", "ocapn://x.unix?path=%2Fx"], "the locator of a relay is one of noise"),
        (["--relay", URI.replace("yef", "9ef")], "the designator is no Ed25519 key"),
        (["--relay", URI.partition("?")[0]], "the locator of a relay needs the hint addr"),
        (["--relay", URI] * 9, "as many relays"),
    ],
)
def test_what_serve_says_of_relays(options: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "serve", "--export", f"add={SERVED}:add", *options)
    assert (code, out) == (ExitCode.USAGE, "")
    assert why in err
    assert err.count("\n") == 1
