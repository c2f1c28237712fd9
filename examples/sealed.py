"""State at rest: a sealed baggage, who has it, another key for it, and what is seen of it without one.

python -m examples.sealed
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import trio

import durable


async def main() -> list[str]:
    return await trio.to_thread.run_sync(shown)  # opening and sealing block


def shown() -> list[str]:
    said: list[str] = []
    with tempfile.TemporaryDirectory() as directory:
        place, key = Path(directory) / "notes", durable.KeyFile(Path(directory) / "notes.key")
        with durable.open_baggage(place, seal=key) as baggage:
            baggage["note"] = "nobody else's business"
            try:
                durable.open_baggage(place, seal=key)
            except durable.BaggageInUse as error:
                said.append(f"in use by a process that is known: {error.pid is not None}")
        found = any(b"business" in file.read_bytes() for file in place.iterdir())
        said.append(f"the note is in the files: {found}")
        said.append(f"rows that are as they were written: {durable.verify_sealed(place)}")
        words = durable.Passphrase("correct horse battery staple", opslimit=1, memlimit=8 << 20)
        durable.rotate(place, key, words)  # in earnest, leave the limits as they are
        for seal in (None, key, words):
            try:
                with durable.open_baggage(place, seal=seal) as baggage:
                    said.append(f"opened: {baggage['note']}")
            except durable.SealRefused as error:
                said.append(str(error).replace(str(place), "notes"))
    return said


if __name__ == "__main__":
    for line in trio.run(main):
        print(line)
