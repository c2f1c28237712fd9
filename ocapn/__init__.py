"""OCapN for trio: object capabilities across processes and machines (https://ocapn.org).

Begin with `open_peer`, `Target`, `method` and `E`; the README has a first program.
"""

from ocapn.calls import current_async_storage, current_session, current_storage
from ocapn.captp.node import Introduction
from ocapn.errors import (
    Aborted,
    Backpressure,
    BadLocator,
    ConnectFailed,
    DecodeError,
    Disconnected,
    NotAuthenticated,
    NotPassable,
    ObjectLost,
    OCapNError,
    PassableError,
    PeerRestarted,
    RemoteError,
    RemoteProtocolError,
    RolledBack,
    SessionEnded,
    SessionLost,
    StorageError,
    StorageFailed,
    StorageFull,
    StorageRefused,
    TooBusy,
    WrongContext,
)
from ocapn.limits import Limits, StorageLimits
from ocapn.model.locators import PeerLocator, SturdyRef, parse_uri
from ocapn.model.values import Null, NullType, Symbol, Tagged, equal
from ocapn.netlayers.memory import MemoryNetlayer, MemoryNetwork
from ocapn.netlayers.tcp_testing import TcpTestingNetlayer
from ocapn.netlayers.unix import UnixNetlayer
from ocapn.peer import Peer, Policy, open_peer
from ocapn.promise import (
    E,
    Promise,
    Resolver,
    field,
    index,
    is_settled,
    make_promise,
    send_only,
    untag,
    when_broken,
)
from ocapn.references import Ref, Target, method, target
from ocapn.sessions import Session, SessionEvent
from ocapn.storage.access import AsyncStorage, Storage
from ocapn.storage.backend import AsyncStorageBackend, Quota, StorageBackend, StorageStats
from ocapn.storage.memory import MemoryStorage

__version__ = "0.1.0"

__all__ = [
    "Aborted",
    "AsyncStorage",
    "AsyncStorageBackend",
    "Backpressure",
    "BadLocator",
    "ConnectFailed",
    "DecodeError",
    "Disconnected",
    "E",
    "Introduction",
    "Limits",
    "MemoryNetlayer",
    "MemoryNetwork",
    "MemoryStorage",
    "NotAuthenticated",
    "NotPassable",
    "Null",
    "NullType",
    "OCapNError",
    "ObjectLost",
    "PassableError",
    "Peer",
    "PeerLocator",
    "PeerRestarted",
    "Policy",
    "Promise",
    "Quota",
    "Ref",
    "RemoteError",
    "RemoteProtocolError",
    "Resolver",
    "RolledBack",
    "Session",
    "SessionEnded",
    "SessionEvent",
    "SessionLost",
    "Storage",
    "StorageBackend",
    "StorageError",
    "StorageFailed",
    "StorageFull",
    "StorageLimits",
    "StorageRefused",
    "StorageStats",
    "SturdyRef",
    "Symbol",
    "Tagged",
    "Target",
    "TcpTestingNetlayer",
    "TooBusy",
    "UnixNetlayer",
    "WrongContext",
    "current_async_storage",
    "current_session",
    "current_storage",
    "equal",
    "field",
    "index",
    "is_settled",
    "make_promise",
    "method",
    "open_peer",
    "parse_uri",
    "send_only",
    "target",
    "untag",
    "when_broken",
]
