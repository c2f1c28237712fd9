"""`tcp-testing-only`: TCP without any security, for tests and for machines that trust each other wholly.

Nothing is authenticated and nothing is encrypted: who can reach the port can be anybody, who is on the way can read
and change everything. It binds to loopback addresses alone unless `insecure_bind=True`.
"""

from __future__ import annotations

import ipaddress
import re
import secrets
import socket

import trio

from ocapn.codec.framing import FRAMINGS, SYRUP
from ocapn.errors import BadLocator, ConnectFailed
from ocapn.limits import Limits
from ocapn.model.locators import PeerLocator
from ocapn.netlayers.base import Listener, Netlayer, StreamChannel, unreachable

TRANSPORT = "tcp-testing-only"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _binding(stream: trio.SocketStream) -> bytes | None:
    """Sessions are resumed within this machine alone: on the way to another, who forwards a resume would own it."""
    try:
        return b"" if _is_loopback(stream.socket.getpeername()[0]) else None
    except OSError:  # it is gone already
        return None


def _tune(stream: trio.SocketStream) -> None:
    """A dead peer is found within two minutes or so; small messages go out at once."""
    try:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("TCP_KEEPIDLE", 45), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
            option = getattr(socket, name, None)  # macOS has no TCP_KEEPIDLE
            if option is not None:
                stream.setsockopt(socket.IPPROTO_TCP, option, value)
    except OSError:
        pass  # macOS says so of a connection that the other side has reset; reading will tell


async def _connect(host: str, port: int) -> trio.SocketStream:
    """A connection. An address, as most hints are, needs no look-up and no race between addresses."""
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
    except ValueError:
        return await trio.open_tcp_stream(host, port)
    sock = trio.socket.socket(family, socket.SOCK_STREAM)
    try:
        await sock.connect((host, port))
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)


class TcpTestingNetlayer(Netlayer):
    """TCP in clear. `port` 0 lets the system choose; `listen=False` only dials.

    `designator` is any unique string; drawn at random unless given. `framing` ("none", "syrup" or "netstring") is
    how we frame connections that we dial whose locator has no `framing` hint; what comes in is recognised.
    `advertise` is the host that the locator names, where it is not the address that is bound (0.0.0.0, say).
    Raises ValueError for a `host` that is not loopback, unless `insecure_bind`.
    """

    transport = TRANSPORT

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        designator: str | None = None,
        framing: str = SYRUP,
        listen: bool = True,
        insecure_bind: bool = False,
        advertise: str | None = None,
    ) -> None:
        if listen and not insecure_bind and not _is_loopback(host):
            raise ValueError(
                f"tcp-testing-only has no security, so it binds to loopback addresses, not to {host}; "
                "insecure_bind=True overrides this"
            )
        if framing not in FRAMINGS:
            raise ValueError(f"no framing is called {framing!r}; there are {', '.join(FRAMINGS)}")
        self._host = host
        self._port = port
        self._framing = framing
        self._listen = listen
        self._advertise = advertise
        self._drawn = designator is None
        self._designator = designator or secrets.token_hex(16)
        self.location = PeerLocator(TRANSPORT, self._designator)

    def be_again(self, designator: str) -> None:
        if self._drawn:
            self._designator = designator
            self.location = PeerLocator(TRANSPORT, designator, self.location.hints)

    async def listen(self, limits: Limits) -> Listener | None:
        if not self._listen:
            return None
        if not 0 <= self._port < 65536:  # the system would take it modulo 65536
            raise ConnectFailed(f"cannot listen on port {self._port}: ports are 1 to 65535, or 0 for any")
        try:
            listeners = await trio.open_tcp_listeners(self._port, host=self._host)
        except (OSError, UnicodeError) as error:  # UnicodeError: as in `dial`
            raise ConnectFailed(
                f"cannot listen on {self._host} port {self._port}: {error}; choose another port, or 0 for any"
            ) from error
        first, *others = listeners
        for other in others:  # several addresses of one name: the first is the one that the locator names
            await other.aclose()
        host, port = first.socket.getsockname()[:2]
        hints = {"host": self._advertise or host, "port": str(port)}
        if self._framing != SYRUP:
            hints["framing"] = self._framing
        self.location = PeerLocator(TRANSPORT, self._designator, hints)
        return _TcpListener(first, self.location, limits)

    async def dial(self, locator: PeerLocator, limits: Limits) -> StreamChannel:
        host, port = locator.hints.get("host"), locator.hints.get("port", "")
        if host is None or not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
            raise BadLocator("a tcp-testing-only locator needs the hints host and port (1 to 65535)")
        framing = locator.hints.get("framing", self._framing)
        if framing not in FRAMINGS:
            raise BadLocator(f"the hint framing is one of {', '.join(FRAMINGS)}, not {framing!r}")
        try:
            stream = await _connect(host, int(port))
        except (OSError, UnicodeError) as error:  # UnicodeError: the host is no name that DNS could hold
            raise unreachable(locator, error) from error
        _tune(stream)
        return StreamChannel(stream, limits, framing, binding=_binding(stream))


class _TcpListener(Listener):
    def __init__(self, listener: trio.SocketListener, location: PeerLocator, limits: Limits) -> None:
        self._listener = listener
        self._limits = limits
        self.location = location

    async def accept(self) -> StreamChannel:
        stream = await self._listener.accept()
        _tune(stream)
        try:
            source = str(stream.socket.getpeername()[0])
        except OSError:  # it is gone already; reading will tell
            source = "gone"
        return StreamChannel(stream, self._limits, None, source, _binding(stream))

    async def aclose(self) -> None:
        await self._listener.aclose()
