"""A greeter: one peer serves an object, another enlivens its sturdyref and sends to it.

The sturdyref's URI is what one would hand over by mail or on paper; knowing it is the permission to greet.
"""

from __future__ import annotations

import trio

import ocapn
from ocapn import E


class Greeter(ocapn.Target):
    """Only what is marked `@ocapn.method` can be called from outside."""

    def __init__(self, greeting: str) -> None:
        self.greeting = greeting

    @ocapn.method
    def greet(self, name: str) -> str:
        return f"{self.greeting}, {name}!"


async def main() -> list[str]:
    async with (
        ocapn.open_peer([ocapn.NoiseNetlayer()]) as alice,
        ocapn.open_peer([ocapn.NoiseNetlayer(listen=False)]) as bob,
    ):
        uri = alice.export(Greeter("Hello")).uri
        greeter = await bob.enliven(uri)
        # Both are sent before the first is answered: a send never waits, only `await` does.
        promises = [E(greeter).greet(name) for name in ("Bob", "Carol")]
        return [await promise for promise in promises]


if __name__ == "__main__":
    print("\n".join(trio.run(main)))
