"""`onion`: Tor, which hides where both peers are (spec/netlayers.md).

The peer that listens is an onion service, whose name is its key: Tor proves it. Who dials proves nothing. Needs the
package python-socks: the extra `onion`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from typing import Final, final

import trio
from python_socks import ProxyConnectionError, ProxyError, ProxyType
from python_socks.async_.trio import Proxy

from ocapn.codec.framing import SYRUP
from ocapn.crypto import Identity
from ocapn.errors import ConnectFailed, shown
from ocapn.limits import Limits
from ocapn.model.locators import PeerLocator
from ocapn.netlayers.backoff import Backoff
from ocapn.netlayers.base import Channel, Listener, Netlayer, StreamChannel
from ocapn.netlayers.identity import kept, new_identity, to_keep
from ocapn.netlayers.noise import parse_address
from ocapn.netlayers.tcp import TcpListener, listen, tune
from ocapn.netlayers.tor import Service, add_service, check_service_id, is_path, last_words, service_id

log: Final = logging.getLogger("ocapn.netlayer")

TRANSPORT = "onion"
#: That of every service.
PORT: Final = 9045

#: What Tor means by the replies of SOCKS (RFC 1928, section 6).
_REFUSALS: Final = {
    1: "Tor cannot reach the service: it may not run now",
    2: "Tor is told not to connect there",
    3: "Tor has no network",
    4: "Tor finds no such service: it does not run now, or was started a moment ago",
    5: "the service refuses the connection: its peer does not run now",
    6: "Tor has given up: it has no network, or the service does not answer",
    7: "the proxy does not know CONNECT: it is no Tor",
    8: "the proxy knows no names: it is no Tor",
}


class OnionNetlayer(Netlayer):
    """A peer that others dial by the name of an onion service; `listen=False` only dials.

    `socks` is where Tor takes connections that go out, `host:port`. `control` is its control port, `host:port` or the
    path of a socket file, of a Tor on this machine; `password` is for that, and not needed where the cookie of Tor can
    be read. `identity` is who the peer is, and the key of the service: drawn at random unless given, and with a
    baggage the same after a restart. Raises BadLocator for what is no address.

    Tor takes some seconds to reach a service, and at times half a minute: peers want `Limits(handshake=60.0)`. A
    service that is new can be found after as long.
    """

    transport = TRANSPORT
    proves = True

    def __init__(
        self,
        *,
        identity: Identity | None = None,
        socks: str = "127.0.0.1:9050",
        control: str = "127.0.0.1:9051",
        password: str | None = None,
        listen: bool = True,
    ) -> None:
        parse_address(socks)
        if not is_path(control):
            parse_address(control)
        self._socks = socks
        self._control = control
        self._password = password
        self._listen = listen
        self._drawn = identity is None
        self._be(identity or new_identity())

    def __repr__(self) -> str:
        return f"<OnionNetlayer {self.location.uri}>"

    @property
    def identity(self) -> str:
        return to_keep(self._identity, drawn=self._drawn)

    def be_again(self, identity: str) -> None:
        self._be(kept(identity, self._identity, drawn=self._drawn))

    def _be(self, identity: Identity) -> None:
        self._identity = identity
        self.location = PeerLocator(TRANSPORT, service_id(identity.public_key))

    async def listen(self, limits: Limits) -> Listener | None:
        if not self._listen:
            return None
        listener = await listen("127.0.0.1", 0)
        target = listener.socket.getsockname()[1]

        async def add() -> Service:
            return await add_service(self._control, self._password, self._identity, PORT, target)

        try:
            service = await add()
        except BaseException:
            listener.socket.close()
            raise
        inner = TcpListener(
            listener, self.location, lambda stream, _: StreamChannel(stream, limits, SYRUP, binding=b"")
        )
        return OnionListener(inner, service, add)

    async def dial(self, locator: PeerLocator, limits: Limits) -> Channel:
        check_service_id(locator.designator)
        host, port = parse_address(self._socks)
        proxy = Proxy(ProxyType.SOCKS5, host, port, rdns=True)  # the name is for Tor alone
        try:
            sock = await proxy.connect(f"{locator.designator}.onion", PORT, timeout=math.inf)
        except ProxyConnectionError as error:
            why = last_words(error.__cause__ or error)
            raise ConnectFailed(
                f"cannot reach {locator.uri}: no Tor is at {self._socks}: {why}; start Tor, or say where it is: "
                "socks=HOST:PORT"
            ) from None
        except (ProxyError, OSError, ValueError) as error:
            code = error.error_code if isinstance(error, ProxyError) else None
            why = f"the proxy at {self._socks}: {shown(error)}" if code is None else _REFUSALS[code]
            raise ConnectFailed(f"cannot reach {locator.uri}: {why}") from error
        stream = trio.SocketStream(sock)
        tune(stream)
        channel = StreamChannel(stream, limits, SYRUP, binding=b"")
        channel.authenticated = locator.designator
        return channel


@final
class OnionListener(Listener):
    """Accepts what Tor passes on, and sees to it that the service is there."""

    def __init__(self, inner: Listener, service: Service, add: Callable[[], Awaitable[Service]]) -> None:
        self.location = inner.location
        self._inner = inner
        self._add = add
        self._service: Service | None = service
        self._backoff = Backoff()
        self._closed = trio.CancelScope()

    async def accept(self) -> Channel:
        return await self._inner.accept()

    async def run(self) -> None:
        """Adds the service again whenever Tor has gone."""
        try:
            with self._closed:
                await self._keep()
        finally:
            if self._closed.cancel_called:
                await self._close_service()

    async def _keep(self) -> None:
        while True:
            if self._service is not None:
                await self._service.gone()
                await self._close_service()
                self._backoff.lost()
                log.warning(
                    "%s: Tor has gone, and the service with it, which is added again when Tor is back",
                    TRANSPORT,
                )
            await self._backoff.wait()
            try:
                self._service = await self._add()
            except ConnectFailed as error:
                log.info("%s: %s", TRANSPORT, shown(error))
            else:
                self._backoff.there()
                log.info("%s: the service is there again", TRANSPORT)

    async def _close_service(self) -> None:
        service, self._service = self._service, None
        if service is not None:
            with trio.CancelScope(shield=True):
                await service.aclose()

    async def aclose(self) -> None:
        self._closed.cancel()
        with trio.CancelScope(shield=True):
            await self._close_service()
            await self._inner.aclose()
