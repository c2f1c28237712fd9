"""`ocapn baggage`: inspect, verify, export, prune."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import sqlite3
import sys
import time
from pathlib import Path

import pytest
import trio

import durable
import ocapn
from durable import inspection
from durable.header import Header, write_header
from durable.records import encode
from ocapn.cli import ExitCode, baggages
from ocapn.cli.baggage import SERVED_SWISS
from ocapn.cli.exits import Failure
from ocapn.cli.output import progress
from ocapn.model.values import Tagged
from tests.cli.support import Outcome, run
from tests.durable.test_inspection import fill

ACTIONS = ("inspect", "verify", "export", "prune")


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("baggage") / "baggage"
    trio.run(fill, path)
    return path


@pytest.fixture
def path(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A baggage with something of all sorts, of which no kind is registered."""
    monkeypatch.setattr("durable.objects.kinds", {})
    monkeypatch.delenv("OCAPN_DEBUG", raising=False)
    copy = tmp_path / "baggage"
    shutil.copytree(filled, copy)
    copy.chmod(0o700)
    return copy


def baggage(capsys: pytest.CaptureFixture[str], action: str, *arguments: object) -> Outcome:
    outcome = run(capsys, "baggage", action, *map(str, arguments))
    assert outcome.err.count("\n") == (1 if outcome.err else 0)
    return outcome


# inspect


def test_inspect(capsys: pytest.CaptureFixture[str], path: Path) -> None:
    code, out, err = baggage(capsys, "inspect", path)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == str(path)
    assert re.fullmatch(r"  format 1, store [0-9a-f]{16}…, [\d,]+ (bytes|KiB) in files", lines[1])
    for pattern in (
        r"  not sealed",
        r"Sessions: 1 kept, and 1 tombstone",
        r"  kept     ocapn://other\.memory",
        r"    session [0-9a-f]{16}…, dialled by this peer, epoch \d+",
        r"    frames: \d+ sent, \d+ of them acknowledged; \d+ received",
        r"    outbox: \d+ frames, \d+ bytes",
        r"    exports \d+, imports \d+, answers \d+, questions \d+",
        r"    last connected \d{4}-\d\d-\d\d \d\d:\d\d:\d\d \(\d+ (second|minute)s? ago\)",
        r"  ended    session [0-9a-f]{16}…: .*",
        r"    received \d+ frames; the tombstone goes \d{4}-\d\d-\d\d \d\d:\d\d:\d\d \(in \d days?\)",
        r"Durable objects: 4",
        r"           4  test\.inspection\.node, version 2",
        r"Sturdyrefs: 2 \(--secrets shows their swiss numbers\)",
        r"Keys of the application: 5",
        r"           2 +\d+ bytes  \(outside of namespaces\)",
        r"           3 +\d+ bytes  ledger/inner",
    ):
        assert [line for line in lines if re.fullmatch(pattern, line)], pattern
    assert b"swiss number".hex() not in out


def test_inspect_with_secrets(capsys: pytest.CaptureFixture[str], path: Path) -> None:
    code, out, _ = baggage(capsys, "inspect", path, "--secrets")
    assert code == 0
    assert f"\n  {b'swiss number'.hex()}  durable object 2, test.inspection.node\n" in out
    assert "--secrets" not in out


