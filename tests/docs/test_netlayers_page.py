"""spec/netlayers.md says what the code does."""

from __future__ import annotations

from pathlib import Path

import ocapn
from ocapn import relay
from ocapn.netlayers import backoff, onion, relaying, tcp, tor, websocket
from ocapn.noise import handshake, packets, protocol
from tests.docs.support import ROOT, check_first_example

PAGE = (ROOT / "spec" / "netlayers.md").read_text()


def test_the_example_prints_what_it_is_said_to_print(tmp_path: Path) -> None:
    check_first_example(PAGE, tmp_path)


def test_the_netlayers() -> None:
    table = PAGE[PAGE.index("| transport |") :].split("\n\n")[0]
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    transports = {name: transport for transport, name, *_ in rows}
    for module, name in ((websocket, "WebSocketNetlayer"), (onion, "OnionNetlayer")):
        assert transports.pop(f"{module.__name__}.{name}") == getattr(module, name).transport
    assert {name: getattr(ocapn, name).transport for name in transports} == transports
    assert {name for name in ocapn.__all__ if name.endswith("Netlayer")} == set(transports)


def test_the_figures_of_noise() -> None:
    first, second, third = handshake.FIRST, handshake.SECOND, handshake.THIRD
    assert f"three packets, of {first}, {second} and {third} bytes" in PAGE
    assert f"of up to {protocol.MOST - protocol.TAG:,} bytes" in PAGE
    assert f"After {packets.REKEY:,} packets" in PAGE
    assert f"{handshake.NO_CODEC} says that it has none" in PAGE
    assert f"up to {tcp.MOST_ADDRESSES} of them" in PAGE
    assert f"each {1000 * tcp.HEAD_START:.0f} ms after" in PAGE
    assert f"has read {first} bytes before it computes anything, and {third} more" in PAGE
    assert protocol.NAME.decode() in PAGE


def test_the_figures_of_onion() -> None:
    assert f"The port is {onion.PORT}, always" in PAGE
    assert (
        f"up to {tor.MOST_LINES} lines of {tor.MOST_LINE:,} bytes, and the service must be there within 10 s"
        in PAGE
    )
    assert (tor.PATIENCE, backoff.FIRST_DELAY, backoff.MOST_DELAY) == (10, 0.5, 60)


def test_the_figures_of_relays() -> None:
    limits = relay.RelayLimits()
    for figure in (
        f"{limits.clients:,} registered peers",
        f"{limits.connections:,} connections, of which it has not taken up to {limits.waiting}",
        f"{limits.per_source} connections from one source",
        f"{limits.total:,} in all",
        f"{limits.rate >> 20} MiB/s",
        f"{limits.handshake:.0f} s for a first packet",
        f"every {relaying.ALIVE:.0f} s, and take the other for gone after {relaying.SILENCE:.0f} s",
        f"`{relaying.TAKES.decode()}` and the",
        f"has up to {relaying.MOST_WAITING} at once from one relay",
    ):
        assert figure in PAGE, figure
