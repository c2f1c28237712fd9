"""One session: counts, limits, what a failed send leaves, and what an ended session remembers."""

from __future__ import annotations

import gc
from collections.abc import Callable
from weakref import ref

import pytest

from ocapn import (
    Limits,
    NotPassable,
    Promise,
    RemoteError,
    RemoteProtocolError,
    SessionEnded,
    TooBusy,
    send_only,
)
from ocapn.captp.delivery import BROKEN, PENDING, Vow
from ocapn.captp.handles import PromiseHandle
from ocapn.captp.session import Session
from ocapn.codec.operations import GET
from tests.captp.sides import Box, Link, Side, empty, exported, pair, quiet


def message(text: str) -> bytes:
    return text.encode()


# What is sent and not sent


@pytest.mark.parametrize("bad", [object(), "\ud800", 10**400, [[object()]]])
def test_exports_of_a_message_that_cannot_be_sent_are_rolled_back(bad: object) -> None:
    """Encoding fails in the middle: what stood before it in the arguments was not exported."""
    a, b, link = pair()
    box, known, ref_to_b = Box(), Box(), a.hold(link.a, exported(link.b, Box()))
    exported(link.a, known)
    promise, _ = a.promise()
    before = link.a.tables.sizes()
    for send in (link.a.deliver, link.a.deliver_only):
        with pytest.raises(NotPassable):
            send(ref_to_b._import.recipient, [box, known, promise, {"x": box}, bad])
    assert link.a.tables.sizes() == before
    assert [slot.count for slot in link.a.tables.exports.values()] == [1]
    link.a.check()
    link.a.deliver_only(ref_to_b._import.recipient, [box])
    assert len(link.a.tables.exports) == 2
    del b


def test_an_oversized_message_exports_nothing() -> None:
    _, _, link = pair(limits=Limits(frame=1000))
    with pytest.raises(NotPassable, match="over the limit"):
        link.a.deliver(link.a.bootstrap, [Box(), b"x" * 2000])
    assert empty(link.a)
    link.a.check()


def test_no_room_for_the_resolver_rolls_the_arguments_back() -> None:
    _, _, link = pair(limits=Limits(slots=2))
    with pytest.raises(TooBusy):
        link.a.deliver(link.a.bootstrap, [Box(), Box()])
    with pytest.raises(TooBusy):
        link.a.deliver(link.a.bootstrap, [Box(), Box(), Box()])
    assert empty(link.a)
    link.a.check()


def test_a_reference_is_counted_each_time_it_is_sent() -> None:
    a, _b, link = pair()
    box, theirs = Box("sent"), Box("theirs")
    to = a.hold(link.a, exported(link.b, theirs))
    send_only(to)(box, [box, {"x": box}])
    send_only(to)(box)
    (slot,) = link.a.tables.exports.values()
    assert slot.count == 4
    link.to_b()
    (held,) = link.b.tables.imports.values()
    assert held.count == 4
    first = theirs.got[0][0]
    assert first is theirs.got[1][0]
    del first
    theirs.got.clear()
    gc.collect()
    quiet(link)
    assert not link.a.tables.exports
    del to
    quiet(link)
    assert empty(link.a, link.b)


def test_a_reference_sent_again_while_its_return_is_on_the_way() -> None:
    """The return names the count that it had; the export stays for what was sent meanwhile."""
    a, b, link = pair()
    box, theirs = Box("sent"), Box("theirs")
    to = a.hold(link.a, exported(link.b, theirs))
    send_only(to)(box)
    link.to_b()
    theirs.got.clear()
    gc.collect()
    b.run()
    link.collect()  # the return is under way
    send_only(to)(box)
    link.to_a()
    (slot,) = link.a.tables.exports.values()
    assert slot.count == 1
    quiet(link)
    assert theirs.got[0][0]._import.position == slot.position  # type: ignore[attr-defined]
    send_only(theirs.got[0][0])("back")
    b.run()
    quiet(link)
    assert box.got == [["back"]]


# What the peer may not do


BAD: dict[str, str] = {
    "a message to what was never exported": "<10'op:deliver<11'desc:export7+>[]ff>",
    "a message to an answer never asked": "<10'op:deliver<11'desc:answer7+>[]ff>",
    "an argument never exported": "<10'op:deliver<11'desc:export0+>[<11'desc:export7+>]ff>",
    "an argument that is no answer": "<10'op:deliver<11'desc:export0+>[[<11'desc:answer7+>]]ff>",
    "a return of what was never exported": "<13'op:gc-exports[7+][1+]>",
    "a return of more than was sent": "<13'op:gc-exports[1+][2+]>",
    "a return of nothing": "<13'op:gc-exports[1+][0+]>",
    "returns twice over": "<13'op:gc-exports[1+1+][1+1+]>",
    "unequal lists": "<13'op:gc-exports[1+][1+1+]>",
    "a release of an answer never asked": "<13'op:gc-answers[7+]>",
    "listening to what was never exported": "<9'op:listen<11'desc:export7+><18'desc:import-object1+>f>",
    "an answer of nothing": "<6'op:get<11'desc:answer7+>1\"x1+>",
    "an object that was a promise": (
        "<10'op:deliver<11'desc:export0+>[<18'desc:import-object5+><19'desc:import-promise5+>]ff>"
    ),
    "a resolver that was a promise": (
        "<10'op:deliver<11'desc:export0+>[<19'desc:import-promise5+>]1+<18'desc:import-object5+>>"
    ),
    "an own export as resolver": "<10'op:deliver<11'desc:export0+>[]1+<11'desc:export1+>>",
    "an unknown operation": "<6'op:foo1+>",
    "bytes after the message": "<13'op:gc-answers[]>x",
}


