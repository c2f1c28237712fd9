"""Netlayers for the commands: made from URLs, or only to dial, and with the wire shown if wanted."""

from __future__ import annotations

import importlib.util
import ssl
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final, final
from urllib.parse import urlsplit

import attrs

from ocapn.cli.exits import ExitCode, Failure
from ocapn.cli.output import complain
from ocapn.crypto import Identity
from ocapn.errors import BadLocator, ConnectFailed
from ocapn.limits import Limits
from ocapn.model.locators import PeerLocator
from ocapn.netlayers.base import Channel, Listener, Netlayer
from ocapn.netlayers.noise import NoiseNetlayer
from ocapn.netlayers.tcp import is_every_address, is_loopback
from ocapn.netlayers.tcp_testing import TcpTestingNetlayer
from ocapn.netlayers.unix import UnixNetlayer
from ocapn.trace import Tracer

DEFAULT: Final = "noise://127.0.0.1:0"
#: For help texts.
SOCKS_HELP: Final = "where Tor takes connections that go out (default: 127.0.0.1:9050)"
LISTEN_HELP: Final = (
    "where to listen: noise://HOST:PORT (encrypted, and both sides prove who they are: for any network), "
    "ws://HOST:PORT/PATH or wss://HOST:PORT/PATH (the transport websocket), "
    "noise alone (nowhere: reached through --relay), onion (a Tor onion service, reachable from anywhere and hidden), "
    "tcp://HOST:PORT (the transport tcp-testing-only, which has no security) or unix:///PATH (a socket file). "
    "Port 0 takes any free one. May be repeated, once for each transport. "
    f"Default: {DEFAULT}"
)


#: The packages that netlayers need which are extras of the same name.
_PACKAGES: Final = {"onion": "python-socks", "websocket": "wsproto"}


def dialling(socks: str | None = None) -> list[Netlayer]:
    """Every netlayer there is, to dial and not to listen. `socks` is where Tor is. Raises Failure."""
    netlayers = [NoiseNetlayer(listen=False), TcpTestingNetlayer(listen=False), UnixNetlayer()]
    if has("websocket"):
        netlayers.append(extra("websocket").WebSocketNetlayer(listen=False))
    if socks is not None or has("onion"):
        netlayers.append(_onion(Asked(socks=socks), listen=False))
    return netlayers


def has(transport: str) -> bool:
    return importlib.util.find_spec(_PACKAGES[transport].replace("-", "_")) is not None


def extra(transport: str) -> Any:
    """The module of a netlayer. Raises Failure if the package that it needs is not there."""
    if not has(transport):
        raise Failure(
            ExitCode.USAGE,
            f"{transport} needs the package {_PACKAGES[transport]}: pip install 'ocapn[{transport}]'",
        )
    return importlib.import_module(f"ocapn.netlayers.{transport}")


def limits_for(transports: Iterable[str]) -> Limits:
    """A dial through Tor takes longer than others."""
    return Limits(handshake=60.0) if "onion" in transports else Limits()


@attrs.frozen
class Asked:
    """What the options say of how to listen: the designator on netlayers that prove none, the key on those that do."""

    designator: str | None = None
    identity: Identity | None = None
    #: Addresses for noise, a URL for websocket.
    advertise: tuple[str, ...] = ()
    #: Through which noise is reached as well.
    relays: tuple[PeerLocator, ...] = ()
    url: str | None = None
    #: Files with the certificate that those see who dial a websocket, and with its key.
    certificate: str | None = None
    key: str | None = None
    insecure_bind: bool = False
    #: Where Tor is, if not where it is by default, and the password for its control port.
    socks: str | None = None
    control: str | None = None
    password: str | None = attrs.field(default=None, repr=False)


