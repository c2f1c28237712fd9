"""The sessions of a peer, as applications see them: one `Session` for each of the core, and the time that it has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final
from weakref import WeakValueDictionary

import trio

from ocapn.callbacks import start_soon
from ocapn.captp.session import Session as CoreSession
from ocapn.dialling import Supervisor
from ocapn.leases import Lease, Tenure
from ocapn.model.locators import PeerLocator
from ocapn.sessions import Keeping, Session


@final
class Registry:
    """`lease` is for sessions whose supervisor, by the location of their peer, has none of its own."""

    def __init__(
        self, keeping: Keeping, lease: Lease | None, supervisors: Mapping[PeerLocator, Supervisor]
    ) -> None:
        self._keeping = keeping
        self._lease = lease
        self._supervisors = supervisors
        #: Those that are not over and forgotten.
        self.publics: dict[CoreSession, Session] = {}
        #: Of those that are, what applications still hold; by id, which they keep from being another's.
        self._forgotten: WeakValueDictionary[int, Session] = WeakValueDictionary()
        self.tenures: dict[Session, Tenure] = {}
        self._nursery: trio.Nursery | None = None

    def run_in(self, nursery: trio.Nursery) -> None:
        """Watches over the time of sessions in the nursery from now on."""
        self._nursery = nursery
        for public, tenure in self.tenures.items():  # of those that the baggage has brought back
            nursery.start_soon(self._watch_over, public, tenure)

    def public(self, session: CoreSession) -> Session:
        """The application's end of a session."""
        public = self.publics.get(session)
        if public is None:
            public = self.publics[session] = Session(session, self._keeping)
            supervisor = None if session.unproved else self._supervisors.get(session.location)
            self.limit(public, None if supervisor is None else supervisor.policy.lease)
        return public

    def caller(self, session: CoreSession) -> Session:
        """The same of a session that has called, which may be over and forgotten."""
        public = self.publics.get(session) or self._forgotten.get(id(session))
        if public is not None:
            return public
        if session.ended is None:
            return self.public(session)
        public = self._forgotten[id(session)] = Session(session, self._keeping)
        return public

    def forget(self, session: CoreSession) -> Session | None:
        """A session is over. Returns the application's end of it, if there was one."""
        public = self.publics.pop(session, None)
        if public is not None:
            self._forgotten[id(session)] = public
        return public

    @property
    def going_on(self) -> list[Session]:
        """The sessions that have not ended, live and suspended."""
        return [public for session, public in self.publics.items() if session.ended is None]

    def told(self, session: CoreSession) -> None:
        """A session was cut, has resumed or has ended: who listens is told, once that is committed."""
        public = self.publics.get(session)
        if public is not None:
            public.tell_soon()

    def limit(self, public: Session, lease: Lease | None) -> None:
        """The session may be used as long as the lease says; None: as that of the peer does."""
        lease = lease or self._lease
        tenure = self.tenures.get(public)
        if public.ended is not None or (lease is None and tenure is None):
            return
        lease = lease or Lease()
        if tenure is not None:
            tenure.change(lease)
            return
        tenure = public.tenure = self.tenures[public] = Tenure(public, lease)
        if self._nursery is not None:
            start_soon(self._nursery, self._watch_over, public, tenure)

    async def _watch_over(self, public: Session, tenure: Tenure) -> None:
        await tenure.run()
        del self.tenures[public]
