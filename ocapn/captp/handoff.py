"""Third-party handoffs: gifts, and the checks of the certificates (CapTP specification, Third Party Handoffs).

The gifter deposits a gift with the exporter and sends the receiver a signed give in place of the reference; the
receiver signs a claim on it and withdraws the gift. Deposit and withdrawal come in either order. A gift is
withdrawn once, by its receiver alone; it waits, as a withdrawal does, for the gift's life, also when the session
through which it was deposited has ended since.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, final

from ocapn.captp.delivery import PENDING, Vow, broken
from ocapn.captp.handles import LocalTarget
from ocapn.codec.operations import OPERATIONS, Envelope, Give, Receive
from ocapn.codec.syrup import Decoder
from ocapn.crypto import SessionKey, sign_receive, verify_envelope
from ocapn.errors import Backpressure, ConnectFailed, OCapNError, RemoteError, SessionEnded, TooBusy
from ocapn.limits import Limits
from ocapn.model.values import Symbol

if TYPE_CHECKING:
    from ocapn.captp.node import Node
    from ocapn.captp.session import Session

WITHDRAW_GIFT = Symbol("withdraw-gift")
DEPOSIT_GIFT = Symbol("deposit-gift")

#: Gifts of ended sessions that are kept, in limits of one session.
_OUTLIVING: Final = 10

#: After so many seconds an exporter who was not there is tried again, and then each time after twice as many.
_AGAIN: Final = 5.0

#: Handoff counts that are told apart. Peers count up, so those far below the highest are not to be expected.
_COUNTS: Final = 1000

_GiftKey = tuple[bytes, bytes]  # gifter-exporter session id, gift id


@final
class HandoffCounts:
    """The counts in the withdrawals of one session: none is used twice.

    `next` is ours. Of the peer's, all below `floor` are used, and those in `used`.
    """

    __slots__ = ("floor", "next", "used")

    def __init__(self) -> None:
        self.next = 0
        self.floor = 0
        self.used: set[int] = set()

    def draw(self) -> int:
        """One of ours."""
        self.next += 1
        return self.next - 1

    def use(self, count: int) -> bool:
        """Whether the peer had not used `count` before. Only so many of the highest are told apart."""
        used = self.used
        if count < self.floor or count in used:
            return False
        used.add(count)
        if len(used) > 2 * _COUNTS:
            self.floor = sorted(used)[-_COUNTS]
            self.used = {one for one in used if one >= self.floor}
        return True


@final
class Certificate:
    """An encoded envelope of ours, to be sent as it is."""

    __slots__ = ("wire",)

    def __init__(self, wire: bytes) -> None:
        self.wire = wire


@final
class _Deposit:
    __slots__ = ("gift", "until")

    def __init__(self, gift: LocalTarget, until: float) -> None:
        self.gift = gift
        self.until = until


@final
class _Withdrawal:
    __slots__ = ("through", "until", "vow")

    def __init__(self, vow: Vow, through: bytes, until: float) -> None:
        self.vow = vow
        self.through = through  # id of the session that withdraws
        self.until = until


@final
class Gifts:
    """The exporter's gifts: deposited and not yet withdrawn, withdrawn and not yet deposited."""

    def __init__(self, node: Node, limits: Limits) -> None:
        self._node = node
        self._limits = limits
        self._deposits: dict[_GiftKey, _Deposit] = {}
        self._withdrawals: dict[_GiftKey, _Withdrawal] = {}
        self._deposited: dict[bytes, int] = {}  # how many gifts wait, by gifter session
        self._withdrawing: dict[bytes, int] = {}  # how many withdrawals wait, by receiving session
        self._outliving = 0  # how many gifts wait whose session has ended
        self._again: list[tuple[float, Callable[[], None]]] = []  # when, and what was tried in vain

    def deposit(self, session: Session, gift_id: object, gift: object) -> None:
        """`deposit-gift` from the gifter. Raises RemoteError, which is logged: nobody waits for an answer."""
        if type(gift_id) is not bytes or not 1 <= len(gift_id) <= 64:
            raise RemoteError("deposit-gift takes a gift id of 1 to 64 bytes")
        if not isinstance(gift, LocalTarget):
            raise RemoteError("deposit-gift takes an object that this peer exported")
        key = (session.id, gift_id)
        if key in self._deposits:
            raise RemoteError("that gift id is in use")
        waiting = self._withdrawals.pop(key, None)
        if waiting is not None:
            _less(self._withdrawing, waiting.through)
            waiting.vow.resolve(gift)
            return
        if self._deposited.get(session.id, 0) >= self._limits.gifts:
            raise RemoteError(f"{self._limits.gifts} gifts wait already, the limit of a session")
        self.restore(key, gift, self._node.now() + self._limits.gift_life)
        if self._node.keeper is not None:
            self._node.keeper.deposited(session.id, gift_id, gift, self._limits.gift_life)

    def restore(self, key: _GiftKey, gift: LocalTarget, until: float) -> None:
        """A gift that was deposited through a session, which may have ended since, waits until then."""
        self._deposits[key] = _Deposit(gift, until)
        self._deposited[key[0]] = self._deposited.get(key[0], 0) + 1
        if not self._node.is_live(key[0]):
            self._outliving += 1

    def withdraw(self, session: Session, envelope: object) -> Vow:
        """`withdraw-gift` from the receiver: the gift, at once or when it comes, or a broken vow."""
        try:
            if not isinstance(envelope, Envelope) or not isinstance(envelope.signed, Receive):
                raise RemoteError("withdraw-gift takes a signed desc:handoff-receive")
            receive = envelope.signed
            if receive.session != session.id or receive.side != session.peer_id:
                raise RemoteError("the handoff-receive is for another session")
            give = self._checked(receive.give)
            if not verify_envelope(envelope, give.receiver_key):
                raise RemoteError("the handoff-receive is not signed by the receiver that the give names")
            if session.ended is not None:
                raise RemoteError("the session has ended")
            if not session.handoffs.use(receive.count):
                raise RemoteError("the handoff count was used before in this session")
            return self._take(give, session.id)
        except RemoteError as error:
            return broken(self._node, error)

    def claim_own(self, session: Session, envelope: Envelope) -> Vow:
        """A give came to us whose exporter we are: the gift, without a session to withdraw it through."""
        try:
            return self._take(self._checked(envelope), session.id)
        except RemoteError as error:
            return broken(self._node, error)

    def _checked(self, envelope: Envelope) -> Give:
        give = envelope.signed
        assert isinstance(give, Give)
        if not self._node.is_own(give.exporter):
            raise RemoteError("the handoff-give names another exporter")
        gifter = self._node.past_session(give.session)
        if gifter is None:
            raise RemoteError("no session between gifter and exporter has that id")
        if give.gifter_side != gifter.peer_id:
            raise RemoteError("the gifter's side is not that of the session")
        if not verify_envelope(envelope, gifter.peer_key):
            raise RemoteError("the handoff-give is not signed by the gifter")
        return give

    def _take(self, give: Give, through: bytes) -> Vow:
        key = (give.session, give.gift_id)
        deposit = self._deposits.get(key)
        vow = Vow(self._node)
        if deposit is not None:
            self._forget(key)
            vow.resolve(deposit.gift)
        elif key in self._withdrawals:
            raise RemoteError("that gift is being withdrawn already")
        elif not self._node.is_live(give.session):
            raise RemoteError("the gift can no longer come: its session has ended")
        elif self._withdrawing.get(through, 0) >= self._limits.gifts:
            raise RemoteError(f"{self._limits.gifts} withdrawals wait already, the limit of a session")
        else:
            self._wait(key, vow, through, self._node.now() + self._limits.gift_life)
            if self._node.keeper is not None:
                self._node.keeper.withdraws(vow, key, through, self._limits.gift_life)
        return vow

    def _wait(self, key: _GiftKey, vow: Vow, through: bytes, until: float) -> None:
        self._withdrawals[key] = _Withdrawal(vow, through, until)
        self._withdrawing[through] = self._withdrawing.get(through, 0) + 1

    def restore_withdrawal(self, key: _GiftKey, vow: Vow, through: bytes, until: float) -> None:
        """`vow` waits for a gift until then, unless a session that it needs has ended since."""
        node = self._node
        if node.is_live(key[0]) and node.is_live(through):
            self._wait(key, vow, through, until)
        else:
            vow.break_with(RemoteError("the gift can no longer come: its session has ended"))

    def session_ended(self, session_id: bytes) -> None:
        """Withdrawals of gifts that this session was to deposit break; those it made are dropped."""
        for key, waiting in list(self._withdrawals.items()):
            if key[0] == session_id or waiting.through == session_id:
                self._give_up(key, "the gift can no longer come: its session has ended")
        self._outliving += self._deposited.get(session_id, 0)
        if self._outliving > _OUTLIVING * self._limits.gifts:
            for key in list(self._deposits):  # the oldest first
                if not self._node.is_live(key[0]):
                    self._forget(key)
                    if 2 * self._outliving <= _OUTLIVING * self._limits.gifts:
                        break

    def _forget(self, key: _GiftKey) -> None:
        """The gift is withdrawn, or has waited too long."""
        del self._deposits[key]
        _less(self._deposited, key[0])
        if not self._node.is_live(key[0]):
            self._outliving -= 1
        if self._node.keeper is not None:
            self._node.keeper.withdrawn(*key)

    def try_again(self, session_id: bytes, what: Callable[[], None], delay: float) -> bool:
        """`what` is called in so many seconds; not if its session has ended, and too many wait already."""
        if len(self._again) >= self._limits.gifts and not self._node.is_live(session_id):
            return False
        self._again.append((self._node.now() + delay, what))
        return True

    def expire(self, now: float) -> None:
        """Drops gifts, and breaks withdrawals, that have waited for the gift's life."""
        due = [what for at, what in self._again if at <= now]
        self._again = [one for one in self._again if one[0] > now]
        for what in due:
            what()
        for key, deposit in list(self._deposits.items()):
            if deposit.until <= now:
                self._forget(key)
        for key, waiting in list(self._withdrawals.items()):
            if waiting.until <= now:
                self._give_up(key, "the gift did not come in time")

    def _give_up(self, key: _GiftKey, why: str) -> None:
        waiting = self._withdrawals.pop(key)
        _less(self._withdrawing, waiting.through)
        waiting.vow.break_with(RemoteError(why))

    def counts(self, session_id: bytes) -> tuple[int, int]:
        """Gifts deposited through a session that still wait, and withdrawals made through it that do."""
        return self._deposited.get(session_id, 0), self._withdrawing.get(session_id, 0)

    def check(self) -> None:
        """Raises AssertionError if the counts are not those of the tables."""
        for counts, ids in (
            (self._deposited, [key[0] for key in self._deposits]),
            (self._withdrawing, [waiting.through for waiting in self._withdrawals.values()]),
        ):
            assert counts == {one: ids.count(one) for one in ids}, "a count of gifts is wrong"
        assert all(waiting.vow.state == PENDING for waiting in self._withdrawals.values())
        outliving = sum(not self._node.is_live(key[0]) for key in self._deposits)
        assert outliving == self._outliving, "gifts of ended sessions are miscounted"


