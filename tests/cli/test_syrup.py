"""`ocapn syrup`."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocapn.cli import ExitCode
from ocapn.cli.syrup import framed, values
from ocapn.codec.framing import NETSTRING, SYRUP, Framer
from ocapn.codec.syrup import encode
from ocapn.errors import DecodeError
from ocapn.limits import Limits
from tests.cli.support import Outcome, run
from tests.wire import strategies


def _printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, data: bytes, *options: str
) -> Outcome:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    return run(capsys, "syrup", "-", *options)


def test_one_value_a_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "values"
    file.write_bytes(b"<10'op:deliver<11'desc:export5+>[5'greet3\"Ann]3+f>1+t")
    assert run(capsys, "syrup", str(file)) == (
        0,
        '<op:deliver <desc:export 5> [\'greet "Ann"] 3 f>\n1\nt\n',
        "",
    )


@pytest.mark.parametrize("data", [b"2:1+3:12+", b"2:1+,3:12+,"])
def test_frames(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    assert _printed(capsys, monkeypatch, data, "--frames") == (0, "1\n12\n", "")


@pytest.mark.parametrize("options", [[], ["--frames"]])
def test_nothing_holds_no_values(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    assert _printed(capsys, monkeypatch, b"", *options) == (0, "", "")


def test_secrets_are_left_out_unless_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = b"<15'ocapn-sturdyref<10'ocapn-peer4'unix1\"af>6:secret>"
    assert (
        _printed(capsys, monkeypatch, data).out == '<ocapn-sturdyref <ocapn-peer \'unix "a" f> :…(6 bytes)>\n'
    )
    assert b"secret".hex() in _printed(capsys, monkeypatch, data, "--secrets").out


@pytest.mark.parametrize(
    ("data", "options", "out", "said"),
    [
        (b"1+[01+]", [], "1\n", "byte 3: a number begins with a zero that is not needed"),
        (b"1+[1+", [], "1\n", "byte 5: the input ends inside a value"),
        (b"1+\n", [], "1\n", "byte 2: no value begins with byte 0x0a; Syrup has no line ends"),
        (b"[" * 200, [], "", "byte 128: nested more than 128 deep"),
        (b"2:1+,3:12+,2:x+,", ["--frames"], "1\n12\n", "byte 13: no value begins with byte 0x78"),
        (b"2:1+3:12+2:x+", ["--frames"], "1\n12\n", "byte 11: no value begins with byte 0x78"),
        (b"2:1+1:2", ["--frames"], "1\n", "byte 7: the message ends inside a value"),
        (b"3:1+2+", ["--frames"], "", "byte 4: bytes are left over after the value"),
        (
            b"2:1+05:",
            ["--frames"],
            "1\n",
            "byte 4: a frame begins with its length in decimal digits and a colon",
        ),
        (b"2:1+,2:2+2:3+", ["--frames"], "1\n", "byte 5: a netstring ends with a comma"),
        (b"2:1+0:", ["--frames"], "1\n", "byte 4: an empty frame holds no message"),
        (b"2:1+2:2", ["--frames"], "1\n", "byte 7: the input ends inside a frame"),
        (
            b"<1>",
            ["--frames"],
            "",
            "byte 0: a value and not a frame, which begins with its length; try without --frames",
        ),
    ],
)
def test_what_is_malformed_is_named_by_offset_and_rule(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    data: bytes,
    options: list[str],
    out: str,
    said: str,
) -> None:
    expected = (ExitCode.MALFORMED, out, f"ocapn syrup: standard input, {said}\n")
    assert _printed(capsys, monkeypatch, data, *options) == expected


def test_a_file_that_cannot_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    said = "ocapn syrup: cannot read /nonexistent/file: No such file or directory\n"
    assert run(capsys, "syrup", "/nonexistent/file") == (ExitCode.FILE, "", said)


def test_misuse(capsys: pytest.CaptureFixture[str]) -> None:
    said = "ocapn syrup: the following arguments are required: FILE; 'ocapn syrup --help' explains\n"
    assert run(capsys, "syrup") == (ExitCode.USAGE, "", said)


_ENCODED = strategies.passables().map(encode)


@given(st.lists(_ENCODED, max_size=5))
def test_values_are_told_apart(messages: list[bytes]) -> None:
    assert list(values(b"".join(messages))) == messages


@given(st.lists(_ENCODED, min_size=1, max_size=5), st.sampled_from([SYRUP, NETSTRING]), st.data())
def test_frames_are_told_apart_and_damage_is_where_it_is(
    messages: list[bytes], framing: str, data: st.DataObject
) -> None:
    frame = Framer(Limits(), framing).frame
    assert list(framed(frame(messages))) == messages
    i = data.draw(st.integers(0, len(messages) - 1))
    start = len(frame(messages[:i])) + len(b"%d:" % len(messages[i]))
    damaged = bytearray(frame(messages))
    damaged[start] = ord("?")
    with pytest.raises(DecodeError) as caught:
        list(framed(bytes(damaged)))
    assert caught.value.offset == start
