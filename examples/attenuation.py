"""Attenuation: giving somebody less than one has.

There are no access lists. Who should only read gets an object that only reads; the one behind it, which can do more, is
not reachable through it.
"""

from __future__ import annotations

import trio

import ocapn
from ocapn import E


class Page(ocapn.Target):
    """All there is to do with a page."""

    def __init__(self, text: str) -> None:
        self._text = text

    @ocapn.method
    def read(self) -> str:
        return self._text

    @ocapn.method
    def write(self, text: str) -> None:
        self._text = text

    @ocapn.method
    def reader(self) -> Reader:
        return Reader(self)


class Reader(ocapn.Target):
    """A facet of a page: what it does not offer cannot be done with it."""

    def __init__(self, page: Page) -> None:
        self._page = page

    @ocapn.method
    def read(self) -> str:
        return self._page.read()


async def main() -> list[str]:
    said: list[str] = []
    async with (
        ocapn.open_peer([ocapn.NoiseNetlayer()]) as publisher,
        ocapn.open_peer([ocapn.NoiseNetlayer(listen=False)]) as guest,
    ):
        page = Page("Draft")
        reader = await guest.enliven(publisher.export(page.reader()))
        said.append(await E(reader).read())
        page.write("Final")
        said.append(await E(reader).read())
        try:
            await E(reader).write("Graffiti")
        except ocapn.RemoteError as error:
            said.append(str(error))
    return said


if __name__ == "__main__":
    print("\n".join(trio.run(main)))
