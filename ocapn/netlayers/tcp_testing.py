"""`tcp-testing-only`: TCP without any security, for tests and for machines that trust each other wholly.

Nothing is authenticated and nothing is encrypted: who can reach the port can be anybody, who is on the way can read
and change everything. It binds to loopback addresses alone unless `insecure_bind=True`.
"""

from __future__ import annotations

import re
import secrets

import trio

from ocapn.codec.framing import FRAMINGS, SYRUP
from ocapn.errors import BadLocator
from ocapn.limits import Limits
from ocapn.model.locators import PeerLocator
from ocapn.netlayers.base import Listener, Netlayer, StreamChannel, unreachable
from ocapn.netlayers.tcp import TcpListener, connect, is_loopback, listen, tune

TRANSPORT = "tcp-testing-only"


def _binding(stream: trio.SocketStream) -> bytes | None:
    """Sessions are resumed within this machine alone: on the way to another, who forwards a resume would own it."""
    try:
        return b"" if is_loopback(stream.socket.getpeername()[0]) else None
    except OSError:  # it is gone already
        return None


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
        if listen and not insecure_bind and not is_loopback(host):
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

    def be_again(self, identity: str) -> None:
        if self._drawn:
            self._designator = identity
            self.location = PeerLocator(TRANSPORT, identity, self.location.hints)

    async def listen(self, limits: Limits) -> Listener | None:
        if not self._listen:
            return None
        listener = await listen(self._host, self._port)
        host, port = listener.socket.getsockname()[:2]
        self.port = port
        hints = {"host": self._advertise or host, "port": str(port)}
        if self._framing != SYRUP:
            hints["framing"] = self._framing
        self.location = PeerLocator(TRANSPORT, self._designator, hints)
        return TcpListener(
            listener,
            self.location,
            lambda stream, source: StreamChannel(stream, limits, None, source, _binding(stream)),
        )

    async def dial(self, locator: PeerLocator, limits: Limits) -> StreamChannel:
        host, port = locator.hints.get("host"), locator.hints.get("port", "")
        if host is None or not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
            raise BadLocator("a tcp-testing-only locator needs the hints host and port (1 to 65535)")
        framing = locator.hints.get("framing", self._framing)
        if framing not in FRAMINGS:
            raise BadLocator(f"the hint framing is one of {', '.join(FRAMINGS)}, not {framing!r}")
        try:
            stream = await connect(host, int(port))
        except OSError as error:
            raise unreachable(locator, error) from error
        tune(stream)
        return StreamChannel(stream, limits, framing, binding=_binding(stream))
