"""State that outlives the process: a baggage, which is a small transactional store for a peer and its application.

Begin with `open_baggage`. spec/baggage.md describes the files, spec/sealing.md how they are encrypted.
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
    SealRefused,
)
from durable.memory import MemoryStore
from durable.objects import MissingKind, MissingUpgrade, kind, upgrade, when
from durable.resealing import rotate, seal, sealed_by, unseal, verify_sealed
from durable.sealing import SealedStore
from durable.seals import KeyFile, Passphrase, Seal
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
    "KeyFile",
    "MemoryBaggage",
    "MemoryStore",
    "MissingKind",
    "MissingUpgrade",
    "Namespace",
    "NotStorable",
    "Passphrase",
    "Seal",
    "SealRefused",
    "SealedStore",
    "Store",
    "kind",
    "open_baggage",
    "rotate",
    "seal",
    "sealed_by",
    "unseal",
    "upgrade",
    "verify_sealed",
    "when",
]
