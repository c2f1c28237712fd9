"""Where one message ends and the next begins."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocapn.codec.framing import BARE, NETSTRING, SYRUP, Framer
from ocapn.codec.syrup import Record, encode
from ocapn.errors import DecodeError, RemoteProtocolError
from ocapn.limits import Limits
from ocapn.model.values import Symbol

from . import strategies, vectors

LIMITS = Limits()
FIRST, SECOND, THIRD = b"<1'a1+>", b"<1'b[2+]>", b"<1'c3:>:,>"


def framed(framing: str, messages: list[bytes]) -> bytes:
    if framing == BARE:
        return b"".join(messages)
    tail = b"," if framing == NETSTRING else b""
    return b"".join(b"%d:" % len(message) + message + tail for message in messages)


def test_the_head_of_the_first_frame_may_come_alone() -> None:
    framer = Framer(LIMITS)
    framer.feed(b"7:")
    assert take_all(framer) == []
    framer.feed(FIRST)  # begins with <, as an unframed message would
    assert take_all(framer) == [FIRST]
    assert framer.framing == SYRUP


def take_all(framer: Framer) -> list[bytes]:
    return framer.take(1_000_000)


@pytest.mark.parametrize("framing", [BARE, SYRUP, NETSTRING])
def test_each_framing_is_recognised(framing: str) -> None:
    framer = Framer(LIMITS)
    before = framer.framing
    framer.feed(framed(framing, [FIRST, SECOND, THIRD]))
    assert before is None
    assert take_all(framer) == [FIRST, SECOND, THIRD]
    assert framer.framing == framing
    assert framer.pending == 0


@pytest.mark.parametrize("framing", [BARE, SYRUP, NETSTRING])
def test_what_is_framed_is_read_back(framing: str) -> None:
    writer, reader = Framer(LIMITS, framing), Framer(LIMITS, framing)
    data = writer.frame([FIRST, SECOND]) + writer.frame([]) + writer.frame([THIRD])
    assert data == framed(framing, [FIRST, SECOND, THIRD])
    reader.feed(data)
    assert take_all(reader) == [FIRST, SECOND, THIRD]


def test_syrup_frames_are_written_until_the_framing_is_known() -> None:
    framer = Framer(LIMITS)
    assert framer.frame([FIRST]) == b"7:" + FIRST
    framer.feed(FIRST)
    assert framer.frame([FIRST]) == FIRST


def test_the_comma_that_makes_a_netstring_may_come_later() -> None:
    framer = Framer(LIMITS)
    framer.feed(b"7:" + FIRST)
    assert take_all(framer) == [FIRST]
    assert framer.framing == SYRUP
    framer.feed(b",")
    assert take_all(framer) == []
    assert framer.framing == NETSTRING
    assert framer.frame([FIRST]) == b"7:" + FIRST + b","
    framer.feed(framed(NETSTRING, [SECOND]))
    assert take_all(framer) == [SECOND]


def test_the_comma_is_seen_with_the_first_message_taken_alone() -> None:
    framer = Framer(LIMITS)
    framer.feed(framed(NETSTRING, [FIRST, SECOND]))
    assert framer.take(1) == [FIRST]
    assert framer.framing == NETSTRING
    assert framer.take(1) == [SECOND]


def test_a_comma_after_the_second_syrup_frame_is_an_error() -> None:
    framer = Framer(LIMITS)
    framer.feed(framed(SYRUP, [FIRST, SECOND]) + b",")
    assert take_all(framer) == [FIRST, SECOND]
    with pytest.raises(RemoteProtocolError, match="a frame begins with its length"):
        take_all(framer)


@pytest.mark.parametrize(
    ("framing", "data"),
    [
        (SYRUP, FIRST),
        (SYRUP, b"7:" + FIRST + b","),
        (NETSTRING, FIRST),
        (NETSTRING, framed(SYRUP, [FIRST, SECOND])),
        (BARE, b"+"),
    ],
)
def test_a_framing_that_was_agreed_stays(framing: str, data: bytes) -> None:
    framer = Framer(LIMITS, framing)
    framer.feed(data)
    while framer.pending:
        try:
            assert take_all(framer) == [FIRST]
        except RemoteProtocolError:
            break
    else:
        pytest.fail("nothing was refused")
    assert framer.framing == framing


def test_a_framing_has_a_known_name() -> None:
    with pytest.raises(ValueError, match="no framing is called 'frames'; there are none, syrup, netstring"):
        Framer(LIMITS, "frames")


@pytest.mark.parametrize("framing", [BARE, SYRUP, NETSTRING])
def test_at_most_as_many_as_wanted_are_taken(framing: str) -> None:
    framer = Framer(LIMITS)
    framer.feed(framed(framing, [FIRST, SECOND, THIRD]))
    assert framer.take(0) == []
    assert framer.take(2) == [FIRST, SECOND]
    assert framer.take(2) == [THIRD]
    assert framer.take(2) == []


records = st.lists(strategies.syrup_values(), max_size=3).map(
    lambda fields: encode(Record(Symbol("op"), fields))
)


@pytest.mark.parametrize("known", [True, False], ids=["agreed", "recognised"])
@pytest.mark.parametrize("framing", [BARE, SYRUP, NETSTRING])
@given(
    messages=st.lists(records, min_size=1, max_size=5),
    cuts=st.lists(st.integers(0, 10_000), max_size=10),
    most=st.integers(1, 3),
)
def test_messages_are_the_same_in_any_chunks(
    framing: str, known: bool, messages: list[bytes], cuts: list[int], most: int
) -> None:
    framer = Framer(LIMITS, framing if known else None)
    found: list[bytes] = []
    for piece in strategies.chunks(framed(framing, messages), cuts):
        framer.feed(piece)
        while taken := framer.take(most):
            found += taken
    assert found == messages
    assert framer.framing == framing
    assert framer.pending == 0


frames = st.lists(records, min_size=1, max_size=4).flatmap(
    lambda messages: st.sampled_from([framed(framing, messages) for framing in (BARE, SYRUP, NETSTRING)])
)


@given(strategies.mangled(frames), st.lists(st.integers(0, 10_000), max_size=8), st.integers(1, 3))
def test_any_bytes_give_the_same_messages_and_verdict_in_any_chunks(
    data: bytes, cuts: list[int], most: int
) -> None:
    whole = run([data], 1_000_000)
    assert run(strategies.chunks(data, cuts), most) == whole
    assert run([bytes([octet]) for octet in data], most) == whole


def run(pieces: list[bytes], most: int) -> tuple[list[bytes], tuple[str | None, int] | None]:
    """The messages, and the end: framing and pending bytes, or None after an error."""
    framer = Framer(LIMITS, max_message=1000)
    found: list[bytes] = []
    try:
        for piece in pieces:
            framer.feed(piece)
            while taken := framer.take(most):
                found += taken
    except RemoteProtocolError:
        return found, None
    return found, (framer.framing, framer.pending)


@pytest.mark.parametrize("framing", [BARE, SYRUP, NETSTRING])
def test_every_vector_arrives_in_single_bytes(framing: str) -> None:
    messages = list(vectors.OPERATIONS.values())
    framer = Framer(LIMITS)
    found: list[bytes] = []
    for octet in framed(framing, messages):
        framer.feed(bytes([octet]))
        found += take_all(framer)
    assert found == messages


def test_a_frame_that_comes_in_parts_is_put_together_once() -> None:
    framer = Framer(LIMITS)
    framer.feed(framed(SYRUP, [FIRST]) + b"1000:" + bytes(10))
    assert take_all(framer) == [FIRST]
    for _ in range(98):
        framer.feed(bytes(10))
        assert take_all(framer) == []
        assert framer._buffer == b""
    assert framer.pending == 5 + 990
    framer.feed(bytes(10))
    assert take_all(framer) == [bytes(1000)]


def test_of_much_that_is_taken_bit_by_bit_the_rest_is_not_copied_each_time() -> None:
    framer = Framer(LIMITS)
    framer.feed(framed(SYRUP, [FIRST] * 10_000))
    buffers: list[bytes] = []
    for _ in range(10_000):
        assert framer.take(1) == [FIRST]
        if not buffers or framer._buffer is not buffers[-1]:
            buffers.append(framer._buffer)
    assert len(buffers) <= 20
    assert buffers[-1] == b""


# Errors


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b":" + FIRST, "a frame begins with its length"),
        (b",", "a frame begins with its length"),
        (b"GET / HTTP/1.1\r\n", "a frame begins with its length"),
        (b" 7:" + FIRST, "a frame begins with its length"),
        (b"+7:" + FIRST, "a frame begins with its length"),
        (b"-7:" + FIRST, "a frame begins with its length"),
        (b"7 :" + FIRST, "a frame begins with its length"),
        (b"7\xb2:" + FIRST, "a frame begins with its length"),
        (b"7" + FIRST, "a frame begins with its length"),
        (b"07:" + FIRST, "a frame begins with its length"),
        (b"00", "a frame begins with its length"),
        (b"0:", "an empty frame holds no message"),
        (b"1048577", "a message of more than 1048576 bytes"),
        (b"1048577:", "a message of more than 1048576 bytes"),
        (b"9" * 18, "a message of more than 1048576 bytes"),
        (b"9" * 100, "a message of more than 1048576 bytes"),
        (b"9" * 5000, "a message of more than 1048576 bytes"),
        (b"<1'a01+>", "begins with a zero"),
        (b"<1+>", "a record begins with a symbol"),
    ],
    ids=lambda value: repr(value[:20]) if isinstance(value, bytes) else "",
)
def test_a_malformed_frame_is_refused_at_once_and_for_good(data: bytes, rule: str) -> None:
    framer = Framer(LIMITS)
    framer.feed(data)
    for more in (b"", b"7:" + FIRST, FIRST):
        framer.feed(more)
        with pytest.raises(RemoteProtocolError) as caught:
            take_all(framer)
        assert rule in str(caught.value)


def test_a_netstring_ends_with_a_comma_and_nothing_follows_one_that_does_not() -> None:
    framer = Framer(LIMITS, NETSTRING)
    framer.feed(b"7:")
    assert take_all(framer) == []
    framer.feed(FIRST + b";7:" + FIRST + b",")
    for _ in range(3):
        with pytest.raises(RemoteProtocolError, match="a netstring ends with a comma"):
            take_all(framer)


@pytest.mark.parametrize(
    ("framing", "tail"),
    [(BARE, b"]"), (SYRUP, b"x"), (SYRUP, b"0:"), (SYRUP, b"2000000:"), (NETSTRING, b"1:t;")],
)
def test_messages_before_an_error_are_taken_first(framing: str, tail: bytes) -> None:
    framer = Framer(LIMITS)
    framer.feed(framed(framing, [FIRST, SECOND]) + tail)
    assert framer.take(1) == [FIRST]
    assert take_all(framer) == [SECOND]
    for _ in range(2):
        with pytest.raises(RemoteProtocolError):
            take_all(framer)


def test_an_error_in_a_bare_stream_names_the_offset_in_its_message() -> None:
    framer = Framer(LIMITS)
    framer.feed(FIRST + b"<1'ax>")
    assert take_all(framer) == [FIRST]
    with pytest.raises(DecodeError) as caught:
        take_all(framer)
    assert caught.value.offset == 4


# Limits


def record_of(size: int) -> bytes:
    """A message of exactly `size` bytes."""
    for filling in range(size, 0, -1):
        message = encode(Record(Symbol("a"), [bytes(filling)]))
        if len(message) == size:
            return message
    raise AssertionError(f"no record has {size} bytes")


@pytest.mark.parametrize("framing", [BARE, SYRUP, NETSTRING])
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "in-bytes"])
def test_the_limit_itself_is_allowed_and_one_more_is_not(framing: str, whole: bool) -> None:
    for size, allowed in ((500, True), (501, False)):
        framer = Framer(LIMITS, max_message=500)
        message = record_of(size)
        data = framed(framing, [FIRST, message])
        found: list[bytes] = []

        def run(framer: Framer, data: bytes, found: list[bytes]) -> None:
            for piece in [data] if whole else [bytes([octet]) for octet in data]:
                framer.feed(piece)
                found += take_all(framer)
            found += take_all(framer)

        if allowed:
            run(framer, data, found)
            assert found == [FIRST, message]
        else:
            with pytest.raises(RemoteProtocolError, match="a message of more than 500 bytes"):
                run(framer, data, found)
            assert found == [FIRST]


@pytest.mark.parametrize(
    ("framing", "head"), [(BARE, b"<1'a501:"), (BARE, b"<1'a[493\""), (SYRUP, b"501"), (NETSTRING, b"501:")]
)
def test_what_is_too_long_is_refused_by_its_head(framing: str, head: bytes) -> None:
    framer = Framer(LIMITS, framing, max_message=500)
    framer.feed(head)
    with pytest.raises(RemoteProtocolError, match="a message of more than 500 bytes"):
        take_all(framer)


def test_a_bare_message_that_never_ends_is_refused_at_the_limit() -> None:
    framer = Framer(LIMITS, max_message=500)
    framer.feed(b"<1'a" + b"t" * 495)
    assert take_all(framer) == []
    framer.feed(b"t")
    with pytest.raises(RemoteProtocolError, match="a message of more than 500 bytes"):
        take_all(framer)


def test_the_default_limit_is_that_of_a_frame() -> None:
    framer = Framer(Limits(frame=100))
    framer.feed(b"101:")
    with pytest.raises(RemoteProtocolError, match="a message of more than 100 bytes"):
        take_all(framer)


@pytest.mark.parametrize("framing", [BARE, SYRUP, NETSTRING])
def test_the_limit_may_be_raised_between_messages(framing: str) -> None:
    framer = Framer(LIMITS, max_message=100)
    message = record_of(1000)
    framer.feed(framed(framing, [FIRST, message]))
    assert framer.take(1) == [FIRST]
    framer.max_message = 1000
    assert take_all(framer) == [message]


@pytest.mark.parametrize("framing", [BARE, SYRUP, NETSTRING])
def test_pending_tells_of_an_unfinished_message(framing: str) -> None:
    framer = Framer(LIMITS)
    assert framer.pending == 0
    data = framed(framing, [FIRST])
    body = data[:-1]
    for count, octet in enumerate(body, 1):
        framer.feed(bytes([octet]))
        whole = framing == NETSTRING and count == len(body)  # its comma is not known to follow
        assert take_all(framer) == ([FIRST] if whole else [])
        assert framer.pending == (0 if whole else count)
    framer.feed(data[-1:])
    assert take_all(framer) == ([] if framing == NETSTRING else [FIRST])
    assert framer.pending == 0


def test_a_netstring_is_pending_until_its_comma() -> None:
    framer = Framer(LIMITS, NETSTRING)
    framer.feed(b"7:" + FIRST)
    assert take_all(framer) == []
    assert framer.pending == 9
    framer.feed(b",")
    assert take_all(framer) == [FIRST]
    assert framer.pending == 0
