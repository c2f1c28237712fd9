"""A session keeps its codec over connections, and processes, that would choose another."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

import durable
import ocapn
from durable.errors import BaggageCorrupt
from ocapn import E, Target, method
from ocapn.codec.cbor import CODECS
from ocapn.model.values import Tagged
from tests.support import trio_test_real


@durable.kind("restart.codecs.counter")
@attrs.define
class Counter(Target):
    value: int = 0

    @method
    def add(self, n: int) -> int:
        self.value += n
        return self.value

    @method
    def echo(self, *values: object) -> list[object]:
        return list(values)


@durable.kind("restart.codecs.holder")
@attrs.define
class Holder(Target):
    held: object = None


SAID: list[object] = [
    None,
    ocapn.Null,
    -1,
    1.5,
    "é",
    b"b",
    ocapn.Symbol("s"),
    {"b": 1, "aa": [2]},
    Tagged("t", []),
]


@pytest.mark.parametrize(("first", "then"), [("cbor", "syrup"), ("syrup", "cbor")])
def test_a_session_keeps_its_codec(first: str, then: str, tmp_path: Path) -> None:
    identities = [ocapn.identity_file(tmp_path / name) for name in ("a.key", "b.key")]

    @trio_test_real
    async def run(codec: str) -> None:
        with durable.open_baggage(tmp_path / "a") as bag, durable.open_baggage(tmp_path / "b") as kept:
            ports = bag.namespace("ports")
            there = ocapn.NoiseNetlayer(port=ports.get("port", 0), identity=identities[0], codecs=[codec])
            here = ocapn.NoiseNetlayer(listen=False, identity=identities[1], codecs=[codec])
            async with ocapn.open_peer([there], baggage=bag) as a, ocapn.open_peer([here], baggage=kept) as b:
                ports["port"] = there.port
                if codec == first:
                    bag["counter"] = Counter()
                    sturdy = a.export(bag["counter"], b"s" * 32)
                    kept["holder"] = Holder(await b.enliven(sturdy))
                held = kept["holder"].held
                (session,) = b._node.sessions.values() if b._node.sessions else b._node.suspended.values()
                assert session.codec is CODECS[first]
                assert await E(held).add(1) == (1 if codec == first else 2)
                assert await E(held).echo(*SAID, held) == [*SAID, held]
                assert session.attached
                (at_a,) = a._node.sessions.values()
                assert at_a.codec is CODECS[first]
                b.check()
                a.check()
                await b.settled()
                await a.settled()

    run(first)
    run(then)


def test_a_codec_of_a_later_version() -> None:
    from durable.sessions import _codec_of

    with pytest.raises(BaggageCorrupt, match="a codec that this program does not know"):
        _codec_of(["morse"])
