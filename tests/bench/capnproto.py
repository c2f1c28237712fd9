"""The same work with pycapnp (the extra `bench`), in two processes of its own: `python -m tests.bench.capnproto`.

It is told on its standard input what to measure, `sequential 2000` say, and prints how often a second it was done.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

import ocapn
from tests.bench.calls import SMALL, Calls
from tests.bench.figures import Figure, pair, served, thousands

NAMES: Final = ("pycapnp_sequential", "pycapnp_outstanding_1000", "pycapnp_one_way")
SCHEMA: Final = Path(__file__).parent / "echo.capnp"
_WHO, _WHOM, _AMOUNT, _MEMO, _PAID, _KEY = SMALL
assert isinstance(_MEMO, dict)
VALUES: Final = {"who": _WHO, "whom": _WHOM, "amount": _AMOUNT, **_MEMO, "paid": _PAID, "key": _KEY}


@contextmanager
def client() -> Iterator[Callable[[str, int], float]]:
    """Has it measure, and waits for that."""
    command = [sys.executable, "-m", "tests.bench.capnproto"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    def work(name: str, count: int) -> float:
        stdin.write(f"{name} {count}\n")
        stdin.flush()
        return float(stdout.readline())

    with process:
        try:
            yield work
        finally:
            stdin.close()  # it ends, and with it the process that it has begun


def measure(scale: float, names: Sequence[str]) -> dict[str, Figure]:
    """Ours against its; `sequential` with all processes on one core."""
    figures = {}
    cores = os.sched_getaffinity(0)

    async def beside(uri: str, name: str) -> Figure:
        async with ocapn.open_peer([ocapn.TcpTestingNetlayer(listen=False)]) as peer:
            calls = Calls(await peer.enliven(uri), None, scale)
            with client() as work:

                async def other() -> float:
                    return work(name, thousands(10_000 * scale))

                return await pair(getattr(calls, name), other)

    for name in names:
        if name == "pycapnp_sequential":
            os.sched_setaffinity(0, {min(cores)})
        try:
            with served() as told:
                figures[name] = trio.run(beside, told["uri"], name.removeprefix("pycapnp_"))
        finally:
            os.sched_setaffinity(0, cores)
    return figures


def _schema() -> Any:
    import capnp

    capnp.remove_import_hook()
    return capnp.load(str(SCHEMA))


async def _serve() -> None:
    import capnp

    schema = _schema()

    class Echo(schema.Echo.Server):  # type: ignore[misc, name-defined]  # made from the schema
        count = 0

        async def echo(self, values: Any, **_: object) -> Any:
            return values

        async def note(self, values: Any, **_: object) -> None:
            self.count += 1

        async def counted(self, **_: object) -> int:
            count, self.count = self.count, 0
            return count

    echo = Echo()

    async def connected(stream: Any) -> None:
        await capnp.TwoPartyServer(stream, bootstrap=echo).on_disconnect()

    server = await capnp.AsyncIoStream.create_server(connected, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


async def _sequential(echo: Any, count: int) -> None:
    for _ in range(count):
        await echo.echo(values=VALUES)


async def _at_once(method: Any, count: int) -> None:
    for _ in range(count // 1000):
        for promise in [method(values=VALUES) for _ in range(1000)]:
            await promise


async def _one_way(echo: Any, count: int) -> None:
    """It has streaming calls as well, which are slower than calls whose empty answers come when they may."""
    await _at_once(echo.note, count)
    got = (await echo.counted()).count
    if got != count:
        raise AssertionError(f"{count} messages were sent, and {got} arrived")


async def _call(port: int) -> None:
    import capnp

    stream = await capnp.AsyncIoStream.create_connection("127.0.0.1", port)
    echo = capnp.TwoPartyClient(stream).bootstrap().cast_as(_schema().Echo)
    works = {
        "sequential": partial(_sequential, echo),
        "outstanding_1000": partial(_at_once, echo.echo),
        "one_way": partial(_one_way, echo),
    }
    for line in sys.stdin:
        name, count = line.split()
        start = time.perf_counter()
        await works[name](int(count))
        print(int(count) / (time.perf_counter() - start), flush=True)


def main() -> None:
    """Both processes: the one that is told what to do begins the other."""
    import capnp

    if sys.argv[1:] == ["serve"]:
        asyncio.run(capnp.run(_serve()))
        return
    command = [sys.executable, "-m", "tests.bench.capnproto", "serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            asyncio.run(capnp.run(_call(int(server.stdout.readline()))))
        finally:
            server.kill()


if __name__ == "__main__":
    main()
