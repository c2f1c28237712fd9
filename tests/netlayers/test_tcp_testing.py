"""tcp-testing-only: what it binds to, its locators, and the sockets it makes."""

from __future__ import annotations

import re
import socket

import pytest
import trio

from ocapn.codec.framing import BARE, NETSTRING, SYRUP
from ocapn.errors import BadLocator, ConnectFailed
from ocapn.limits import Limits
from ocapn.model.locators import PeerLocator
from ocapn.netlayers.base import Channel, Listener, StreamChannel
from ocapn.netlayers.tcp import source_of
from ocapn.netlayers.tcp_testing import TRANSPORT, TcpTestingNetlayer
from tests.support import trio_test_real

LIMITS = Limits()
MESSAGE = b"<1'a1+>"


async def listening(netlayer: TcpTestingNetlayer) -> Listener:
    listener = await netlayer.listen(LIMITS)
    assert listener is not None
    return listener


async def connected(
    there: TcpTestingNetlayer, here: TcpTestingNetlayer
) -> tuple[Listener, StreamChannel, Channel]:
    listener = await listening(there)
    near = await here.dial(listener.location, LIMITS)
    return listener, near, await listener.accept()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com", "", "localhost.example.com"])
def test_what_is_not_loopback_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match=rf"not to {re.escape(host)}; insecure_bind=True overrides this"):
        TcpTestingNetlayer(host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_is_allowed(host: str) -> None:
    assert TcpTestingNetlayer(host).location.transport == TRANSPORT


def test_one_that_only_dials_may_name_any_host() -> None:
    assert not TcpTestingNetlayer("0.0.0.0", listen=False).location.hints


@trio_test_real
async def test_insecure_bind_binds_to_anything() -> None:
    listener = await listening(TcpTestingNetlayer("0.0.0.0", insecure_bind=True))
    assert listener.location.hints["host"] == "0.0.0.0"
    await listener.aclose()


def test_a_framing_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="no framing is called 'morse'; there are none, syrup, netstring"):
        TcpTestingNetlayer(framing="morse")


@trio_test_real
async def test_a_port_in_use_is_an_error_that_says_what_to_do() -> None:
    first = await listening(TcpTestingNetlayer())
    port = int(first.location.hints["port"])
    expected = rf"cannot listen on 127\.0\.0\.1 port {port}: .* in use.*; choose another port, or 0 for any"
    with pytest.raises(ConnectFailed, match=expected):
        await TcpTestingNetlayer(port=port).listen(LIMITS)
    await first.aclose()
    second = await listening(TcpTestingNetlayer(port=port))  # the port is free at once
    assert second.location.hints["port"] == str(port)
    await second.aclose()


@pytest.mark.parametrize("port", [-1, 65536, 65536 + 1234])
@trio_test_real
async def test_a_port_that_does_not_exist_is_not_taken_modulo_65536(port: int) -> None:
    expected = f"^cannot listen on port {port}: ports are 1 to 65535, or 0 for any$"
    with pytest.raises(ConnectFailed, match=expected):
        await TcpTestingNetlayer(port=port).listen(LIMITS)


@pytest.mark.parametrize("host", ["a" * 70, "a..b", "192.0.2.1"])
@trio_test_real
async def test_a_host_that_one_cannot_bind_to_is_an_error_that_names_it(host: str) -> None:
    with pytest.raises(ConnectFailed, match=f"^cannot listen on {re.escape(host)} port 0: "):
        await TcpTestingNetlayer(host, insecure_bind=True).listen(LIMITS)


@trio_test_real
async def test_the_locator_says_where_and_how() -> None:
    for framing, hint in ((SYRUP, {}), (BARE, {"framing": "none"}), (NETSTRING, {"framing": "netstring"})):
        netlayer = TcpTestingNetlayer(designator="me", framing=framing)
        assert netlayer.location == PeerLocator(TRANSPORT, "me")
        listener = await listening(netlayer)
        hints = dict(listener.location.hints)
        assert 0 < int(hints.pop("port")) < 65536
        assert hints == {"host": "127.0.0.1", **hint}
        assert netlayer.location.uri == listener.location.uri
        await listener.aclose()


def test_the_designator_is_drawn_at_random() -> None:
    designators = {TcpTestingNetlayer().location.designator for _ in range(10)}
    assert len(designators) == 10
    assert all(re.fullmatch("[0-9a-f]{32}", designator) for designator in designators)


@trio_test_real
async def test_both_ends_find_a_dead_peer_and_send_at_once() -> None:
    listener, near, far = await connected(TcpTestingNetlayer(), TcpTestingNetlayer(listen=False))
    for channel in (near, far):
        assert isinstance(channel, StreamChannel)
        assert isinstance(channel._stream, trio.SocketStream)
        stream = channel._stream
        assert stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
        assert stream.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) != 0
        if hasattr(socket, "TCP_KEEPIDLE"):
            idle, interval, count = (
                stream.getsockopt(socket.IPPROTO_TCP, option)
                for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            )
            assert idle + interval * count <= 120
        await channel.aclose()
    await listener.aclose()


