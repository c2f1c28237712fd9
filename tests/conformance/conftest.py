"""Full garbage collections, which the echo makes at each call, look at the objects of a test alone: they are quick."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from ocapn.codec.cbor import CODECS
from ocapn.netlayers.base import Channel

from .client import CODEC


@pytest.fixture(autouse=True, scope="package")
def _frozen() -> Iterator[None]:
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test runs in both codecs, unless it is marked as one of one alone."""
    if "codec" in metafunc.fixturenames:
        alone = metafunc.definition.get_closest_marker("codec")
        metafunc.parametrize("codec", list(CODECS) if alone is None else alone.args, indirect=True)


@pytest.fixture(autouse=True)
def codec(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The codec that both sides speak, where the netlayer is to say nothing of it."""
    name: str = request.param
    monkeypatch.setattr(Channel, "codec", CODECS[name])
    token = CODEC.set(name)
    yield name
    CODEC.reset(token)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """CBOR comes in Syrup frames alone, which begin with a length: a bare message is told by its first byte."""

    def fits(item: pytest.Item) -> bool:
        params = (
            item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        )
        framing = getattr(params.get("speech"), "framing", params.get("framing", "syrup"))
        here = item.path.is_relative_to(Path(__file__).parent)
        return not here or params.get("codec") != "cbor" or framing == "syrup"

    items[:] = [item for item in items if fits(item)]
