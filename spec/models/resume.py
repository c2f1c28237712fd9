"""The durable session as an explicit-state model: every state of a small world is visited, and judged.

The world is two nodes, `low` and `high` (their order is that of their public identifiers), and at most one
`copy`: a second process started from an old copy of one node's disk. A process has a disk (`Record`), a little
memory (`Process`), and ends of connections; a connection is two FIFO queues. One action of the model is one thing
that happens at one process: it makes a message, reads one item from one queue (and commits, and sends what
follows from it), dials, ends the session, crashes, is set back to an earlier disk; or a connection is cut.
Actions are atomic. The points between commit and send are covered by the crash, which may take back the last of
what the process has sent and nobody has read, or all of it, or none. What lies between the taking of a frame and
its commit is the business of `spec.models.group_commit`.

Checked at every state, for every action (the names are those of the design):

I1  What was delivered is a prefix of what was sent: no gap, no duplicate, implicit numbers agree with true ones.
I2  acked ≤ the peer's received ≤ sent; a retransmission starts inside the outbox, that is, above acked.
    When a session ends by `op:abort`, what its reader believes delivered is exactly what was.
I4  The epoch on a disk never decreases but by a rollback, proven ≤ epoch, one attached connection a process.
I5  No verdict of rollback, no divergence and no `stale` in a world without rollback and copy; with a rollback the
    blame falls on the node that was set back; no connection is attached at both ends with unequal histories.
    A copy that is provably old does not end the session of the original while that is connected.
I6  Every fault-free fair run ends live with all acknowledged, or in a typed end on both sides.

I6 is checked thus. Reading consumes, so from every state every order of reads leads to a quiet state (all queues
empty), and each of these is itself among the states visited. From every quiet state runs are made in rounds:
whatever is not a live connection times out, 45 s pass, the application lifts a `policy`, an operator starts
again a process that stopped loudly and has no other in its place; then someone dials, and everything is read.
Who dials is the run's *schedule*: `low` or `high` first, then in turn; `both` at once first, then in turn;
`high lost`: both, but what high dials never arrives. Both dialling at once for ever, in step, is excluded: that
is what backoff with jitter is for. (In `both` one thing more is checked, what rule 7 is for: two first attempts
that cross, read in lock-step, leave a live connection behind.) Every other state inherits the outcomes of the
quiet state that its reads lead to.

Each rule of the protocol is a flag of `Rules`; a mutant is the protocol with a flag changed
(`spec.models.mutants`). States are canonical: connections are numbered by age among those still open, epochs are
counted from the smallest that a disk holds.

Not modelled: addresses (rule 8), other sessions and starts (rules 9, 11, 12 but for `unknown`), seconds, signatures
(a frame is what its sender made; nobody forges; `replay` is the one thing an attacker does), digests as hashes
(they are the histories themselves), limits, what is in the frames.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

LOW, HIGH, COPY = 0, 1, 2
NOBODY = -1  # the attacker, or the far end of a connection that never arrived
NAMES = {LOW: "low", HIGH: "high", COPY: "copy", NOBODY: "attacker"}

# What a disk says of the session. ASKING and ORDINARY are states of memory: there is nothing on disk.
OPEN, PROVISIONAL, ASKING, ORDINARY = "open", "provisional", "asking", "ordinary"
GONE = "gone"  # an ordinary session whose connection ended
ERASED = "erased"  # a tombstone that expired
# A tombstone, named by its reason.
ENDED, EXPIRED, UNKNOWN = "ended", "expired", "unknown"
YOU, ME, DIVERGED = "you-rolled-back", "i-rolled-back", "diverged"
TOMBSTONES = frozenset({ENDED, EXPIRED, UNKNOWN, YOU, ME, DIVERGED})
RUNNING = frozenset({OPEN, PROVISIONAL, ASKING, ORDINARY})
OVER = TOMBSTONES | {GONE, ERASED}
# Refusals that end nothing.
RETRY, CROSSED, POLICY, STALE = "retry", "crossed", "policy", "stale"
# What a refusal that ends the session makes of the reader's tombstone.
LEARNT = {ENDED: ENDED, EXPIRED: EXPIRED, YOU: ME, ME: YOU, DIVERGED: DIVERGED}

# An end of a connection: closed; nothing judged yet; resume sent; accept sent; carrying the session.
CLOSED, FRESH, DIALLED, ACCEPTED, ATTACHED = "closed", "fresh", "dialled", "accepted", "attached"

# Contents of a message: made by the original, made after a rollback, made by the copy; ask, answer, broken answer.
ORIGINAL, AFTER_ROLLBACK, BY_COPY, ASK, ANSWER, BROKEN = "a", "b", "c", "?", "!", "x"


class Violation(Exception):
    """An invariant does not hold."""


@dataclass(frozen=True)
class Rules:
    """The protocol, rule by rule. The defaults are the protocol; a mutant changes one."""

    # The one rule: a crash forgets nothing that was sent, and nothing that was acknowledged.
    sends_after_commit: bool = True
    acks_after_commit: bool = True
    # 0: the dialler first closes its attached connection; its dials; the accepts it has pending.
    dialler_leaves_attached: bool = True
    dialler_drops_dials: bool = True
    dialler_drops_accepts: bool = True
    # 1: when the initiator has the new epoch on disk, and when it counts it as proven (accept, heard, never).
    epoch_before_confirm: bool = True
    initiator_proves: str = "heard"
    responder_commits_epoch: bool = True
    responder_proves: bool = True
    new_epoch: str = "above both"  # or "above the responder's", "above the initiator's"
    # 2: judge when fresh, in the order stale epoch, retry, rollback; attaching closes what else is pending.
    responder_judges_at: str = "confirm"
    initiator_judges: bool = True
    initiator_refuses_old_epoch: bool = True
    judging_order: tuple[str, ...] = ("old epoch", "retry", "rollback", "policy")
    attaching_closes_pending: bool = True
    attaching_closes_attached: bool = True
    # 3: what claims are compared by.
    compares_epochs: bool = True
    compares_counts: bool = True
    compares_digest: bool = True
    # 5: the old connection stays until confirm; the responder's ack comes first.
    replaces_at: str = "confirm"
    responder_acks_first: bool = True
    # 6: numbers start at the claims. (Dropping by number: see `group_commit`.)
    numbers_from: str = "claims"
    # 7: who refuses `crossed` (high, both, nobody), and how often (first attempt, always); what low then keeps.
    crossed_refuses: str = "high"
    crossed_attempts: str = "first"
    lower_keeps_dial: bool = True
    # 10: a stranger that is older, or differs, while another connection was heard from, is `stale`.
    stale: str = "older or diverged"  # or "older" (what it says of itself included), or "never"
    heeds_strangers: bool = False
    heard_means: str = "45 s"  # or "open": only while the other connection is attached
    accept_is_heard: bool = True  # a fresh, signed accept counts as hearing
    # Negotiation.
    provisional: bool = True  # the answerer's session is, until the asker's first ack
    late_answer_aborts: bool = True
    confirm_promotes: bool = True
    # Ends and refusals.
    ack_before_abort: bool = True
    tombstone_answers: bool = True
    unknown_ends: bool = True
    heeds_refuse_until_ack: bool = True
    policy_holds_dials: bool = True


@dataclass(frozen=True)
class Config:
    """A small world: what may happen in it, and how often."""

    name: str
    about: str
    messages: tuple[int, int] = (1, 1)  # how many each node sends
    faults: int = 0  # cuts and crashes
    dials: int = 0
    connections: int = 2
    crashes: bool = True
    rollback: tuple[int, ...] = ()  # the nodes that may be set back, once
    copied: int | None = None  # the node whose disk may be copied, and the copy started
    replay: bool = False  # an attacker replays the first message of the first resume, once
    ends: tuple[int, ...] = ()  # the nodes that may end the session (one of them, once)
    expires: bool = False  # a suspended session may expire instead
    erases: bool = False
    proven_addresses: bool = True  # else an unsigned `unknown` counts only after three tries
    negotiation: str = ""  # "accept" or "break": how the answerer, high, takes low's ask
    policies: int = 0  # how often a node changes its mind about resuming
    late_acks: bool = False  # an ack is an action of its own, and covers all taken so far
    redials: bool = False  # a process may dial while attached (it hears nothing)
    listens: tuple[bool, bool] = (True, True)
    schedules: tuple[str, ...] = ("low", "high", "both")


class Claims(NamedTuple):
    epoch: int
    proven: int
    sent: int
    acked: int
    received: int
    digest: str


class Record(NamedTuple):
    """What is on disk. Histories stand for the counts, the digests and the outbox."""

    status: str = OPEN
    epoch: int = 0
    proven: int = 0
    sent: str = ""
    acked: int = 0
    received: str = ""
    unknowns: int = 0

    def claims(self) -> Claims:
        return Claims(self.epoch, self.proven, len(self.sent), self.acked, len(self.received), self.received)


class Process(NamedTuple):
    """A record, and what is in memory beside it."""

    node: int
    record: Record = Record()
    backup: Record | None = None
    running: bool = True
    heard: bool = False  # an attached connection was heard from within 45 s
    attempts: int = 0  # dials of high since the cut: none, one, more
    forbids: bool = False  # its policy, now, is against this session
    held: bool = False  # told `policy`: does not dial until the application says so
    rolled_back: bool = False


class Offer(NamedTuple):
    """An accept that waits for its confirm."""

    epoch: int
    claims: Claims
    received: int


Message: TypeAlias = tuple[object, ...]


class End(NamedTuple):
    state: str
    inbox: tuple[Message, ...] = ()
    number: int = 0  # the number that the next frame has
    offer: Offer | None = None
    owes: bool = False  # frames taken are not yet acknowledged
    unheard: bool = False  # the initiator, attached, has had no ack and no frame yet
    epoch: int = 0  # of the resume it confirmed, while unheard


CLOSED_END = End(CLOSED)


class Connection(NamedTuple):
    dialler: int
    listener: int
    near: End  # the dialler's
    far: End  # the listener's


class Core(NamedTuple):
    """A state, but for what may still happen to it."""

    processes: tuple[Process, ...]
    connections: tuple[Connection, ...]
    disturbed: frozenset[int]  # nodes that were rolled back or copied
    captured: tuple[int, Claims] | None = (
        None  # whom the first op:resume-session was for, and what it claimed
    )


class State(NamedTuple):
    core: Core
    faults: int
    dials: int
    ends: int
    policies: int
    replays: int


REFUSAL = "op:resume-refuse "
ON_THE_WIRE = {
    "frame": "a frame",
    "ack": "op:ack",
    "resume": "op:resume-session",
    "accept": "op:resume-accept",
    "confirm": "op:resume-confirm",
    "refuse": "op:resume-refuse",
    "op:abort": "op:abort",
    "end of file": "end of file",
}
EOF: Message = ("end of file",)
ABORT: Message = ("op:abort",)
ENDS = (("near", "far"), ("far", "near"))


class World:
    """One state, thawed, while one action is done to it."""

    def __init__(self, core: Core, config: Config, rules: Rules) -> None:
        self.config = config
        self.rules = rules
        self.processes = list(core.processes)
        self.connections = list(core.connections)
        self.disturbed = core.disturbed
        self.captured = core.captured

    # Reading and changing the parts.

    def end(self, p: int, c: int) -> End:
        connection = self.connections[c]
        return connection.near if connection.dialler == p else connection.far

    def set_end(self, p: int, c: int, end: End) -> None:
        connection = self.connections[c]
        if connection.dialler == p:
            self.connections[c] = Connection(p, connection.listener, end, connection.far)
        else:
            self.connections[c] = Connection(connection.dialler, p, connection.near, end)

    def peer(self, p: int, c: int) -> int:
        connection = self.connections[c]
        return connection.listener if connection.dialler == p else connection.dialler

    def ends_of(self, p: int, *states: str) -> list[int]:
        return [
            c
            for c, connection in enumerate(self.connections)
            if p in (connection.dialler, connection.listener) and self.end(p, c).state in states
        ]

    def attached(self, p: int) -> int | None:
        found = self.ends_of(p, ATTACHED)
        return found[0] if found else None

    def note(self, p: int, **changes: object) -> None:
        """Changes of memory."""
        self.processes[p] = self.processes[p]._replace(**changes)  # type: ignore[arg-type]

    def commit(self, p: int, **changes: object) -> Record:
        """Changes on disk. I4 is checked here: only a rollback writes otherwise."""
        before = self.processes[p].record
        after = before._replace(**changes)  # type: ignore[arg-type]
        if after.epoch < before.epoch:
            raise Violation(f"I4: the epoch of {NAMES[p]} decreases on disk")
        if after.proven > after.epoch:
            raise Violation(f"I4: {NAMES[p]} has proven an epoch that it has not on disk")
        self.processes[p] = self.processes[p]._replace(record=after)
        return after

    def send(self, p: int, c: int, *messages: Message) -> None:
        q = self.peer(p, c)
        connection = self.connections[c]
        other = connection.far if connection.dialler == p else connection.near
        if other.state != CLOSED:
            self.set_end(q, c, other._replace(inbox=other.inbox + messages))

    def close(self, p: int, c: int) -> None:
        """Closes one end. The other reads end of file after what is in flight."""
        end = self.end(p, c)
        if end.state == CLOSED:
            return
        self.send(p, c, EOF)
        self.set_end(p, c, CLOSED_END)
        if end.state == ATTACHED:
            self.lose(p)

    def close_all(self, p: int, *states: str, but: int | None = None) -> None:
        for c in self.ends_of(p, *states):
            if c != but:
                self.close(p, c)

    def lose(self, p: int) -> None:
        """The connection that carried the session is gone."""
        status = self.processes[p].record.status
        if status in (ASKING, ORDINARY):
            self.processes[p] = self.processes[p]._replace(record=Record(GONE))
        elif status == PROVISIONAL:
            self.commit(p, status=ENDED)

    # What processes do.

    def make_message(self, p: int, content: str) -> None:
        record = self.processes[p].record
        record = self.commit(p, sent=record.sent + content)
        for c in self.ends_of(p, ATTACHED):
            self.send(p, c, ("frame", len(record.sent), content))

    def dial(self, p: int, *, arrives: bool = True) -> None:
        rules = self.rules
        if rules.dialler_leaves_attached:
            self.close_all(p, ATTACHED)
        if rules.dialler_drops_dials:
            self.close_all(p, DIALLED)
        if rules.dialler_drops_accepts:
            self.close_all(p, ACCEPTED)
        process = self.processes[p]
        if process.node == HIGH:
            self.note(p, attempts=min(2, process.attempts + 1))
        claims = process.record.claims()
        far = End(FRESH, (("resume", claims),)) if arrives else CLOSED_END
        listener = 1 - process.node if arrives else NOBODY
        self.connections.append(Connection(p, listener, End(DIALLED), far))
        if self.config.replay and self.captured is None:
            self.captured = (listener, claims)

    def replay(self) -> None:
        """An attacker sends the captured op:resume-session to the node that it was for."""
        assert self.captured is not None
        target, claims = self.captured
        self.connections.append(Connection(NOBODY, target, CLOSED_END, End(FRESH, (("resume", claims),))))

    def finish(self, p: int, reason: str) -> None:
        """Commits the tombstone and closes everything."""
        self.commit(p, status=reason)
        self.close_all(p, ATTACHED, ACCEPTED, DIALLED)

    def end_session(self, p: int, reason: str) -> None:
        """session.end(), or the time to live: tombstone, last ack, op:abort."""
        record = self.commit(p, status=reason)
        for c in self.ends_of(p, ATTACHED):
            if self.rules.ack_before_abort:
                self.send(p, c, ("ack", len(record.received)))
            self.send(p, c, ABORT)
        self.close_all(p, ATTACHED, ACCEPTED, DIALLED)

    def stop(self, p: int) -> None:
        """Stops loudly: the process ends, an operator looks."""
        self.close_all(p, FRESH, DIALLED, ACCEPTED, ATTACHED)
        self.note(p, running=False, heard=False, attempts=0, held=False)

    def crash(self, p: int, taken_back: str) -> None:
        """The process dies and starts again; of what it sent and nobody has read, some was never sent."""
        for c in self.ends_of(p, FRESH, DIALLED, ACCEPTED, ATTACHED):
            q = self.peer(p, c)
            if q != NOBODY and taken_back != "none":
                other = self.end(q, c)
                left = other.inbox[:-1] if taken_back == "last" else ()
                self.set_end(q, c, other._replace(inbox=left))
            self.close(p, c)
        self.note(p, heard=False, attempts=0, held=False)
        record = self.processes[p].record
        if not self.rules.sends_after_commit and record.acked < len(record.sent):
            self.commit(p, sent=record.sent[:-1])
        if not self.rules.acks_after_commit:
            self.commit(p, received=record.received[:-1])
        if self.processes[p].record.status == PROVISIONAL:
            self.commit(p, status=ENDED)

    def roll_back(self, p: int) -> None:
        process = self.processes[p]
        assert process.backup is not None
        self.processes[p] = process._replace(record=process.backup, backup=None, rolled_back=True)
        self.disturbed |= {process.node}

    def cut(self, c: int) -> None:
        """Both ends will read end of file, neither has yet."""
        connection = self.connections[c]
        near, far = (end if end.state == CLOSED else end._replace(inbox=(EOF,)) for end in connection[2:])
        self.connections[c] = Connection(connection.dialler, connection.listener, near, far)

    # Reading.

    def read(self, p: int, c: int) -> str:
        """Process p reads one item from connection c; returns what came of it."""
        end = self.end(p, c)
        message = end.inbox[0]
        self.set_end(p, c, end._replace(inbox=end.inbox[1:]))
        kind = message[0]
        if kind == "frame":
            return f"frame {message[1]}: {self.read_frame(p, c, message)}"
        if kind == "ack":
            return f"op:ack {message[1]}: {self.read_ack(p, c, message)}"
        if kind == "resume":
            return f"op:resume-session: {self.read_resume(p, c, message)}"
        if kind == "accept":
            return f"op:resume-accept: {self.read_accept(p, c, message)}"
        if kind == "confirm":
            return f"op:resume-confirm: {self.read_confirm(p, c)}"
        if kind == "refuse":
            return f"{REFUSAL}{message[1]}: {self.read_refuse(p, c, message)}"
        if kind == "op:abort":
            return f"op:abort: {self.read_abort(p, c)}"
        self.close(p, c)
        return "end of file"

    def refuse(self, p: int, c: int, reason: str) -> str:
        record = self.processes[p].record
        if reason == STALE and not self.disturbed:
            raise Violation(f"I5: {NAMES[p]} calls its one and only peer stale")
        received = None if reason == UNKNOWN else len(record.received)
        self.send(p, c, ("refuse", reason, received))
        self.close(p, c)
        return f"refuses `{reason}`"

    def refuse_if_over(self, p: int, c: int) -> str | None:
        """Without an open session: the tombstone's answer, or nothing known."""
        status = self.processes[p].record.status
        if status in TOMBSTONES:
            if not self.rules.tombstone_answers:
                self.close(p, c)
                return "closes without a word"
            return self.refuse(p, c, ENDED if status == UNKNOWN else status)
        if status not in (OPEN, PROVISIONAL):
            return self.refuse(p, c, UNKNOWN)
        return None

    def judge(self, p: int, claims: Claims) -> str | None:
        """Rule 3: whether the peer was rolled back, or I was, or the histories differ."""
        rules, mine = self.rules, self.processes[p].record
        received = len(mine.received)
        verdict: str | None = None
        if (rules.compares_epochs and claims.epoch < mine.proven) or (
            rules.compares_counts and (claims.sent < received or claims.received < mine.acked)
        ):
            verdict = YOU
        elif (rules.compares_epochs and claims.proven > mine.epoch) or (
            rules.compares_counts and (claims.received > len(mine.sent) or claims.acked > received)
        ):
            verdict = ME
        elif rules.compares_digest and mine.sent[: claims.received] != claims.digest:
            verdict = DIVERGED
        if verdict is None:
            return None
        if not self.disturbed:
            raise Violation(f"I5: a false alarm at {NAMES[p]}: {verdict}")
        node = self.processes[p].node
        blamed = {YOU: 1 - node, ME: node}.get(verdict)
        if blamed is not None and blamed not in self.disturbed:
            raise Violation(f"I5: {NAMES[p]} says {verdict}, but it was the other")
        return verdict

    def another_heard(self, p: int, c: int) -> bool:
        """Another connection of the session was heard from within 45 s."""
        if self.rules.heard_means == "open":
            return bool([other for other in self.ends_of(p, ATTACHED) if other != c])
        return self.processes[p].heard

    def alarm(self, p: int, c: int, verdict: str) -> str:
        """Ends the session by a verdict of rule 3, unless rule 10 says that the other is the stranger."""
        responds = self.end(p, c).state == ACCEPTED
        covered = {"older or diverged": (YOU, DIVERGED), "older": (YOU,), "never": ()}[self.rules.stale]
        if responds and verdict in covered and self.another_heard(p, c):
            return self.refuse(p, c, STALE)
        self.send(p, c, ("refuse", verdict, len(self.processes[p].record.received)))
        self.finish(p, verdict)
        if verdict == ME and not responds:
            self.stop(p)
        return f"alarm: {verdict}, tombstone"

    def read_resume(self, p: int, c: int, message: Message) -> str:
        rules = self.rules
        if self.end(p, c).state != FRESH:
            self.close(p, c)
            return "out of place, closes"
        over = self.refuse_if_over(p, c)
        if over is not None:
            return over
        process = self.processes[p]
        refuses = {"high": process.node == HIGH, "both": True, "nobody": False}[rules.crossed_refuses]
        attempts = process.attempts if process.node == HIGH else 1
        first = rules.crossed_attempts == "always" or attempts == 1
        if refuses and first and self.ends_of(p, DIALLED):
            return self.refuse(p, c, CROSSED)
        if not rules.lower_keeps_dial:
            self.close_all(p, DIALLED)
        claims = message[1]
        assert isinstance(claims, Claims)
        if rules.responder_judges_at == "resume":
            verdict = self.judge(p, claims)
            if verdict is not None:
                self.set_end(p, c, self.end(p, c)._replace(state=ACCEPTED))
                return self.alarm(p, c, verdict)
        if rules.replaces_at == "resume":
            self.close_all(p, ATTACHED)
        record = self.processes[p].record
        newest = {
            "above both": max(claims.epoch, record.epoch),
            "above the responder's": record.epoch,
            "above the initiator's": claims.epoch,
        }[rules.new_epoch]
        offer = Offer(newest + 1, claims, len(record.received))
        self.set_end(p, c, self.end(p, c)._replace(state=ACCEPTED, offer=offer))
        self.send(p, c, ("accept", offer.epoch, record.claims()))
        return "accepts"

    def read_accept(self, p: int, c: int, message: Message) -> str:
        rules = self.rules
        if self.end(p, c).state != DIALLED:
            self.close(p, c)
            return "out of place, closes"
        over = self.refuse_if_over(p, c)
        if over is not None:
            return over
        epoch, claims = message[1:]
        assert isinstance(epoch, int)
        assert isinstance(claims, Claims)
        verdict = self.judge(p, claims) if rules.initiator_judges else None
        if verdict is not None:
            return self.alarm(p, c, verdict)
        if rules.initiator_refuses_old_epoch and epoch <= self.processes[p].record.epoch:
            self.close(p, c)
            return "an old epoch, closes"
        if self.processes[p].forbids:
            return self.refuse(p, c, POLICY)
        if rules.epoch_before_confirm:
            self.commit(p, epoch=epoch)
        if rules.initiator_proves == "accept":
            self.commit(p, proven=epoch)
        self.send(p, c, ("confirm",))
        if rules.accept_is_heard:
            self.hears(p)
        expects = len(self.processes[p].record.received) + 1
        self.attach(p, c, claims, expects, responds=False)
        self.set_end(p, c, self.end(p, c)._replace(unheard=True, epoch=epoch))
        return "confirms and is attached"

    def read_confirm(self, p: int, c: int) -> str:
        rules = self.rules
        end = self.end(p, c)
        offer = end.offer
        if end.state != ACCEPTED or offer is None:
            self.close(p, c)
            return "out of place, closes"
        over = self.refuse_if_over(p, c)
        if over is not None:
            return over
        for question in rules.judging_order:
            record = self.processes[p].record
            if question == "old epoch" and offer.epoch <= record.epoch:
                self.close(p, c)
                return "an old epoch, closes"
            if question == "retry" and len(record.received) != offer.received:
                answer = self.refuse(p, c, RETRY)
                self.close_all(p, ATTACHED)
                return answer + ", closes both"
            if question == "rollback":
                verdict = self.judge(p, offer.claims)
                if verdict is not None:
                    return self.alarm(p, c, verdict)
            if question == "policy" and self.processes[p].forbids:
                return self.refuse(p, c, POLICY)
        record = self.processes[p].record
        if record.status == PROVISIONAL:
            if not rules.confirm_promotes:
                answer = self.refuse(p, c, ENDED)
                self.finish(p, ENDED)
                return answer + ", tombstone"
            self.commit(p, status=OPEN)
        if rules.responder_commits_epoch:
            self.commit(p, epoch=offer.epoch)
            if rules.responder_proves:
                self.commit(p, proven=offer.epoch)
        self.hears(p)
        self.attach(p, c, offer.claims, offer.received + 1, responds=True)
        return "is attached"

    def attach(self, p: int, c: int, claims: Claims, expects: int, *, responds: bool) -> None:
        if self.rules.attaching_closes_attached:
            self.close_all(p, ATTACHED, but=c)
        if self.rules.attaching_closes_pending:
            self.close_all(p, DIALLED, ACCEPTED, but=c)
        inbox = self.end(p, c).inbox
        self.set_end(p, c, End(ATTACHED, inbox, expects))
        acked = self.processes[p].record.acked
        if claims.received < acked:
            raise Violation(f"I2: {NAMES[p]} has to retransmit what has left its outbox")
        first = (claims.received if self.rules.numbers_from == "claims" else acked) + 1
        record = self.commit(p, acked=max(acked, claims.received), unknowns=0)
        self.note(p, attempts=0, held=False)
        if responds and self.rules.responder_acks_first:
            self.send(p, c, ("ack", len(record.received)))
        for number in range(first, len(record.sent) + 1):
            self.send(p, c, ("frame", number, record.sent[number - 1]))

    def hears(self, p: int) -> None:
        """Kept only where it can matter: nobody is a stranger in an undisturbed world."""
        if self.config.copied is not None or self.config.rollback:
            self.note(p, heard=True)

    def hear(self, p: int, c: int) -> None:
        """An ack or a frame on the attached connection: what the initiator confirmed is now proven."""
        self.hears(p)
        end = self.end(p, c)
        if not end.unheard:
            return
        self.set_end(p, c, end._replace(unheard=False, epoch=0))
        if not self.rules.epoch_before_confirm:
            self.commit(p, epoch=end.epoch)
        if self.rules.initiator_proves == "heard":
            self.commit(p, proven=end.epoch)

    def read_frame(self, p: int, c: int, message: Message) -> str:
        end = self.end(p, c)
        if end.state != ATTACHED:
            return "discarded"
        self.hear(p, c)
        true_number, content = message[1:]
        assert isinstance(content, str)
        number = end.number
        if number != true_number:
            raise Violation(f"I1: {NAMES[p]} counts frame {true_number} as {number}")
        self.set_end(p, c, self.end(p, c)._replace(number=number + 1))
        record = self.processes[p].record
        if number <= len(record.received):
            return "a duplicate, dropped"
        if number > len(record.received) + 1:
            raise Violation(f"I1: a gap at {NAMES[p]} before frame {number}")
        record = self.commit(p, received=record.received + content)
        if content == ASK:
            if self.config.negotiation == "accept":
                self.commit(p, status=PROVISIONAL if self.rules.provisional else OPEN)
                self.make_message(p, ANSWER)
                self.send(p, c, ("ack", len(record.received)))
                return "commits the session, answers"
            self.make_message(p, BROKEN)
            return "the answer is broken"
        if content == ANSWER and record.status == ASKING:
            self.commit(p, status=OPEN)
        elif content == ANSWER and self.rules.late_answer_aborts:
            self.send(p, c, ABORT)
            self.close(p, c)
            return "a late answer, aborts"
        elif content == BROKEN:
            self.commit(p, status=ORDINARY)
        if self.processes[p].record.status in (OPEN, PROVISIONAL):
            if self.config.late_acks and content != ANSWER:
                self.set_end(p, c, self.end(p, c)._replace(owes=True))
            else:
                self.send(p, c, ("ack", len(record.received)))
        return "taken"

    def acknowledge(self, p: int) -> None:
        for c in self.ends_of(p, ATTACHED):
            if self.end(p, c).owes:
                self.send(p, c, ("ack", len(self.processes[p].record.received)))
                self.set_end(p, c, self.end(p, c)._replace(owes=False))

    def read_ack(self, p: int, c: int, message: Message) -> str:
        if self.end(p, c).state != ATTACHED:
            return "discarded"
        self.hear(p, c)
        count = message[1]
        assert isinstance(count, int)
        record = self.processes[p].record
        if count > len(record.sent):
            raise Violation(f"I2: {NAMES[p]} reads an ack above what it has sent")
        status = OPEN if record.status == PROVISIONAL else record.status
        self.commit(p, acked=max(count, record.acked), status=status)
        return "noted"

    def read_refuse(self, p: int, c: int, message: Message) -> str:
        rules, end = self.rules, self.end(p, c)
        reason, received = message[1:]
        assert isinstance(reason, str)
        if end.state == ATTACHED and not (end.unheard and rules.heeds_refuse_until_ack):
            return "discarded"
        if end.state not in (DIALLED, ACCEPTED, ATTACHED):
            self.close(p, c)
            return "out of place, closes"
        record = self.processes[p].record
        responds = end.state == ACCEPTED
        self.close(p, c)
        if record.status not in (OPEN, PROVISIONAL) or reason in (RETRY, CROSSED):
            return "noted"
        if reason == POLICY:
            self.note(p, held=rules.policy_holds_dials and not responds)
            return "stays suspended"
        if reason == STALE:
            self.stop(p)
            return "stops loudly"
        if reason == UNKNOWN:
            if not rules.unknown_ends:
                return "not believed"
            tries = record.unknowns + 1
            if self.config.proven_addresses or tries == 3:
                self.commit(p, unknowns=0)
                self.finish(p, UNKNOWN)
                return "tombstone"
            self.commit(p, unknowns=tries)
            return f"try {tries} of three"
        ignored = {"older or diverged": (ME, DIVERGED), "older": (ME,), "never": ()}[rules.stale]
        if responds and reason in ignored and not rules.heeds_strangers and self.another_heard(p, c):
            return "of a stranger, ignored"
        assert isinstance(received, int)
        self.commit(p, acked=max(record.acked, min(received, len(record.sent))))
        self.finish(p, LEARNT[reason])
        return "tombstone"

    def read_abort(self, p: int, c: int) -> str:
        if self.end(p, c).state != ATTACHED:
            self.close(p, c)
            return "out of place, closes"
        record = self.processes[p].record
        if record.status in (ASKING, ORDINARY):
            self.close(p, c)
            return "an ordinary end"
        q = self.processes[self.peer(p, c)].record
        if q.status == ENDED and not self.disturbed and record.acked != len(q.received):
            raise Violation(
                f"I2: {NAMES[p]} reads op:abort, and believes {record.acked} delivered of {len(q.received)}"
            )
        self.finish(p, ENDED)
        return "tombstone"

    # What must hold.

    def freeze(self) -> Core:
        """The state reached, canonical; the invariants that speak of states are checked on the way."""
        if any(a.state == CLOSED and b.state == CLOSED for _, _, a, b in self.connections):
            self.connections = [
                k for k in self.connections if k.near.state != CLOSED or k.far.state != CLOSED
            ]
        base = min(min(q.record.epoch, q.record.proven) for q in self.processes)
        if base > 0:
            self.count_epochs_from(base)
        self.check()
        return self.core()

    def core(self) -> Core:
        return Core(tuple(self.processes), tuple(self.connections), self.disturbed, self.captured)

    def check(self) -> None:
        attached = [0] * len(self.processes)
        for k in self.connections:
            near, far = k.near.state == ATTACHED, k.far.state == ATTACHED
            attached[k.dialler] += near
            attached[k.listener] += far
            if near and far:
                a, b = self.processes[k.dialler].record, self.processes[k.listener].record
                if not a.sent.startswith(b.received) or not b.sent.startswith(a.received):
                    raise Violation("I5: a connection is attached at both ends with unequal histories")
        if max(attached) > 1:
            raise Violation("I4: two connections are attached at one process")
        if self.disturbed:
            return
        for p in (LOW, HIGH):
            mine, theirs = self.processes[p].record, self.processes[1 - p].record
            if GONE in (mine.status, theirs.status) or ERASED in (mine.status, theirs.status):
                continue
            if not mine.sent.startswith(theirs.received):
                raise Violation(f"I1: what {NAMES[1 - p]} took is no prefix of what {NAMES[p]} sent")
            if mine.acked > len(theirs.received):
                raise Violation(f"I2: {NAMES[p]} holds more for acknowledged than {NAMES[1 - p]} has")

    def count_epochs_from(self, base: int) -> None:
        def of_record(record: Record) -> Record:
            return record._replace(epoch=record.epoch - base, proven=record.proven - base)

        def of_claims(claims: Claims) -> Claims:
            return claims._replace(epoch=claims.epoch - base, proven=claims.proven - base)

        def of_message(message: Message) -> Message:
            if message[0] == "resume" and isinstance(message[1], Claims):
                return ("resume", of_claims(message[1]))
            if message[0] == "accept" and isinstance(message[1], int) and isinstance(message[2], Claims):
                return ("accept", message[1] - base, of_claims(message[2]))
            return message

        def of_end(end: End) -> End:
            offer = end.offer
            if offer is not None:
                offer = Offer(offer.epoch - base, of_claims(offer.claims), offer.received)
            return end._replace(
                inbox=tuple(map(of_message, end.inbox)),
                offer=offer,
                epoch=end.epoch - base if end.unheard else 0,
            )

        self.processes = [
            q._replace(record=of_record(q.record), backup=q.backup and of_record(q.backup))
            for q in self.processes
        ]
        self.connections = [Connection(k[0], k[1], of_end(k.near), of_end(k.far)) for k in self.connections]
        self.captured = self.captured and (self.captured[0], of_claims(self.captured[1]))


