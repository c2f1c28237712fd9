"""TCP for the netlayers that have it below."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, TypeVar, final

import trio

from ocapn.errors import ConnectFailed
from ocapn.model.locators import PeerLocator
from ocapn.netlayers.base import Channel, ChannelBroken, Listener

T = TypeVar("T")

#: Addresses of one peer that are tried.
MOST_ADDRESSES: Final = 8
#: An address that has not answered by then is raced by the next, seconds.
HEAD_START: Final = 0.25
#: Names that are looked up at once.
LOOKUPS: Final = 10


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, and reached by nobody else."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_every_address(host: str) -> bool:
    """Whether a host stands for all addresses of this machine, so that it says nobody where to dial."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def tune(stream: trio.SocketStream) -> str:
    """A dead peer is found within two minutes or so; small messages go out at once. Returns where it comes from: the
    address, of IPv6 the first half of it, as whoever has one of those has all that begin so."""
    try:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("TCP_KEEPIDLE", 45), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
            option = getattr(socket, name, None)  # macOS has no TCP_KEEPIDLE
            if option is not None:
                stream.setsockopt(socket.IPPROTO_TCP, option, value)
    except OSError:
        pass  # macOS says so of a connection that the other side has reset; reading will tell
    try:
        return source_of(stream.socket.getpeername()[0])
    except OSError:  # it is gone already; reading will tell
        return "gone"


def source_of(address: str) -> str:
    """As which an address counts for limits."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return str(ip.ipv4_mapped)
        if not ip.is_loopback:
            return str(ipaddress.ip_network((ip, 64), strict=False))
    return str(ip)


async def race(attempts: Sequence[Callable[[], Awaitable[T]]], close: Callable[[T], Awaitable[None]]) -> T:
    """What the first attempt returns that does not fail; others that are as quick are closed.

    Each begins `HEAD_START` seconds after the one before, or when that has failed (RFC 8305, section 5). What fails
    raises OSError or ChannelBroken. Raises OSError with what all of them said.
    """
    found: list[T] = []
    failures: list[str] = []

    async def run(attempt: Callable[[], Awaitable[T]], failed: trio.Event) -> None:
        try:
            result = await attempt()
        except (OSError, ChannelBroken) as error:
            failures.append(str(error))
            failed.set()
        else:
            if found:
                await close(result)
            else:
                found.append(result)
                racing.cancel_scope.cancel()

    try:
        async with trio.open_nursery() as racing:
            for attempt in attempts:
                failed = trio.Event()
                racing.start_soon(run, attempt, failed)
                with trio.move_on_after(HEAD_START):
                    await failed.wait()
    except BaseException:
        for result in found:
            await close(result)
        raise
    if not found:
        raise OSError("; ".join(failures))
    return found[0]


async def connect(host: str, port: int) -> trio.SocketStream:
    """A connection; of the addresses of a name, to the one that is quickest. Raises OSError."""
    try:
        places = [str(ipaddress.ip_address(host))]
    except ValueError:
        places = await _addresses(host)
    return await race([partial(_connect, place, port) for place in places], trio.SocketStream.aclose)


async def _addresses(name: str) -> list[str]:
    """Looks a name up, in threads of its own: who writes locators may name what takes long to look up."""
    if "\0" in name:  # the system would take what is before it
        raise OSError("no host has a NUL in its name")
    try:
        found = await trio.to_thread.run_sync(
            partial(socket.getaddrinfo, name, None, type=socket.SOCK_STREAM),
            limiter=_lookups(),
            abandon_on_cancel=True,
        )
    except UnicodeError as error:  # no name that DNS could hold
        raise OSError(str(error)) from error
    return [str(address[0]) for *_, address in found[:MOST_ADDRESSES]]


_LIMITER: Final = trio.lowlevel.RunVar[trio.CapacityLimiter]("ocapn lookups")


def _lookups() -> trio.CapacityLimiter:
    try:
        return _LIMITER.get()
    except LookupError:
        limiter = trio.CapacityLimiter(LOOKUPS)
        _LIMITER.set(limiter)
        return limiter


async def _connect(address: str, port: int) -> trio.SocketStream:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = trio.socket.socket(family, socket.SOCK_STREAM)
    try:
        await sock.connect((address, port))
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)


async def listen(host: str, port: int) -> trio.SocketListener:
    """Listens at the first address of a host. Raises ConnectFailed."""
    if not 0 <= port < 65536:  # the system would take it modulo 65536
        raise ConnectFailed(f"cannot listen on port {port}: ports are 1 to 65535, or 0 for any")
    try:
        listeners = await trio.open_tcp_listeners(port, host=host)
    except (OSError, UnicodeError) as error:
        raise ConnectFailed(
            f"cannot listen on {host} port {port}: {error}; choose another port, or 0 for any"
        ) from error
    first, *others = listeners
    for other in others:  # several addresses of one name: the first is the one that the locator names
        await other.aclose()
    return first


@final
class TcpListener(Listener):
    """Accepts at a port. `make` is called with a connection and where it comes from, and returns its channel."""

    def __init__(
        self,
        listener: trio.SocketListener,
        location: PeerLocator,
        make: Callable[[trio.SocketStream, str], Channel],
    ) -> None:
        self._listener = listener
        self._make = make
        self.location = location

    async def accept(self) -> Channel:
        stream = await self._listener.accept()
        return self._make(stream, tune(stream))

    async def aclose(self) -> None:
        await self._listener.aclose()
