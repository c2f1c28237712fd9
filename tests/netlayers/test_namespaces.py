"""noise between two networks: what happens to the link and to addresses happens to no message."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: As many as are still being sent when all of that has happened.
COUNT = 500


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def networks() -> Iterator[tuple[str, str]]:
    """Two network namespaces, with a cable between them: 10.77.0.1 and 10.77.0.2."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("networks of their own need ip and root")
    names = f"ocapn-a-{os.getpid()}", f"ocapn-b-{os.getpid()}"
    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip(
                "link",
                "add",
                "cable",
                "netns",
                names[0],
                "type",
                "veth",
                "peer",
                "name",
                "cable",
                "netns",
                names[1],
            )
        except subprocess.CalledProcessError as error:
            pytest.skip(f"networks of their own cannot be made here: {error.stderr.decode().strip()}")
        for number, name in enumerate(names, 1):
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def started(network: str, *arguments: str) -> subprocess.Popen[str]:
    """It is killed after a minute, so that nobody waits for it for ever."""
    command = [sys.executable, "-m", "tests.netlayers.far", *arguments]
    return subprocess.Popen(
        ["timeout", "60", "ip", "netns", "exec", network, *command],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_session_goes_on_after_the_link_was_down_and_after_an_address_has_changed(
    networks: tuple[str, str],
) -> None:
    here, there = networks
    with started(here, "serve", "10.77.0.1") as server:
        try:
            with started(there, "send", line(server), str(COUNT)) as client:
                assert line(client) == "begun"
                ip("-n", there, "link", "set", "cable", "down")
                assert line(client) == "suspended"
                ip("-n", there, "link", "set", "cable", "up")
                assert line(client) == "live"
                ip("-n", there, "addr", "del", "10.77.0.2/24", "dev", "cable")
                ip("-n", there, "addr", "add", "10.77.0.9/24", "dev", "cable")
                assert [line(client), line(client)] == ["suspended", "live"]
                told = json.loads(line(client))
            assert told == {"same": True}
            out, _ = server.communicate(timeout=20)
            assert json.loads(out) == list(range(COUNT + 1))
        finally:
            server.kill()
