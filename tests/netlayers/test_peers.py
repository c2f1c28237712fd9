"""Peers over each netlayer: they call each other, introduce each other, and are cut and go on."""

from __future__ import annotations

import itertools
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

import ocapn
from ocapn import E, Target, method, open_peer
from ocapn.testing import MakeNetlayer
from tests.netlayers import makers
from tests.support import trio_test_real

#: By transport, whether who dials is authenticated too, and who listens.
PROVED = {"noise": (True, True), "websocket": (False, True), "tcp": (False, False), "unix": (False, False)}


def maker(transport: str, directory: Path) -> MakeNetlayer:
    made: dict[str, MakeNetlayer] = {
        "noise": makers.noise,
        "websocket": makers.websocket,
        "tcp": makers.tcp("syrup"),
        "unix": makers.unix(directory),
    }
    return made[transport]


class Caller(Target):
    @method
    def who(self) -> object:
        session = ocapn.current_session()
        assert session is not None
        return [session.location.designator, session.authenticated]

    @method
    def meet(self, other: Any) -> object:
        return E(other).who()


@pytest.mark.parametrize("count", [2, 3, 20])
@pytest.mark.parametrize("transport", PROVED)
def test_peers_that_call_each_other_and_introduce_each_other(
    transport: str, count: int, tmp_path: Path
) -> None:
    make = maker(transport, tmp_path)
    who_dials, who_listens = PROVED[transport]

    @trio_test_real
    async def run() -> None:
        async with AsyncExitStack() as stack:
            everybody = [
                await stack.enter_async_context(open_peer([make(listen=True)])) for _ in range(count)
            ]
            first = everybody[0]
            refs = {peer: await first.enliven(peer.export(Caller())) for peer in everybody[1:]}
            name = first.locator().designator
            for ref in refs.values():
                assert await E(ref).who() == [name, who_dials]
            for one, other in itertools.pairwise(refs):  # each is handed a reference to the next
                assert await E(refs[one]).meet(refs[other]) == [one.locator().designator, who_dials]
            assert len(first.sessions) == count - 1
            assert {session.authenticated for session in first.sessions} == {who_listens}
            for peer in everybody:
                peer.check()

    run()