def listening(url: str, asked: Asked, last_port: int | None = None) -> Netlayer:
    """The netlayer that a URL stands for; where the system is to choose a port, at the one that it chose the last time,
    if that is known and free. Raises Failure."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise _bad(url, str(error)) from None
    extra = parts.query or parts.fragment or parts.username or parts.password
    make: Callable[[str, int, Asked], Netlayer]
    if parts.scheme in ("tcp", "tcp-testing-only", "noise"):
        scheme, make = ("noise", _noise) if parts.scheme == "noise" else ("tcp", _tcp)
        if not host or extra or parts.path not in ("", "/"):
            raise _bad(url, f"it is {scheme}://HOST:PORT")
        netlayer = make(host, port or 0, asked)
        return netlayer if port or not last_port else _Again(netlayer, make(host, last_port, asked))
    if parts.scheme in ("ws", "wss"):
        if not host or parts.query or parts.fragment or parts.username or parts.password:
            raise _bad(url, f"it is {parts.scheme}://HOST:PORT/PATH")
        make = partial(_websocket, parts.scheme == "wss", parts.path or "/")
        netlayer = make(host, port or 0, asked)
        return netlayer if port or not last_port else _Again(netlayer, make(host, last_port, asked))
    if parts.scheme == "unix":
        if parts.netloc or extra or len(parts.path) < 2:
            raise _bad(url, "it is unix:///PATH, with three slashes")
        return UnixNetlayer(parts.path, designator=asked.designator)
    if url == "onion":
        return _onion(asked)
    if url == "noise":
        if not asked.relays:
            raise _bad(url, "a peer that listens nowhere is reached through a relay: --relay URI")
        return NoiseNetlayer(identity=asked.identity, relays=asked.relays, listen=False)
    raise _bad(url, "it begins with noise://, ws://, wss://, tcp:// or unix://, or is noise or onion")


def warn_of(url: str, asked: Asked) -> None:
    """Says what is not safe about listening there."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme in ("tcp", "tcp-testing-only", "ws") and asked.url is None and not is_loopback(host):
        line = f"ocapn serve: warning: listening on {host} without any security, as --insecure-bind says"
        if is_every_address(host):
            line += (
                f"; the sturdyrefs name {host}, which nobody can dial: put an address of this machine there"
            )
        complain(line)


def _bad(url: str, why: str) -> Failure:
    return Failure(ExitCode.USAGE, f"--listen {url}: {why}; 'ocapn serve --help' explains")


def _noise(host: str, port: int, asked: Asked) -> Netlayer:
    try:
        return NoiseNetlayer(
            host, port, identity=asked.identity, advertise=asked.advertise, relays=asked.relays
        )
    except ValueError:
        raise Failure(
            ExitCode.USAGE,
            f"{host} stands for every address of this machine; --advertise HOST:PORT says at which others find it",
        ) from None


def _websocket(tls: bool, path: str, host: str, port: int, asked: Asked) -> Netlayer:
    module = extra("websocket")
    if tls and asked.certificate is None:
        raise Failure(
            ExitCode.USAGE,
            "--listen wss:// takes --tls-certificate FILE, and --tls-key FILE if that is apart",
        )
    if not (tls or asked.insecure_bind or is_loopback(host) or (asked.url or "").startswith("wss:")):
        raise Failure(
            ExitCode.USAGE,
            f"{host} is no loopback address, and ws:// is not encrypted: listen at wss://, --advertise the wss:// URL "
            "of a proxy, or say --insecure-bind if you mean it",
        )
    if asked.url is None and is_every_address(host):
        raise Failure(
            ExitCode.USAGE,
            f"{host} stands for every address of this machine; --advertise URL says at which others find it",
        )
    context, certificate = None, None
    if asked.certificate is not None:
        certificate = _certificate(module, asked.certificate)
    if tls:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(str(asked.certificate), asked.key)
        except OSError as error:  # ssl.SSLError too
            key = asked.key or asked.certificate
            raise Failure(
                ExitCode.FILE, f"{key} holds no key that fits {asked.certificate}: {error}"
            ) from None
    netlayer: Netlayer = module.WebSocketNetlayer(
        host,
        port,
        path,
        identity=asked.identity,
        url=asked.url,
        tls=context,
        certificate=certificate,
        insecure_bind=asked.insecure_bind,
    )
    return netlayer


def _certificate(module: Any, path: str) -> bytes:
    try:
        der: bytes = module.certificate_in(path)
    except OSError as error:
        raise Failure(ExitCode.FILE, f"cannot read {path}: {error.strerror}") from None
    except ValueError:
        raise Failure(ExitCode.MALFORMED, f"{path} holds no certificate: a PEM file has one") from None
    return der


def _onion(asked: Asked, *, listen: bool = True) -> Netlayer:
    places = {"socks": asked.socks, "control": asked.control}
    try:
        netlayer: Netlayer = extra("onion").OnionNetlayer(
            identity=asked.identity,
            password=asked.password,
            listen=listen,
            **{name: place for name, place in places.items() if place is not None},
        )
    except BadLocator as error:
        raise Failure(ExitCode.USAGE, f"where Tor is: {error}") from None
    return netlayer


def _tcp(host: str, port: int, asked: Asked) -> Netlayer:
    try:
        return TcpTestingNetlayer(host, port, designator=asked.designator, insecure_bind=asked.insecure_bind)
    except ValueError:
        raise Failure(
            ExitCode.USAGE,
            f"{host} is no loopback address, and tcp has no security: whoever reaches the port can read and "
            "forge everything; use noise, a loopback address, or --insecure-bind if you mean it",
        ) from None


