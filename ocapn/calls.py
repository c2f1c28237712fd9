"""Who calls: inside a method, the session that the message came through, and what is kept for that peer."""

from __future__ import annotations

from typing import cast

from ocapn.errors import WrongContext
from ocapn.references import current_caller
from ocapn.sessions import Session
from ocapn.storage.access import AsyncStorage, Storage
from ocapn.storage.backend import StorageBackend


def current_session() -> Session:
    """The session that has called the method which runs, also in tasks and threads that the method has begun.

    It may have ended meanwhile. Raises WrongContext outside of methods, and in one that was called locally.
    """
    caller = current_caller.get()
    if caller is None:
        raise WrongContext("no session has called: this is no method, or one that was called in this process")
    return cast(Session, caller.node.public(caller))


def current_storage() -> Storage:
    """What the peer that has called keeps here: a key-value store that no other peer's calls see.

    It is the same one in all its sessions, and with a baggage after restarts. Raises WrongContext as
    `current_session` does, or where the storage can block; NotAuthenticated where it is not known who calls.
    """
    session = current_session()
    keeping = session.keeping
    if keeping.blocks:
        raise WrongContext("this storage can block: `await` the methods of ocapn.current_async_storage()")
    return Storage(cast(StorageBackend, keeping.backend), keeping.name(session), keeping.limits)


def current_async_storage() -> AsyncStorage:
    """As `current_storage`, with async methods, for every backend."""
    session = current_session()
    keeping = session.keeping
    return AsyncStorage(keeping.backend, keeping.name(session), keeping.limits)
