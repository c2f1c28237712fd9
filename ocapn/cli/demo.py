"""`ocapn demo`: three processes that show each other what object capabilities are about, and two that survive.

Alice is the process that was started. Bob and Carol are processes that she starts; each reads its standard input and
leaves when it ends, so that neither outlives her, however she ends.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, final

import trio

import ocapn
from ocapn import E, send_only
from ocapn.cli import stage, survivors
from ocapn.cli.command import Command
from ocapn.cli.exits import ExitCode, Failure
from ocapn.cli.output import logged
from ocapn.cli.signals import SIGNALS
from ocapn.cli.stage import Child, Teller, answer, expect, started
from ocapn.cli.values import readable
from ocapn.cli.wires import traced
from ocapn.netlayers.base import Netlayer

_DESCRIPTION: Final = """
Starts two more processes and shows, step by step: a sturdyref becomes a live reference, calls, a
chain of calls in one round trip, references passed both ways, a reference handed over to a third
process, and how all of it is collected again. Then two processes with state on disk stream calls
to each other, and are killed and started again in mid-stream: every call takes effect once.

It takes a few seconds, uses TCP on the loopback interface, socket files and a temporary directory
only, and fails if anything is not as it should be.
"""

_EPILOG: Final = """
Example:
  $ ocapn demo
  $ ocapn demo --slow 3        # to read along
  $ ocapn demo --trace 2>wire  # what crosses the wire, as Alice sees it
"""

#: Seconds that it may take until all is collected.
_COLLECTING: Final = 5.0
#: The counts of `session.stats()` that are zero when nothing is held and nothing is under way.
_HELD: Final = (
    "exports",
    "imports",
    "questions",
    "answers",
    "resolvers",
    "turns_waiting",
    "messages_on_promises",
    "gifts_waiting",
    "withdrawals_waiting",
)

# The objects: what is Bob's, Carol's and Alice's


@final
class Bob(ocapn.Target):
    """What Bob serves."""

    @ocapn.method
    def greet(self, name: str) -> str:
        return f"Hello {name}, this is Bob, process {os.getpid()}."

    @ocapn.method
    def new_guestbook(self) -> Guestbook:
        return Guestbook()


@final
class Guestbook(ocapn.Target):
    """Names, and bells that ring when one is added. Lives as long as somebody holds it."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._bells: list[object] = []

    @ocapn.method
    def sign(self, name: str) -> Guestbook:
        self._names.append(name)
        for bell in self._bells:
            send_only(bell).ring(name)
        return self

    @ocapn.method
    def names(self) -> list[str]:
        return self._names

    @ocapn.method
    def add_bell(self, bell: object) -> None:
        self._bells.append(bell)

    @ocapn.method
    def bells(self) -> list[object]:
        return self._bells


@final
class Carol(ocapn.Target):
    """What Carol serves."""

    @ocapn.method
    async def visit(self, guestbook: object) -> object:
        return await E(guestbook).sign("Carol").names()


@final
class Bell(ocapn.Target):
    """Alice's: hears who signed."""

    def __init__(self) -> None:
        self._ring, self.rung = trio.open_memory_channel[str](8)

    @ocapn.method
    def ring(self, name: str) -> None:
        self._ring.send_nowait(name)


_SERVED: Final = {"bob": Bob, "carol": Carol}


def _sessions(peer: ocapn.Peer) -> dict[str, dict[str, int]]:
    """The statistics of the peer's sessions by the designator of the other side, and a check of their invariants."""
    gc.collect()
    peer.check()
    return {session.location.designator: session.stats() for session in peer.sessions}


# Bob and Carol


async def _child(name: str) -> bool:
    """Serves until standard input ends. Each line that comes in is answered with the statistics."""
    async with trio.lowlevel.FdStream(os.dup(0)) as stdin, ocapn.open_peer([ocapn.NoiseNetlayer()]) as peer:
        answer(peer.export(_SERVED[name]()).uri)
        async for data in stdin:
            for _ in range(data.count(b"\n")):
                answer(_sessions(peer))
    return True


def child_command(name: str) -> list[str]:
    """The command line of a child."""
    return [sys.executable, "-m", "ocapn.cli", "demo", "--child", name]


