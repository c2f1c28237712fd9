"""`python -m tests.kills --kills 2000 --seed 1`: kills two processes, together or one by one, and compares ledgers."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random

import durable
from durable.records import decode


class Lives:
    """A process that is started again whenever it was killed."""

    def __init__(self, own: Path, other: Path, total: int, log: Path) -> None:
        self._command = [sys.executable, "-m", "tests.kills.node", str(own), str(other), str(total)]
        self._log = log
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)

    def kill(self) -> None:
        self.process.kill()
        self._reap()

    def _reap(self) -> None:
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()

    def start(self) -> None:
        self.process = self._start()

    def finish(self) -> None:
        """Waits until it says that it is done, and ends it in order."""
        assert self.process.stdout is not None
        assert self.process.stdin is not None
        said = self.process.stdout.readline()
        if said != b"done\n":
            raise AssertionError(f"a process ended before it was done:\n{self._log.read_text()}")

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        if self.process.wait(30):
            raise AssertionError(f"a process failed:\n{self._log.read_text()}")
        assert self.process.stdout is not None
        self.process.stdout.close()


def campaign(directory: Path, kills: int, seed: int, *, numbers_a_kill: int = 400, show: bool = False) -> str:
    """Kills so often, and lets the stream end. What is wrong with the ledgers is an AssertionError."""
    random = Random(seed)
    total = kills * numbers_a_kill
    paths = [directory / "a", directory / "b"]
    lives = [
        Lives(paths[0], paths[1], total, directory / "a.log"),
        Lives(paths[1], paths[0], total, directory / "b.log"),
    ]
    try:
        for number in range(kills):
            time.sleep(random.uniform(0.05, 0.9))
            which = random.choice([[0], [1], [0, 1]])
            for one in which:
                code = lives[one].process.poll()
                if code is not None:
                    raise AssertionError(
                        f"a process ended by itself ({code}):\n{lives[one]._log.read_text()}"
                    )
                lives[one].kill()
            for one in random.sample(which, len(which)):
                lives[one].start()
            if show:
                print(f"\r{number + 1} of {kills} kills", end="", file=sys.stderr, flush=True)
        for life in lives:
            life.finish()
        for life in lives:
            life.end()
    finally:
        for life in lives:
            life.kill()
    for path in paths:
        check(path, total)
    return f"{kills} kills, {total} calls each way: 0 lost, 0 doubled, 0 reordered"


def check(path: Path, total: int) -> None:
    """The ledger and the durable objects that a process has left."""
    with durable.open_baggage(path) as baggage:
        baggage.verify()
        ledger = baggage.namespace("ledger")
        numbers = list(ledger)
        assert numbers == [f"{number:08}" for number in range(total)], f"{len(numbers)} of {total} in {path}"
        assert {ledger[key] for key in numbers} == {1}
        states = [decode(row) for _, row in baggage.scan("object")]
        fields = {kind: state for kind, _, state in states}
        assert fields["test.counter"]["value"] == total
        assert fields["test.counter"]["wrong"] == {"\0t": []}
        assert fields["test.streamer"]["next"] == total


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        began = time.monotonic()
        print(f"\n{campaign(Path(directory), options.kills, options.seed, show=True)}; ", end="")
        print(f"seed {options.seed}, {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
