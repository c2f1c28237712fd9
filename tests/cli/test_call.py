"""`ocapn call`, against a server in a process of its own."""

from __future__ import annotations

import io
import json
import math
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import ocapn
from ocapn.cli import ExitCode
from ocapn.cli.values import parse_json
from tests.cli.support import finished, line, run, serving, started

#: A port of loopback where nobody listens: it is the one of tcpmux.
NOBODY = "ocapn://x.tcp-testing-only/s/very-secret?host=127.0.0.1&port=1"


@pytest.fixture(scope="module")
def uris() -> Iterator[dict[str, str]]:
    names = ["thing", "add", "later", "Nested.inner"]
    with serving(*names) as (_, found):
        yield dict(zip(names, found, strict=True))


@pytest.fixture
def thing(uris: dict[str, str], tmp_path: Path) -> str:
    """The argument that names the thing."""
    file = tmp_path / "thing.ref"
    file.write_text(f"thing {uris['thing']}\n")
    return f"@{file}"


def test_a_method_with_arguments(capsys: pytest.CaptureFixture[str], thing: str) -> None:
    assert run(capsys, "call", thing, "echo", "1", '"Ann"', "null") == (0, "[1, 'Ann', Null]\n", "")


def test_all_of_the_model_comes_back_in_python_and_in_json(
    capsys: pytest.CaptureFixture[str], thing: str
) -> None:
    assert run(capsys, "call", thing, "everything").out == (
        "['é', Symbol('s'), None, Null, 1, 1.0, nan, b'hi', {'$a': True}, Tagged('t', [2]), "
        "RemoteError('an error'), PeerLocator('ocapn://p.unix')]\n"
    )
    code, out, err = run(capsys, "call", "--json", thing, "everything")
    assert (code, err, out.count("\n"), out.isascii()) == (0, "", 1, True)
    value = parse_json(out, "it")
    assert ocapn.equal(
        value,
        [
            *("é", ocapn.Symbol("s"), None, ocapn.Null, 1, 1.0, math.nan, b"hi", {"$a": True}),
            *(ocapn.Tagged("t", [2]), ocapn.RemoteError("an error"), ocapn.PeerLocator("unix", "p")),
        ],
    )
    again = run(capsys, "call", "--json", thing, "echo", out).out
    assert ocapn.equal(parse_json(again, "it"), [value])


def test_references_are_described(capsys: pytest.CaptureFixture[str], thing: str) -> None:
    found = json.loads(run(capsys, "call", "--json", thing, "me").out)
    assert found[0]["$ref"].startswith("Ref 1 of ocapn://")
    assert found[1] == {"$ref": "Promise, pending"}
    assert run(capsys, "call", thing, "me").out.startswith("[<Ref 1 of ocapn://")


def test_a_sturdyref_in_a_result_is_whole(capsys: pytest.CaptureFixture[str], thing: str) -> None:
    assert run(capsys, "call", thing, "sturdyref").out == "SturdyRef('ocapn://p.unix/s/swiss')\n"
    assert (
        run(capsys, "call", thing, "sturdyref", "--json").out == '{"$sturdyref": "ocapn://p.unix/s/swiss"}\n'
    )


def test_a_function_takes_the_arguments_alone(
    capsys: pytest.CaptureFixture[str], uris: dict[str, str]
) -> None:
    assert run(capsys, "call", uris["add"], "-", "1", "-5") == (0, "-4\n", "")
    assert run(capsys, "call", uris["later"], "-", "[1.5]") == (0, "[1.5]\n", "")
    code, _, err = run(capsys, "call", uris["add"])
    assert code == ExitCode.FAILED
    assert "add takes 2 arguments, 0 given" in err


def test_options_may_stand_anywhere_and_end_with_two_dashes(
    capsys: pytest.CaptureFixture[str], thing: str
) -> None:
    for arguments in (
        ["--json", thing, "echo", "--", "-1e5"],
        [thing, "--json", "echo", "--", "-1e5"],
        [thing, "echo", "--json", "--timeout", "50", "--", "-1e5"],
    ):
        assert run(capsys, "call", *arguments) == (0, "[-100000.0]\n", "")


def test_the_uri_may_come_from_standard_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, uris: dict[str, str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(uris["Nested.inner"].encode())))
    assert run(capsys, "call", "@-", "echo") == (0, "[]\n", "")


def test_the_trace_shows_the_wire_without_secrets(
    capsys: pytest.CaptureFixture[str], uris: dict[str, str]
) -> None:
    code, out, err = run(capsys, "call", "--trace", uris["thing"], "echo", '"Ann"')
    assert (code, out) == (0, "['Ann']\n")
    # Garbage is told of when there is a moment for it.
    lines = [text for text in err.splitlines() if "op:gc-" not in text]
    assert lines[0].startswith("#1 dialled ocapn://")
    assert lines[1].startswith('#1 -> <op:start-session "1.0" ')
    assert lines[2].startswith('#1 <- <op:start-session "1.0" ')
    assert lines[3] == "#1 -> <op:deliver <desc:export 0> ['fetch :…(32 bytes)] 1 <desc:import-object 1>>"
    assert lines[4] == "#1 <- <op:deliver <desc:export 1> ['fulfill <desc:import-object 1>] f f>"
    assert lines[5].startswith('#1 -> <op:deliver <desc:export 1> [\'echo "Ann"] 2 ')
    assert lines[-2:] == ['#1 -> <op:abort "the peer was closed">', "#1 closed"]
    assert ocapn.SturdyRef.parse(uris["thing"]).swiss.hex() not in err


def test_verbose_tells_of_the_session(capsys: pytest.CaptureFixture[str], thing: str) -> None:
    _, out, err = run(capsys, "call", "-v", thing, "echo")
    assert out == "[]\n"
    assert err.startswith("ocapn call: session with ocapn://")