class Explorer:
    """The actions of a configuration under some rules, and its fair runs."""

    def __init__(self, config: Config, rules: Rules) -> None:
        self.config = config
        self.rules = rules
        self.fair_outcomes: dict[Core, tuple[str, ...]] = {}
        self.doing = ""  # for the last line of a trace
        self.fair_trace: list[str] = []

    def world(self, core: Core) -> World:
        return World(core, self.config, self.rules)

    def start(self) -> State:
        """Connected and quiet; with negotiation, low has just asked."""
        config = self.config
        backups = [Record() if node in config.rollback else None for node in (LOW, HIGH)]
        heard = bool(config.rollback) or config.copied is not None
        records, inbox = [Record(), Record()], ()
        far = End(ATTACHED, number=1)
        if config.negotiation:
            records = [Record(ASKING, sent=ASK), Record(ORDINARY)]
            far = End(ATTACHED, (("frame", 1, ASK),), 1)
        core = Core(
            tuple(Process(node, records[node], backups[node], heard=heard) for node in (LOW, HIGH)),
            (Connection(LOW, HIGH, End(ATTACHED, inbox, 1), far),),
            frozenset(),
        )
        return State(
            core, config.faults, config.dials, int(bool(config.ends)), config.policies, int(config.replay)
        )

    # What may happen next.

    def successors(self, state: State) -> Iterator[tuple[str, State]]:
        """Reads come first: the first successor of a state that is not quiet is a read."""
        for text, core in self.reads(state.core):
            yield text, state._replace(core=core)
        for p in range(len(state.core.processes)):
            yield from self.own_actions(state, p)
        if state.faults:
            yield from self.faults(state)
        if state.replays and state.core.captured and len(state.core.connections) < self.config.connections:
            world = self.world(state.core)
            world.replay()
            yield (
                "the attacker replays the first op:resume-session",
                state._replace(core=world.freeze(), replays=0),
            )

    def reads(self, core: Core) -> Iterator[tuple[str, Core]]:
        for c, connection in enumerate(core.connections):
            for p, q, end in (
                (connection.dialler, connection.listener, connection.near),
                (connection.listener, connection.dialler, connection.far),
            ):
                if end.inbox:
                    world, text = self.read_one(core, p, q, c)
                    yield text, world.freeze()

    def read_one(self, core: Core, p: int, q: int, c: int) -> tuple[World, str]:
        world = self.world(core)
        text = f"{NAMES[p]} reads from {NAMES[q]} on connection {c}: "
        self.doing = f"{text}{ON_THE_WIRE[str(world.end(p, c).inbox[0][0])]}"
        text += world.read(p, c)
        self.doing = text
        self.check_original(core, world, p, q)
        self.check_attacker(core, world, p, q)
        return world, text

    def check_attacker(self, before: Core, world: World, p: int, q: int) -> None:
        """Rule 5: what an attacker replays closes nothing and ends nothing."""
        if q != NOBODY or not self.config.replay:
            return
        was = self.world(before)
        if was.ends_of(p, ATTACHED, DIALLED) != world.ends_of(p, ATTACHED, DIALLED):
            raise Violation(f"I5: a replayed first message evicts a connection of {NAMES[p]}")
        if before.processes[p].record != world.processes[p].record:
            raise Violation(f"I5: a replayed first message changes the disk of {NAMES[p]}")

    def check_original(self, before: Core, world: World, p: int, q: int) -> None:
        """I5 with a copy about: what the one of two processes says does not end the session of the other."""
        if self.config.copied is None or len(before.processes) < 3 or p not in (LOW, HIGH):
            return
        was, now = before.processes[p], world.processes[p]
        if was.record.status != OPEN or now.record.status == OPEN or q == NOBODY:
            return
        for k in before.connections:
            if k.near.state == ATTACHED == k.far.state and p in (k.dialler, k.listener) and q not in k[:2]:
                raise Violation(f"I5: {NAMES[q]} ends the session that {NAMES[p]} has with the other process")
        original = before.processes[self.config.copied]
        if q == COPY and was.heard and original.running and original.record.status == OPEN:
            asked = self.world(before)
            if asked.judge(p, original.record.claims()) is None:
                raise Violation(f"I5: the copy ends the session that {NAMES[p]} has with the original")

    def can_dial(self, core: Core, p: int) -> bool:
        process = core.processes[p]
        target = 1 - process.node
        return (
            process.running
            and process.record.status == OPEN
            and not process.held
            and self.config.listens[target]
            and core.processes[target].running
        )

    def own_actions(self, state: State, p: int) -> Iterator[tuple[str, State]]:
        config, core, name = self.config, state.core, NAMES[p]
        process = core.processes[p]
        status = process.record.status
        if not process.running:
            return
        world = self.world(core)
        attached = world.attached(p)
        owes = attached is not None and world.end(p, attached).owes

        def done(text: str, **budget: int) -> tuple[str, State]:
            self.doing = f"{name} {text}"
            return f"{name} {text}", state._replace(core=world.freeze(), **budget)

        if status in RUNNING and len(process.record.sent) < config.messages[process.node]:
            content = BY_COPY if p == COPY else AFTER_ROLLBACK if process.rolled_back else ORIGINAL
            world.make_message(p, content)
            yield done(f"makes message {len(process.record.sent) + 1}")
        if (
            state.dials
            and len(core.connections) < config.connections
            and self.can_dial(core, p)
            and (attached is None or config.redials)
        ):
            world = self.world(core)
            world.dial(p)
            yield done("dials and sends op:resume-session", dials=state.dials - 1)
        if status == ASKING:
            world = self.world(core)
            world.commit(p, status=ORDINARY)
            yield done("waits no longer for the answer")
        if state.ends and process.node in config.ends and status in (OPEN, PROVISIONAL):
            world = self.world(core)
            world.end_session(p, ENDED)
            yield done("ends the session", ends=0)
            if config.expires and attached is None:
                world = self.world(core)
                world.end_session(p, EXPIRED)
                yield done("lets the session expire", ends=0)
        if config.erases and status in TOMBSTONES:
            world = self.world(core)
            world.processes[p] = process._replace(record=Record(ERASED))
            yield done("erases its tombstone")
        if process.backup is not None and process.backup != process.record and not self.disturbed(core):
            world = self.world(core)
            world.note(p, backup=process.record)
            yield done("takes a backup")
        if p == config.copied and len(core.processes) == 2 and status == OPEN:
            world = self.world(core)
            world.processes.append(Process(process.node, process.record))
            world.disturbed |= {process.node}
            yield done("has its disk copied")
        if process.heard and attached is None:
            world = self.world(core)
            world.note(p, heard=False)
            yield done("has heard nothing for 45 s")
        if owes:
            world = self.world(core)
            world.acknowledge(p)
            yield done("acknowledges what it has taken")
        if process.held:
            world = self.world(core)
            world.note(p, held=False)
            yield done("is told by the application to try again")
        if state.policies and status == OPEN:
            world = self.world(core)
            world.note(p, forbids=not process.forbids)
            yield done(
                "allows the session" if process.forbids else "forbids the session",
                policies=state.policies - 1,
            )

    @staticmethod
    def disturbed(core: Core) -> bool:
        return bool(core.disturbed)

    def faults(self, state: State) -> Iterator[tuple[str, State]]:
        core, left = state.core, state.faults - 1
        for c in range(len(core.connections)):
            world = self.world(core)
            world.cut(c)
            yield f"connection {c} is cut", state._replace(core=world.freeze(), faults=left)
        if not self.config.crashes:
            return
        for p, process in enumerate(core.processes):
            if not process.running:
                continue
            seen: set[Core] = set()
            for taken_back in ("none", "last", "all"):
                self.doing = f"{NAMES[p]} crashes; of what it sent, taken back: {taken_back}"
                world = self.world(core)
                world.crash(p, taken_back)
                after = world.freeze()
                if after not in seen:
                    seen.add(after)
                    yield self.doing, state._replace(core=after, faults=left)
            if process.backup is not None and process.backup != process.record and not core.disturbed:
                world = self.world(core)
                world.crash(p, "all")
                world.roll_back(p)
                yield (
                    f"{NAMES[p]} is set back to its backup",
                    state._replace(core=world.freeze(), faults=left),
                )

    # Fair runs.

    def fair_runs(self, core: Core) -> tuple[str, ...]:
        """The outcome of each schedule from a quiet state."""
        known = self.fair_outcomes.get(core)
        if known is None:
            known = tuple(self.fair_run(core, schedule) for schedule in self.config.schedules)
            self.fair_outcomes[core] = known
            self.fair_trace = []
        return known

    def fair_run(self, core: Core, schedule: str) -> str:
        self.fair_trace = [f"-- fair run, schedule `{schedule}`"]
        for turn in range(12):
            outcome = self.settled(core)
            if outcome is not None:
                return outcome
            self.fair_trace.append(f"-- round {turn + 1}: time passes, dead connections are closed")
            core = self.time_passes(core)
            first = turn == 0
            diallers = [p for p in range(len(core.processes)) if self.can_dial(core, p)]
            diallers = [p for p in diallers if self.world(core).attached(p) is None]
            crossing = (
                schedule == "both"
                and first
                and not core.disturbed
                and diallers == [LOW, HIGH]
                and not core.processes[HIGH].attempts
            )
            if schedule == "high lost":
                chosen = sorted(diallers, reverse=True)
            elif schedule == "both" and first:
                chosen = diallers
            else:
                place = (turn + (schedule == "high")) % len(core.processes)
                order = [*range(place, len(core.processes)), *range(place)]
                chosen = [p for p in order if p in diallers][:1]
            world = self.world(core)
            for p in chosen:
                self.doing = f"{NAMES[p]} dials and sends op:resume-session"
                self.fair_trace.append(self.doing)
                world.dial(p, arrives=not (schedule == "high lost" and p == HIGH))
            core = self.drain(world.freeze())
            if crossing and all(
                k.near.state != ATTACHED or k.far.state != ATTACHED for k in core.connections
            ):
                raise Violation("rule 7: two first attempts that cross come to nothing")
        again = [i for i, text in enumerate(self.fair_trace) if text.startswith("-- round 4")]
        self.fair_trace[again[0] :] = ["-- and so on, round after round"]
        self.doing = ""
        raise Violation(f"I6: the fair run `{schedule}` does not end")

    def drain(self, core: Core) -> Core:
        """Everything is read in lock-step: in each pass, what was there when the pass began."""
        for _ in range(100):
            there = [
                (c, p, q, len(end.inbox))
                for c, k in enumerate(core.connections)
                for p, q, end in ((k.dialler, k.listener, k.near), (k.listener, k.dialler, k.far))
                if end.inbox
            ]
            if not there:
                return core
            for c, p, q, count in there:
                for _ in range(count):
                    if self.world(core).end(p, c).inbox:
                        world, text = self.read_one(core, p, q, c)
                        self.fair_trace.append(text)
                        world.check()
                        core = world.core()
            core = self.world(core).freeze()
        raise Violation("I6: messages go to and fro without end")

    def time_passes(self, core: Core) -> Core:
        """What is not a live connection times out; applications and operators do their part."""
        world = self.world(core)
        for c, k in enumerate(core.connections):
            ordinary = [core.processes[p].record.status == ORDINARY for p in k[:2] if p != NOBODY]
            if k.near.state == ATTACHED == k.far.state and len(set(ordinary)) == 1:
                continue
            for p in k[:2]:
                if p != NOBODY:
                    world.close(p, c)
        core = self.drain(world.freeze())
        world = self.world(core)
        for p, process in enumerate(core.processes):
            world.acknowledge(p)
            world.note(p, forbids=False, held=False, heard=process.heard and world.attached(p) is not None)
            others = [q for i, q in enumerate(core.processes) if i != p and q.node == process.node]
            alone = not any(q.running and q.record.status in RUNNING for q in others)
            if not process.running and alone:
                world.note(p, running=True)
                break
        return self.drain(world.freeze())

    def settled(self, core: Core) -> str | None:
        """How it ended, if it has: live, all acknowledged; or over on every side."""
        others = [p for p, q in enumerate(core.processes) if q.record.status in RUNNING]
        if not others:
            return "ended: " + " / ".join(q.record.status for q in core.processes[:2])
        for k in core.connections:
            if k.near.state != ATTACHED or k.far.state != ATTACHED:
                continue
            a, b = core.processes[k.dialler].record, core.processes[k.listener].record
            whole = a.sent == b.received and b.sent == a.received
            acked = a.acked == len(a.sent) and b.acked == len(b.sent)
            if any(core.processes[p].running for p in others if p not in k[:2]):
                continue
            who = ", copy" if COPY in k[:2] else ""
            stopped = ", the other stopped" if len(others) > 2 else ""
            if a.status == b.status == OPEN and whole and acked:
                return f"live{who}{stopped}"
            if a.status == b.status == ORDINARY and whole:
                return "live, ordinary"
        return None