def test_inspect_for_programs(capsys: pytest.CaptureFixture[str], path: Path) -> None:
    code, out, err = baggage(capsys, "inspect", path, "--json")
    assert (code, err, out.count("\n")) == (0, "", 1)
    document = json.loads(out)
    with durable.open_baggage(path) as opened:
        (session,), (tombstone,) = inspection.sessions(opened), inspection.tombstones(opened)
        store = opened.store_id.hex()[:16]
    (shown,) = document["sessions"]
    assert shown == {
        "session": session.id.hex()[:16],
        "peer": "ocapn://other.memory",
        "dialled": True,
        "agreed": True,
        "cut_at": session.cut_at,
        **{name: getattr(session, name) for name in ("epoch", "sent", "acked", "received")},
        **{name: getattr(session, name) for name in ("outbox_frames", "outbox_bytes")},
        **{name: getattr(session, name) for name in ("exports", "imports", "answers", "questions")},
    }
    files = document.pop("files")
    assert files["state.db"] > 0
    assert document == {
        "directory": str(path),
        "format": 1,
        "store": store,
        "sealed": None,
        "sessions": [shown],
        "set_aside": [],
        "tombstones": [
            {
                "session": tombstone.id.hex()[:16],
                "reason": tombstone.reason,
                "received": tombstone.received,
                "until": tombstone.until,
            }
        ],
        "objects": [{"kind": "test.inspection.node", "version": 2, "count": 4}],
        "waiting": document["waiting"],
        "sturdyrefs": 2,
        "namespaces": [
            {"namespace": [], "keys": 2, "bytes": document["namespaces"][0]["bytes"]},
            {"namespace": ["ledger", "inner"], "keys": 3, "bytes": document["namespaces"][1]["bytes"]},
        ],
    }
    assert document["waiting"].keys() == {"promise", "turn", "gift"}
    for secret in (b"swiss number", session.id, tombstone.id):
        assert secret.hex() not in out
        assert base64.b64encode(secret).decode() not in out


def test_inspect_for_programs_with_secrets(capsys: pytest.CaptureFixture[str], path: Path) -> None:
    document = json.loads(baggage(capsys, "inspect", "--json", "--secrets", path).out)
    assert len(document["swiss"]) == document["sturdyrefs"] == 2
    assert {"swiss": {"$bytes": "c3dpc3MgbnVtYmVy"}, "value": {"$object": 2}} in document["swiss"]


def test_an_empty_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    durable.open_baggage(tmp_path / "b").close()
    _, out, _ = baggage(capsys, "inspect", tmp_path / "b")
    assert "\nSessions: 0 kept\n\nDurable objects: 0\n\nSturdyrefs: 0\n\nKeys of the application: 0\n" in out
    assert baggage(capsys, "verify", tmp_path / "b").code == 0
    assert baggage(capsys, "export", tmp_path / "b") == (0, "", "")
    assert baggage(capsys, "prune", tmp_path / "b").code == 0


# verify


def test_verify(capsys: pytest.CaptureFixture[str], path: Path) -> None:
    with durable.open_baggage(path) as opened:
        rows = opened.verify()
    assert baggage(capsys, "verify", path) == (
        0,
        f"{rows} rows checked: each is what was written, and they agree with each other\n",
        "",
    )


def test_verify_names_a_row_that_is_damaged(capsys: pytest.CaptureFixture[str], path: Path) -> None:
    connection = sqlite3.connect(path / "state.db")
    connection.execute("UPDATE object SET value = ? WHERE key = ?", (b"\0", (3).to_bytes(8, "big")))
    connection.commit()
    connection.close()
    name = durable.store.row_name((3).to_bytes(8, "big"))
    said = (
        f"state.db, table object, the row whose key has digest {name}: the row is not what was written; "
        "go back to a copy of it, if there is one\n"
    )
    assert baggage(capsys, "verify", path) == (
        ExitCode.FAILED,
        "",
        f"ocapn baggage verify: the baggage is damaged: {said}",
    )
    for action in ("inspect", "prune"):
        code, _, err = baggage(capsys, action, path)
        assert code == ExitCode.BAGGAGE
        assert err.endswith(said)