# What goes wrong


def test_an_error_of_the_other_side(capsys: pytest.CaptureFixture[str], thing: str) -> None:
    said = "ocapn call: the other side answered with an error: two\\nlines \\x1b[31m\n"
    assert run(capsys, "call", thing, "fail") == (ExitCode.FAILED, "", said)
    assert run(capsys, "call", thing, "fail", "--json") == (
        ExitCode.FAILED,
        '{"$error": "two\\nlines \\u001b[31m"}\n',
        said,
    )


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nope"], 1, "the other side answered with an error: no method is called 'nope'"),
        (["fail_with_secret"], 1, "the other side answered with an error: see ocapn://p.unix/s/…?path=x"),
        (
            ["forever", "--timeout", "0.05"],
            5,
            "0.05 s have passed while waiting for the answer; --timeout gives it longer",
        ),
        (
            ["echo", "Ann"],
            4,
            "argument 1 is not JSON: expecting value at character 1; "
            "a string has quotes, which the shell must leave: '\"Ann\"'",
        ),
        (["echo", "1", '["\\ud800"]'], 4, "argument 2[0]: a string with a surrogate is not text"),
        (["-", '["\\ud800"]'], 4, "argument 1[0]: a string with a surrogate is not text"),
        (["echo", "1" * 300], 4, "argument 1: an integer of more than 256 digits"),
        (["echo", f'"{"x" * (1 << 20)}"'], 4, "the message has "),
        (
            ["echo", "-1e5"],
            2,
            "unrecognized arguments: -1e5 (put -- before arguments that begin with -); 'ocapn call --help' explains",
        ),
        (["--jsno"], 2, "unrecognized arguments: --jsno; 'ocapn call --help' explains"),
        (["--js"], 2, "unrecognized arguments: --js; 'ocapn call --help' explains"),
        (
            ["echo", "--timeout", "soon"],
            2,
            "argument --timeout: invalid number of seconds value: 'soon'; 'ocapn call --help' explains",
        ),
        (["echo", "--timeout", "-1"], 2, "argument --timeout: "),
        (["echo", "--timeout", "inf"], 2, "argument --timeout: invalid number of seconds value: 'inf'"),
    ],
)
def test_errors(
    capsys: pytest.CaptureFixture[str], thing: str, arguments: list[str], code: int, said: str
) -> None:
    got, out, err = run(capsys, "call", thing, *arguments)
    assert (got, out) == (code, "")
    assert err.startswith(f"ocapn call: {said}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("uri", "code", "said"),
    [
        (NOBODY, 3, "cannot reach ocapn://x.tcp-testing-only?host=127.0.0.1&port=1: "),
        (
            "ocapn://x.pigeon/s/very-secret",
            3,
            "this peer has no netlayer pigeon; it has noise, tcp-testing-only, unix",
        ),
        ("ocapn://x.unix/s/very-secret?path=/nonexistent/x", 3, "cannot reach ocapn://x.unix?path="),
        (
            "ocapn://x.tcp-testing-only/s/very-secret",
            4,
            "a tcp-testing-only locator needs the hints host and port (1 to 65535); a peer's URI is ",
        ),
        (
            "ocapn://x.unix",
            4,
            "this URI names a peer, not an object: a sturdyref has /s/ and a swiss number; ",
        ),
        ("very-secret", 4, "an OCapN URI begins with ocapn://; "),
        ("@/nonexistent/file", 6, "cannot read /nonexistent/file: No such file or directory"),
    ],
)
def test_objects_that_cannot_be_had(
    capsys: pytest.CaptureFixture[str], uri: str, code: int, said: str
) -> None:
    got, out, err = run(capsys, "call", uri, "echo")
    assert (got, out) == (code, "")
    assert err.startswith(f"ocapn call: {said}")
    assert err.count("\n") == 1
    assert "very-secret" not in err


def test_who_cannot_be_reached_gets_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    err = run(capsys, "call", NOBODY, "echo").err
    assert err.endswith("; is it running, and can this machine reach it?\n")


def test_an_object_that_is_not_there(capsys: pytest.CaptureFixture[str], uris: dict[str, str]) -> None:
    found = ocapn.SturdyRef.parse(uris["thing"])
    uri = ocapn.SturdyRef(found.peer, b"very-secret").uri
    assert run(capsys, "call", uri, "echo") == (
        ExitCode.FAILED,
        "",
        "ocapn call: the peer does not give the object: no object has that swiss number; "
        "ask who gave you the sturdyref for a new one\n",
    )


def test_a_server_that_dies_while_it_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    with serving("thing") as (process, (uri,)):
        code, out, err = run(capsys, "call", uri, "die")
        assert (code, out) == (ExitCode.NO_SESSION, "")
        assert err.startswith("ocapn call: the session ended: ")
        assert err.endswith("; is the other side still there?\n")
        assert finished(process).code == 9


@pytest.mark.parametrize(
    ("signum", "code", "said"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_ends_the_wait(signum: signal.Signals, code: int, said: str) -> None:
    with serving("thing", options=["-v"]) as (server, (uri,)):
        with started("call", uri, "forever", "--timeout", "0") as process:
            assert line(server) == "waiting"
            process.send_signal(signum)
            assert finished(process) == (code, "", f"ocapn call: {said}\n")
        server.send_signal(signal.SIGTERM)
        # The session was ended in order, by op:abort.
        assert finished(server).err.splitlines()[1].endswith(": the peer was closed")


def test_misuse(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "call") == (
        2,
        "",
        "ocapn call: the following arguments are required: URI; 'ocapn call --help' explains\n",
    )
    _, _, err = run(capsys, "call", NOBODY, "echo", "--jsno", NOBODY)
    assert "very-secret" not in err