def _less(counts: dict[bytes, int], key: bytes) -> None:
    counts[key] -= 1
    if not counts[key]:
        del counts[key]


def receive_give(session: Session, envelope: Envelope) -> Vow:
    """A give arrived in place of a reference: the vow of the gift, withdrawn from its exporter."""
    node = session.node
    give = envelope.signed
    assert isinstance(give, Give)
    if give.receiver_key != session.key.public_key:
        return broken(node, RemoteError("the handoff-give is for another receiver"))
    if node.is_own(give.exporter):
        return node.gifts.claim_own(session, envelope)
    if session.withdrawing >= node.limits.gifts:
        return broken(
            node, TooBusy(f"{session.withdrawing} gifts wait for connections to their exporters already")
        )
    vow = Vow(node)
    life = node.limits.gift_life
    until = node.now() + (0.0 if node.keeper is None else life)
    _Given(node, session.id, session.key, envelope, vow, until).connect()
    if vow.state == PENDING and node.keeper is not None:
        node.keeper.given(vow, session.id, envelope.wire, life)
    return vow


def resume_give(node: Node, session_id: bytes, key: SessionKey, wire: bytes, vow: Vow, until: float) -> None:
    """A give arrived before a restart, at the session with that id and key: `vow` is still to become the gift."""
    decoded = Decoder(node.limits, OPERATIONS).decode(b"[%b]" % wire)  # by itself it would be no message
    assert isinstance(decoded, list)
    (envelope,) = decoded
    _Given(node, session_id, key, envelope, vow, until).connect()