async def _alice(slow: float, trace: bool) -> bool:
    begun = time.monotonic()
    with trio.CancelScope() as scope:
        tell = Teller(slow, scope)
        tell.say(
            "Object capabilities in three processes, over encrypted TCP on the loopback interface of this machine."
        )
        await tell.step("Three processes, two sturdyrefs")
        async with (
            started("bob", child_command("bob")) as bob,
            started("carol", child_command("carol")) as carol,
        ):
            tell.say(
                f"   This process is Alice, {os.getpid()}. She starts Bob, {bob.pid}, and Carol, {carol.pid}.\n"
                "   Each of them serves an object and says where it is:"
            )
            bob_uri, carol_uri = await bob.line(), await carol.line()
            tell.say(f"     Bob    {bob_uri}\n     Carol  {carol_uri}")
            tell.say(
                "   These are sturdyrefs. First comes the key of the process, which it proves to have whenever one\n"
                "   connects to it; after /s/ comes a secret, which is not shown here: who knows it may use the\n"
                "   object, and nobody else can. There are no users, no passwords, no lists of rights."
            )
            netlayers: list[Netlayer] = [ocapn.NoiseNetlayer()]
            async with ocapn.open_peer(traced(netlayers) if trace else netlayers) as peer:
                names = {
                    peer.locator().designator: "Alice",
                    ocapn.SturdyRef.parse(bob_uri).peer.designator: "Bob",
                    ocapn.SturdyRef.parse(carol_uri).peer.designator: "Carol",
                }
                all_three = _Processes(peer, [bob, carol], names)
                before = await _visit(tell, all_three, bob_uri, carol_uri)
                await tell.step("Drop everything, and all of it is collected")
                tell.say(
                    "   Alice's function has returned: she holds none of the references any more. Here is what"
                )
                tell.say("   each process keeps for each session, by session.stats(): then -> now")
                _show(tell, before, await all_three.collected())
                tell.say(
                    "   Without Alice, nobody needed Bob's guest book; without the book, nobody her bell."
                )
        for child in (bob, carol):
            expect(f"the exit code of {child.name}'s process", child.process.returncode, 0)
        tell.say("   All sessions, and all three processes' tables, are empty.")
        await survivors.show(tell)
        tell.say(f"\nDone in {time.monotonic() - begun:.1f} s.")
        return True
    raise Failure(ExitCode.FAILED, f"step {tell.number} of the demo took over {stage.PATIENCE:g} s")


async def _visit(tell: Teller, processes: _Processes, bob_uri: str, carol_uri: str) -> _Held:
    """All that Alice does. What she holds, she holds in here."""
    peer = processes.peer
    await tell.step("Enliven: from a sturdyref to a live reference")
    bob = await peer.enliven(bob_uri)
    key = ocapn.SturdyRef.parse(bob_uri).peer.designator
    shown = readable(bob).partition("?")[0].replace(key, f"{key[:8]}…")
    tell.code("bob = await peer.enliven(sturdyref)", f"-> {shown}>")
    tell.say("   Alice has connected to Bob, who has the key, shown the secret, and got a reference.")

    await tell.step("Call: the same E(x) for objects here and elsewhere")
    greeting = await E(bob).greet("Alice")
    tell.code('await E(bob).greet("Alice")', f"-> {readable(greeting)}")
    expect("Bob's greeting", greeting, f"Hello Alice, this is Bob, process {processes.children[0].pid}.")

    await tell.step("Pipeline: send to what does not exist yet")
    (session,) = peer.sessions
    then = session.stats()
    book = E(bob).new_guestbook()
    names = book.sign("Alice").names()
    now = session.stats()
    tell.code("book = E(bob).new_guestbook()", "a promise: Bob has not even heard of it")
    tell.code('names = book.sign("Alice").names()', "sent all the same")
    sent, received = (now[key] - then[key] for key in ("messages_sent", "messages_received"))
    tell.say(
        f"   {sent} messages are under way and {received} answers have come: the whole chain takes one round trip."
    )
    expect("the number of messages sent", sent, 3)
    expect("the number of answers received", received, 0)
    found = await names
    tell.code("await names", f"-> {readable(found)}")
    expect("what stands in the guest book", found, ["Alice"])

    await tell.step("References go both ways")
    bell = Bell()
    await book.add_bell(bell)
    tell.code("bell = Bell()", "an object of Alice's")
    tell.code("await book.add_bell(bell)", "the guest book has a reference to it")
    await book.sign("Alice again")
    rung = await bell.rung.receive()
    tell.code('await book.sign("Alice again")', f"Bob's process rings: bell.ring({readable(rung)})")
    expect("what the bell heard", rung, "Alice again")
    (back,) = await book.bells()
    tell.code("(back,) = await book.bells()", f"back is bell -> {back is bell}")
    expect("whether the bell came back as itself", back is bell, True)

    await tell.step("Hand over: Alice gives Carol her reference to Bob's guest book")
    carol = await peer.enliven(carol_uri)
    knew = await processes.known_to(1)
    expect("whom Carol knows at first", knew, ["Alice"])
    found = await E(carol).visit(book)
    tell.code("await E(carol).visit(book)", f"-> {readable(found)}")
    expect("what stands in the guest book", found, ["Alice", "Alice again", "Carol"])
    rung = await bell.rung.receive()
    expect("what the bell heard", rung, "Carol")
    tell.code("", f"and Alice's bell rings: {readable(rung)}")
    knows = await processes.known_to(1)
    expect("whom Carol knows now", sorted(knows), ["Alice", "Bob"])
    tell.say(
        f"   Carol had a session with {' and '.join(knew)}; now she has sessions with {' and '.join(knows)}. She has\n"
        "   been introduced: she signed at Bob's directly, and Alice need not be there for it."
    )
    return await processes.held()