@final
class _Again(Netlayer):
    """Listens as `last` does; where that cannot be, as `fresh` does."""

    def __init__(self, fresh: Netlayer, last: Netlayer) -> None:
        self.transport = fresh.transport
        self.proves = fresh.proves
        self.location = fresh.location
        self._fresh = fresh
        self._inner = last

    @property
    def identity(self) -> str:
        return self._fresh.identity

    def be_again(self, identity: str) -> None:
        for netlayer in (self._fresh, self._inner):
            netlayer.be_again(identity)
        self.location = self._inner.location

    async def listen(self, limits: Limits) -> Listener | None:
        try:
            listener = await self._inner.listen(limits)
        except ConnectFailed as error:
            complain(
                f"ocapn serve: warning: {error.__cause__ or error}: not at the port of the last time; who has an "
                "old sturdyref, and no session, does not find it"
            )
            self._inner = self._fresh
            listener = await self._inner.listen(limits)
        self.location = self._inner.location
        self.port = self._inner.port
        return listener

    async def dial(self, locator: PeerLocator, limits: Limits) -> Channel:
        return await self._inner.dial(locator, limits)


def traced(netlayers: Sequence[Netlayer]) -> list[Netlayer]:
    """The netlayers, with every message of theirs shown on standard error."""
    numbers = iter(range(1, 1 << 62))
    return [_TracedNetlayer(netlayer, numbers.__next__) for netlayer in netlayers]


@final
class _TracedNetlayer(Netlayer):
    """Shows the handshake too, which a session's own trace begins too late for."""

    def __init__(self, inner: Netlayer, next_number: Callable[[], int]) -> None:
        self.transport = inner.transport
        self.proves = inner.proves
        self.location = inner.location
        self._inner = inner
        self._next_number = next_number

    @property
    def identity(self) -> str:
        return self._inner.identity

    def be_again(self, identity: str) -> None:
        self._inner.be_again(identity)
        self.location = self._inner.location

    async def listen(self, limits: Limits) -> Listener | None:
        listener = await self._inner.listen(limits)
        self.location = self._inner.location
        self.port = self._inner.port
        return listener and _TracedListener(listener, self._next_number)

    async def dial(self, locator: PeerLocator, limits: Limits) -> Channel:
        channel = await self._inner.dial(locator, limits)
        return _TracedChannel(channel, self._next_number(), f"dialled {locator.uri}")


@final
class _TracedListener(Listener):
    def __init__(self, inner: Listener, next_number: Callable[[], int]) -> None:
        self.location = inner.location
        self._inner = inner
        self._next_number = next_number

    async def run(self) -> None:
        await self._inner.run()

    async def accept(self) -> Channel:
        channel = await self._inner.accept()
        source = f" from {channel.source}" if channel.source else ""
        return _TracedChannel(channel, self._next_number(), f"accepted{source}")

    async def aclose(self) -> None:
        await self._inner.aclose()


@final
class _TracedChannel(Channel):
    def __init__(self, inner: Channel, number: int, begin: str) -> None:
        self.authenticated = inner.authenticated
        self.vouches = inner.vouches
        self.binding = inner.binding
        self.codec = inner.codec
        self.source = inner.source
        self._inner = inner
        self._number = number
        self._closed = False
        self._tracer = Tracer(self._line)
        self._line(begin)

    def _line(self, text: str) -> None:
        complain(f"#{self._number} {text}")

    def _show(self, direction: str, messages: list[bytes]) -> None:
        for message in messages:
            self._tracer(direction, message)

    async def begin(self) -> None:
        await self._inner.begin()
        self.authenticated = self._inner.authenticated
        self.binding = self._inner.binding
        self.codec = self._inner.codec

    async def send(self, messages: list[bytes]) -> None:
        self._show("->", messages)
        await self._inner.send(messages)

    async def receive(self, most: int) -> list[bytes]:
        messages = await self._inner.receive(most)
        self._show("<-", messages)
        return messages

    def send_now(self, messages: list[bytes]) -> int:
        sent = self._inner.send_now(messages)
        self._show("->", messages[:sent])
        return sent

    @property
    def unsent(self) -> bool:
        return self._inner.unsent

    def set_max_message(self, size: int) -> None:
        self._inner.set_max_message(size)

    async def send_eof(self) -> None:
        await self._inner.send_eof()

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._line("closed")
        await self._inner.aclose()
