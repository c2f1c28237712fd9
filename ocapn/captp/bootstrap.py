"""The targets that the protocol itself provides: the bootstrap object, and resolvers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from ocapn.captp.delivery import RemoteVow, resolve
from ocapn.captp.frames import DURABLE_SESSION
from ocapn.captp.handles import CoreTarget
from ocapn.captp.handoff import DEPOSIT_GIFT, WITHDRAW_GIFT
from ocapn.errors import RemoteError
from ocapn.model.values import Symbol

if TYPE_CHECKING:
    from ocapn.captp.session import Session

FETCH: Final = Symbol("fetch")
#: A swiss number that is asked for so that the peer answers, whatever it has (spec/supervision.md, Keepalive).
KEEPALIVE: Final = b"ocapn-keepalive"


def is_no_application_s(args: list[object]) -> bool:
    """Of a message to a bootstrap object, whether no application has sent it: a keepalive, or a gift that waits for
    another peer."""
    return args[1:2] == [KEEPALIVE] or args[:1] == [DEPOSIT_GIFT]


@final
class Bootstrap(CoreTarget):
    """The object at position 0 on our side of one session (CapTP specification, The bootstrap Object)."""

    __slots__ = ("session",)

    def __init__(self, session: Session) -> None:
        self.session = session

    def call(self, args: list[object]) -> object:
        session = self.session
        node = session.node
        match args:
            case [method, swiss] if method is FETCH:
                found = node.swiss.get(swiss) if isinstance(swiss, bytes) else None
                if found is None:
                    raise RemoteError("no object has that swiss number")
                return found
            case [method, gift_id, gift] if method is DEPOSIT_GIFT:
                node.gifts.deposit(session, gift_id, gift)
                return None
            case [method, envelope] if method is WITHDRAW_GIFT:
                return node.gifts.withdraw(session, envelope).handle()
            case [method, *_] if method is DURABLE_SESSION:
                return session.agree(args)
        raise RemoteError("the bootstrap object takes fetch, deposit-gift and withdraw-gift")


@final
class ResolverTarget(CoreTarget):
    """A resolver of ours that the peer sent back as an argument: a target like any other."""

    __slots__ = ("vow",)

    def __init__(self, vow: RemoteVow) -> None:
        self.vow = vow

    def call(self, args: list[object]) -> object:
        resolve(self.vow, args)
        return None
