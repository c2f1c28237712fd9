"""TCP for the netlayers that have it below."""

from __future__ import annotations

import ipaddress
import socket

import trio

from ocapn.errors import ConnectFailed


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
    """A dead peer is found within two minutes or so; small messages go out at once. Returns where it comes from."""
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
        return str(stream.socket.getpeername()[0])
    except OSError:  # it is gone already; reading will tell
        return "gone"


async def connect(host: str, port: int) -> trio.SocketStream:
    """A connection. An address, as most hints are, needs no look-up and no race between addresses. Raises OSError, and
    UnicodeError for a host that is no name which DNS could hold."""
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