@final
class _Given:
    """A gift that was given to us, until it is withdrawn from its exporter.

    With a keeper he may be on his way back from a restart: he is tried until then, less and less often. Once the
    session that gave it has ended, only so many of such gifts wait on.
    """

    __slots__ = ("_delay", "_envelope", "_key", "_node", "_session_id", "_until", "_vow")

    def __init__(
        self, node: Node, session_id: bytes, key: SessionKey, envelope: Envelope, vow: Vow, until: float
    ) -> None:
        self._node = node
        self._session_id = session_id
        self._key = key
        self._envelope = envelope
        self._vow = vow
        self._until = until
        self._delay = _AGAIN
        self._count(1)

    def _count(self, more: int) -> None:
        session = self._node.live(self._session_id)
        if session is not None:
            session.withdrawing += more

    def connect(self) -> None:
        """Tries it."""
        give = self._envelope.signed
        assert isinstance(give, Give)
        self._node.connect(give.exporter, self._reached)

    def _reached(self, exporter: Session | OCapNError) -> None:
        if isinstance(exporter, OCapNError):
            self._failed(exporter)
        elif self._node.keeper is None:
            self._withdraw(exporter)
        else:  # it must not end with this process while the gift is on its way
            exporter.when_decided(lambda: self._withdraw(exporter))

    def _withdraw(self, exporter: Session) -> None:
        try:
            claim = sign_receive(
                self._key, exporter.id, exporter.key.public_id, exporter.handoffs.draw(), self._envelope.wire
            )
            # A reference that was given is nothing that this side sends: its lease does not count.
            question = exporter.ask(exporter.bootstrap, [WITHDRAW_GIFT, Certificate(claim)])
        except OCapNError as error:
            self._failed(error)
        else:
            self._count(-1)
            self._vow.resolve(question.handle())

    def _failed(self, error: OCapNError) -> None:
        node = self._node
        heals = isinstance(error, (SessionEnded, Backpressure)) or (
            isinstance(error, ConnectFailed) and not error.lasting
        )
        if (
            heals
            and node.now() < self._until
            and node.gifts.try_again(self._session_id, self.connect, self._delay)
        ):
            self._delay *= 2
            return
        self._count(-1)
        if node.keeper is None or not node.leaving:  # else it goes on in the next process
            self._vow.break_with(error)
