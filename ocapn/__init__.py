"""OCapN for trio: object capabilities across processes and machines (https://ocapn.org).

Begin with `open_peer`, `Target`, `method` and `E`; the README has a first program.
"""

from typing import Final

from ocapn.calls import current_async_storage, current_session, current_storage
from ocapn.captp.node import Introduction
from ocapn.captp.port import SetAside
from ocapn.codec import syrup as _syrup
from ocapn.control import control_socket
from ocapn.crypto import Identity
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
    SessionExpired,
    SessionLost,
    StorageError,
    StorageFailed,
    StorageFull,
    StorageRefused,
    TooBusy,
    WrongContext,
)
from ocapn.leases import Lease
from ocapn.limits import Limits, StorageLimits
from ocapn.model.locators import PeerLocator, SturdyRef, parse_uri
from ocapn.model.values import Null, NullType, Symbol, Tagged, equal
from ocapn.netlayers.identity import identity_file
from ocapn.netlayers.memory import MemoryNetlayer, MemoryNetwork
from ocapn.netlayers.noise import NoiseNetlayer
from ocapn.netlayers.tcp_testing import TcpTestingNetlayer
from ocapn.netlayers.unix import UnixNetlayer
from ocapn.opening import open_peer
from ocapn.peer import Peer, Policy
from ocapn.policies import Reconnect
from ocapn.promise import (
    Promise,
    Resolver,
    field,
    index,
    is_settled,
    make_promise,
    untag,
    when_broken,
)
from ocapn.reconcile import Change, Difference, RestoredSession
from ocapn.references import Ref, Target, method, target
from ocapn.sending import E, send_only
from ocapn.sessions import Session, SessionEvent
from ocapn.storage.access import AsyncStorage, Storage
from ocapn.storage.backend import AsyncStorageBackend, Quota, StorageBackend, StorageStats
from ocapn.storage.memory import MemoryStorage
from ocapn.supervision import ConnectionEvent, ConnectionSnapshot, SupervisedConnection

__version__ = "0.1.0"
#: Whether the codecs and the protocol core are compiled (spec/building.md). What they do is the same.
compiled: Final = not str(_syrup.__file__).endswith(".py")

__all__ = [
    "Aborted",
    "AsyncStorage",
    "AsyncStorageBackend",
    "Backpressure",
    "BadLocator",
    "Change",
    "ConnectFailed",
    "ConnectionEvent",
    "ConnectionSnapshot",
    "DecodeError",
    "Difference",
    "Disconnected",
    "E",
    "Identity",
    "Introduction",
    "Lease",
    "Limits",
    "MemoryNetlayer",
    "MemoryNetwork",
    "MemoryStorage",
    "NoiseNetlayer",
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
    "Reconnect",
    "Ref",
    "RemoteError",
    "RemoteProtocolError",
    "Resolver",
    "RestoredSession",
    "RolledBack",
    "Session",
    "SessionEnded",
    "SessionEvent",
    "SessionExpired",
    "SessionLost",
    "SetAside",
    "Storage",
    "StorageBackend",
    "StorageError",
    "StorageFailed",
    "StorageFull",
    "StorageLimits",
    "StorageRefused",
    "StorageStats",
    "SturdyRef",
    "SupervisedConnection",
    "Symbol",
    "Tagged",
    "Target",
    "TcpTestingNetlayer",
    "TooBusy",
    "UnixNetlayer",
    "WrongContext",
    "compiled",
    "control_socket",
    "current_async_storage",
    "current_session",
    "current_storage",
    "equal",
    "field",
    "identity_file",
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
