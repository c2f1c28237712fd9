"""Tor for the tests: one without a network of Tor, and the real one where it is installed."""

from __future__ import annotations

import hmac
import os
import re
import subprocess
from base64 import b32encode, b64decode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from hashlib import sha3_256
from pathlib import Path
from typing import Any

import trio
from nacl.bindings import crypto_scalarmult_ed25519_base_noclamp

from ocapn.netlayers.onion import OnionNetlayer

GRANTED = b"\x05\0\0\x01\0\0\0\0\0\0"


class FakeTor:
    """The SOCKS port and the control port of a Tor. What is dialled is a service that was added to it."""

    def __init__(self) -> None:
        #: By name, at which port of this machine they are.
        self.services: dict[str, int] = {}
        #: What the control port was told, and what SOCKS was asked to reach.
        self.heard: list[str] = []
        self.dialled: list[tuple[str, int]] = []
        #: How the control port lets somebody in: as in PROTOCOLINFO, and the proofs that it takes, in hexadecimal.
        self.methods = "METHODS=NULL"
        self.proofs: set[str] = {""}
        self.cookie = os.urandom(32)
        #: What it says instead, by the first word of a command; None ends the connection.
        self.says: dict[str, Callable[[str], bytes | None]] = {}
        #: What SOCKS says instead of a reply to CONNECT, and to the first message.
        self.reply = b""
        self.greeting = b"\x05\0"
        self._ports = (0, 0)
        self._scope = trio.CancelScope()
        self._stopped = trio.Event()

    @property
    def socks(self) -> str:
        return f"127.0.0.1:{self._ports[0]}"

    @property
    def control(self) -> str:
        return f"127.0.0.1:{self._ports[1]}"

    def netlayer(self, *, listen: bool, **options: Any) -> OnionNetlayer:
        return OnionNetlayer(**{"socks": self.socks, "control": self.control, "listen": listen, **options})

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """At the ports that it had the last time."""
        self._scope, self._stopped = trio.CancelScope(), trio.Event()
        with self._scope:
            (socks,) = await trio.open_tcp_listeners(self._ports[0], host="127.0.0.1")
            (control,) = await trio.open_tcp_listeners(self._ports[1], host="127.0.0.1")
            self._ports = socks.socket.getsockname()[1], control.socket.getsockname()[1]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.serve_listeners, self._pass_on, [socks])
                nursery.start_soon(trio.serve_listeners, self._obey, [control])
                task_status.started()
        self._stopped.set()

    async def stop(self) -> None:
        self._scope.cancel()
        await self._stopped.wait()

    # Control

    async def _obey(self, stream: trio.SocketStream) -> None:
        added: list[str] = []
        data = b""
        try:
            async for more in stream:
                *lines, data = (data + bytes(more)).split(b"\r\n")
                for line in lines:
                    answer = self._answer(line.decode(), added)
                    if answer is None:
                        return
                    await stream.send_all(answer)
        except trio.BrokenResourceError:
            pass
        finally:
            for name in added:
                del self.services[name]

    def _answer(self, line: str, added: list[str]) -> bytes | None:
        self.heard.append(line)
        word, _, rest = line.partition(" ")
        if word in self.says:
            return self.says[word](line)
        match word:
            case "PROTOCOLINFO":
                lines = ["250-PROTOCOLINFO 1", f"250-AUTH {self.methods}", '250-VERSION Tor="0"', "250 OK"]
                return "".join(f"{line}\r\n" for line in lines).encode()
            case "AUTHCHALLENGE":
                nonce = os.urandom(32)
                both = self.cookie + bytes.fromhex(rest.removeprefix("SAFECOOKIE ")) + nonce
                server, client = (
                    hmac.new(
                        f"Tor safe cookie authentication {way} hash".encode(), both, "sha256"
                    ).hexdigest()
                    for way in ("server-to-controller", "controller-to-server")
                )
                self.proofs = {client}
                return f"250 AUTHCHALLENGE SERVERHASH={server} SERVERNONCE={nonce.hex()}\r\n".encode()
            case "AUTHENTICATE":
                return b"250 OK\r\n" if rest in self.proofs else b"515 Authentication failed\r\n"
            case "ADD_ONION":
                match = re.fullmatch(r"ED25519-V3:(\S+) Port=9045,127\.0\.0\.1:([0-9]+)", rest)
                assert match is not None
                name = name_of(b64decode(match[1]))
                if name in self.services:
                    return b"550 Onion address collision\r\n"
                self.services[name] = int(match[2])
                added.append(name)
                return f"250-ServiceID={name}\r\n250 OK\r\n".encode()
        return b"510 Unrecognized command\r\n"

    # SOCKS (RFC 1928)

    async def _pass_on(self, stream: trio.SocketStream) -> None:
        try:
            await self._proxied(stream)
        except (trio.BrokenResourceError, EOFError):
            pass

    async def _proxied(self, near: trio.SocketStream) -> None:
        _, count = await exactly(near, 2)
        await exactly(near, count)
        await near.send_all(self.greeting)
        *head, size = await exactly(near, 5)
        assert head == [5, 1, 0, 3]  # CONNECT, by name
        name = (await exactly(near, size)).decode()
        self.dialled.append((name, int.from_bytes(await exactly(near, 2), "big")))
        if self.reply:
            await near.send_all(self.reply)
            return
        port = self.services.get(name.removesuffix(".onion"))
        if port is None:
            await near.send_all(b"\x05\x04\0\x01\0\0\0\0\0\0")
            return
        try:
            far = await trio.open_tcp_stream("127.0.0.1", port)
        except OSError:
            await near.send_all(b"\x05\x05\0\x01\0\0\0\0\0\0")
            return
        async with far, trio.open_nursery() as nursery:
            await near.send_all(GRANTED)
            nursery.start_soon(self._one_way, near, far, nursery.cancel_scope)
            nursery.start_soon(self._one_way, far, near, nursery.cancel_scope)

    async def _one_way(
        self, source: trio.SocketStream, to: trio.SocketStream, both: trio.CancelScope
    ) -> None:
        try:
            async for data in source:
                await to.send_all(data)
            await to.send_eof()
        except trio.BrokenResourceError:
            both.cancel()


