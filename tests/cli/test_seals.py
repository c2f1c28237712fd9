"""Sealed baggages: the options that open them, and `ocapn baggage seal`, `unseal` and `rotate`."""

from __future__ import annotations

import getpass
import json
import os
import signal
import sqlite3
import stat
import sys
import warnings
from pathlib import Path

import pytest

import durable
from durable import KeyFile, Passphrase
from ocapn.cli import ExitCode
from tests.cli.support import Outcome, finished, run
from tests.cli.test_kept import KEPT, called, serving
from tests.durable.support import FAST

SECRET = "very-secret"


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.delenv("OCAPN_DEBUG", raising=False)
    return tmp_path / "baggage"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passphrases that the commands make are quickly stretched."""
    monkeypatch.setattr(durable, "Passphrase", lambda text: Passphrase(text, opslimit=1, memlimit=8 << 20))


@pytest.fixture
def phrase(tmp_path: Path) -> str:
    """The option with the passphrase of FAST."""
    return f"--passphrase=@{private(tmp_path / 'phrase', b'right passphrase' + os.linesep.encode())}"


def private(file: Path, data: bytes) -> Path:
    file.touch(0o600)
    file.write_bytes(data)
    return file


def made(path: Path, seal: durable.Seal | None) -> Path:
    with durable.open_baggage(path, seal=seal) as baggage:
        baggage["key"] = SECRET
    return path


def _beside(path: Path) -> list[str]:
    """What is there, but for the control socket of a process that was killed."""
    names = (entry.name for entry in path.parent.iterdir())
    return sorted(name for name in names if not name.endswith(".control"))


def key_beside(path: Path) -> KeyFile:
    return KeyFile(path.with_name("baggage.key"))


def baggage(capsys: pytest.CaptureFixture[str], action: str, *arguments: object) -> Outcome:
    outcome = run(capsys, "baggage", action, *map(str, arguments))
    assert SECRET not in outcome.err
    assert "right passphrase" not in outcome.err
    return outcome


def exported(capsys: pytest.CaptureFixture[str], *arguments: object) -> object:
    code, out, err = baggage(capsys, "export", *arguments)
    assert (code, err) == (0, "")
    return json.loads(out)["value"]


def failed(capsys: pytest.CaptureFixture[str], code: ExitCode, action: str, *arguments: object) -> str:
    """The one line that is said."""
    outcome = baggage(capsys, action, *arguments)
    assert (outcome.code, outcome.out) == (code, ""), outcome
    start = f"ocapn baggage {action}: "
    assert outcome.err.startswith(start)
    assert outcome.err.count("\n") == 1
    return outcome.err[len(start) : -1]


def told(path: Path, secret: bytes) -> list[str]:
    return [file.name for file in path.iterdir() if secret in file.read_bytes()]


# serve


def test_what_serve_makes_is_sealed(capsys: pytest.CaptureFixture[str], path: Path) -> None:
    key = key_beside(path).path
    with serving(path, "a=Counter") as (process, (uri,)):
        assert called(capsys, uri, "add", "1") == "1"
        process.send_signal(signal.SIGTERM)
        said = finished(process).err.splitlines()
    assert said == [
        f"ocapn serve: sealed with the key in {key}, which was made: keep a copy of it elsewhere, as nothing "
        "else opens the baggage. That protects copies of the directory, and disks thrown away without the key; it "
        "does not protect from whoever reads the key file too",
        "ocapn serve: terminated",
    ]
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert told(path, b"ocapn.serve") == []
    with serving(path, "a=Counter") as (process, (again,)):
        assert again == uri
        assert called(capsys, uri, "add", "1") == "2"
        process.send_signal(signal.SIGTERM)
        assert finished(process).err == "ocapn serve: terminated\n"
    assert baggage(capsys, "verify", path).code == 0


def test_serve_with_a_key_file_elsewhere(capsys: pytest.CaptureFixture[str], path: Path) -> None:
    key = path.with_name("elsewhere")
    for _ in range(2):
        with serving(path, "a=Counter", options=[f"--key-file={key}"]):
            pass
    assert _beside(path) == ["baggage", "elsewhere"]
    why = f"{path} is sealed, and its key file {path}.key is not there; --key-file says where it is"
    assert failed(capsys, ExitCode.BAGGAGE, "inspect", path) == why
    assert baggage(capsys, "verify", path, "--key-file", key).code == 0


def test_serve_in_clear_where_that_is_asked_for(capsys: pytest.CaptureFixture[str], path: Path) -> None:
    with serving(path, "a=Counter", options=["--seal=none"]) as (process, _):
        process.send_signal(signal.SIGTERM)
        assert finished(process).err == "ocapn serve: terminated\n"
    assert _beside(path) == ["baggage"]
    assert told(path, b"ocapn.serve")
    with serving(path, "a=Counter"):  # and it goes on so
        pass
    assert _beside(path) == ["baggage"]


def test_serve_with_a_passphrase(capsys: pytest.CaptureFixture[str], path: Path, phrase: str) -> None:
    for _ in range(2):
        with serving(path, "a=Counter", options=[phrase]) as (process, _):
            process.send_signal(signal.SIGTERM)
            assert finished(process).err == "ocapn serve: terminated\n"
    assert durable.sealed_by(path) == "passphrase"
    assert baggage(capsys, "verify", path, phrase).out.endswith("and they agree with each other\n")


def test_serve_goes_on_with_one_that_was_made_in_part(path: Path) -> None:
    """It is sealed then, as it would have been."""
    durable.open_baggage(path).close()
    (path / "header.cbor").unlink()
    with serving(path, "a=Counter"):
        assert durable.sealed_by(path) == "key-file"


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (
            ["--seal=none"],
            ExitCode.USAGE,
            "is sealed with a passphrase, not as --seal says; 'ocapn baggage rotate'",
        ),
        (
            ["--key-file=x"],
            ExitCode.USAGE,
            "is sealed with a passphrase, not as --seal says; 'ocapn baggage rotate'",
        ),
        (
            ["--passphrase=@wrong"],
            ExitCode.BAGGAGE,
            "the seal does not open this baggage: another passphrase or key ",
        ),
        (
            ["--passphrase=right passphrase"],
            ExitCode.USAGE,
            "--passphrase takes @FILE; a passphrase on the command ",
        ),
        (["--passphrase=@"], ExitCode.USAGE, "--passphrase takes @FILE; "),
        (["--passphrase=@nosuch"], ExitCode.FILE, "cannot read nosuch: No such file"),
        (["--key-file="], ExitCode.USAGE, "--key-file takes the path of a file"),
        (
            ["--seal=none", "--passphrase=@wrong"],
            ExitCode.USAGE,
            "--passphrase does not go with a seal by none",
        ),
        (
            ["--key-file=x", "--passphrase=@wrong"],
            ExitCode.USAGE,
            "--passphrase does not go with a seal by key-file",
        ),
        (["--seal=other"], ExitCode.USAGE, "argument --seal: invalid choice: 'other'"),
    ],
)
def test_serve_with_another_seal(
    capsys: pytest.CaptureFixture[str],
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    code: ExitCode,
    said: str,
) -> None:
    monkeypatch.chdir(path.parent)
    private(path.parent / "wrong", b"wrong")
    made(path, FAST)
    outcome = run(capsys, "serve", f"--baggage={path}", f"--export=a={KEPT}:Counter", *options)
    assert (outcome.code, outcome.out) == (code, "")
    assert said in outcome.err
    assert outcome.err.count("\n") == 1
    assert _beside(path) == ["baggage", "wrong"]


def test_a_seal_without_a_baggage(capsys: pytest.CaptureFixture[str], path: Path) -> None:
    outcome = run(capsys, "serve", f"--export=a={KEPT}:Counter", "--seal=key-file")
    assert outcome == (
        ExitCode.USAGE,
        "",
        "ocapn serve: a seal is that of a baggage: --baggage is missing\n",
    )


def test_serve_with_a_key_that_is_gone(capsys: pytest.CaptureFixture[str], path: Path) -> None:
    made(path, key_beside(path))
    key_beside(path).path.unlink()
    outcome = run(capsys, "serve", f"--baggage={path}", f"--export=a={KEPT}:Counter")
    why = f"{path} is sealed, and its key file {path}.key is not there; --key-file says where it is"
    assert outcome == (ExitCode.BAGGAGE, "", f"ocapn serve: {why}\n")
    assert not key_beside(path).path.exists()


def test_no_key_file_is_made_in_the_baggage(capsys: pytest.CaptureFixture[str], path: Path) -> None:
    path.mkdir(mode=0o700)
    (path.parent / "link").symlink_to(path)
    for key in (path / "key", path.parent / "link" / "key"):
        outcome = run(capsys, "serve", f"--baggage={path}", f"--export=a={KEPT}:Counter", f"--key-file={key}")
        why = f"the key file {key} would be in the baggage, and in every copy of it"
        assert outcome == (ExitCode.BAGGAGE, "", f"ocapn serve: {why}\n")
        assert not key.exists()


# Commands that look into one


@pytest.mark.parametrize("action", ["inspect", "verify", "export", "prune"])
def test_the_key_beside_it_is_found(
    capsys: pytest.CaptureFixture[str], path: Path, action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(path, key_beside(path))
    assert baggage(capsys, action, path).code == 0
    monkeypatch.chdir(path.parent)
    assert baggage(capsys, action, "baggage/").code == 0
    monkeypatch.chdir(path)
    assert baggage(capsys, action, ".").code == 0


def test_inspect_says_how_it_is_sealed(capsys: pytest.CaptureFixture[str], path: Path, phrase: str) -> None:
    made(path, FAST)
    assert "\n  sealed with a passphrase\n" in baggage(capsys, "inspect", path, phrase).out
    assert json.loads(baggage(capsys, "inspect", path, phrase, "--json").out)["sealed"] == "passphrase"


def test_the_passphrase_is_asked_for(
    capsys: pytest.CaptureFixture[str], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def ask(prompt: str) -> str:
        asked.append(prompt)
        return "right passphrase"

    monkeypatch.setattr(getpass, "getpass", ask)
    made(path, FAST)
    assert exported(capsys, path) == SECRET
    assert asked == [f"Passphrase of {path}: "]


def test_no_terminal(capsys: pytest.CaptureFixture[str], path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def echoing(prompt: str) -> str:
        warnings.warn("Can not control echo on the terminal.", getpass.GetPassWarning, stacklevel=2)
        return "right passphrase"

    def ended(prompt: str) -> str:
        raise EOFError

    made(path, FAST)
    for ask in (echoing, ended):
        monkeypatch.setattr(getpass, "getpass", ask)
        assert failed(capsys, ExitCode.USAGE, "export", path) == (
            "there is no terminal to ask for a passphrase on; --passphrase @FILE reads it from a file"
        )


@pytest.mark.parametrize("data", [b"", b"\n", b"two\nlines\n", b"\xff", b"x" * 1025, b"x\n\n"])
def test_a_file_that_holds_no_passphrase(
    capsys: pytest.CaptureFixture[str], path: Path, tmp_path: Path, data: bytes
) -> None:
    made(path, FAST)
    file = private(tmp_path / "file", data)
    assert failed(capsys, ExitCode.MALFORMED, "export", path, f"--passphrase=@{file}") == (
        f"{file} holds no passphrase: one line of UTF-8, of up to 1,024 bytes"
    )


def test_a_passphrase_that_others_may_read(
    capsys: pytest.CaptureFixture[str], path: Path, tmp_path: Path
) -> None:
    made(path, FAST)
    file = private(tmp_path / "file", b"right passphrase")
    file.chmod(0o644)
    outcome = baggage(capsys, "export", path, f"--passphrase=@{file}")
    assert outcome.code == 0
    assert outcome.err == (
        f"ocapn: warning: other users may read the passphrase in {file}; chmod 600 ends that\n"
    )


@pytest.mark.parametrize("action", ["inspect", "export", "prune", "unseal", "rotate"])
def test_the_wrong_key(capsys: pytest.CaptureFixture[str], path: Path, tmp_path: Path, action: str) -> None:
    made(path, key_beside(path))
    other = KeyFile(tmp_path / "other")
    other.make()
    assert failed(capsys, ExitCode.BAGGAGE, action, path, "--key-file", other.path) == (
        "the seal does not open this baggage: another passphrase or key does, or its header was changed"
    )
    other.path.chmod(0o644)
    assert failed(capsys, ExitCode.BAGGAGE, action, path, "--key-file", other.path) == (
        f"the key file {other.path} is open to other users: chmod 600 {other.path}"
    )


def test_one_that_only_a_program_opens(capsys: pytest.CaptureFixture[str], path: Path) -> None:
    made(path, lambda store_id: bytes(32))
    assert failed(capsys, ExitCode.BAGGAGE, "inspect", path) == (
        f"{path} is sealed with a key that a program gives: only that program opens it"
    )
    assert "was not checked" in baggage(capsys, "verify", path).out


def test_the_seal_that_is_not_there(capsys: pytest.CaptureFixture[str], path: Path) -> None:
    made(path, None)
    assert failed(capsys, ExitCode.USAGE, "inspect", path, "--seal=key-file") == (
        f"{path} is not sealed, not as --seal says; 'ocapn baggage seal' seals it"
    )
    assert baggage(capsys, "inspect", path, "--seal=none").code == 0


# verify


@pytest.mark.parametrize("kind", ["key-file", "passphrase"])
def test_verify_without_the_key(
    capsys: pytest.CaptureFixture[str], path: Path, tmp_path: Path, kind: str, phrase: str
) -> None:
    key = KeyFile(tmp_path / "elsewhere")
    made(path, key if kind == "key-file" else FAST)
    assert baggage(capsys, "verify", path) == (
        0,
        "1 row checked: each is what was written; the content is sealed, and was not checked\n",
        "",
    )
    assert json.loads(baggage(capsys, "verify", path, "--json").out) == {
        "whole": True,
        "rows": 1,
        "content": False,
    }
    option = f"--key-file={key.path}" if kind == "key-file" else phrase
    code, out, _ = baggage(capsys, "verify", path, "--json", option)
    assert (code, json.loads(out)) == (0, {"whole": True, "rows": 1, "content": True})


def test_verify_finds_what_each_of_both_can(
    capsys: pytest.CaptureFixture[str], path: Path, tmp_path: Path
) -> None:
    """A row with a right digest that is not sealed with the key is seen with the key alone."""
    key = KeyFile(tmp_path / "elsewhere")
    made(path, key)
    store = durable.DirectoryStore(path, sealed=True)
    ((mac, box),) = store.scan("user")
    store.commit({("user", mac): box[:-1] + bytes([box[-1] ^ 1])})
    store.close()
    assert baggage(capsys, "verify", path).code == 0
    why = failed(capsys, ExitCode.FAILED, "verify", path, "--key-file", key.path)
    assert why == (
        f"the baggage is damaged: state.db, table user, the row whose key has digest {durable.store.row_name(mac)}: "
        "the row does not open; go back to a copy of it, if there is one"
    )
    connection = sqlite3.connect(path / "state.db")
    connection.execute("UPDATE user SET value = x'00'")
    connection.commit()
    connection.close()
    assert "the row is not what was written" in failed(capsys, ExitCode.FAILED, "verify", path)


# seal, unseal, rotate


def test_sealing_rotating_and_unsealing(
    capsys: pytest.CaptureFixture[str], path: Path, tmp_path: Path, quick: None, phrase: str
) -> None:
    made(path, None)
    key, other = key_beside(path).path, tmp_path / "other"
    code, out, err = baggage(capsys, "seal", path)
    assert (code, out) == (0, f"{path} is sealed\n")
    assert err.startswith(f"ocapn baggage seal: sealed with the key in {key}, which was made: ")
    assert err.count("\n") == 1
    assert told(path, SECRET.encode()) == []
    assert exported(capsys, path) == SECRET

    assert baggage(capsys, "rotate", path) == (0, f"{path} is sealed anew\n", "")
    assert exported(capsys, path) == SECRET

    code, out, err = baggage(capsys, "rotate", path, f"--new-key-file={other}")
    assert (code, out) == (0, f"{path} is sealed anew\n")
    assert f"the key in {other}, which was made" in err
    assert "does not open" in failed(capsys, ExitCode.BAGGAGE, "export", path)
    assert exported(capsys, path, f"--key-file={other}") == SECRET

    new = phrase.replace("--", "--new-")
    assert baggage(capsys, "rotate", path, f"--key-file={other}", new).code == 0
    assert exported(capsys, path, phrase) == SECRET
    with durable.open_baggage(path, seal=FAST) as opened:
        assert opened["key"] == SECRET

    assert baggage(capsys, "unseal", path, phrase) == (0, f"{path} is not sealed any more\n", "")
    assert exported(capsys, path) == SECRET
    assert told(path, SECRET.encode()) != []
    assert key.exists()


def test_a_new_passphrase_is_asked_for_twice(
    capsys: pytest.CaptureFixture[str], path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    made(path, None)
    answers: list[str] = []
    asked: list[str] = []

    def ask(prompt: str) -> str:
        asked.append(prompt)
        return answers.pop(0)

    monkeypatch.setattr(getpass, "getpass", ask)
    answers += ["one", "another"]
    why = failed(capsys, ExitCode.USAGE, "seal", path, "--seal=passphrase")
    assert why == "the passphrase was not the same twice"
    answers += ["", ""]
    why = failed(capsys, ExitCode.MALFORMED, "seal", path, "--seal=passphrase")
    assert why == "a passphrase is not empty"
    answers += ["one", "one", "one"]
    assert baggage(capsys, "seal", path, "--seal=passphrase").code == 0
    assert exported(capsys, path) == SECRET
    answers += ["one", "two", "two", "two"]
    assert baggage(capsys, "rotate", path, "--new-seal=passphrase").code == 0
    assert exported(capsys, path) == SECRET
    assert asked[-3:] == [
        *(f"New passphrase of {path}: ", "The same once more: ", f"Passphrase of {path}: "),
    ]


@pytest.mark.parametrize(
    ("seal", "action", "why"),
    [
        (FAST, "seal", "is sealed already; 'ocapn baggage rotate' puts another seal on"),
        (None, "unseal", "is not sealed; 'ocapn baggage seal' seals it"),
        (None, "rotate", "is not sealed; 'ocapn baggage seal' seals it"),
    ],
)
def test_what_is_as_it_is(
    capsys: pytest.CaptureFixture[str], path: Path, seal: durable.Seal | None, action: str, why: str
) -> None:
    made(path, seal)
    assert failed(capsys, ExitCode.BAGGAGE, action, path) == f"{path} {why}"
    assert not key_beside(path).path.exists()


@pytest.mark.parametrize("action", ["seal", "unseal", "rotate"])
def test_none_is_made(capsys: pytest.CaptureFixture[str], path: Path, action: str) -> None:
    assert failed(capsys, ExitCode.FILE, action, path) == (
        f"there is no baggage in {path}; 'ocapn serve --baggage' and durable.open_baggage make one"
    )
    assert failed(capsys, ExitCode.USAGE, action, "") == ("no directory is named: '.' is the current one")
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("action", ["seal", "unseal", "rotate"])
def test_one_that_is_in_use(capsys: pytest.CaptureFixture[str], path: Path, action: str) -> None:
    seal = None if action == "seal" else key_beside(path)
    with durable.open_baggage(path, seal=seal):
        assert failed(capsys, ExitCode.BAGGAGE, action, path) == (
            f"{path} is in use by process {os.getpid()}: end it, or choose another directory"
        )
    if action == "seal":  # the key file that was made is taken the next time
        assert key_beside(path).path.exists() is False


def test_options_that_are_none(capsys: pytest.CaptureFixture[str], path: Path) -> None:
    made(path, None)
    assert "invalid choice: 'none'" in failed(capsys, ExitCode.USAGE, "seal", path, "--seal=none")
    assert failed(capsys, ExitCode.USAGE, "rotate", path, "--new-seal=passphrase", "--new-key-file=x") == (
        "--new-key-file does not go with a seal by passphrase"
    )
    assert "--new-passphrase takes @FILE; " in failed(
        capsys, ExitCode.USAGE, "rotate", path, "--new-passphrase=x"
    )
