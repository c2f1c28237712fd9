"""Versions: a program that knows more than the one before, and one that knows less.

A kind of durable object got another field: what the baggage has is brought up to date when a peer is opened with it.
The program before does not touch what the later one has left.

    python -m examples.versions
"""

from __future__ import annotations

from functools import partial

import attrs
import trio

import durable
import ocapn
from ocapn import MemoryNetlayer, MemoryNetwork


def first_program() -> type:
    @durable.kind("example.note", version=1)
    @attrs.define
    class Note(ocapn.Target):
        __qualname__ = "Note"  # in a program of its own it stands at the top

        text: str = ""

    return Note


def second_program() -> type:
    @durable.kind("example.note", version=2)
    @attrs.define
    class Note(ocapn.Target):
        __qualname__ = "Note"

        title: str = ""
        words: tuple[str, ...] = ()

    @durable.upgrade("example.note", version=1)
    def split(state: dict[str, object]) -> dict[str, object]:
        title, *words = str(state["text"]).split()
        return {"title": title, "words": tuple(words)}

    return Note


async def main() -> list[str]:
    said: list[str] = []
    store = durable.MemoryStore()
    for program in (first_program, second_program, second_program, first_program):
        note = program()
        netlayer = MemoryNetlayer(MemoryNetwork(), "notes")
        with durable.MemoryBaggage(store) as baggage:
            try:
                async with ocapn.open_peer([netlayer], baggage=baggage):
                    kept = baggage.provide("note", partial(note, "Shopping milk eggs"))
                    said.append(repr(attrs.asdict(kept)))
            except durable.BaggageNewer as error:
                said.append(str(error))
        store = store.reopened()
    return said


if __name__ == "__main__":
    for line in trio.run(main):
        print(line)
