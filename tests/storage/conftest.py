"""A Redis server of the tests' own, where there is one to start."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest


@attrs.frozen
class Server:
    """`socket` is where it listens, and nowhere else."""

    socket: str
    process: subprocess.Popen[bytes]


def _answers(path: Path) -> bool:
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            return connection.recv(7) == b"+PONG\r\n"
    except (FileNotFoundError, ConnectionRefusedError):
        return False


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Server]:
    """It keeps nothing on disk, and ends with the tests."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("no redis-server is installed: the storage in Redis is not tested")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "socket"
        options = ["--port", "0", "--unixsocket", str(path), "--save", "", "--appendonly", "no"]
        with subprocess.Popen([program, *options], cwd=folder, stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None
                while not _answers(path):
                    assert process.stdout.readline(), "redis-server has ended"
                yield Server(str(path), process)
            finally:
                process.kill()