@dataclass
class Result:
    """What a search found."""

    config: Config
    states: int = 0
    transitions: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)  # read, by reason and what came of it
    violation: str = ""
    trace: list[str] = field(default_factory=list)
    complete: bool = True


def search(config: Config, rules: Rules | None = None, limit: int = 5_000_000) -> Result:
    """Breadth first, to the end or to `limit` states; stops at the first violation."""
    explorer = Explorer(config, rules or Rules())
    result = Result(config)
    start = explorer.start()
    states = [start]
    index = {start: 0}
    origins: list[tuple[int, str]] = [(-1, "")]
    after_read: list[int] = []  # of a state that is not quiet: where its first read leads
    runs: dict[int, tuple[str, ...]] = {}  # of a quiet state: the outcomes of its fair runs
    at = 0
    try:
        while at < len(states):
            state = states[at]
            quiet = True
            explorer.doing = ""
            for k in state.core.connections:
                if k.near.inbox or k.far.inbox:
                    quiet = False
                    break
            if quiet:
                runs[at] = explorer.fair_runs(state.core)
            after_read.append(-1)
            for text, successor in explorer.successors(state):
                result.transitions += 1
                if REFUSAL in text:
                    result.refusals[text.partition(REFUSAL)[2]] += 1
                to = index.get(successor)
                if to is None:
                    to = index[successor] = len(states)
                    states.append(successor)
                    origins.append((at, text))
                if not quiet and after_read[at] < 0:
                    after_read[at] = to
            at += 1
            if len(states) > limit:
                result.complete = False
                break
    except Violation as violation:
        result.violation = str(violation)
        last = explorer.fair_trace
        if explorer.doing and explorer.doing not in last[-1:]:
            last = [*last, explorer.doing]
        result.trace = trace_to(origins, at) + last
    result.states = len(states)
    if result.complete and not result.violation:
        inherit(result, after_read, runs, origins)
    return result


