"""The second half of `ocapn demo`: two processes, each with a baggage, that are killed in mid-stream.

Dora streams numbers to a counter of Erik's, who tells a counter of hers of each. Both counters are durable objects,
and write what arrives into a ledger in the same turn. Alice, the process that was started, kills them, starts them
again, and reads the ledgers in the end.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import Any, Final, final

import attrs
import trio

import ocapn
from ocapn.cli import baggages
from ocapn.cli.exits import ExitCode, Failure
from ocapn.cli.stage import Child, Teller, answer, expect, start

NAMES: Final = ("dora", "erik")
#: How many numbers are streamed.
TOTAL: Final = 3000
#: Who is killed, in turn, while the numbers stream.
KILLS: Final = (("erik",), ("dora",), ("erik",), ("dora",), ("dora", "erik"))
#: Numbers that may be on their way: so that whoever is killed, it is in mid-stream.
_WINDOW: Final = 300
#: After so many numbers there is a pause of a millisecond, for people to see something.
_BURST: Final = 5
_SWISS: Final = b"counter"
#: The longest directory for temporary files in which socket files can be made.
_LONGEST: Final = 70


@cache
def _kinds() -> tuple[type[Any], type[Any]]:
    """The kinds of durable objects, registered."""
    kind: Any = baggages.durable().kind

    @attrs.define
    class Counter(ocapn.Target):
        """Counts what arrives, and tells another of it."""

        value: int = 0
        tells: object = None

        @ocapn.method
        def tell(self, other: object) -> None:
            self.tells = other

        @ocapn.method
        def hit(self, number: int) -> None:
            ledger = _LEDGERS[0]
            key = f"{number:06}"
            ledger[key] = [
                *ledger.get(key, []),
                self.value,
            ]  # at which place it came; twice, if it came twice
            self.value += 1
            if self.tells is not None:
                ocapn.send_only(self.tells).hit(number)

    @attrs.define
    class Stream(ocapn.Target):
        """Where to send, how often that had to be enlivened, and the next number."""

        to: object = None
        enlivened: int = 0
        next: int = 0

    return kind("ocapn.demo.counter")(Counter), kind("ocapn.demo.stream")(Stream)


#: The ledger of this process: durable objects have no way to it that would be kept.
_LEDGERS: Final[list[Any]] = []


# Dora and Erik


async def child(name: str, directory: Path) -> bool:
    """Serves, and streams if it is Dora, until standard input ends. Prints what it has, at first and as it grows."""
    counter_kind, stream_kind = _kinds()
    with baggages.made(str(directory / name)) as baggage:
        _LEDGERS.append(baggage.namespace("ledger"))
        async with (
            trio.lowlevel.FdStream(os.dup(0)) as stdin,
            ocapn.open_peer([_netlayer(name, directory)], baggage=baggage) as peer,
            trio.open_nursery() as nursery,
        ):
            counter = baggage.provide("counter", counter_kind)
            peer.export(counter, _SWISS)
            answer(counter.value)
            nursery.start_soon(_report, peer, counter)
            if name == "dora":
                stream = baggage.provide("stream", stream_kind)
                nursery.start_soon(_stream, peer, stream, counter, directory)
            async for _ in stdin:
                pass
            nursery.cancel_scope.cancel()
    return True


def _netlayer(name: str, directory: Path) -> ocapn.UnixNetlayer:
    return ocapn.UnixNetlayer(directory / f"{name}.socket", designator=name)


async def _report(peer: ocapn.Peer, counter: Any) -> None:
    told = counter.value
    while True:
        await trio.sleep(0.01)
        value = counter.value
        if value != told:
            await peer.settled()
            answer(value)
            told = value


async def _stream(peer: ocapn.Peer, stream: Any, counter: Any, directory: Path) -> None:
    if stream.to is None:
        to = await peer.enliven(ocapn.SturdyRef(_netlayer("erik", directory).location, _SWISS))
        ocapn.send_only(to).tell(counter)
        stream.to = to
        stream.enlivened += 1
    while stream.next < TOTAL:
        if stream.next - counter.value >= _WINDOW:
            await trio.sleep(0.002)
            continue
        ocapn.send_only(stream.to).hit(stream.next)  # this and the next line commit together
        stream.next += 1
        if stream.next % _BURST == 0:
            await trio.sleep(0.001)


# Alice


@final
class _Life:
    """One of the two, in one process after another."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name.capitalize()
        self._command = child_command(name, directory)
        self._child: Child | None = None
        self.killed = 0
        self.has = 0

    @property
    def child(self) -> Child:
        assert self._child is not None
        return self._child

    async def start(self) -> None:
        self._child = await start(self.name, self._command)
        self.has = await self.child.line()

    async def until(self, number: int) -> None:
        """Returns when it says that it has so many."""
        while self.has < number:
            self.has = await self.child.line()

    async def kill(self) -> None:
        await self.child.kill()
        self.killed += 1

    async def end(self) -> None:
        if self._child is not None:
            await self._child.end()


def child_command(name: str, directory: Path) -> list[str]:
    """The command line of a child."""
    return [sys.executable, "-m", "ocapn.cli", "demo", "--child", name, "--directory", str(directory)]


async def show(tell: Teller) -> None:
    """This half of the demo. Raises Failure if anything is not as it should be."""
    try:
        baggages.durable()
    except Failure as failure:
        tell.say(f"\nWhat survives a killed process is not shown: {failure}")
        return
    short = None if len(tempfile.gettempdir()) <= _LONGEST else "/tmp"
    with tempfile.TemporaryDirectory(prefix="ocapn-demo-", dir=short) as name:
        directory = Path(name)
        lives = {name: _Life(name, directory) for name in NAMES}
        try:
            await _begin(tell, lives, directory)
            await _kill(tell, lives)
            for life in lives.values():
                await life.until(TOTAL)
        finally:
            for life in lives.values():
                await life.end()
        for life in lives.values():
            expect(f"the exit code of {life.name}'s process", life.child.process.returncode, 0)
        await _compare(tell, lives, directory)


