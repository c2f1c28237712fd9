"""Throughput beside raw baselines: `python -m tests.bench [--json] [--quick] [--compiled] [--readme PATH] [NAME …]`.

Two processes over loopback TCP. Each rate is the median of five, taken in turn with its baseline in the same run,
and the ratio is what counts: machines differ, and are shared.

    sequential        one call after another; both processes on one core; against a raw trio echo likewise
    outstanding_1000  1,000 calls under way; against the raw echo with a core each
    one_way           messages that want no answer; against the same
    chain_100         calls in chains of promises of depth 100; against the same
    sessions          connect, handshake, first call; against a raw connect and echo
    durable_sequential        one call after another, a baggage on both sides; against two bare SQLite commits
    durable_outstanding_1000  1,000 calls under way, a baggage on both sides; against the same without
    turn_100k_slots   1,000 calls under way to a peer with a baggage and 100,000 slots; against one with 100
    opening_100k_slots  a baggage with 100,000 exported objects and a peer with it are opened; against once a second
    resume            a cut, and the next answer, a baggage on both sides; against a new session and its first answer
    noise_*, unix_*, websocket_*, cbor_*, relay_*, onion_*
                      sequential, outstanding_1000 and sessions over these netlayers (cbor is noise in that codec, onion
                      goes through what stands in for Tor); against tcp-testing-only
    syrup_*           a 150-byte deliver and a 10 kB value; against cbor2 on the same value
    pycapnp_*         sequential, outstanding_1000 and one_way; against pycapnp, which the extra `bench` has

And what is no rate, against what it should be at most or, of latency_beside_bulk, is without:

    million_references      1,000 calls under way with 1,000,000 references held; against 100 (a rate, measured before)
    five_thousand_sessions  calls in 5,000 sessions in turn, over memory; against one (a rate, measured before)
    memory_of_a_reference_held, memory_of_a_reference_given, memory_of_a_session (measured once)
    latency_beside_bulk     the 99th percentile of calls, while another session pushes 64 kB messages
    garbage_bytes           what tells of garbage, of the bytes of calls, in percent (measured once)
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs
import cbor2
import trio

import durable
import ocapn
from ocapn import Symbol
from ocapn.codec import syrup
from ocapn.codec.operations import OPERATIONS
from ocapn.limits import Limits
from tests.__main__ import compile_into
from tests.bench import capnproto, kept, large, netlayers, table
from tests.bench import scale as scales
from tests.bench.calls import RAW_MESSAGE, SMALL, Calls, sessions
from tests.bench.figures import ROUNDS, Figure, pair, rate, server

Figures = dict[str, Figure]


async def _connected(uri: str, port: int, scale: float, names: list[str]) -> Figures:
    figures: Figures = {}
    async with ocapn.open_peer([ocapn.TcpTestingNetlayer(listen=False)]) as peer:
        ref = await peer.enliven(uri)
        async with await trio.open_tcp_stream("127.0.0.1", port) as raw:
            calls = Calls(ref, raw, scale)
            for name in names:
                figures[name] = await pair(getattr(calls, name), calls.raw_echo)
    return figures


async def _sessions(uri: str, port: int, scale: float) -> Figure:
    sturdyref = ocapn.SturdyRef.parse(uri)
    async with ocapn.open_peer([ocapn.TcpTestingNetlayer(listen=False)]) as peer:

        async def raw_work(count: int) -> None:
            for _ in range(count):
                async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                    await stream.send_all(RAW_MESSAGE)
                    left = len(RAW_MESSAGE)
                    while left:
                        left -= len(await stream.receive_some())

        count = int(200 * scale)
        return await pair(
            lambda: rate(count, partial(sessions, peer, sturdyref)), lambda: rate(count, raw_work)
        )


def _kept(scale: float, names: list[str]) -> Figures:
    """The figures with a baggage on both sides."""
    figures: Figures = {}

    async def both(uri: str, plain_uri: str | None, baggage: durable.Baggage, place: Path) -> None:
        async def with_baggage(ref: ocapn.Ref) -> None:
            if plain_uri is None:
                bare = kept.bare_commits(place)

                async def commits(count: int) -> None:
                    bare(count)

                count = int(1000 * scale)
                figures["durable_sequential"] = await pair(
                    lambda: rate(count, lambda n: kept.sequential(ref, n)), lambda: rate(count, commits)
                )
                return

            async def without(plain: ocapn.Ref) -> None:
                count = max(1000, int(10_000 * scale))
                figures["durable_outstanding_1000"] = await pair(
                    lambda: rate(count, lambda n: kept.outstanding(ref, n)),
                    lambda: rate(count, lambda n: kept.outstanding(plain, n)),
                )

            await kept.connected(plain_uri, None, without)

        await kept.connected(uri, baggage, with_baggage)

    with kept.directory() as place, server("--counts", "--baggage", str(place / "server")) as (uri, _):
        if "durable_sequential" in names:
            with durable.open_baggage(place / "client") as baggage:
                trio.run(both, uri, None, baggage, place)
        if "durable_outstanding_1000" in names:
            with server("--counts") as (plain, _), durable.open_baggage(place / "other") as baggage:
                trio.run(both, uri, plain, baggage, place)
    return figures


def _cbor(value: object) -> object:
    """The value as the CBOR codec writes it: records are tag 27, symbols tag 280."""
    if isinstance(value, syrup.Record):
        return cbor2.CBORTag(27, [value.label.name, *[_cbor(field) for field in value.fields]])
    if isinstance(value, Symbol):
        return cbor2.CBORTag(280, value.name)
    if isinstance(value, list):
        return [_cbor(item) for item in value]
    return value


def _timed(work: Callable[[], object], seconds: float) -> float:
    count = 0
    start = time.perf_counter()
    while (now := time.perf_counter()) < start + seconds:
        for _ in range(100):
            work()
        count += 100
    return count / (now - start)


def _codec(scale: float) -> Figures:
    limits = Limits()
    encoder = syrup.Encoder(limits)
    deliver = syrup.Record(
        Symbol("op:deliver"),
        [
            syrup.Record(Symbol("desc:export"), [5]),
            [Symbol("transfer"), *SMALL],
            17,
            syrup.Record(Symbol("desc:import-object"), [23]),
        ],
    )
    large = [
        {"id": i, "name": f"item number {i}", "tags": ["red", "green"], "price": i * 1.5, "data": bytes(40)}
        for i in range(75)
    ]
    figures: Figures = {}
    for name, value, records in (("small", deliver, OPERATIONS), ("10k", large, syrup.ANY_RECORD)):
        data, other = encoder.encode(value), _cbor(value)
        other_data = cbor2.dumps(other)
        decoder = syrup.Decoder(limits, records)
        pairs: list[tuple[str, Callable[[], object], Callable[[], object]]] = [
            ("encode", lambda v=value: encoder.encode(v), lambda o=other: cbor2.dumps(o)),  # type: ignore[misc]
            ("decode", lambda r=decoder, d=data: r.decode(d), lambda d=other_data: cbor2.loads(d)),  # type: ignore[misc]
        ]
        for verb, ours, baseline in pairs:
            rates, baselines = [], []
            for _ in range(ROUNDS):
                rates.append(_timed(ours, 0.3 * scale))
                baselines.append(_timed(baseline, 0.3 * scale))
            figures[f"syrup_{verb}_{name}"] = Figure.of(rates, baselines)
    return figures


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work, for a first look")
    parser.add_argument(
        "--compiled", action="store_true", help="measure a copy of the checkout that is compiled"
    )
    parser.add_argument(
        "--readme", metavar="PATH", type=Path, help="measure what its table has, and write that"
    )
    parser.add_argument("names", nargs="*", help="only these figures")
    arguments = parser.parse_args()
    if arguments.readme is not None:
        if arguments.quick or arguments.names:
            parser.error("--readme measures and writes the whole table: no --quick and no names with it")
        table.check(arguments.readme)
        arguments.names = list(table.ASKED)
    if arguments.compiled:
        with TemporaryDirectory(prefix="ocapn-compiled-") as copy:
            if not compile_into(Path(copy)):
                sys.exit(1)
            given = [one for one in sys.argv[1:] if one != "--compiled"]
            if arguments.readme is not None:
                given.append(f"--readme={arguments.readme.absolute()}")  # the last one counts
            command = [sys.executable, "-m", "tests.bench", *given]
            sys.exit(subprocess.run(command, cwd=copy, check=False).returncode)
    scale = 0.1 if arguments.quick else 1.0
    figures: Figures = {}

    def wanted(*names: str) -> list[str]:
        return [name for name in names if not arguments.names or name in arguments.names]

    def note(text: str) -> None:
        if not arguments.json:
            print(text, file=sys.stderr, flush=True)

    cores = os.sched_getaffinity(0)
    if wanted("sequential"):
        note("sequential, both processes on one core …")
        core = min(cores)
        with server("--pin", str(core)) as (uri, port):
            os.sched_setaffinity(0, {core})
            figures |= trio.run(_connected, uri, port, scale, ["sequential"])
            os.sched_setaffinity(0, cores)
    names = wanted("outstanding_1000", "one_way", "chain_100")
    if names or wanted("sessions"):
        with server() as (uri, port):
            if names:
                note(", ".join(names) + " …")
                figures |= trio.run(_connected, uri, port, scale, names)
            if wanted("sessions"):
                note("sessions …")
                figures["sessions"] = trio.run(_sessions, uri, port, scale)
    names = wanted("durable_sequential", "durable_outstanding_1000")
    if names:
        note(", ".join(names) + " …")
        figures |= _kept(scale, names)
    names = wanted(*netlayers.NAMES)
    if names:
        note(", ".join(names) + " …")
        figures |= netlayers.measure(scale, names)
    names = wanted("turn_100k_slots", "opening_100k_slots", "resume")
    if names:
        note(", ".join(names) + " …")
        with kept.directory() as place:
            figures |= large.measure(place, scale, names)
    names = wanted(*scales.NAMES)
    if names:
        note(", ".join(names) + " …")
        figures |= scales.measure(scale, names)
    names = wanted(*capnproto.NAMES)
    if names and find_spec("capnp") is None:
        note("pycapnp is not here: pip install -e '.[bench]'")
    elif names:
        note(", ".join(names) + " …")
        figures |= capnproto.measure(scale, names)
    codec = wanted("syrup_encode_small", "syrup_decode_small", "syrup_encode_10k", "syrup_decode_10k")
    if codec:
        note("Syrup …")
        figures |= {name: figure for name, figure in _codec(scale).items() if name in codec}
    if arguments.json:
        print(json.dumps({name: {**attrs.asdict(one), "ratio": one.ratio} for name, one in figures.items()}))
        return
    print(table.plain(figures))
    if arguments.readme is not None:
        table.write(arguments.readme, figures)


if __name__ == "__main__":
    main()
