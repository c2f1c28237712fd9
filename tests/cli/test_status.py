"""`ocapn status`."""

from __future__ import annotations

import json
import signal
import stat
from pathlib import Path

import pytest

from ocapn.cli import ExitCode
from ocapn.cli.status import _time
from tests.cli.support import finished, line, run, serving, started


def test_a_node_with_a_baggage_tells_how_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "b"
    with serving("add", options=["--baggage", str(place)]) as (process, (uri,)):
        assert stat.S_IMODE((tmp_path / "b.control").stat().st_mode) == 0o600
        assert run(capsys, "call", uri, "-", "1", "2").out == "3\n"
        code, out, err = run(capsys, "status", str(place))
        assert (code, err) == (0, "")
        lines = out.splitlines()
        assert lines[0].startswith("Peer ocapn://")
        assert lines[0].endswith(f", process {process.pid}")
        assert "Sessions: 0" in out or "Sessions: 1" in out
        code, out, err = run(capsys, "status", str(place), "--json")
        assert (code, err) == (0, "")
        found = json.loads(out)
        assert found["pid"] == process.pid
        assert found["connections"] == []
        process.send_signal(signal.SIGTERM)
        assert finished(process).code == ExitCode.TERMINATED
    assert not (tmp_path / "b.control").exists()
    code, out, err = run(capsys, "status", str(place))
    assert (code, out) == (ExitCode.NO_SESSION, "")
    assert err.startswith("ocapn status: no peer answers at ")
    assert err.count("\n") == 1


def test_without_a_baggage_the_socket_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving("add", options=["--control", str(tmp_path / "s")]) as (process, _):
        assert f"process {process.pid}" in run(capsys, "status", str(tmp_path / "s")).out
        with started("serve", "--export=a=tests.cli.served:add", "--control", str(tmp_path / "s")) as second:
            code, _, err = finished(second)
            assert code == ExitCode.NO_SESSION
            assert "another process listens" in err


def test_a_path_too_long_for_a_socket_only_costs_the_status(tmp_path: Path) -> None:
    place = tmp_path / ("b" * 110)
    with started("serve", "--export=a=tests.cli.served:add", "--baggage", str(place)) as process:
        assert line(process).startswith("a ocapn://")
        process.send_signal(signal.SIGTERM)
        code, _, err = finished(process)
        assert code == ExitCode.TERMINATED
        assert "'ocapn status' will not work" in err


def test_a_file_is_no_peer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "f").write_text("x")
    code, out, err = run(capsys, "status", str(tmp_path / "f"))
    assert (code, out) == (ExitCode.NO_SESSION, "")
    assert err.count("\n") == 1


def test_times_are_short() -> None:
    assert [_time(seconds) for seconds in (0.04, 9.96, 59, 119, 120, 7200, 172800)] == [
        "0.0 s",
        "10.0 s",
        "59 s",
        "119 s",
        "2 min",
        "2 h",
        "2 d",
    ]