def test_verify_for_programs(capsys: pytest.CaptureFixture[str], path: Path) -> None:
    with durable.open_baggage(path) as opened:
        rows = opened.verify()
    code, out, err = baggage(capsys, "verify", path, "--json")
    assert (code, json.loads(out), err) == (0, {"whole": True, "rows": rows, "content": True}, "")
    with durable.open_baggage(path) as opened:
        (session,) = inspection.sessions(opened)
        opened.remove("outbox", opened.scan("outbox")[-1][0])
    code, out, err = baggage(capsys, "verify", path, "--json")
    assert code == ExitCode.FAILED
    told = json.loads(out)
    assert told.pop("why") in err
    row = durable.store.row_name(session.id)
    assert told == {"whole": False, "file": "state.db", "table": "session", "row": row}
    (path / "header.cbor").unlink()
    code, out, _ = baggage(capsys, "verify", path, "--json")
    assert code == ExitCode.FAILED
    assert json.loads(out) == {
        "whole": False,
        "why": "header.cbor: the header is gone",
        "file": "header.cbor",
        "table": None,
        "row": None,
    }
    assert baggage(capsys, "verify", "--json", path / "nosuch").out == ""


def test_verify_names_a_row_that_does_not_agree(capsys: pytest.CaptureFixture[str], path: Path) -> None:
    with durable.open_baggage(path) as opened:
        (session,) = inspection.sessions(opened)
        opened.remove("outbox", opened.scan("outbox")[-1][0])
    code, out, err = baggage(capsys, "verify", path)
    assert (code, out) == (ExitCode.FAILED, "")
    assert f"the row whose key has digest {durable.store.row_name(session.id)}: of its frames" in err


def test_verify_of_one_that_cannot_be_opened(capsys: pytest.CaptureFixture[str], path: Path) -> None:
    (path / "header.cbor").unlink()
    code, out, err = baggage(capsys, "verify", path)
    assert (code, out) == (ExitCode.FAILED, "")
    assert err.startswith("ocapn baggage verify: the baggage is damaged: header.cbor: the header is gone; ")


# export


def test_export(capsys: pytest.CaptureFixture[str], path: Path) -> None:
    code, out, err = baggage(capsys, "export", path)
    assert code == 0
    lines = [json.loads(line) for line in out.splitlines()]
    assert [(line["namespace"], line["key"]) for line in lines] == [
        ([], "root"),
        ([], "values"),
        *((["ledger", "inner"], str(number)) for number in range(3)),
    ]
    assert lines[0]["value"] == {"$object": 2}
    assert lines[1]["value"] == [{"$tuple": [1, 2]}, {"$symbol": "s"}, {"\0k": 1}, {"$null": True}]
    assert lines[4]["value"] == {"sum": 2, "raw": {"$bytes": "AA=="}}
    assert err == "ocapn baggage export: 2 lines with swiss numbers left out; --secrets shows them\n"
    code, out, err = baggage(capsys, "export", path, "--secrets")
    assert (code, err) == (0, "")
    lines = [json.loads(line) for line in out.splitlines()]
    assert {"swiss": {"$bytes": "c3dpc3MgbnVtYmVy"}, "value": {"$object": 2}} in lines
    assert len(lines) == 7


def test_export_leaves_out_secrets(capsys: pytest.CaptureFixture[str], path: Path) -> None:
    locator = ["memory", "x", {"a": "b"}]
    with durable.open_baggage(path) as opened:
        space: durable.Namespace = opened
        for name in SERVED_SWISS:
            space = space.namespace(name)
        space["a"] = b"very-secret"
        opened.put("user", b"kx", encode({"\0u": [*locator, b"very-secret"]}))
        opened.put(
            "user", b"ky", encode([{"\0l": locator}, {"\0g": ["t", {"\0u": [*locator, b"very-secret"]}]}])
        )
        opened.put(
            "user", b"kz", encode([{"\0r": [bytes(32), 5]}, {"\0e": ["no", None]}, {"\0?": 1}, {"$a": 1}])
        )
        opened["floats"] = [1.5, float("inf"), None, True]
    _, out, err = baggage(capsys, "export", path)
    assert "very-secret" not in out
    assert "dmVyeS1zZWNyZXQ" not in out
    assert "3 lines" in err
    values = {line["key"]: line["value"] for line in map(json.loads, out.splitlines())}
    peer = {"$peer": "ocapn://x.memory?a=b"}
    assert values["x"] == peer
    assert values["y"] == [peer, {"$tagged": ["t", peer]}]
    assert values["z"] == [
        {"$ref": "import 5 of session 0000000000000000"},
        {"$error": "no", "value": None},
        {"$unknown": "?"},
        {"$struct": {"$a": 1}},
    ]
    assert values["floats"] == [1.5, {"$float": "inf"}, None, True]
    _, out, _ = baggage(capsys, "export", path, "--secrets")
    assert '{"$sturdyref": "ocapn://x.memory/s/very-secret?a=b"}' in out
    assert "dmVyeS1zZWNyZXQ" in out


