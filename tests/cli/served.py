"""What the tests have `ocapn serve` serve."""

from __future__ import annotations

import os
import time
from math import nan

import trio

import ocapn


class Thing(ocapn.Target):
    """Answers in every way there is."""

    @ocapn.method
    def echo(self, *values: object) -> list[object]:
        return list(values)

    @ocapn.method
    def everything(self) -> list[object]:
        parts: list[object] = ["é", ocapn.Symbol("s"), None, ocapn.Null, 1, 1.0, nan, b"hi", {"$a": True}]
        return [*parts, ocapn.Tagged("t", [2]), ocapn.RemoteError("an error"), ocapn.PeerLocator("unix", "p")]

    @ocapn.method
    def sturdyref(self) -> ocapn.SturdyRef:
        return ocapn.SturdyRef(ocapn.PeerLocator("unix", "p"), b"swiss")

    @ocapn.method
    def me(self) -> list[object]:
        return [self, ocapn.make_promise()[0]]

    @ocapn.method
    def fail(self) -> None:
        raise ValueError("two\nlines \x1b[31m")

    @ocapn.method
    def fail_with_secret(self) -> None:
        raise ValueError("see ocapn://p.unix/s/very-secret?path=x")

    @ocapn.method
    async def forever(self) -> None:
        print("waiting", flush=True)
        await trio.sleep_forever()

    @ocapn.method
    def block(self) -> None:
        print("blocking", flush=True)
        time.sleep(1000)

    @ocapn.method
    def die(self) -> None:
        os._exit(9)

    @ocapn.method
    def leave(self) -> None:
        raise SystemExit(3)


thing = Thing()


def add(left: int, right: int) -> int:
    return left + right


async def later(value: object) -> object:
    await trio.lowlevel.checkpoint()
    return value


class Nested:
    inner = thing


class Plain:
    """No Target."""


class Needs(ocapn.Target):
    def __init__(self, something: object) -> None:
        raise AssertionError


def keyword(*, value: object) -> None:
    """Messages have no keywords."""


number = 3
