"""What the tests have `ocapn serve --baggage` serve."""

from __future__ import annotations

import attrs

import durable
import ocapn


@durable.kind("test.cli.counter")
@attrs.define
class Counter(ocapn.Target):
    value: int = 0

    @ocapn.method
    def add(self, number: int) -> int:
        self.value += number
        return self.value


@durable.kind("test.cli.other")
@attrs.define
class Other(ocapn.Target):
    """Another kind."""


@durable.kind("test.cli.unfit")
@attrs.define
class Unfit(ocapn.Target):
    """No baggage takes a list as a field."""

    values: list[int] = attrs.Factory(list)


counter = Counter(100)


def hello(name: str) -> str:
    return f"Hello, {name}!"
