"""OCapN for trio: object capabilities across processes and machines (https://ocapn.org).

Begin with `open_peer`, `Target`, `method` and `E`; the README has a first program.
"""

from ocapn.captp.node import Introduction
from ocapn.captp.port import SetAside
from ocapn.control import control_socket
from ocapn.errors import (
    Aborted,
    Backpressure,
    BadLocator,
    ConnectFailed,
    DecodeError,
    Disconnected,
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
    TooBusy,
    WrongContext,
)
from ocapn.leases import Lease
from ocapn.limits import Limits
from ocapn.model.locators import PeerLocator, SturdyRef, parse_uri
from ocapn.model.values import Null, NullType, Symbol, Tagged, equal
from ocapn.netlayers.memory import MemoryNetlayer, MemoryNetwork
from ocapn.netlayers.tcp_testing import TcpTestingNetlayer
from ocapn.netlayers.unix import UnixNetlayer
from ocapn.peer import Peer, Policy, open_peer
from ocapn.policies import Reconnect
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
from ocapn.reconcile import Change, Difference, RestoredSession
from ocapn.references import Ref, Target, method, target
from ocapn.sessions import Session, SessionEvent
from ocapn.supervision import ConnectionEvent, ConnectionSnapshot, SupervisedConnection

__version__ = "0.1.0"

__all__ = [
    "Aborted",
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
    "Introduction",
    "Lease",
    "Limits",
    "MemoryNetlayer",
    "MemoryNetwork",
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
    "SturdyRef",
    "SupervisedConnection",
    "Symbol",
    "Tagged",
    "Target",
    "TcpTestingNetlayer",
    "TooBusy",
    "UnixNetlayer",
    "WrongContext",
    "control_socket",
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