@pytest.mark.parametrize("what", BAD)
def test_what_breaks_the_protocol(what: str) -> None:
    _, _, link = pair()
    keep = Box()
    assert exported(link.b, keep) == 1
    with pytest.raises(RemoteProtocolError):
        link.b.receive(message(BAD[what]))
    link.b.abort("as the connection would")
    assert empty(link.b)
    link.b.check()


def test_an_answer_position_in_use() -> None:
    _, _, link = pair()
    ask = message("<10'op:deliver<11'desc:export0+>[1+]1+f>")
    link.b.receive(ask)
    with pytest.raises(RemoteProtocolError, match="asked for twice"):
        link.b.receive(ask)


def test_an_answer_position_after_its_release() -> None:
    _, b, link = pair()
    ask = message("<10'op:deliver<11'desc:export0+>[1+]1+f>")
    link.b.receive(ask)
    b.run()
    link.b.receive(message("<13'op:gc-answers[1+]>"))
    link.b.receive(ask)
    with pytest.raises(RemoteProtocolError, match="never asked"):
        link.b.receive(message("<13'op:gc-answers[1+1+]>"))


def test_position_zero_is_never_freed() -> None:
    _, b, link = pair()
    link.b.receive(message("<13'op:gc-exports[0+][9+]>"))
    link.b.receive(message("<10'op:deliver<11'desc:export0+>[<18'desc:import-object0+>]ff>"))
    b.run()
    gc.collect()
    b.run()
    assert link.b.outbox.take() == []
    link.b.check()


# Limits


def test_more_references_than_a_session_holds() -> None:
    _, _, link = pair(limits=Limits(slots=3))
    arguments = "".join(f"<18'desc:import-object{n}+>" for n in range(1, 5))
    with pytest.raises(RemoteProtocolError, match="more than 3 references"):
        link.b.receive(message(f"<10'op:deliver<11'desc:export0+>[{arguments}]ff>"))


def test_more_resolvers_than_a_session_holds() -> None:
    _, b, link = pair(limits=Limits(slots=3))
    handle, _ = b.promise()
    exported(link.b, handle)
    for n in (1, 2):
        link.b.receive(message(f"<9'op:listen<11'desc:export1+><18'desc:import-object{n}+>f>"))
    with pytest.raises(RemoteProtocolError, match="more than 3 references"):
        link.b.receive(message("<9'op:listen<11'desc:export1+><18'desc:import-object3+>f>"))


def test_more_answers_than_a_session_owes() -> None:
    _, _, link = pair(limits=Limits(answers=2))
    for n in (1, 2):
        link.b.receive(message(f"<10'op:deliver<11'desc:export0+>[]{n}+f>"))
    with pytest.raises(RemoteProtocolError, match="more than 2 answers"):
        link.b.receive(message("<10'op:deliver<11'desc:export0+>[]3+f>"))


def test_more_messages_on_promises_than_a_session_may_leave() -> None:
    _, b, link = pair(limits=Limits(queued_messages=2))
    handle, vow = b.promise()
    exported(link.b, handle)
    send = message("<10'op:deliver<11'desc:export1+>[]ff>")
    for _ in range(2):
        link.b.receive(send)
    assert link.b.stats()["messages_on_promises"] == 2
    vow.resolve(Box())
    assert link.b.stats()["messages_on_promises"] == 0
    handle, vow = b.promise()
    send = message(f"<10'op:deliver<11'desc:export{exported(link.b, handle)}+>[]ff>")
    for _ in range(2):
        link.b.receive(send)
    with pytest.raises(RemoteProtocolError, match="too many messages"):
        link.b.receive(send)


# The end


def test_an_ended_session_lets_go_of_everything() -> None:
    a, b, link = pair()
    mine, theirs = Box("mine"), Box("theirs")
    handle, vow = b.promise()
    to = a.hold(link.a, exported(link.b, theirs))
    promise: Promise = a.hold(link.a, exported(link.b, handle), promise=True)
    promise._vow.listen()  # type: ignore[attr-defined]
    answer = link.a.deliver(to._import.recipient, [mine]).handle()
    part = link.a.select(promise._vow.recipient, GET, "x").handle()  # type: ignore[attr-defined]
    watched = link.a.watch()
    link.to_b()
    kept = ref(mine)
    ended = SessionEnded("enough")
    link.a.abort("enough")
    link.b.disconnected("gone")
    for promised in (answer, promise, part):
        assert promised._vow.state == BROKEN
        assert type(promised._vow.value) is type(ended)
    assert watched.value is link.a.ended
    assert empty(link.a, link.b)
    assert not a.node.sessions
    assert not b.node.sessions
    a.node.check()
    b.node.check()
    theirs.got.clear()
    del mine, answer, part, promise, promised
    a.run()
    b.run()
    gc.collect()
    assert kept() is None
    vow.resolve(1)  # tells nobody
    assert len(link.b.outbox.messages) == 0
    with pytest.raises(SessionEnded):
        link.a.deliver(to._import.recipient, [])


