"""`ocapn serve`."""

from __future__ import annotations

import signal
import socket
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import trio
import trustme

import ocapn
from ocapn import E, SturdyRef
from ocapn.cli import ExitCode
from ocapn.cli.wires import traced
from ocapn.netlayers.base import Channel
from tests.cli.support import SERVED, Outcome, finished, line, run, serving, started
from tests.support import trio_test, trio_test_real


@trio_test_real
async def test_what_it_prints_can_be_enlivened_and_a_signal_ends_the_sessions_in_order() -> None:
    with serving("thing", "Thing", "add", "Nested.inner") as (process, uris):
        async with ocapn.open_peer([ocapn.NoiseNetlayer(listen=False)]) as peer:
            thing, another, add, inner = [await peer.enliven(uri) for uri in uris]
            assert await E(thing).echo(1) == [1]
            assert await E(another).echo(2) == [2]
            assert await E(add)(3, 4) == 7
            assert inner is thing
            assert another is not thing
            process.send_signal(signal.SIGTERM)
            ended = await ocapn.when_broken(thing)
            assert isinstance(ended, ocapn.Aborted)
            assert str(ended) == "the peer was closed"
        assert await trio.to_thread.run_sync(finished, process) == (143, "", "ocapn serve: terminated\n")


def test_each_line_is_a_name_and_a_uri_over_each_transport(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    options = ["--listen", "tcp://127.0.0.1", "--listen", f"unix://{path}", "--designator", "me"]
    with started("serve", "--export", f"adder={SERVED}:add", *options) as process:
        over_tcp, over_unix = [line(process).split(" ") for _ in range(2)]
        assert over_tcp[0] == over_unix[0] == "adder"
        tcp, unix = SturdyRef.parse(over_tcp[1]), SturdyRef.parse(over_unix[1])
        assert (tcp.peer.transport, tcp.peer.designator) == ("tcp-testing-only", "me")
        assert (unix.peer.transport, unix.peer.designator) == ("unix", "me")
        assert unix.peer.hints["path"] == str(path)
        assert tcp.swiss == unix.swiss
        assert len(tcp.swiss) == 32
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        for signum in (signal.SIGINT, signal.SIGINT):  # at once, which counts as one
            process.send_signal(signum)
        assert finished(process) == (130, "", "ocapn serve: interrupted\n")
    assert not path.exists()


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
def test_loopback_is_where_it_listens(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    if host == "[::1]" and not _has_ipv6():
        pytest.skip("no IPv6 here")
    with serving("add", options=["--listen", f"tcp://{host}:0"]) as (_, (uri,)):
        assert run(capsys, "call", uri, "-", "1", "2") == (0, "3\n", "")


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_sturdyrefs_stay_valid(tmp_path: Path) -> None:
    file = tmp_path / "add.swiss"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [f"--swiss=add=@{file}", "--designator=me", f"--listen=tcp://127.0.0.1:{port}"]
    with serving("add", options=options) as (_, before):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert SturdyRef.parse(before[0]).swiss == file.read_bytes()
        assert len(file.read_bytes()) == 32
    with serving("add", options=options) as (_, after):
        assert after == before


def test_modules_of_the_current_directory_are_found(tmp_path: Path) -> None:
    (tmp_path / "hello.py").write_text('def hello(name):\n    return f"Hello, {name}!"\n')
    with (
        started("serve", "--export", "hello=hello:hello", cwd=tmp_path) as process,
        started("call", line(process).split()[1], "-", '"Ann"') as call,
    ):
        assert finished(call) == (0, "'Hello, Ann!'\n", "")


def test_trace_and_logs(capsys: pytest.CaptureFixture[str]) -> None:
    with serving("thing", options=["--trace", "-v"]) as (process, (uri,)):
        assert run(capsys, "call", uri, "echo", '"Ann"').code == 0
        process.send_signal(signal.SIGINT)
        code, _, err = finished(process)
    assert code == ExitCode.INTERRUPTED
    lines = err.splitlines()
    assert lines[0] == "#1 accepted from 127.0.0.1"
    assert lines[1].startswith('#1 <- <op:start-session "1.0" ')
    assert any(text.startswith("ocapn serve: session with ocapn://") for text in lines)
    assert any("['fetch :…(32 bytes)]" in text for text in lines)
    assert any('[\'echo "Ann"]' in text for text in lines)
    assert '#1 <- <op:abort "the peer was closed">' in lines
    assert "#1 closed" in lines
    assert lines[-1] == "ocapn serve: interrupted"
    assert SturdyRef.parse(uri).swiss.hex() not in err


@trio_test_real
async def test_errors_that_nobody_waits_for_are_one_line() -> None:
    with serving("thing") as (process, (uri,)):
        async with ocapn.open_peer([ocapn.NoiseNetlayer(listen=False)]) as peer:
            thing = await peer.enliven(uri)
            ocapn.send_only(thing).fail()
            assert await E(thing).echo() == []
        process.send_signal(signal.SIGTERM)
        _, _, err = await trio.to_thread.run_sync(finished, process)
        assert err == (
            "ocapn serve: a message that wants no answer failed: ValueError: two\\nlines \\x1b[31m\n"
            "ocapn serve: terminated\n"
        )


@trio_test_real
async def test_an_object_that_ends_the_process() -> None:
    with serving("thing") as (process, (uri,)):
        async with ocapn.open_peer([ocapn.NoiseNetlayer(listen=False)]) as peer:
            ocapn.send_only(await peer.enliven(uri)).leave()
            code, _, err = await trio.to_thread.run_sync(finished, process)
        assert code == ExitCode.FAILED
        assert err == "ocapn serve: code that was called here ended the process (SystemExit)\n"


# Signals that meet code which does not give way


def test_a_second_signal_ends_it_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with serving("thing") as (process, (uri,)):
        assert run(capsys, "call", uri, "block", "--timeout", "0.5").code == ExitCode.TIMEOUT
        assert line(process) == "blocking"
        while process.poll() is None:  # the first would wait for the method, which takes a quarter of an hour
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
        assert finished(process) == (143, "", "")


@pytest.mark.parametrize(
    ("signum", "code", "said"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_while_a_module_is_imported(
    tmp_path: Path, signum: signal.Signals, code: int, said: str
) -> None:
    (tmp_path / "slow.py").write_text('import time\nprint("importing", flush=True)\ntime.sleep(1000)\n')
    with started("serve", "--export", "a=slow:a", cwd=tmp_path) as process:
        assert line(process) == "importing"
        process.send_signal(signum)
        assert finished(process) == (code, "", f"ocapn serve: {said}\n")


# What goes wrong


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ocapn serve` in this process, where it must fail, leaves no traces."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.delenv("OCAPN_DEBUG", raising=False)


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "the following arguments are required: --export; 'ocapn serve --help' explains"),
        (["--export", "a"], 2, "--export takes NAME=MODULE:ATTRIBUTE, a name without spaces before the ="),
        (
            ["--export", "a b=x:y"],
            2,
            "--export takes NAME=MODULE:ATTRIBUTE, a name without spaces before the =",
        ),
        (["--export", "a=b"], 2, "--export b: after the = comes MODULE:ATTRIBUTE"),
        (["--export", "a=b:"], 2, "--export b:: after the = comes MODULE:ATTRIBUTE"),
        (
            ["--export", "a=nosuch:x"],
            2,
            "there is no module nosuch; modules are found from the current directory and among those installed",
        ),
        (["--export", "a=tests.nosuch:x"], 2, "there is no module tests.nosuch; "),
        (
            ["--export", f"a={SERVED}:nope"],
            2,
            f"--export {SERVED}:nope: there is no nope in it",
        ),
        (
            ["--export", f"a={SERVED}:number"],
            2,
            f"{SERVED}:number is of type int; what is exported is an ocapn.Target, a subclass of it, or a function",
        ),
        (
            ["--export", f"a={SERVED}:Plain"],
            2,
            f"{SERVED}:Plain is a class that is no ocapn.Target; subclass ocapn.Target, "
            "and mark the methods that others may call with @ocapn.method",
        ),
        (
            ["--export", f"a={SERVED}:Needs"],
            2,
            f"{SERVED}:Needs() failed: TypeError: Needs.__init__() missing 1 ",
        ),
        (
            ["--export", f"a={SERVED}:keyword"],
            2,
            f"{SERVED}:keyword cannot be exported: keyword: messages have no keyword arguments, and value ",
        ),
        (
            ["--export", f"a={SERVED}:add", "--export", f"a={SERVED}:thing"],
            2,
            "--export is given twice for a; choose another name",
        ),
        (
            ["--listen", "foo"],
            2,
            "--listen foo: it begins with noise://, ws://, wss://, tcp:// or unix://, or is noise or onion; ",
        ),
        (["--listen", "tcp://h:99999"], 2, "--listen tcp://h:99999: Port out of range 0-65535; "),
        (["--listen", "tcp://:1"], 2, "--listen tcp://:1: it is tcp://HOST:PORT; "),
        (["--listen", "tcp://h:1/x"], 2, "--listen tcp://h:1/x: it is tcp://HOST:PORT; "),
        (["--listen", "unix://a/b"], 2, "--listen unix://a/b: it is unix:///PATH, with three slashes; "),
        (
            ["--listen", "tcp://127.0.0.1", "--listen", "tcp://[::1]"],
            2,
            "--listen is given twice for tcp-testing-only; a peer listens once on each transport",
        ),
        (
            ["--listen", "tcp://192.0.2.1:0"],
            2,
            "192.0.2.1 is no loopback address, and tcp has no security: whoever reaches the port can read and "
            "forge everything; use noise, a loopback address, or --insecure-bind if you mean it",
        ),
        (["--listen", "noise://:1"], 2, "--listen noise://:1: it is noise://HOST:PORT; "),
        (
            ["--listen", "noise://[::]:1"],
            2,
            ":: stands for every address of this machine; --advertise HOST:PORT says at which others find it",
        ),
        (
            ["--advertise", "example.org"],
            2,
            "--advertise: an address is host:port or [IPv6]:port, with a port from 1 to 65535, not 'example.org'",
        ),
        (
            ["--listen", "tcp://127.0.0.1", "--advertise", "example.org:1"],
            2,
            "--advertise is HOST:PORT for --listen noise://, or a URL for --listen ws:// and wss://",
        ),
        (
            ["--advertise", "wss://example.org/"],
            2,
            "--advertise is HOST:PORT for --listen noise://, or a URL for --listen ws:// and wss://",
        ),
        (
            ["--listen", "ws://127.0.0.1", "--advertise", "wss:///x"],
            2,
            "--advertise: a websocket locator needs the hint url: ws://HOST:PORT/PATH or wss://HOST:PORT/PATH",
        ),
        (
            ["--listen", "tcp://127.0.0.1", "--identity", "x"],
            2,
            "--identity is for --listen noise://, ws://, wss:// and onion",
        ),
        (["--listen", "ws://h:1/x?y"], 2, "--listen ws://h:1/x?y: it is ws://HOST:PORT/PATH; "),
        (
            ["--listen", "ws://192.0.2.1:1"],
            2,
            "192.0.2.1 is no loopback address, and ws:// is not encrypted: listen at wss://, ",
        ),
        (
            ["--listen", "ws://[::]:1", "--insecure-bind"],
            2,
            ":: stands for every address of this machine; --advertise URL says at which others find it",
        ),
        (
            ["--listen", "wss://127.0.0.1"],
            2,
            "--listen wss:// takes --tls-certificate FILE, and --tls-key FILE if that is apart",
        ),
        (
            ["--listen", "wss://127.0.0.1", "--tls-certificate", "/nonexistent/x"],
            6,
            "cannot read /nonexistent/x: No such file or directory",
        ),
        (
            ["--listen", "wss://127.0.0.1", "--tls-certificate", "/dev/null"],
            4,
            "/dev/null holds no certificate: a PEM file has one",
        ),
        (["--advertise=h:1"] * 9, 2, "--advertise takes up to 8 addresses"),
        (["--identity", "/"], 3, "the identity / is no file"),
        (
            ["--designator", "me"],
            2,
            "the designator of a noise, websocket or onion peer is its key, which --identity FILE keeps",
        ),
        (
            ["--listen", "onion", "--designator", "me"],
            2,
            "the designator of a noise, websocket or onion peer is its key, which --identity FILE keeps",
        ),
        (["--listen", "onion://x"], 2, "--listen onion://x: it begins with "),
        (
            ["--tor-socks", "127.0.0.1:1"],
            2,
            "--tor-socks, --tor-control and --tor-password-file are for --listen onion",
        ),
        (
            ["--listen", "onion", "--tor-control", "9051"],
            2,
            "where Tor is: an address is host:port or [IPv6]:port, with a port from 1 to 65535, not '9051'",
        ),
        (
            ["--listen", "onion", "--tor-control", "127.0.0.1:1"],
            3,
            "no Tor is at the control port 127.0.0.1:1: Connection refused; start Tor with ControlPort 9051 and ",
        ),
        (
            ["--listen", "onion", "--tor-password-file", "/nonexistent/x"],
            6,
            "cannot read /nonexistent/x: No such file or directory",
        ),
        (
            ["--listen", "onion", "--tor-password-file", "/dev/null"],
            4,
            "/dev/null holds no password: its first line is one",
        ),
        (
            ["--listen", "tcp://127.0.0.1", "--designator", ""],
            2,
            "--designator: a designator may not be empty",
        ),
        (["--baggage", ""], 2, "no directory is named: '.' is the current one"),
        (["--swiss", "b=@x"], 2, "--swiss names b, which no --export does"),
        (
            ["--swiss", "a=very-secret"],
            2,
            "--swiss takes NAME=@FILE; a swiss number on the command line would be in the process list",
        ),
        (["--swiss", "a"], 2, "--swiss takes NAME=@FILE, a name without spaces before the ="),
        (["--swiss", "a=@/nonexistent/x"], 6, "cannot make /nonexistent/x: No such file or directory"),
        (["--swiss", "a=@/"], 6, "cannot read /: Is a directory"),
        (
            ["--listen", "unix:///nonexistent/x"],
            3,
            "cannot listen on the socket file /nonexistent/x: [Errno 2] No such file or directory",
        ),
        (
            ["--listen", "unix:///etc/passwd"],
            3,
            "/etc/passwd is in the way, and not a socket file; ",
        ),
    ],
)
def test_errors(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if arguments and "--export" not in arguments:
        arguments = [*arguments, "--export", f"a={SERVED}:add"]
    got, out, err = run(capsys, "serve", *arguments)
    assert (got, out) == (code, "")
    assert err.startswith(f"ocapn serve: {said}")
    assert err.count("\n") == 1
    assert "very-secret" not in err


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise RuntimeError('no\\nway')", "RuntimeError: no\\nway"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import nosuchthing", "ModuleNotFoundError: No module named 'nosuchthing'"),
        ("import", "SyntaxError: "),
        ("raise KeyError", "KeyError"),
    ],
)
def test_a_module_that_cannot_be_imported(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    source: str,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"broken{abs(hash(source))}"
    (tmp_path / f"{name}.py").write_text(source)
    code, out, err = run(capsys, "serve", "--export", f"a={name}:x")
    assert (code, out) == (ExitCode.USAGE, "")
    assert err.startswith(f"ocapn serve: importing {name} failed: {said}")
    assert err.endswith("; OCAPN_DEBUG=1 shows where\n")
    monkeypatch.setenv("OCAPN_DEBUG", "1")
    _, _, err = run(capsys, "serve", "--export", f"a={name}:x")
    assert err.startswith("Traceback ")
    assert "OCAPN_DEBUG" not in err


def _failed(capsys: pytest.CaptureFixture[str], *arguments: str) -> Outcome:
    return run(capsys, "serve", "--export", f"a={SERVED}:add", *arguments)


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize(("data", "has"), [(b"", "nothing"), (b"x" * 1025, "too much")])
def test_a_swiss_number_of_no_possible_length(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, data: bytes, has: str
) -> None:
    file = tmp_path / "swiss"
    file.write_bytes(data)
    assert _failed(capsys, "--swiss", f"a=@{file}") == (
        ExitCode.MALFORMED,
        "",
        f"ocapn serve: {file} holds {has}: a swiss number is 1 to 1,024 bytes; remove it and a new one is made\n",
    )


@pytest.mark.usefixtures("served")
def test_a_swiss_number_that_others_may_read_is_warned_of(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "swiss"
    file.write_bytes(b"very-secret")
    file.chmod(0o640)
    code, _, err = _failed(capsys, "--swiss", f"a=@{file}", "--listen", "unix:///nonexistent/x")
    assert code == ExitCode.NO_SESSION
    assert err.startswith(
        f"ocapn serve: warning: other users may read the secret in {file}; chmod 600 ends that\n"
    )


@pytest.mark.usefixtures("served")
def test_two_names_of_one_swiss_number(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "swiss"
    assert _failed(
        capsys, "--export", f"b={SERVED}:thing", "--swiss", f"a=@{file}", "--swiss", f"b=@{file}"
    ) == (2, "", "ocapn serve: a and b have the same swiss number; use two files\n")
    assert _failed(capsys, "--swiss", f"a=@{file}", "--swiss", f"a=@{file}") == (
        2,
        "",
        "ocapn serve: --swiss is given twice for a\n",
    )


@pytest.mark.usefixtures("served")
def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, out, err = _failed(capsys, "--listen", f"tcp://127.0.0.1:{port}")
    assert (code, out) == (ExitCode.NO_SESSION, "")
    assert err.startswith(f"ocapn serve: cannot listen on 127.0.0.1 port {port}: ")
    assert err.endswith("; choose another port, or 0 for any\n")


@pytest.mark.usefixtures("served")
def test_binding_elsewhere_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:  # so that it does not get to serve
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, out, err = _failed(capsys, "--listen", f"tcp://0.0.0.0:{port}", "--insecure-bind")
    assert (code, out) == (ExitCode.NO_SESSION, "")
    assert err.startswith(
        "ocapn serve: warning: listening on 0.0.0.0 without any security, as --insecure-bind says; "
        "the sturdyrefs name 0.0.0.0, which nobody can dial: put an address of this machine there\n"
    )
    assert err.count("\n") == 2


# The trace


@trio_test
async def test_a_malformed_message_is_told_by_its_offset(capsys: pytest.CaptureFixture[str]) -> None:
    network = ocapn.MemoryNetwork()
    alice, bob = (ocapn.MemoryNetlayer(network, name) for name in ("alice", "bob"))
    (netlayer,) = traced([alice])
    listener = await bob.listen(ocapn.Limits())
    assert listener is not None
    channels: list[Channel] = []

    async def accept() -> None:
        channels.append(await listener.accept())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        channel = await netlayer.dial(bob.location, ocapn.Limits())
    await channels[0].send([b"<1>"])
    assert await channel.receive(1) == [b"<1>"]
    await channel.aclose()
    await channel.aclose()
    await channels[0].aclose()
    await listener.aclose()
    assert capsys.readouterr().err == (
        "#1 dialled ocapn://bob.memory\n"
        "#1 <- 3 bytes without notation: malformed at byte 2: a number is followed by + - \" ' or :\n"
        "#1 closed\n"
    )


def test_over_tls_and_noise_at_once_as_the_same_peer(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    pem, trusted = tmp_path / "server.pem", tmp_path / "ca.pem"
    certificate.private_key_and_cert_chain_pem.write_to_path(str(pem))
    authority.cert_pem.write_to_path(str(trusted))
    options = ["--listen", "wss://127.0.0.1:0/captp", "--listen", "noise://127.0.0.1:0"]
    options += ["--tls-certificate", str(pem), "--identity", str(tmp_path / "key")]
    with serving("add", options=options) as (process, (first,)):
        websocket, noise = SturdyRef.parse(first), SturdyRef.parse(line(process).split(" ")[1])
        assert [one.peer.transport for one in (websocket, noise)] == ["websocket", "noise"]
        assert websocket.peer.designator == noise.peer.designator
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
        for sturdyref in (websocket, noise):
            code, out, _ = run(capsys, "call", sturdyref.uri, "-", "2", "3")
            assert (code, out) == (0, "5\n")


def test_a_certificate_without_its_key(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pem = tmp_path / "server.pem"
    trustme.CA().issue_cert("127.0.0.1").cert_chain_pems[0].write_to_path(str(pem))
    code, _, err = _failed(capsys, "--listen", "wss://127.0.0.1", "--tls-certificate", str(pem))
    assert code == ExitCode.FILE
    assert err.startswith(f"ocapn serve: {pem} holds no key that fits {pem}: ")


def test_a_sturdyref_that_stays_valid_without_a_baggage(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """As the help says: by its key, its swiss number and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [f"--identity={tmp_path / 'key'}", f"--swiss=add=@{tmp_path / 'swiss'}"]
    options += [f"--listen=NOISE://127.0.0.1:{port}", f"--advertise=127.0.0.1:{port}", "--advertise=[::1]:9"]
    uris = []
    for _ in range(2):
        with serving("add", options=options) as (_, (uri,)):
            uris.append(uri)
            assert run(capsys, "call", uri, "-", "2", "3")[:2] == (0, "5\n")
    assert uris[0] == uris[1]
    assert SturdyRef.parse(uri).peer.hints == {"addr": f"127.0.0.1:{port},[::1]:9"}


def test_a_key_is_not_made_for_what_cannot_be(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = _failed(
        capsys, "--listen", "noise://127.0.0.1:0", "--listen", "foo", "--identity", str(tmp_path / "key")
    )
    assert code == ExitCode.USAGE
    assert "--listen foo" in err
    assert list(tmp_path.iterdir()) == []
