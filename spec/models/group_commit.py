"""Frames are taken into memory, and committed later: what a resume must heed between the two.

`spec.models.resume` commits each frame as it is read. Here a frame is *taken* (its turn has run, in memory) and
*committed* later, in order. Two nodes; all frames of both directions have been made and are under way on the old
connection when `low` resumes on a new one. `high` goes on reading the old connection until it is replaced. A
crash forgets what was taken and not committed, and ends every connection.

Checked: no gap; implicit numbers agree with true ones; no frame runs twice in one life of a process; what was once
acknowledged, or claimed and built upon by the other side, is on disk after a crash; every end has all frames
committed on both sides (I6; nothing here can wait for ever but by a fault of the rules, since every state without
a successor is looked at, and the rounds are bounded).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from spec.models.resume import HIGH, LOW, NAMES, Violation, trace_to


@dataclass(frozen=True)
class CommitRules:
    """The rules that speak of taken and committed. The defaults are the protocol."""

    drops_by: str = "taken"  # rule 6: numbers up to this count are duplicates; or "disk"
    numbers_from: str = (
        "claims"  # rule 6: a receiver counts from what it claimed; or "current": from its count
    )
    dialler_leaves: bool = True  # rule 0: stops reading the old connection before the claims
    waits_for_commits: bool = True  # rule 0: nothing is in between taken and committed when claims are made
    claims: str = "disk"  # rule 0; or "taken"
    retry: str = "taken"  # rule 4: which count may not have moved between accept and confirm; "disk", "never"
    acknowledges: str = "committed"  # or "taken"


class Line(NamedTuple):
    """One direction of one connection, as its reader has it: true numbers in flight, the number to count next."""

    open: bool = False
    inbox: tuple[int, ...] = ()
    number: int = 0


class Side(NamedTuple):
    taken: int = 0
    committed: int = 0
    promised: int = 0  # the highest count the peer may rely on
    old: Line = Line()
    new: Line = Line()


class State(NamedTuple):
    sides: tuple[Side, Side]
    phase: str = "connected"  # leaving, asked, accepted, confirmed, attached
    claimed: tuple[int, int] = (0, 0)
    offered: tuple[int, int] = (0, 0)  # high's counts at accept: taken, committed
    crashes: int = 1


class GroupCommit:
    """The actions."""

    def __init__(self, rules: CommitRules, frames: int, crashes: int) -> None:
        self.rules = rules
        self.frames = frames
        self.crashes = crashes
        self.doing = ""

    def start(self) -> State:
        side = Side(old=Line(True, tuple(range(1, self.frames + 1)), 1))
        return State((side, side), crashes=self.crashes)

    def successors(self, state: State) -> Iterator[tuple[str, State]]:
        for p in (LOW, HIGH):
            yield from self.work(state, p)
            if state.crashes:
                yield f"{NAMES[p]} crashes", self.crash(state, p)
        yield from self.handshake(state)

    def put(self, state: State, p: int, side: Side) -> State:
        if side.committed < side.promised:
            raise Violation(f"I2: {NAMES[p]} has acknowledged or claimed {side.promised}, on disk is less")
        sides = (side, state.sides[HIGH]) if p == LOW else (state.sides[LOW], side)
        return state._replace(sides=sides)

    def work(self, state: State, p: int) -> Iterator[tuple[str, State]]:
        side = state.sides[p]
        if side.committed < side.taken:
            count = side.committed + 1
            self.doing = f"{NAMES[p]} commits and acknowledges frame {count}"
            yield (
                self.doing,
                self.put(state, p, side._replace(committed=count, promised=max(count, side.promised))),
            )
        for which, line in (("old", side.old), ("new", side.new)):
            if line.open and line.inbox:
                self.doing = f"{NAMES[p]} reads frame {line.inbox[0]} on the {which} connection"
                taken = self.take(p, side, line)
                read = Line(True, line.inbox[1:], line.number + 1)
                after = (
                    side._replace(taken=taken, old=read)
                    if which == "old"
                    else side._replace(taken=taken, new=read)
                )
                if self.rules.acknowledges == "taken":
                    after = after._replace(promised=max(taken, side.promised))
                yield (
                    self.doing,
                    state._replace(
                        sides=(after, state.sides[HIGH]) if p == LOW else (state.sides[LOW], after)
                    ),
                )

    def take(self, p: int, side: Side, line: Line) -> int:
        """The count of taken frames after the next frame of the line."""
        count = side.taken if self.rules.drops_by == "taken" else side.committed
        if line.number <= count:
            return side.taken
        if line.number != line.inbox[0]:
            raise Violation(f"I1: {NAMES[p]} takes frame {line.inbox[0]} for {line.number}")
        if line.number > side.taken + 1:
            raise Violation(f"I1: a gap at {NAMES[p]} before frame {line.number}")
        if line.number <= side.taken:
            raise Violation(f"I1: {NAMES[p]} runs frame {line.number} twice")
        return line.number

    def crash(self, state: State, p: int) -> State:
        self.doing = f"{NAMES[p]} crashes"
        sides = tuple(side._replace(old=Line(), new=Line()) for side in state.sides)
        low, high = sides
        state = State((low, high), crashes=state.crashes - 1)
        side = sides[p]
        return self.put(state, p, side._replace(taken=side.committed))

    def claim(self, p: int, side: Side) -> int:
        return side.taken if self.rules.claims == "taken" else side.committed

    def ready(self, side: Side) -> bool:
        return side.taken == side.committed or not self.rules.waits_for_commits

    def rest(self, after: int) -> tuple[int, ...]:
        return tuple(range(after + 1, self.frames + 1))

    def first(self, claimed: int, side: Side) -> int:
        return (claimed if self.rules.numbers_from == "claims" else side.committed) + 1

    def handshake(self, state: State) -> Iterator[tuple[str, State]]:
        rules = self.rules
        low, high = state.sides
        if state.phase == "connected":
            old = Line() if rules.dialler_leaves else low.old
            yield (
                "low gives the old connection up",
                state._replace(phase="leaving", sides=(low._replace(old=old), high)),
            )
        if state.phase == "leaving" and self.ready(low):
            claimed = self.claim(LOW, low)
            low = low._replace(promised=max(claimed, low.promised))
            yield (
                f"low resumes, claims {claimed}",
                state._replace(phase="asked", claimed=(claimed, 0), sides=(low, high)),
            )
        if state.phase == "asked" and self.ready(high):
            claimed = self.claim(HIGH, high)
            high = high._replace(promised=max(claimed, high.promised))
            yield (
                f"high accepts, claims {claimed}",
                state._replace(
                    phase="accepted",
                    claimed=(state.claimed[LOW], claimed),
                    offered=(high.taken, high.committed),
                    sides=(low, high),
                ),
            )
        if state.phase == "accepted":
            line = Line(True, (), self.first(state.claimed[LOW], low))
            yield (
                "low confirms and is attached",
                state._replace(phase="confirmed", sides=(low._replace(old=Line(), new=line), high)),
            )
        if state.phase == "confirmed":
            moved = {
                "taken": high.taken != state.offered[0],
                "disk": high.committed != state.offered[1],
                "never": False,
            }[rules.retry]
            if moved:
                yield (
                    "high refuses `retry`, closes both",
                    state._replace(
                        phase="leaving",
                        claimed=(0, 0),
                        offered=(0, 0),
                        sides=(low._replace(old=Line(), new=Line()), high._replace(old=Line(), new=Line())),
                    ),
                )
            else:
                claims_low, claims_high = state.claimed
                new_low = low.new._replace(inbox=self.rest(claims_low))
                new_high = Line(True, self.rest(claims_high), self.first(claims_high, high))
                yield (
                    "high is attached",
                    State(
                        (low._replace(new=new_low), high._replace(old=Line(), new=new_high)),
                        "attached",
                        crashes=state.crashes,
                    ),
                )


@dataclass
class CommitResult:
    states: int = 0
    transitions: int = 0
    ends: int = 0
    violation: str = ""
    trace: tuple[str, ...] = ()


def search_commits(rules: CommitRules | None = None, frames: int = 2, crashes: int = 1) -> CommitResult:
    """Breadth first, to the end; stops at the first violation."""
    model = GroupCommit(rules or CommitRules(), frames, crashes)
    result = CommitResult()
    states = [model.start()]
    index = {states[0]: 0}
    origins: list[tuple[int, str]] = [(-1, "")]
    at = 0
    try:
        while at < len(states):
            stuck = True
            for text, successor in model.successors(states[at]):
                stuck = False
                result.transitions += 1
                if successor not in index:
                    index[successor] = len(states)
                    states.append(successor)
                    origins.append((at, text))
            if stuck:
                model.doing = "(nothing more can happen)"
                if any(side.committed != frames for side in states[at].sides):
                    raise Violation("I6: the end is reached with frames uncommitted")
                result.ends += 1
            at += 1
    except Violation as violation:
        result.violation = str(violation)
        result.trace = (*trace_to(origins, at), model.doing)
    result.states = len(states)
    return result