async def exactly(stream: trio.SocketStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = await stream.receive_some(size - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def name_of(expanded: bytes) -> str:
    """Of the service that has this key, as Tor computes it."""
    public = crypto_scalarmult_ed25519_base_noclamp(expanded[:32])
    checksum = sha3_256(b".onion checksum" + public + b"\3").digest()[:2]
    return b32encode(public + checksum + b"\3").decode().lower()


@asynccontextmanager
async def fake_tor() -> AsyncIterator[FakeTor]:
    tor = FakeTor()
    async with trio.open_nursery() as nursery:
        await nursery.start(tor.run)
        yield tor
        nursery.cancel_scope.cancel()


class RealTor:
    """The daemon, cut off from every network, at a control port that is the same after a restart."""

    def __init__(self, directory: Path, password: str) -> None:
        self._directory = directory
        self._port = "auto"
        self._process: trio.Process | None = None
        command = ["tor", "--quiet", "--hash-password", password]
        self._hashed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    @property
    def control(self) -> str:
        return f"127.0.0.1:{self._port}"

    async def start(self) -> None:
        """Returns when it listens."""
        told = self._directory / "port"
        torrc = self._directory / "torrc"
        torrc.write_text(
            f"DisableNetwork 1\nDataDirectory {self._directory / 'data'}\nSocksPort 0\nControlPort {self._port}\n"
            f"ControlPortWriteToFile {told}\nCookieAuthentication 1\nHashedControlPassword {self._hashed}\n"
            f"__OwningControllerProcess {os.getpid()}\nLog notice stdout\n"
        )
        self._process = await trio.lowlevel.open_process(
            ["tor", "--defaults-torrc", os.devnull, "-f", str(torrc)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert self._process.stdout is not None
        said = b""
        while b"Bootstrapped 0%" not in said:
            more = await self._process.stdout.receive_some()
            assert more, said.decode()
            said += more
        self._port = told.read_text().strip().rpartition(":")[2]

    async def kill(self) -> None:
        if self._process is None:
            return
        assert self._process.stdout is not None
        self._process.kill()
        await self._process.wait()
        await self._process.stdout.aclose()


@asynccontextmanager
async def real_tor(directory: Path, password: str = "correct horse") -> AsyncIterator[RealTor]:
    tor = RealTor(directory, password)
    try:
        await tor.start()
        yield tor
    finally:
        with trio.CancelScope(shield=True):
            await tor.kill()