async def _begin(tell: Teller, lives: dict[str, _Life], directory: Path) -> None:
    await tell.step("Two peers that outlive their processes")
    dora, erik = (lives[name] for name in NAMES)
    for life in (erik, dora):
        await life.start()
    tell.say(
        f"   Alice starts two more processes: Dora, {dora.child.pid}, and Erik, {erik.child.pid}. Each has a baggage,\n"
        f"   a directory in {directory}, with its objects and its sessions: what happens\n"
        "   in a turn, the messages that it sends included, is on disk before anybody hears of it."
    )
    tell.code("counter = await peer.enliven(uri)", "Dora gets a reference to a counter of Erik's, once")
    tell.code("send_only(counter).tell(receipts)", "he gets a reference to a counter of hers")
    tell.code("send_only(counter).hit(0), .hit(1), …", f"she streams the numbers below {TOTAL:,}")
    tell.code("send_only(receipts).hit(0), …", "he tells her of each")
    tell.say("   Each counter writes what arrives into a ledger, with the place at which it came.")


async def _kill(tell: Teller, lives: dict[str, _Life]) -> None:
    await tell.step("Kill them in mid-stream, again and again")
    tell.say("     killed by SIGKILL             started again as        numbers go on after")
    for i, names in enumerate(KILLS, 1):
        victims = [lives[name] for name in names]
        await victims[0].until(i * TOTAL // (len(KILLS) + 1))
        pids = [victim.child.pid for victim in victims]
        begun = monotonic()
        for victim in victims:
            await victim.kill()
        said = [victim.has for victim in victims]
        for victim in victims:
            await victim.start()
        found = [victim.has for victim in victims]
        for victim, before in zip(victims, said, strict=True):
            if victim.has < before:
                raise _bug(f"{victim.name} had {before} numbers, and {victim.has} after a restart")
        for victim in victims:
            await victim.until(victim.has + 1)
        took = monotonic() - begun
        together = ", both at once" if len(victims) > 1 else ""
        for victim, pid, has in zip(victims, pids, found, strict=True):
            killed = f"{victim.name}, {pid}, at {has:,}"
            tell.say(f"     {killed:<28}  {victim.child.pid:<22}  {took:.2f} s{together}")
        tell.goes_on()
    tell.say(
        "   Nobody enlivened anything again: each process found its references in its baggage, and the\n"
        "   sessions that they belong to went on."
    )


@attrs.frozen
class _Account:
    """What stands in a baggage."""

    #: At which places each number came.
    ledger: dict[int, list[int]]
    #: The states of the durable objects, by kind.
    states: dict[str, dict[str, Any]]
    #: For each session that is kept, how often it was resumed.
    epochs: list[int]

    def faults(self, sent: int) -> dict[str, int]:
        """What is wrong with the ledger, if so many calls were sent."""
        places = [self.ledger[number][0] for number in sorted(self.ledger)]
        return {
            "doubled": sum(len(came) - 1 for came in self.ledger.values()),
            "missing": len(set(range(sent)) - self.ledger.keys()),
            "in wrong order": sum(now <= before for before, now in pairwise(places)),
        }


def account(directory: Path) -> _Account:
    """What stands in the baggage of a process that has ended. Raises Failure if it is not whole."""
    view = baggages.inspection()
    with baggages.opened(str(directory), corrupt=ExitCode.FAILED) as baggage:
        baggage.verify()
        view.check(baggage)
        return _Account(
            {int(key): places for path, key, places in view.user_keys(baggage) if path == ("ledger",)},
            {one.kind: one.state for one in view.objects(baggage)},
            [session.epoch for session in view.sessions(baggage)],
        )


async def _compare(tell: Teller, lives: dict[str, _Life], directory: Path) -> None:
    await tell.step("Read from both baggages: every call, exactly once")
    dora, erik = (account(directory / name) for name in NAMES)
    stream = dora.states["ocapn.demo.stream"]
    sent = [stream["next"], erik.states["ocapn.demo.counter"]["value"]]
    received = [erik, dora]
    faults = [account.faults(count) for account, count in zip(received, sent, strict=True)]
    tell.say(f"     {'':<36}{'Dora to Erik':>14}{'Erik to Dora':>14}")
    _row(tell, "calls sent", sent)
    _row(tell, "entries in the ledger of who received", [len(one.ledger) for one in received])
    for what in faults[0]:
        _row(tell, what, [fault[what] for fault in faults])
    _row(tell, "times the sender was killed", [lives[name].killed for name in NAMES])
    enlivened = stream["enlivened"]
    tell.say(
        f"   Sturdyrefs enlivened: {enlivened}. Sessions: {len(dora.epochs)}, from the first call to the last, "
        f"now in its epoch {max(dora.epochs, default=0)}."
    )
    for who, account_faults in zip(("Erik", "Dora"), faults, strict=True):
        for what, count in account_faults.items():
            if count:
                raise _bug(f"of the calls to {who}, {count} are {what}")
    expect("what was sent", sent, [TOTAL, TOTAL])
    expect("the number of sturdyrefs that were enlivened", enlivened, 1)
    expect("the number of sessions in each baggage", [len(dora.epochs), len(erik.epochs)], [1, 1])


def _row(tell: Teller, what: str, counts: Sequence[int]) -> None:
    tell.say(f"     {what:<36}" + "".join(f"{count:>14,}" for count in counts))


def _bug(what: str) -> Failure:
    return Failure(ExitCode.FAILED, f"{what}; please report this as a bug of ocapn")