def trace_to(origins: list[tuple[int, str]], at: int) -> list[str]:
    trace: list[str] = []
    while at > 0:
        at, text = origins[at]
        trace.append(text)
    return trace[::-1]


def inherit(
    result: Result,
    after_read: list[int],
    runs: dict[int, tuple[str, ...]],
    origins: list[tuple[int, str]],
) -> None:
    """Every state has the outcomes of the quiet state that its reads lead to; a circle of reads has none."""
    for first in range(len(after_read)):
        path: list[int] = []
        at = first
        while at not in runs and len(path) <= len(after_read):
            path.append(at)
            at = after_read[at]
        if at not in runs:
            result.violation = "I6: messages go to and fro without end"
            result.trace = trace_to(origins, first)
            return
        for state in path:
            runs[state] = runs[at]
        result.outcomes.update(runs[first])


CONFIGS = (
    Config("resume", "cuts and crashes at any point", faults=2, dials=2),
    Config("redial", "dials while the old connection still delivers", faults=1, dials=2, connections=3,
           redials=True, crashes=False),
    Config("crossed", "dials that cross; what high dials may never arrive", (1, 0), faults=1, dials=3,
           connections=3, schedules=("low", "high", "both", "high lost")),
    Config("replay", "the first op:resume-session is replayed", (1, 0), faults=1, dials=2, connections=3,
           replay=True),
    Config("policy", "a node changes its mind about resuming", (1, 0), faults=1, dials=2, policies=2),
    Config("ends", "session.end(), expiry, erased tombstones", faults=1, dials=1, ends=(LOW, HIGH),
           expires=True, erases=True),
    Config("ends-late-acks", "session.end() with acks outstanding", (2, 1), dials=0, faults=1,
           ends=(LOW, HIGH), late_acks=True),
    Config("ends-unproven", "the same, addresses unproven: `unknown` thrice", (1, 0), faults=1, dials=3,
           ends=(LOW, HIGH), expires=True, erases=True, proven_addresses=False),
    Config("negotiation", "ask, answer, provisional, late answer", (2, 2), faults=1, dials=2,
           negotiation="accept"),
    Config("dial-only", "the same, and nobody can dial the asker", (2, 2), faults=1, dials=2,
           negotiation="accept", listens=(False, True)),
    Config("broken-ask", "the ask is broken: an ordinary session", (2, 2), faults=1, dials=1,
           negotiation="break"),
    Config("rollback", "low is set back to a backup", faults=1, dials=2, rollback=(LOW,)),
    Config("copy", "a copy of low dials while low lives", (2, 0), dials=2, connections=3, copied=LOW,
           crashes=False),
    Config("copy-both", "the same, with messages both ways", dials=2, connections=3, copied=LOW,
           crashes=False),
)  # fmt: skip