def test_finalisers_of_an_ended_session_do_nothing() -> None:
    a, _, link = pair()
    to = a.hold(link.a, exported(link.b, Box()))
    link.a.disconnected("gone")
    del to
    gc.collect()
    a.run()
    assert link.a.outbox.take() == []
    link.a.check()


def test_a_reference_of_an_ended_session_crosses_as_a_broken_promise() -> None:
    a, b, link = pair()
    dead = a.hold(link.a, exported(link.b, Box()))
    link.a.disconnected("gone")
    c = Side("c")
    other = Link(a, c)
    box = Box()
    send_only(a.hold(other.a, exported(other.b, box)))(dead)
    a.run()
    quiet(other)
    promise = box.got[0][0]
    assert isinstance(promise, PromiseHandle)
    promise._vow.listen()  # type: ignore[attr-defined]
    quiet(other)
    assert promise._vow.state == BROKEN
    del b


def test_a_resolver_that_comes_back_is_no_promise() -> None:
    """Our resolver of a promise, and the promise itself, passed on to the same peer, are two exports."""
    a, b, link = pair()
    handle, _ = b.promise()
    promise: Promise = a.hold(link.a, exported(link.b, handle), promise=True)
    promise._vow.listen()  # type: ignore[attr-defined]
    (resolver,) = link.a.tables.exports
    c = Side("c")
    other = Link(a, c)
    box, far = Box(), Box()
    exported(link.a, box)
    # b sends a's resolver back as an argument, as other implementations may
    link.a.receive(message(f"<10'op:deliver<11'desc:export{resolver + 1}+>[<11'desc:export{resolver}+>]ff>"))
    a.run()
    to_c = a.hold(other.a, exported(other.b, far))
    send_only(to_c)(box.got[0][0], promise)
    send_only(to_c)(promise, box.got[0][0])
    a.run()
    quiet(other)
    first, second = far.got
    assert not isinstance(first[0], PromiseHandle)
    assert isinstance(first[1], PromiseHandle)
    assert second == [first[1], first[0]]
    assert promise._vow.state == PENDING


SPOILS: dict[str, Callable[[Session], None]] = {
    "kept with count 0": lambda s: setattr(s.tables.exports[1], "count", 0),
    "never allocated": lambda s: setattr(s.tables, "next_export", 1),
    "is not found by its object": lambda s: s.tables._export_of.clear(),
    "is still found": lambda s: s.tables.exports.clear(),
    "import 1 is kept with count": lambda s: setattr(s.tables.imports[1], "count", 0),
    "question 1 was never asked": lambda s: setattr(s.tables, "next_question", 1),
    "kept though released": lambda s: setattr(s.tables.questions[1], "released", True),
    "a resolver is kept": lambda s: s.tables._resolvers.update({9: 1}),
}


@pytest.mark.parametrize("what", SPOILS)
def test_check_sees(what: str) -> None:
    """Each invariant of the tables, violated by hand, is named by `check`."""
    a, _, link = pair()
    box = Box()
    keep = a.hold(link.a, exported(link.b, Box()))
    exported(link.a, box)
    question = link.a.deliver(link.a.bootstrap, [1])
    link.a.check()
    SPOILS[what](link.a)
    with pytest.raises(AssertionError, match=what.removeprefix("is ")):
        link.a.check()
    del keep, question


def test_an_error_told_to_a_resolver_keeps_its_message() -> None:
    a, b, link = pair()
    box = Box(answer=ValueError("no such thing"))
    to = a.hold(link.a, exported(link.b, box))
    answer = link.a.deliver(to._import.recipient, [1])
    quiet(link)
    assert answer.state == BROKEN
    assert isinstance(answer.value, RemoteError)
    assert str(answer.value) == "no such thing"
    del b


def test_a_vow_of_no_session_is_released() -> None:
    side = Side("a")
    assert Vow(side.node).released


def test_much_is_handed_to_the_network_in_parts() -> None:
    a, _, link = pair()
    to = a.hold(link.a, exported(link.b, Box()))
    outbox = link.a.outbox
    for number in range(10):
        link.a.deliver_only(to._import.recipient, [number, b"x" * 100_000])
    link.a.deliver_only(to._import.recipient, [10, b"x" * 500_000])
    sizes = []
    taken: list[bytes] = []
    while messages := outbox.take():
        sizes.append(len(messages))
        outbox.written(messages)
        taken += messages
    assert sizes == [2, 2, 2, 2, 2, 1]
    assert [b"[%d+" % number in message for number, message in enumerate(taken)] == [True] * 11
    assert (outbox.frames, outbox.size, outbox.messages) == (0, 0, [])
