"""The peer that the public suite tests, as the process that it is."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tests.support import trio_test_real

from .client import TIMEOUT, Place
from .peer import main
from .support import alive

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.codec("syrup")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
@trio_test_real
async def test_it_prints_its_locator_and_serves_until_it_is_told_to_stop(sent: signal.Signals) -> None:
    command = [sys.executable, "-m", "tests.conformance.peer", "--dialect", "2026-01", "--framing", "none"]
    process = await trio.lowlevel.open_process(command, cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    place = await Place.open("client")
    try:
        line = b""
        with trio.fail_after(TIMEOUT * 2):
            while not line.endswith(b"\n"):
                data = await process.stdout.receive_some()
                assert data, "it ended"
                line += data
        uri = line.decode().strip()
        assert uri.endswith("&framing=none")
        client = await place.session(uri, "none")
        assert await alive(client)
        process.send_signal(sent)
        assert (await client.next()).label == "op:abort"
        await client.ends()
        with trio.fail_after(TIMEOUT):
            assert await process.wait() == 0
    finally:
        process.kill()
        await process.wait()
        await process.stdout.aclose()
        await place.close()


def test_it_binds_to_loopback_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--host", "0.0.0.0"])
    assert "loopback" in capsys.readouterr().err