#: What the processes hold: by process, by the other side of the session, the statistics.
_Held = dict[str, dict[str, dict[str, int]]]


@final
class _Processes:
    """Alice's peer, the processes of Bob and Carol, and the names of all three by their designators."""

    def __init__(self, peer: ocapn.Peer, children: Sequence[Child], names: Mapping[str, str]) -> None:
        self.peer = peer
        self.children = children
        self._names = names

    async def known_to(self, child: int) -> list[str]:
        """Whom a child has sessions with."""
        return [self._names[designator] for designator in await self.children[child].sessions()]

    async def held(self) -> _Held:
        held = {"Alice": _sessions(self.peer)}
        for child in self.children:
            held[child.name] = await child.sessions()
        return {
            name: {self._names[designator]: stats for designator, stats in sessions.items()}
            for name, sessions in held.items()
        }

    async def collected(self) -> _Held:
        """What the processes hold when nothing is held any more. Raises Failure if something stays."""
        deadline = trio.current_time() + _COLLECTING
        while True:
            held = await self.held()
            left = _left(held)
            if not left:
                return held
            if trio.current_time() > deadline:
                what = (
                    f"not everything was collected: {'; '.join(left)}; please report this as a bug of ocapn"
                )
                raise Failure(ExitCode.FAILED, what)
            await trio.sleep(0.02)  # garbage is told of in batches, a little later


def _left(held: _Held) -> list[str]:
    """What is still held, for people."""
    return [
        f"{name} keeps {stats[key]} {key} of the session with {other}"
        for name, sessions in held.items()
        for other, stats in sessions.items()
        for key in _HELD
        if stats[key]
    ]


def _show(tell: Teller, before: _Held, after: _Held) -> None:
    columns = _HELD[:4]
    tell.say(f"     {'':<18}{''.join(f'{column:>12}' for column in columns)}")
    for name, sessions in after.items():
        for other, stats in sessions.items():
            then = before[name][other]
            cells = "".join(f"{then[column]:>7} -> {stats[column]}" for column in columns)
            tell.say(f"     {name + ', with ' + other:<18}{cells}")


def _slow(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1e6:
        raise ValueError
    return value


_slow.__name__ = "number of seconds"  # argparse says: invalid … value


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--slow", type=_slow, default=0.0, metavar="S", help="pauses that many seconds between the steps"
    )
    parser.add_argument("--trace", action="store_true", help="shows Alice's messages on standard error")
    parser.add_argument("--child", choices=[*_SERVED, *survivors.NAMES], help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)


def _run(given: argparse.Namespace) -> None:
    with logged("ocapn demo", verbose=False):
        if given.directory is not None:
            SIGNALS.run(partial(survivors.child, given.child, given.directory))
        elif given.child is not None:
            SIGNALS.run(partial(_child, given.child))
        else:
            SIGNALS.run(partial(_alice, given.slow, given.trace))


COMMAND: Final = Command(
    name="demo",
    summary="see what this is about: processes that share objects, and survive being killed",
    usage="[--slow S] [--trace]",
    description=_DESCRIPTION,
    epilog=_EPILOG,
    codes=(ExitCode.FAILED, ExitCode.NO_SESSION, ExitCode.PIPE),
    add_arguments=_add_arguments,
    run=_run,
)