def test_what_a_peer_has_packed_is_known_to_export(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The forms are those of `durable.sessions`."""

    async def fill_with_values() -> None:
        with durable.open_baggage(tmp_path / "b") as opened:
            netlayer = ocapn.MemoryNetlayer(ocapn.MemoryNetwork(), "x")
            async with ocapn.open_peer([netlayer], baggage=opened) as peer:
                opened["all"] = [
                    *(ocapn.Symbol("s"), (1,), Tagged("t", 1), ocapn.Null),
                    *(ocapn.SturdyRef(netlayer.location, b"very-secret"), netlayer.location),
                ]
                await peer.settled()

    trio.run(fill_with_values)
    _, out, _ = baggage(capsys, "export", tmp_path / "b")
    assert json.loads(out)["value"] == [
        *({"$symbol": "s"}, {"$tuple": [1]}, {"$tagged": ["t", 1]}, {"$null": True}),
        *({"$peer": "ocapn://x.memory"}, {"$peer": "ocapn://x.memory"}),
    ]


# prune


def test_prune(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    assert baggage(capsys, "prune", path, "--dry-run") == (
        0,
        "0 expired tombstones would be removed\n0 durable objects that nothing leads to would be removed\n",
        "",
    )
    with durable.open_baggage(path) as opened:
        opened.put("object", (99).to_bytes(8, "big"), encode(["mine", 3, {"secret": "to be overwritten"}]))
        (tombstone,) = inspection.tombstones(opened)
    monkeypatch.setattr(time, "time", lambda: tombstone.until + 1.0)
    said = (
        "1 expired tombstone {0}\n1 durable object that nothing leads to {0}\n           1  mine, version 3\n"
    )
    before = (path / "state.db").read_bytes()
    assert baggage(capsys, "prune", "--dry-run", path) == (0, said.format("would be removed"), "")
    assert b"to be overwritten" in before
    assert b"to be overwritten" in (path / "state.db").read_bytes()
    code, out, err = baggage(capsys, "prune", path)
    assert (code, err) == (0, "")
    assert out.startswith(said.format("removed") + "What was deleted is overwritten; the files had ")
    assert b"to be overwritten" not in (path / "state.db").read_bytes()
    assert baggage(capsys, "verify", path).code == 0
    assert baggage(capsys, "prune", path).out.startswith("0 expired tombstones removed\n0 durable objects ")


# What goes wrong


@pytest.mark.parametrize("action", ACTIONS)
def test_one_that_is_in_use(capsys: pytest.CaptureFixture[str], path: Path, action: str) -> None:
    with durable.open_baggage(path):
        assert baggage(capsys, action, path) == (
            ExitCode.BAGGAGE,
            "",
            f"ocapn baggage {action}: {path} is in use by process {os.getpid()}: "
            "end it, or choose another directory\n",
        )


@pytest.mark.parametrize("action", ACTIONS)
def test_none_is_made(capsys: pytest.CaptureFixture[str], tmp_path: Path, action: str) -> None:
    for place in (tmp_path / "nosuch", tmp_path):
        assert baggage(capsys, action, place) == (
            ExitCode.FILE,
            "",
            f"ocapn baggage {action}: there is no baggage in {place}; "
            "'ocapn serve --baggage' and durable.open_baggage make one\n",
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("action", ACTIONS)
def test_no_directory_is_named(capsys: pytest.CaptureFixture[str], action: str) -> None:
    why = f"ocapn baggage {action}: no directory is named: '.' is the current one\n"
    assert baggage(capsys, action, "") == (ExitCode.USAGE, "", why)


def test_one_of_a_later_version(capsys: pytest.CaptureFixture[str], path: Path) -> None:
    write_header(path, Header(bytes(32)), 2)
    for action in ACTIONS:
        code, out, err = baggage(capsys, action, path)
        assert (code, out) == (ExitCode.BAGGAGE, "")
        assert f"{path} has format 2, this version reads 1: " in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "an action is missing; it is one of inspect, verify, export, prune, seal, unseal, rotate; "),
        (
            ["foo"],
            "there is no action foo; it is one of inspect, verify, export, prune, seal, unseal, rotate; ",
        ),
        (["foo", "x"], "there is no action foo; it is one of "),
        (["inspect"], "the following arguments are required: DIR; 'ocapn baggage inspect --help' explains"),
        (["verify", "x", "--secrets"], "unrecognized arguments: --secrets; 'ocapn baggage verify --help' "),
    ],
)
def test_misuse(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    code, out, err = run(capsys, "baggage", *arguments)
    assert (code, out) == (ExitCode.USAGE, "")
    assert re.match(rf"ocapn baggage( \w+)?: {re.escape(said)}", err), err
    assert err.count("\n") == 1


def test_help_of_an_action_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "help", "baggage", "foo")
    assert code == ExitCode.USAGE
    assert err.startswith("ocapn: there is no command baggage foo; ")


def test_a_system_without_locks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    def missing(name: str) -> object:
        raise ModuleNotFoundError("No module named 'fcntl'")

    monkeypatch.setattr("ocapn.cli.baggages.importlib.import_module", missing)
    assert baggage(capsys, "verify", path) == (
        ExitCode.BAGGAGE,
        "",
        "ocapn baggage verify: a baggage cannot be kept on this system: No module named 'fcntl'\n",
    )


def test_what_is_no_error_of_a_baggage_is_left_alone() -> None:
    for error in (ValueError("x"), ExceptionGroup("", [durable.BaggageFailed("x"), BrokenPipeError()])):
        with pytest.raises(type(error)), baggages.told():
            raise error
    group = ExceptionGroup("", [ValueError("x"), ExceptionGroup("", [durable.BaggageFailed("disk full")])])
    with pytest.raises(Failure, match="disk full") as caught, baggages.told():
        raise group
    assert caught.value.code == ExitCode.BAGGAGE


# Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress("reading") as say:
        say("1,000 of 2,000")
        while terminal.tell() == 0:
            time.sleep(0.01)
    assert re.match(r"\r\x1b\[Kreading … 1,000 of 2,000 \d s", terminal.getvalue())
    assert terminal.getvalue().endswith("\r\x1b[K")


def test_no_progress_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for stderr in (io.StringIO(), None):
        monkeypatch.setattr(sys, "stderr", stderr)
        with progress("reading") as say:
            say("x")
            time.sleep(0.25)
        assert stderr is None or stderr.getvalue() == ""


def test_what_was_set_aside_is_shown_and_pruned(capsys: pytest.CaptureFixture[str], path: Path) -> None:
    with durable.open_baggage(path) as opened:
        opened.put("node", b"aside/" + bytes(32), encode(["malformed", None, 1_700_000_000]))
    lines = baggage(capsys, "inspect", path).out.splitlines()
    (line,) = [line for line in lines if line.startswith("  aside ")]
    assert line.startswith(f"  aside    session {'0' * 16}…, 2023-11-1")
    assert line.endswith("with an unknown peer")
    assert "    malformed" in lines
    document = json.loads(baggage(capsys, "inspect", path, "--json").out)
    assert document["set_aside"] == [
        {"session": "0" * 16, "reason": "malformed", "peer": None, "at": 1_700_000_000}
    ]
    assert "1 session set aside removed" in baggage(capsys, "prune", path).out
    assert json.loads(baggage(capsys, "inspect", path, "--json").out)["set_aside"] == []
