"""The peer that the public conformance suite (repository ocapn/ocapn-test-suite) tests: see README.md.

`python -m tests.conformance.peer --port N` prints its locator and serves until SIGINT or SIGTERM. The objects are
those of the suite's README, at their swiss numbers; where its tests say something else, they win.
"""

from __future__ import annotations

import argparse
import gc
import logging
import signal
import sys

import trio

import ocapn
from ocapn import E

CAR_FACTORY_BUILDER = b"JadQ0++RzsD4M+40uLxTWVaVqM10DcBJ"
ECHO = b"IO58l1laTyhcrgDKbEzFOO32MDd6zE5w"
GREETER = b"VMDDd1voKWarCe2GvgLbxbVFysNzRPzx"
PROMISE_RESOLVER = b"IokCxYmMj04nos2JN1TDoY1bT8dXh6Lr"
STURDYREF_ENLIVENER = b"gi02I1qghIwPiKGKleCQAOhpy3ZtYRpB"

#: The suite leaves a silent connection behind in most of its tests and runs dozens of them in a second.
LIMITS = ocapn.Limits(unauthenticated_per_source=256)

DIALECTS = ("2026-02", "2026-02-singular-gc", "2026-01")
FRAMINGS = ("none", "syrup", "netstring")


def make_car(color: str, model: str) -> ocapn.Target:
    """A car takes no arguments and says what it is."""

    @ocapn.target
    def car() -> str:
        return f"Vroom! I am a {color} {model} car!"

    return car


@ocapn.target
def car_factory(order: object) -> ocapn.Target:
    """Takes the list `[color model]`, two symbols, and makes that car."""
    match order:
        case [ocapn.Symbol() as color, ocapn.Symbol() as model]:
            return make_car(color.name, model.name)
    raise ValueError("a car factory takes a list of two symbols, [color model]")


@ocapn.target
def car_factory_builder() -> ocapn.Target:
    return car_factory


@ocapn.target
def echo(*args: object) -> list[object]:
    """Answers its arguments, and keeps none of them."""
    gc.collect()  # what the calls before left behind
    return list(args)


@ocapn.target
def greeter(someone: object) -> None:
    """Says Hello to `someone`, wanting an answer, and drops the promise of it."""
    E(someone)("Hello")


@ocapn.target
def promise_resolver() -> list[object]:
    """A new promise, and its resolver."""
    return list(ocapn.make_promise())


def sturdyref_enlivener(peer: ocapn.Peer) -> ocapn.Target:
    @ocapn.target
    async def enliven(sturdyref: object) -> object:
        if not isinstance(sturdyref, ocapn.SturdyRef):
            raise TypeError("the enlivener takes a sturdyref")
        return await peer.enliven(sturdyref)

    return enliven


def export_all(peer: ocapn.Peer) -> None:
    """Exports the objects of the suite at their swiss numbers."""
    peer.export(car_factory_builder, CAR_FACTORY_BUILDER)
    peer.export(echo, ECHO)
    peer.export(greeter, GREETER)
    peer.export(promise_resolver, PROMISE_RESOLVER)
    peer.export(sturdyref_enlivener(peer), STURDYREF_ENLIVENER)


async def serve(netlayer: ocapn.TcpTestingNetlayer, dialect: str | None) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with ocapn.open_peer([netlayer], limits=LIMITS, dialect=dialect, durable="never") as peer:
            export_all(peer)
            print(peer.locator().uri, flush=True)
            async for _ in signals:
                return


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.conformance.peer",
        description="Hosts the objects of the public OCapN conformance suite over tcp-testing-only.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="loopback address to bind to (%(default)s)")
    parser.add_argument("--port", type=int, default=0, help="port; 0, the default, lets the system choose")
    parser.add_argument("--dialect", choices=DIALECTS, help="how to write; the default adapts to each peer")
    parser.add_argument("--framing", choices=FRAMINGS, default="syrup", help="of dialled connections")
    parser.add_argument("--designator", help="of the peer; drawn at random by default")
    parser.add_argument("-v", "--verbose", action="store_true", help="logs what happens to standard error")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.DEBUG if given.verbose else logging.WARNING)
    try:
        netlayer = ocapn.TcpTestingNetlayer(
            given.host, given.port, framing=given.framing, designator=given.designator
        )
    except ValueError as error:
        parser.error(str(error))
    trio.run(serve, netlayer, given.dialect)
    return 0


if __name__ == "__main__":
    sys.exit(main())