# For `--long`, and some mutants.
LARGER = (
    Config("resume-3", "three faults", faults=3, dials=3),
    Config("resume-messages", "two messages each way", (2, 2), faults=1, dials=2),
    Config("redial-crash", "redials, with crashes", (1, 0), faults=2, dials=2, connections=3, redials=True),
    Config("crossed-both", "dials that cross, messages both ways", faults=1, dials=3, connections=3),
    Config("rollback-high", "high is set back", (1, 0), faults=2, dials=2, rollback=(HIGH,)),
    Config("rollback-either", "either is set back", faults=1, dials=2, rollback=(LOW, HIGH)),
    Config("copy-cut", "a copy of low, and a cut", (1, 0), faults=1, dials=2, connections=3, copied=LOW,
           crashes=False),
    Config("copy-cut-both", "a copy of low, a cut, messages both ways", faults=1, dials=2, connections=3,
           copied=LOW, crashes=False),
    Config("copy-high", "a copy of high, and a cut", (1, 0), faults=1, dials=2, connections=3, copied=HIGH,
           crashes=False),
    Config("ends-crash", "ends, two faults, addresses unproven", faults=2, dials=2, ends=(LOW, HIGH),
           expires=True, erases=True, proven_addresses=False),
    Config("negotiation-2", "negotiation, two faults", (2, 2), faults=2, dials=2, negotiation="accept"),
    Config("policy-both", "policies, two faults", faults=2, dials=2, policies=2),
)  # fmt: skip
