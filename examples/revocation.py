"""Revocation: taking back what one gave, with a caretaker.

A reference that was given away cannot be taken back. So what is given away is a caretaker, which passes messages on
until it is told to stop. Who gave it keeps the means to stop it.
"""

from __future__ import annotations

import trio

import ocapn
from ocapn import E


class Caretaker(ocapn.Target):
    """Stands in for another object, until `revoke`. Passes on every message, whatever its name."""

    def __init__(self, behind: object) -> None:
        self._behind: object | None = behind

    def revoke(self) -> None:
        """Not marked `@ocapn.method`: only who holds the caretaker itself, in this process, can do it."""
        self._behind = None

    def facet(self) -> ocapn.Target:
        """What to give away."""

        @ocapn.target
        def forward(*message: object) -> ocapn.Promise:
            if self._behind is None:
                raise Revoked("this was given for a while, and the while is over")
            return E(self._behind)(*message)

        return forward


class Revoked(ocapn.PassableError):
    pass


class Printer(ocapn.Target):
    def __init__(self) -> None:
        self.pages: list[str] = []

    @ocapn.method
    def print(self, text: str) -> int:
        self.pages.append(text)
        return len(self.pages)


async def main() -> list[str]:
    said: list[str] = []
    async with (
        ocapn.open_peer([ocapn.NoiseNetlayer()]) as office,
        ocapn.open_peer([ocapn.NoiseNetlayer(listen=False)]) as visitor,
    ):
        caretaker = Caretaker(Printer())
        printer = await visitor.enliven(office.export(caretaker.facet()))
        said.append(f"page {await E(printer).print('a map')}")
        caretaker.revoke()
        try:
            await E(printer).print("another")
        except ocapn.RemoteError as error:
            said.append(str(error))
    return said


if __name__ == "__main__":
    print("\n".join(trio.run(main)))
