"""What is sent in one session, encoded: references as the peer is to see them, and what sending them means.

A reference of ours is exported and counted as it is written; one of another peer becomes a give, whose gift is
deposited before the message goes out. A message that is not sent after all takes all of that back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from ocapn.captp.bootstrap import ResolverTarget
from ocapn.captp.delivery import FULFILLED, PENDING, RemoteVow, broken
from ocapn.captp.handles import LocalTarget, PromiseHandle, RefHandle
from ocapn.captp.handoff import DEPOSIT_GIFT, Certificate
from ocapn.captp.tables import Export
from ocapn.codec.base import Writing
from ocapn.codec.operations import EXPORT, OBJECT, PROMISE
from ocapn.crypto import sign_give
from ocapn.errors import Backpressure, NotPassable

if TYPE_CHECKING:
    from ocapn.captp.session import Session

#: Bytes of a message besides its arguments.
_AROUND: Final = 256


@final
class Writer:
    """Encodes the arguments of messages, one after the other. `own` is the bootstrap object of this peer."""

    __slots__ = ("_exported", "_gifts", "_own", "_session", "encoder")

    def __init__(self, session: Session, own: LocalTarget) -> None:
        self._session = session
        self._own = own
        self.encoder = session.codec.encoder(
            session.node.limits, self._write_reference, session.form.text_order
        )
        # Of the message being encoded:
        self._exported: list[Export] = []
        self._gifts: list[tuple[RefHandle, bytes]] = []

    def encode(self, args: list[object]) -> bytes:
        """The arguments of one message. `done` or `undo` follows.

        Raises, and takes back, if they cannot be sent: NotPassable, TooBusy, or why a gift cannot be deposited.
        """
        try:
            encoded = self.encoder.arguments(args)
        except BaseException:
            self.undo()
            raise
        most = self._session.node.limits.frame
        if len(encoded) > most - _AROUND:
            self.undo()
            raise NotPassable(f"the message has {len(encoded)} bytes, over the limit of {most}")
        return encoded

    def done(self) -> None:
        """The message goes out now: what it gives away is deposited first."""
        if self._exported:
            self._exported.clear()
        if self._gifts:
            gifts, self._gifts = self._gifts, []
            for gift, gift_id in gifts:
                exporter = gift._import.session
                exporter.say(exporter.bootstrap, [DEPOSIT_GIFT, gift_id, gift], forwarded=True)

    def undo(self) -> None:
        """The message is not sent: what it exported was not."""
        for slot in reversed(self._exported):
            self._session.tables.drop_export(slot, 1)
        self._exported.clear()
        self._gifts.clear()

    def check(self) -> None:
        """Raises AssertionError if a message is neither done nor undone."""
        assert not self._exported, "exports of a message that was not sent are counted"
        assert not self._gifts, "gifts of a message that was not sent are kept"

    def _write_reference(self, encoder: Writing, value: object) -> None:
        session = self._session
        if isinstance(value, PromiseHandle):
            vow = value._vow.end()
            if (
                vow.state == PENDING
                and isinstance(vow, RemoteVow)
                and vow.session is session
                and not vow.released
            ):
                encoder.reference(vow.kind, vow.position)
                return
            if vow.state != FULFILLED or not isinstance(vow.value, (LocalTarget, RefHandle)):
                self._export(vow.handle(), id(vow), PROMISE)
                return
            value = vow.value
        if isinstance(value, RefHandle):
            slot = value._import
            exporter = slot.session
            if exporter is session:
                encoder.reference(EXPORT, slot.position)
            elif exporter.ended is not None:
                vow = broken(session.node, exporter.ended)
                self._export(vow.handle(), id(vow), PROMISE)
            else:
                exporter.may_send(False)  # the gift is deposited there
                if exporter.gate is not None and exporter.gate.closed:
                    raise Backpressure(
                        "the time of a session is over: its references are not given away until it is renewed"
                    )
                gift_id = session.node.random(32)
                give = sign_give(
                    exporter.key,
                    session.peer_key,
                    exporter.location,
                    exporter.id,
                    gift_id,
                    encoder.text_order,
                )
                self._gifts.append((value, gift_id))
                encoder.certificate(give)
        elif isinstance(value, ResolverTarget):
            self._export(value, ~id(value.vow), OBJECT)  # the promise has id(vow)
        elif isinstance(value, LocalTarget):
            if value is self._own:
                encoder.reference(OBJECT, 0)
            else:
                self._export(value, id(value), OBJECT)
        elif isinstance(value, Certificate):
            encoder.certificate(value.wire)
        else:
            raise NotPassable(f"a {type(value).__name__} cannot be passed")

    def _export(self, value: LocalTarget | PromiseHandle, key: int, kind: int) -> None:
        slot = self._session.tables.export(value, key)
        slot.count += 1
        self._exported.append(slot)
        self.encoder.reference(kind, slot.position)
