"""What the README and the pages of spec/ say is what the code does."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ocapn
from ocapn.captp.handshake import TRANSITIONS
from ocapn.codec.operations import DIALECTS
from tests.support import trio_test_real

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
WIRE = (ROOT / "spec" / "wire.md").read_text()


def _rows(page: str, header: str) -> list[list[str]]:
    """The rows of the table that begins with `header`, cells stripped."""
    lines = page[page.index(header) :].splitlines()[2:]
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_the_states_in_the_specification_are_those_of_the_handshake() -> None:
    rows = _rows(WIRE, "| state | event | next |")
    written = {(state, event): following for state, event, following, _ in rows}
    assert written == {
        (state.value, event.value): following.value for (state, event), following in TRANSITIONS.items()
    }
    assert len(rows) == len(written)


def test_the_dialects_in_the_specification_are_those_of_the_code() -> None:
    paragraph = WIRE[WIRE.index("**Dialects.**") :].split("\n\n")[0]
    assert set(re.findall(r"`(20\d\d-\d\d[\w-]*)`", paragraph)) == set(DIALECTS)


def test_the_names_in_the_readme_exist() -> None:
    table = README[README.index("## What there is") :].split("\n\n")[1]
    names = set(
        re.findall(
            r"\b(?:[A-Z]\w+|send_only|field|index|untag|when_broken|is_settled|make_promise|open_peer)\b",
            table,
        )
    )
    names -= {"OCapN", "Python"}
    assert len(names) > 15
    assert sorted(name for name in names if not hasattr(ocapn, name)) == []


BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
ENVIRONMENT = {"PYTHONPATH": str(ROOT), "PATH": ""}


@contextmanager
def greeter(tmp_path: Path) -> Iterator[str]:
    """The URI that the first program of the README serves, while it runs."""
    program = tmp_path / "greeter.py"
    program.write_text(BLOCKS[0])
    with subprocess.Popen(
        [sys.executable, str(program)], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as served:
        assert served.stdout is not None
        try:
            yield served.stdout.readline().strip()
        finally:
            served.kill()


def printed(program: Path, uri: str) -> str:
    return subprocess.run(
        [sys.executable, str(program), uri],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
        env=ENVIRONMENT,
    ).stdout


def test_the_first_program_of_the_readme_runs(tmp_path: Path) -> None:
    client = tmp_path / "caller.py"
    client.write_text(BLOCKS[1])
    with greeter(tmp_path) as uri:
        assert printed(client, uri) == "Hello, Alice!\n"


def test_the_connection_of_the_readme_is_kept(tmp_path: Path) -> None:
    client = tmp_path / "kept.py"
    (kept,) = [block for block in BLOCKS if block.startswith("# kept.py")]
    client.write_text(kept)
    with greeter(tmp_path) as uri:
        assert f"```\n{printed(client, uri)}```" in README
    assert f"```\n{printed(client, uri)}```" in README


def test_the_counter_of_the_readme_outlives_its_process(tmp_path: Path) -> None:
    program = tmp_path / "counter.py"
    program.write_text(BLOCKS[2])

    def started() -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            [sys.executable, str(program)],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    def killed(process: subprocess.Popen[str]) -> None:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()

    @trio_test_real
    async def run() -> None:
        process, uri = started()
        try:
            async with ocapn.open_peer([ocapn.UnixNetlayer()]) as peer:
                counter = await peer.enliven(uri)
                assert await ocapn.E(counter).add(1) == 1
                killed(process)
                waiting = ocapn.E(counter).add(2)
                process, again = started()
                assert again == uri
                assert await waiting == 3
        finally:
            killed(process)

    run()
