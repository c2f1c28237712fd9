"""Opening a peer: it runs for as long as a block."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import get_args

import trio

from ocapn.captp.node import Introduction, Node
from ocapn.captp.port import Baggage
from ocapn.leases import Lease
from ocapn.limits import Limits
from ocapn.model.locators import PeerLocator
from ocapn.netlayers.base import Netlayer
from ocapn.peer import Peer, Policy
from ocapn.references import current_node
from ocapn.sessions import Session
from ocapn.storage.backend import AsyncStorageBackend, StorageBackend


@asynccontextmanager
async def open_peer(
    netlayers: Sequence[Netlayer],
    *,
    limits: Limits | None = None,
    dialect: str | None = None,
    dialects: Mapping[PeerLocator, str] | None = None,
    durable: Policy = "offer",
    durables: Mapping[PeerLocator, Policy] | None = None,
    authenticate: Callable[[Introduction], bool] | None = None,
    baggage: Baggage | None = None,
    lease: Lease | None = None,
    storage: StorageBackend | AsyncStorageBackend | None = None,
    storage_identity: Callable[[Session], str | None] | None = None,
) -> AsyncIterator[Peer]:
    """Runs a peer for as long as the block: `async with ocapn.open_peer(netlayers=[...]) as peer:`.

    It listens on every netlayer that can. `dialect` is how to write to peers that have not shown what they read:
    "2026-02", "2026-02-text-order", "2026-02-singular-gc" or "2026-01" (spec/wire.md), by default the newest, adapting;
    `dialects` says so for single peers.

    `durable` says whether sessions are to survive their connections: "offer" asks for it when dialling and accepts
    when asked, "accept" only accepts, "never" does neither; `durables` says so for single peers (spec/resume.md).
    `authenticate` is asked whether a peer may begin, or resume, a session. With a `baggage` (`durable.open_baggage`)
    durable sessions survive the process too: they, and what is kept of durable objects, are there again when the peer
    is opened with it again. It belongs to one peer at a time. `lease` bounds how long sessions may be used, whoever
    began them, and says who may renew them (spec/supervision.md).

    `storage` is where `current_storage` keeps what callers keep: by default in the baggage, without one in memory.
    `storage_identity` says who calls in a session that the netlayer has not authenticated, or None: what it returns is
    believed (spec/storage.md).

    On leaving, sessions end with op:abort after what is queued was flushed (at most `limits.closing` seconds), then
    running methods are cancelled.

    Raises ConnectFailed if a netlayer cannot listen, ValueError for two netlayers of one transport or none. What the
    block raises leaves as it is; a bug in the library ends the block, and leaves in an exception group.

    A baggage that cannot be written any more (a full disk, an I/O error) ends the block too: `durable.BaggageFailed`
    leaves as it is, together with what the block has raised of its own in a group. Whoever awaits `settled`
    meanwhile, or a promise of which the outcome is not on disk, in whatever task, gets it as well: nothing that is not
    on disk was seen by anybody.
    """
    transports = [netlayer.transport for netlayer in netlayers]
    if not transports or len(set(transports)) != len(transports):
        raise ValueError("a peer has at least one netlayer, and at most one of each transport")
    for policy in (durable, *(durables or {}).values()):
        if policy not in get_args(Policy):
            raise ValueError(f"durable is one of {', '.join(get_args(Policy))}, not {policy!r}")
    peer = Peer(
        netlayers,
        limits or Limits(),
        dialect,
        dialects or {},
        durable,
        durables or {},
        authenticate,
        baggage,
        lease,
        storage,
        storage_identity,
    )
    block: BaseException | None = None
    beside: BaseException | None = None
    try:
        try:
            await peer._acceptor.listen()
            peer._restore()
            async with trio.open_nursery() as nursery:
                with trio.CancelScope(
                    shield=True
                ):  # a start that is cancelled would leave `_serve` without an end
                    await nursery.start(peer._serve)
                token = current_node.set(peer._node)
                try:
                    yield peer
                except BaseException as error:
                    if nursery.cancel_scope.cancel_called:  # something of ours failed, and ended the block
                        raise
                    block = error  # the block's own: it is not for the nursery to put into a group
                finally:
                    current_node.reset(token)
                    await peer._close()
        finally:
            try:
                peer._finish()
            finally:
                peer._node.close()
                for public in peer._registry.publics.values():
                    public.tell_no_more()
                await peer._acceptor.stop()
    except BaseException as error:
        beside = error
    leaving = _leaving(peer.node, block, beside)
    if leaving is not None:
        raise leaving


def _leaving(node: Node, block: BaseException | None, peer: BaseException | None) -> BaseException | None:
    """What leaves `open_peer` when the block has raised `block`, and the peer `peer`.

    If nothing can be kept any more, many tasks meet that; it leaves once, and as it is.
    """
    keeper, failure = node.keeper, node.failure
    if failure is not None and keeper is not None and keeper.failed is not None:
        if peer is None or _is_only(peer, failure):
            peer = failure
        if block is not None and _is_only(block, failure):
            block = None
    if block is None or peer is None:
        return block if peer is None else peer
    return BaseExceptionGroup("the block failed, and so did the peer", [block, peer])


def _is_only(error: BaseException, failure: BaseException) -> bool:
    """Whether an error is `failure`, or a group of nothing else. That something was cancelled tells nothing more."""
    if isinstance(error, BaseExceptionGroup):
        return all(_is_only(one, failure) for one in error.exceptions)
    return isinstance(error, trio.Cancelled) or (type(error) is type(failure) and error.args == failure.args)
