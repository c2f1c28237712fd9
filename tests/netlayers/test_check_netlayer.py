"""`check_netlayer` passes for the netlayers of this package, and finds each promise that is broken."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import trio

from ocapn.codec.framing import FRAMINGS
from ocapn.limits import Limits
from ocapn.model.locators import PeerLocator
from ocapn.netlayers.memory import MemoryNetlayer, MemoryNetwork
from ocapn.netlayers.tcp_testing import TRANSPORT as TCP
from ocapn.netlayers.unix import TRANSPORT as UNIX
from ocapn.testing import MakeNetlayer, check_netlayer
from ocapn.testing.netlayers import _PROMISES
from tests.netlayers import broken, makers
from tests.netlayers.broken import made, with_channel, with_listener
from tests.support import trio_test, trio_test_real


@pytest.mark.parametrize("authenticates", [False, True])
@trio_test
async def test_memory(authenticates: bool) -> None:
    nobody = PeerLocator("memory", "nobody")
    await check_netlayer(makers.memory(authenticates=authenticates), nobody=[nobody])


@trio_test
async def test_memory_with_delays() -> None:
    await check_netlayer(makers.memory(MemoryNetwork(delay=lambda a, b: 0.1 if a < b else 0.3)))


@trio_test
async def test_memory_that_holds_one_message() -> None:
    await check_netlayer(makers.memory(MemoryNetwork(capacity=1)))


@trio_test_real
async def test_memory_on_the_real_clock() -> None:
    await check_netlayer(makers.memory())


@pytest.mark.parametrize("framing", FRAMINGS)
@trio_test_real
async def test_tcp(framing: str) -> None:
    malformed = [
        PeerLocator(TCP, "x", hints)
        for hints in (
            {"host": "127.0.0.1"},
            {"port": "9"},
            {"host": "127.0.0.1", "port": "0"},
            {"host": "127.0.0.1", "port": "65536"},
            {"host": "127.0.0.1", "port": "-1"},
            {"host": "127.0.0.1", "port": "٣"},
            {"host": "a..b", "port": "9"},
        )
    ]
    await check_netlayer(makers.tcp(framing), malformed=malformed)


@trio_test_real
async def test_unix(tmp_path: Path) -> None:
    await check_netlayer(
        makers.unix(tmp_path),
        malformed=[PeerLocator(UNIX, "x"), PeerLocator(UNIX, "x", {"path": ""})],
        nobody=[
            PeerLocator(UNIX, "x", {"path": str(tmp_path / "nobody")}),
            PeerLocator(UNIX, "x", {"path": str(tmp_path)}),
            PeerLocator(UNIX, "x", {"path": f"{tmp_path}/{'long' * 50}"}),
        ],
    )


@trio_test
async def test_a_netlayer_that_only_wraps_passes() -> None:
    """What the broken ones below differ from keeps every promise."""
    for authenticates in (False, True):
        await check_netlayer(made(broken.WrappedNetlayer, authenticates=authenticates))


@trio_test
async def test_a_send_now_that_keeps_some_passes() -> None:
    await check_netlayer(with_channel(broken.Honest))


@trio_test
async def test_own_limits_and_numbers() -> None:
    limits = Limits(frame=20_000, unauthenticated_frame=5_000)
    await check_netlayer(makers.memory(), limits=limits, channels=1, patience=1)
    with pytest.raises(
        AssertionError, match=re.escape("the limit is 20000 bytes, and receive gave [20001] bytes")
    ):
        await check_netlayer(with_channel(broken.UnlimitedAtLast), limits=limits)


@trio_test
async def test_limits_too_small_to_check_with_are_refused() -> None:
    for limits in (Limits(unauthenticated_frame=4_999), Limits(frame=8 << 10, unauthenticated_frame=8 << 10)):
        with pytest.raises(ValueError, match="5000 <= unauthenticated_frame < frame"):
            await check_netlayer(makers.memory(), limits=limits)


LOCATION = "after listen, `location` is final and names the transport: "
ENDS = "dial and accept give the two ends of one connection: "
PROVED = "`authenticated` is what was proved of the other side's designator, or None: "
BEGIN = "accept does not wait for begin, which may be cancelled: "
AGAIN = "be_again with its own identity makes it no other peer: "
IN_ORDER = "messages arrive whole and in order, both ways: "
MOST = "receive(most) gives one to `most` messages: "
WAITS = "receive waits while nothing has been sent, and may be cancelled: "
NOW = "what send_now says it took arrives whole, before what follows: "
FIRST_LIMIT = "messages up to the limit arrive, larger ones are refused with RemoteProtocolError: "
LIMIT = f"set_max_message: {FIRST_LIMIT}"
LARGE_LIMIT = "set_max_message: messages over a large limit are refused with RemoteProtocolError: "
RAISED = "a limit that is raised counts for the next message, also if that has arrived already: "
EOF = "send_eof ends one direction, after what was sent before; the other goes on: "
DRAIN = "drain receives until the other side has sent all: "
CLOSED = "after aclose, the other side sees the end or ChannelBroken: "
CLOSED_UNREAD = "after aclose with messages unread, the other side sees the end or ChannelBroken: "
RECEIVE_CANCELLED = "a receive that is cancelled loses nothing: "
ACCEPT_CANCELLED = "an accept that is cancelled loses no connection: "
DIAL_CANCELLED = "a dial that is cancelled leaves nothing behind: "
MANY = "many channels at once do not disturb each other: "
NOBODY = "dial raises ConnectFailed where nobody listens: "
MALFORMED = "dial raises BadLocator or ConnectFailed for a malformed locator: "
GIVES_BACK = "aclose of a listener gives back what listen took: "
NEVER_ACCEPTED = "aclose of a listener ends the connections that wait to be accepted: "

#: What is broken, which promise it is, and how the text goes on.
BROKEN: list[tuple[type[broken.Wrapped | broken.WrappedListener | broken.WrappedNetlayer], str, str]] = [
    (broken.BeginHangs, LOCATION, "begin returns once the other side has dialled, but nothing happened for"),
    (broken.AcceptsOneByOne, BEGIN, "what was dialled is accepted, but nothing happened for"),
    (broken.BeginBreaksAtCancel, BEGIN, "what was dialled is accepted, but nothing happened for"),
    (broken.BecomesAnother, AGAIN, "it was ocapn://peer-"),
    (broken.HasNoIdentity, AGAIN, "`identity` is None, which is no str"),
    (broken.WrongTransport, LOCATION, "the location names the transport memory, the netlayer carrier-pigeon"),
    (
        broken.LocationMoves,
        LOCATION,
        "the netlayer's location is ocapn://peer-0.memory?new=hint, its listener's",
    ),
    (broken.LocationMovesLater, LOCATION, "it was ocapn://peer-0.memory, and changed to"),
    (broken.ListensAnyway, LOCATION, "listen gave a listener for a netlayer that was made with listen=False"),
    (broken.NeverListens, LOCATION, "listen gave None for a netlayer that was made with listen=True"),
    (broken.DialHangs, LOCATION, "dial returns, but nothing happened for 10 s"),
    (broken.AcceptHangs, LOCATION, "what was dialled is accepted, but nothing happened for 20 s"),
    (broken.CloseHangs, LOCATION, "aclose closes at once, but nothing happened for 10 s"),
    (broken.CrossesChannels, ENDS, "receive gives what was sent, but nothing happened for 10 s"),
    (broken.BadSource, ENDS, "`source` is None, which is no str"),
    (
        broken.ProvesAnother,
        PROVED,
        "a channel that was dialled gives 'somebody', and the other side is 'peer-",
    ),
    (
        broken.ProvesAnotherDialler,
        PROVED,
        "a channel that was accepted gives 'somebody', and the other side is",
    ),
    (broken.SaysTrue, PROVED, "a channel that was dialled gives True"),
    (
        broken.Believes,
        PROVED,
        "a dial to 'peer-7', which does not listen, gave a channel on which it is auth",
    ),
    (broken.Drops, IN_ORDER, "in the place of message 5 of 50 came message 6: lost, or out of order"),
    (broken.Reorders, IN_ORDER, "in the place of message 11 of 50 came message 50: lost, or out of order"),
    (broken.Merges, ENDS, "message 1 of 2 came with more behind it: messages were merged"),
    (broken.Repeats, IN_ORDER, "a message came that was not sent"),
    (broken.Truncates, IN_ORDER, "message 1 of 200 was not what was sent: 4096 bytes came for 5000"),
    (broken.HalfDuplex, IN_ORDER, "receive gives what was sent, but nothing happened for 10 s"),
    (broken.IgnoresMost, MOST, "receive(1) gave 2 messages"),
    (broken.ReturnsEmpty, WAITS, "it returned 0 messages"),
    (broken.BreaksAtCancel, WAITS, "ChannelBroken was raised: the link was cut"),
    (broken.ForgetsNow, NOW, "receive gives what was sent, but nothing happened for 10 s"),
    (broken.HidesUnsent, NOW, "receive gives what was sent, but nothing happened for 10 s"),
    (broken.IgnoresEmptySend, NOW, "receive gives what was sent, but nothing happened for 10 s"),
    (broken.SendsNowLate, NOW, "in the place of message 1 of 7 came message 5: lost, or out of order"),
    (broken.TakesTooMany, NOW, "send_now took 6 of 5 messages"),
    (broken.StaysUnsent, NOW, "`unsent` is still true after a send"),
    (broken.TearsNow, NOW, "message 1 of 5 was not what was sent: 8 bytes came for 16"),
    (broken.Unlimited, FIRST_LIMIT, "the limit is 8192 bytes, and receive gave [8193] bytes"),
    (broken.UnlimitedAtFirst, FIRST_LIMIT, "the limit is 8192 bytes, and receive gave [8193] bytes"),
    (broken.RefusesWrongly, FIRST_LIMIT, "a message over the limit gave ChannelBroken"),
    (broken.LimitedForever, LIMIT, "RemoteProtocolError was raised: a message of more than 8192 bytes"),
    (broken.OffByOne, LIMIT, "RemoteProtocolError was raised: a message of more than 1048575 bytes"),
    (broken.NeverLowers, LIMIT, "the limit is 100 bytes, and receive gave [101] bytes"),
    (broken.UnlimitedAtLast, LARGE_LIMIT, "the limit is 1048576 bytes, and receive gave [1048577] bytes"),
    (broken.ReadsAhead, RAISED, "RemoteProtocolError was raised: too long"),
    (broken.LosesEof, EOF, "the other side sees the end, but nothing happened for 10 s"),
    (broken.EofOvertakes, EOF, "the end came after "),
    (broken.EofClosesBoth, EOF, "the end came after 0 of 5 messages, and nobody had ended the channel"),
    (broken.EofBreaks, EOF, "the other side saw ChannelBroken where a proper end was due"),
    (broken.RepeatsTheLast, EOF, "a message came that was not sent, or was received before"),
    (broken.DrainsNothing, DRAIN, "it returned before the end"),
    (broken.DrainHangs, DRAIN, "it returns at the end, but nothing happened for 10 s"),
    (broken.LosesClose, CLOSED, "the other side sees the end, but nothing happened for 10 s"),
    (broken.BreaksWithOSError, CLOSED, "BrokenPipeError was raised: broken pipe"),
    (broken.BreaksNowWithOSError, CLOSED, "BrokenPipeError was raised: broken pipe"),
    (broken.ResetsWithOSError, CLOSED_UNREAD, "ConnectionResetError was raised: connection reset"),
    (broken.LosesAtCancel, RECEIVE_CANCELLED, ""),
    (
        broken.AcceptLosesAtCancel,
        ACCEPT_CANCELLED,
        "what was dialled during a cancelled accept is accepted later",
    ),
    (
        broken.AcceptClosesAtCancel,
        ACCEPT_CANCELLED,
        "what was dialled during a cancelled accept is accepted later",
    ),
    (broken.DialLeaks, DIAL_CANCELLED, "its connection is closed, but nothing happened for 10 s"),
    (broken.DialBreaksAtCancel, DIAL_CANCELLED, "ConnectFailed was raised: busy"),
    (broken.OnlySixteen, MANY, "dial returns, but nothing happened for 10 s"),
    (broken.OneCloseClosesAll, MANY, "the end came after 0 of 20 messages, and nobody had ended the channel"),
    (
        broken.DialRaisesOSError,
        PROVED,
        "a dial to ocapn://peer-7.memory raised ConnectionRefusedError: connection",
    ),
    (broken.DialSucceedsLater, NOBODY, "a dial to ocapn://peer-45.memory gave a channel"),
    (broken.StillListens, NOBODY, "a dial to ocapn://peer-45.memory gave a channel"),
    (broken.NeedsHint, MALFORMED, "a dial to ocapn://peer-47.memory raised KeyError: 'number'"),
    (broken.NeedsNumber, MALFORMED, "a dial to ocapn://peer-47.memory?number= raised ValueError: invalid"),
    (broken.KeepsItsPlace, GIVES_BACK, "the same netlayer cannot listen again: address already in use"),
    (broken.ClosesAccepted, GIVES_BACK, "ChannelBroken was raised: the link was cut"),
    (broken.AbandonsWaiting, NEVER_ACCEPTED, "the other side sees the end, but nothing happened for 10 s"),
]


def make_of(kind: type[object]) -> MakeNetlayer:
    """A memory netlayer of which this part is broken."""
    if issubclass(kind, broken.Wrapped):
        return with_channel(kind)
    if issubclass(kind, broken.WrappedListener):
        return with_listener(kind)
    assert issubclass(kind, broken.WrappedNetlayer)
    return made(kind)


@pytest.mark.parametrize(("kind", "promise", "detail"), BROKEN, ids=[kind.__name__ for kind, _, _ in BROKEN])
@trio_test
async def test_what_is_broken_is_found_and_named(kind: type[object], promise: str, detail: str) -> None:
    with pytest.raises(AssertionError, match="^" + re.escape(promise + detail)):
        await check_netlayer(make_of(kind))


def test_every_promise_is_one_that_can_be_found_broken() -> None:
    assert {promise for promise, _ in _PROMISES} == {promise.removesuffix(": ") for _, promise, _ in BROKEN}


def test_every_broken_netlayer_is_tested() -> None:
    own = {
        name
        for name, kind in vars(broken).items()
        if isinstance(kind, type) and kind.__module__ == broken.__name__ and not name.startswith("_")
    }
    assert own - {"Wrapped", "WrappedListener", "WrappedNetlayer", "Honest", "OneByOne"} == {
        kind.__name__ for kind, _, _ in BROKEN
    }


@trio_test
async def test_a_locator_that_can_be_dialled_is_not_malformed() -> None:
    network = MemoryNetwork()
    listener = await MemoryNetlayer(network, "good").listen(Limits())
    assert listener is not None
    with pytest.raises(AssertionError, match=f"^{MALFORMED}a dial to ocapn://good.memory gave a channel$"):
        await check_netlayer(makers.memory(network), malformed=[listener.location])


@trio_test
async def test_where_somebody_listens_is_not_nobody() -> None:
    network = MemoryNetwork()
    listener = await MemoryNetlayer(network, "good").listen(Limits())
    assert listener is not None
    with pytest.raises(AssertionError, match=f"^{NOBODY}a dial to ocapn://good.memory gave a channel$"):
        await check_netlayer(makers.memory(network), nobody=[listener.location])


@trio_test
async def test_make_has_to_make_another_peer_at_each_call() -> None:
    network = MemoryNetwork()

    def make(*, listen: bool) -> MemoryNetlayer:
        return MemoryNetlayer(network, "always the same", listen=listen)

    with pytest.raises(AssertionError, match="each call has to make another peer"):
        await check_netlayer(make)


@trio_test
async def test_what_hangs_is_given_up_after_the_patience() -> None:
    start = trio.current_time()
    with pytest.raises(AssertionError, match="nothing happened for 3 s"):
        await check_netlayer(made(broken.DialHangs), patience=3)
    assert trio.current_time() - start == 3


@trio_test
async def test_a_promise_takes_eight_times_the_patience_at_most() -> None:
    """No single wait is too long here, but there are too many."""
    network = MemoryNetwork(delay=lambda a, b: 0.9)
    start = trio.current_time()
    with pytest.raises(AssertionError, match=": this took more than 8 s"):
        await check_netlayer(makers.memory(network), patience=1)
    assert trio.current_time() - start < 60
