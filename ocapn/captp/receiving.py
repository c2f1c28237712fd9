"""What the operations of a peer do to a session (CapTP specification, Operations).

`Session.receive` counts frames and has them decoded; here they find what they are for, and descriptors become
references.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from ocapn.captp.bootstrap import Bootstrap, ResolverTarget, is_no_application_s
from ocapn.captp.delivery import PENDING, Message, RemoteVow, Selection, Sent, Telling, Vow, resolve, select
from ocapn.captp.handles import LocalTarget, PromiseHandle
from ocapn.captp.handoff import receive_give
from ocapn.codec.operations import (
    ANSWER,
    EXPORT,
    PROMISE,
    Deliver,
    Descriptor,
    Envelope,
    GcAnswers,
    GcExports,
    Give,
    Listen,
    Receive,
    Select,
    StartSession,
)
from ocapn.errors import RemoteError, RemoteProtocolError, TooBusy
from ocapn.model.values import Symbol, Tagged

if TYPE_CHECKING:
    from ocapn.captp.session import Session

#: Messages of fewer bytes are not counted for what their arguments take: their number is bounded.
LARGE: Final = 4096


@final
class Receiver:
    """Carries out the operations that come in one session."""

    __slots__ = ("_large", "_session", "bootstrap")

    def __init__(self, session: Session) -> None:
        self._session = session
        self.bootstrap = Bootstrap(session)
        self._large: dict[int, int] = {}  # answers to large messages: position to size

    def forget(self) -> None:
        """The session has ended: no answers are kept."""
        self._large.clear()

    def deliver(self, operation: Deliver) -> None:
        """op:deliver. Raises RemoteProtocolError."""
        session = self._session
        if operation.old_form:
            session.form.old_deliver = True
        to = operation.to
        position = to.position
        args = operation.args
        target: object
        if to.kind == ANSWER:
            target = self._answer_at(position)
        elif position == 0:
            target = self.bootstrap
        else:
            slot = session.tables.exports.get(position)
            if slot is None:
                raise RemoteProtocolError(
                    f"a message to export {position}, which was never exported or is freed"
                )
            target = slot.value
        gate = session.gate
        if (
            gate is not None
            and type(target) is not RemoteVow
            and not (target is self.bootstrap and is_no_application_s(args))
        ):
            gate.used = session.node.now()
        if operation.references:
            bootstrap = target is self.bootstrap
            self._incoming(args, bootstrap)
        answer: Vow | None = None
        if operation.answer >= 0 or operation.resolver is not None:
            answer = Vow(session.node)
            if operation.answer >= 0:
                session.tables.answer(operation.answer, answer)
            if operation.resolver is not None:
                # Old peers want a promise at once of what the bootstrap object does not have yet, such as a gift.
                partial = session.form.old_deliver and target is self.bootstrap
                self._tell_later(answer, operation.resolver, partial)
            if operation.answer >= 0 and session.reading >= LARGE:
                if not session.keep(session.reading):
                    answer.break_with(TooBusy("too many bytes are kept for answers that are not released"))
                    return
                self._large[operation.answer] = session.reading
        if isinstance(target, LocalTarget):
            session.node.enqueue(target, args, answer, session)
        elif type(target) is RemoteVow and to.kind == EXPORT:
            try:
                resolve(target, args)
            except RemoteError as error:
                self._failed(answer, error)
            else:
                spent = session.tables.exports.get(position)  # none if what was told has ended the session
                if target.state != PENDING and spent is not None:
                    spent.held = session.spent  # a peer that never returns it must not keep the value alive
                    session.tables.touch("export", position)
                if answer is not None:
                    answer.resolve(None)
        else:
            vow = target._vow if isinstance(target, PromiseHandle) else target
            assert isinstance(vow, Vow)
            self._to_promise(vow.end(), Message(args, answer, session))

    def other(self, operation: object) -> None:
        """Any other operation of a session that goes on. Raises RemoteProtocolError."""
        session = self._session
        if type(operation) is GcExports:
            if operation.old_form:
                session.form.old_gc = True
            session.tables.returned(operation.positions, operation.deltas)
        elif type(operation) is GcAnswers:
            if operation.old_form:
                session.form.old_gc = True
            session.tables.answers_released(operation.positions)
            if self._large:
                for position in operation.positions:
                    session.kept_bytes -= self._large.pop(position, 0)
        elif type(operation) is Listen:
            self._listen(operation)
        elif type(operation) is Select:
            self._select(operation)
        elif type(operation) is StartSession:
            raise RemoteProtocolError("op:start-session came a second time on this connection")
        else:
            raise RemoteProtocolError("malformed: a message is a record whose label names an operation")

    def _failed(self, answer: Vow | None, error: BaseException) -> None:
        if answer is None:
            self._session.node.log_lost(error, self._session)
        else:
            answer.break_with(error)

    def _to_promise(self, vow: Vow, message: Sent) -> None:
        session = self._session
        if vow.state == PENDING and (not isinstance(vow, RemoteVow) or vow.asked_again):
            message.hold(session, session.reading)
            if len(session.held) > session.node.limits.queued_messages or not session.keep(0):
                raise RemoteProtocolError("too many messages to promises that are not resolved")
        vow.add(message)

    def _listen(self, operation: Listen) -> None:
        target = self._recipient(operation.to)
        if isinstance(target, LocalTarget):
            vow = Vow(self._session.node)
            vow.resolve(target)
        else:
            vow = target.end()
        self._tell_later(vow, operation.resolver)

    def _select(self, operation: Select) -> None:
        receiver = self._recipient(operation.receiver)
        if self._session.gate is not None:
            self._session.gate.used = self._session.node.now()
        answer = Vow(self._session.node)
        self._session.tables.answer(operation.answer, answer)
        if isinstance(receiver, LocalTarget):
            try:
                answer.resolve(select(receiver, operation.kind, operation.key))
            except RemoteError as error:
                answer.break_with(error)
        else:
            self._to_promise(receiver.end(), Selection(operation.kind, operation.key, answer, self._session))

    def _tell_later(self, vow: Vow, resolver: Descriptor, partial: bool = False) -> None:
        self._session.tables.import_resolver(resolver.position, resolver.kind == PROMISE)
        vow.add(Telling(self._session, resolver.position, partial))

    def _answer_at(self, position: int) -> Vow:
        vow = self._session.tables.answers.get(position)
        if vow is None:
            raise RemoteProtocolError(f"answer {position} was never asked for or is released")
        return vow

    def _recipient(self, to: Descriptor) -> LocalTarget | Vow:
        """What a desc:export or desc:answer names."""
        if to.kind == ANSWER:
            return self._answer_at(to.position)
        value = self._export_at(to.position)
        return value._vow if isinstance(value, PromiseHandle) else value

    def _export_at(self, position: int) -> LocalTarget | PromiseHandle:
        if position == 0:
            return self.bootstrap
        slot = self._session.tables.exports.get(position)
        if slot is None:
            raise RemoteProtocolError(f"export {position} was never exported or is freed")
        value = slot.value
        return ResolverTarget(value) if isinstance(value, RemoteVow) else value

    def _incoming(self, value: object, certificates: bool) -> object:
        """The value with references in place of descriptors; signed receives pass only to the bootstrap."""
        kind = type(value)
        if kind is str or kind is int or kind is bytes or kind is Symbol:
            return value
        if isinstance(value, Descriptor):
            if value.kind == EXPORT:
                return self._export_at(value.position)
            if value.kind == ANSWER:
                return self._answer_at(value.position).handle()
            return self._session.tables.import_slot(
                self._session, value.position, value.kind == PROMISE
            ).handle()
        if isinstance(value, list):  # containers were made by the decoder, for us: they are changed in place
            for i, item in enumerate(value):
                value[i] = self._incoming(item, certificates)
        elif isinstance(value, dict):
            for key, item in value.items():
                value[key] = self._incoming(item, certificates)
        elif isinstance(value, Tagged):
            value.value = self._incoming(value.value, certificates)
        elif isinstance(value, Envelope):
            if isinstance(value.signed, Give):
                return receive_give(self._session, value).handle()
            if not certificates:
                raise RemoteProtocolError("a desc:handoff-receive is for the bootstrap object alone")
        elif isinstance(value, (Give, Receive)):
            name = "give" if isinstance(value, Give) else "receive"
            raise RemoteProtocolError(f"a desc:handoff-{name} stands in a desc:sig-envelope")
        return value
