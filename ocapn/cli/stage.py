"""What the parts of the demo share: processes that are started, and a voice that tells what happens."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, final

import attrs
import trio

import ocapn
from ocapn.cli.exits import ExitCode, Failure
from ocapn.cli.output import redact
from ocapn.cli.values import readable

#: Seconds that a step may take: a hundred times what it takes.
PATIENCE: Final = 15.0
#: Seconds that a child gets to leave in order.
LEAVING: Final = 4.0


@final
class Child:
    """A process that Alice has started."""

    def __init__(self, name: str, process: trio.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self.name = name.capitalize()
        self.pid = process.pid
        self.process = process
        self._stdin = process.stdin
        self._stdout = process.stdout
        self._stderr = process.stderr
        self._read = b""

    async def line(self) -> Any:
        """The next line of its output, which is JSON. Raises Failure if there is none."""
        while b"\n" not in self._read:
            data = await self._stdout.receive_some()
            if not data:
                raise await self._died()
            self._read += data
        line, _, self._read = self._read.partition(b"\n")
        return json.loads(line)

    async def sessions(self) -> dict[str, dict[str, int]]:
        """Its statistics."""
        try:
            await self._stdin.send_all(b"stats\n")
        except trio.BrokenResourceError:
            raise await self._died() from None
        result: dict[str, dict[str, int]] = await self.line()
        return result

    async def _died(self) -> Failure:
        said = (await self._stderr.receive_some(1 << 16)).decode("utf-8", "replace").strip()
        with trio.move_on_after(LEAVING):
            await self.process.wait()
        code = self.process.returncode
        last = said.splitlines()[-1] if said else "it said nothing"
        return Failure(
            ExitCode.FAILED, f"the process of {self.name} ended by itself, with exit code {code}: {last}"
        )

    async def kill(self) -> None:
        """SIGKILL: it cannot do anything about it."""
        with trio.CancelScope(shield=True):
            self.process.kill()
            await self.end()

    async def end(self) -> None:
        """Ends it: in order if it can be, by force if it must be."""
        with trio.CancelScope(shield=True):
            await self._stdin.aclose()
            with trio.move_on_after(LEAVING):
                await self.process.wait()
            if self.process.returncode is None:
                self.process.kill()
                await self.process.wait()
            await self._stdout.aclose()
            await self._stderr.aclose()


async def start(name: str, command: Sequence[str]) -> Child:
    """Starts a child. Raises Failure."""
    here = str(Path(ocapn.__file__).parent.parent)
    paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        process = await trio.lowlevel.open_process(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            process_group=0,  # Ctrl-C is for Alice, who ends the others in order
        )
    except OSError as error:
        raise Failure(ExitCode.FAILED, f"cannot start a process for {name}: {error}") from error
    return Child(name, process)


@asynccontextmanager
async def started(name: str, command: Sequence[str]) -> AsyncIterator[Child]:
    """A child, for as long as the block."""
    child = await start(name, command)
    try:
        yield child
    finally:
        await child.end()


def answer(data: object) -> None:
    """What a child prints: a line of JSON."""
    print(json.dumps(data), flush=True)


@attrs.define
class Teller:
    """Says what happens. `scope` ends a step that takes too long."""

    slow: float
    scope: trio.CancelScope
    number: int = 0

    async def step(self, title: str) -> None:
        if self.number and self.slow:
            self.scope.deadline = float("inf")
            await trio.sleep(self.slow)
        self.goes_on()
        self.number += 1
        self.say(f"\n{self.number}. {title}")

    def goes_on(self) -> None:
        """Something has happened: from now on there is time for the next."""
        self.scope.deadline = trio.current_time() + PATIENCE

    def say(self, text: str) -> None:
        print(redact(text), flush=True)

    def code(self, code: str, comment: str = "") -> None:
        self.say(f"     {code:<38}  {comment}".rstrip())


def expect(what: str, got: object, wanted: object) -> None:
    if not ocapn.equal(got, wanted):
        raise Failure(
            ExitCode.FAILED,
            f"{what} is {readable(got)} and should be {readable(wanted)}; please report this as a bug of ocapn",
        )
