"""The byte-exact examples of an independent implementation (spec/vectors/wire.json)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

WIRE: Final[dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "spec" / "vectors" / "wire.json").read_text(encoding="utf-8")
)


def named(section: str) -> dict[str, bytes]:
    """The Syrup of each vector of a section, by name."""
    return {vector["name"]: bytes.fromhex(vector["syrup"]) for vector in WIRE[section]}


OPERATIONS: Final = named("operations")
PASSABLES: Final = named("passables")
MALFORMED: Final = named("malformed")
OVER_LIMITS: Final = named("over_default_limits")