@trio_test_real
async def test_nothing_is_proved_and_the_source_is_the_address() -> None:
    listener, near, far = await connected(TcpTestingNetlayer("127.0.0.1"), TcpTestingNetlayer(listen=False))
    assert near.authenticated is None
    assert far.authenticated is None
    assert far.source == "127.0.0.1"
    for closable in (near, far, listener):
        await closable.aclose()


@trio_test_real
async def test_the_framing_is_the_hints_or_ones_own_or_what_comes_in() -> None:
    for hinted, own, used in (
        (NETSTRING, SYRUP, NETSTRING),
        (BARE, NETSTRING, BARE),
        (None, NETSTRING, NETSTRING),
        (None, SYRUP, SYRUP),
    ):
        listener = await listening(TcpTestingNetlayer())
        hints = dict(listener.location.hints)
        if hinted is not None:
            hints["framing"] = hinted
        near = await TcpTestingNetlayer(listen=False, framing=own).dial(
            PeerLocator(TRANSPORT, "x", hints), LIMITS
        )
        assert near.framing == used
        far = await listener.accept()
        assert isinstance(far, StreamChannel)
        before = far.framing
        await near.send([MESSAGE])
        assert await far.receive(1) == [MESSAGE]
        assert (before, far.framing) == (None, used)
        for closable in (near, far, listener):
            await closable.aclose()


@pytest.mark.parametrize(
    "hints",
    [
        {},
        {"host": "127.0.0.1"},
        {"port": "80"},
        {"host": "127.0.0.1", "port": ""},
        {"host": "127.0.0.1", "port": "0"},
        {"host": "127.0.0.1", "port": "65536"},
        {"host": "127.0.0.1", "port": "-80"},
        {"host": "127.0.0.1", "port": "+80"},
        {"host": "127.0.0.1", "port": " 80"},
        {"host": "127.0.0.1", "port": "80\n"},
        {"host": "127.0.0.1", "port": "http"},
        {"host": "127.0.0.1", "port": "8" * 5000},
        {"host": "127.0.0.1", "port": "٨٠"},  # digits to Python, and not to TCP
    ],
)
@trio_test_real
async def test_without_a_host_and_a_port_there_is_nothing_to_dial(hints: dict[str, str]) -> None:
    with pytest.raises(BadLocator, match="needs the hints host and port"):
        await TcpTestingNetlayer(listen=False).dial(PeerLocator(TRANSPORT, "x", hints), LIMITS)


@trio_test_real
async def test_a_framing_hint_that_means_nothing_is_a_bad_locator() -> None:
    locator = PeerLocator(TRANSPORT, "x", {"host": "127.0.0.1", "port": "80", "framing": "morse"})
    with pytest.raises(BadLocator, match="the hint framing is one of none, syrup, netstring, not 'morse'"):
        await TcpTestingNetlayer(listen=False).dial(locator, LIMITS)


@pytest.mark.parametrize("host", ["a..b", "a" * 70, "é" * 70])
@trio_test_real
async def test_a_host_that_is_no_name_cannot_be_reached(host: str) -> None:
    locator = PeerLocator(TRANSPORT, "x", {"host": host, "port": "80"})
    with pytest.raises(ConnectFailed, match=f"^cannot reach {re.escape(locator.uri)}: "):
        await TcpTestingNetlayer(listen=False).dial(locator, LIMITS)


def _has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6 loopback address")
@trio_test_real
async def test_over_ipv6() -> None:
    listener, near, far = await connected(TcpTestingNetlayer("::1"), TcpTestingNetlayer(listen=False))
    assert listener.location.hints["host"] == "::1"
    assert far.source == "::1"
    await near.send([MESSAGE])
    assert await far.receive(1) == [MESSAGE]
    for closable in (near, far, listener):
        await closable.aclose()


@trio_test_real
async def test_a_connection_reset_before_it_is_tuned_is_accepted_and_found_broken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """macOS refuses options on a connection that was reset: `accept` and `dial` must not fail, nor leak it."""

    def refuse(self: trio.SocketStream, level: int, option: int, value: int) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(trio.SocketStream, "setsockopt", refuse)
    listener, near, far = await connected(TcpTestingNetlayer(), TcpTestingNetlayer(listen=False))
    await near.aclose()
    assert await far.receive(1) == []
    await far.aclose()
    await listener.aclose()


@trio_test_real
async def test_the_locator_names_the_advertised_host() -> None:
    netlayer = TcpTestingNetlayer("0.0.0.0", insecure_bind=True, advertise="host.example")
    listener = await netlayer.listen(Limits())
    assert listener is not None
    assert netlayer.location.hints["host"] == "host.example"
    await listener.aclose()


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("::1", "::1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1:2%eth0", "fe80::/64"),
    ],
)
def test_as_which_source_an_address_counts(address: str, source: str) -> None:
    """Whoever has one address of IPv6 has all that begin with the same half."""
    assert source_of(address) == source
