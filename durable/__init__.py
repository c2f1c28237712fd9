"""State that outlives the process: a baggage, which is a small transactional store for a peer and its application.

Begin with `open_baggage`. spec/baggage.md describes the files.
"""

from durable.baggage import Baggage, Batch, MemoryBaggage, Namespace, open_baggage
from durable.directory import DirectoryStore
from durable.errors import (
    BaggageCorrupt,
    BaggageFailed,
    BaggageInUse,
    BaggageNewer,
    BaggageRefused,
    DurableError,
    NotStorable,
)
from durable.memory import MemoryStore
from durable.objects import MissingKind, MissingUpgrade, kind, upgrade, when
from durable.store import TABLES, Store

__all__ = [
    "TABLES",
    "Baggage",
    "BaggageCorrupt",
    "BaggageFailed",
    "BaggageInUse",
    "BaggageNewer",
    "BaggageRefused",
    "Batch",
    "DirectoryStore",
    "DurableError",
    "MemoryBaggage",
    "MemoryStore",
    "MissingKind",
    "MissingUpgrade",
    "Namespace",
    "NotStorable",
    "Store",
    "kind",
    "open_baggage",
    "upgrade",
    "when",
]
