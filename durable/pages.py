"""Short entries about the slots of one session, many to a row (spec/baggage.md, Pages).

Questions, answers and resolvers come and go by the thousand, and what there is to say of one is a number or two: a row
for each would cost many times what it says.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, final

from durable.baggage import Baggage
from durable.errors import BaggageCorrupt
from durable.records import decode_row, encode_flat
from durable.store import key_number, number_key, row_name

#: Positions in a page: a page is written whole for one that has changed.
SIZE: Final = 32
#: The table of each kind of slot, and the letter in the key of a page.
PLACES: Final = {
    "export": ("slot", b"E"),
    "import": ("slot", b"I"),
    "resolver": ("slot", b"R"),
    "answer": ("answer", b"A"),
    "question": ("answer", b"Q"),
}
#: Of kinds whose slots may have rows of their own, the letter in the key of one.
OWN: Final = {"export": b"e", "answer": b"a"}


def entries(number: int, row: Any) -> dict[int, Any]:
    """What page `number` says, by position. Raises ValueError for what is no page of that number."""
    match row:
        case [[_, *_] as positions, list(said)] if len(positions) == len(said):
            if all(type(one) is int and one // SIZE == number for one in positions):
                found = dict(zip(positions, said, strict=True))
                if len(found) == len(said):
                    return found
    raise ValueError("not a page of slots")


@final
class Pages:
    """The pages of one session, in memory and, as of the last `save`, in the baggage."""

    __slots__ = ("_baggage", "_pages", "_session_id")

    def __init__(self, baggage: Baggage, session_id: bytes) -> None:
        self._baggage = baggage
        self._session_id = session_id
        # By kind and number, those that have rows:
        self._pages: dict[str, dict[int, dict[int, Any]]] = {kind: {} for kind in PLACES}

    def get(self, kind: str, position: int) -> Any:
        """What is said of a slot; None if nothing is."""
        return self._pages[kind].get(position // SIZE, {}).get(position)

    def all(self, kind: str) -> Iterator[tuple[int, Any]]:
        """Positions and entries, of one kind."""
        for page in self._pages[kind].values():
            yield from page.items()

    def save(self, kind: str, said: dict[int, Any]) -> None:
        """From now on this is said of slots, by position; None is nothing.

        Entries are as `encode_flat` has them, and not changed afterwards. Raises NotStorable.
        """
        pages = self._pages[kind]
        changed: dict[int, dict[int, Any]] = {}
        last, page = -1, changed  # of the position before: most come in order
        for position, entry in said.items():
            number = position // SIZE
            if number != last:
                last = number
                found = changed.get(number)
                page = pages.get(number, {}) if found is None else found
            if entry is not None:
                page[position] = entry
            elif page.pop(position, None) is None:
                continue
            changed[number] = page
        table, letter = PLACES[kind]
        for number, page in changed.items():
            row = self._session_id + letter + number_key(number)
            if page:
                pages[number] = page
                self._baggage.put(table, row, encode_flat([list(page), list(page.values())]))
            elif pages.pop(number, None) is not None:
                self._baggage.remove(table, row)

    def load(self) -> None:
        """Takes what is in the baggage. Raises BaggageCorrupt."""
        for kind, (table, letter) in PLACES.items():
            for row, data in self._baggage.scan(table, self._session_id + letter):
                number = key_number(row[33:])
                try:
                    self._pages[kind][number] = entries(number, decode_row(data, table))
                except ValueError as error:
                    raise BaggageCorrupt(str(error), table=table, row=row_name(row)) from None
