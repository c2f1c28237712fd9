"""The machine: real peers over a memory network, driven by a script, beside a shadow of what ought to be true.

The driver plays the application of every peer: it holds references on their behalf (`holdings`), sends, awaits,
drops. Objects (`Thing`) tell the world of each message that reaches them, and answer as the message's plan says.

What is checked, always: a message arrives only at the object that its recipient was, or became, and once; messages
sent through one reference arrive in the order sent, also after a promise gave way to what it became; values arrive
as they were sent, objects being the same object at home and one reference elsewhere; a promise settles with what the
shadow says. At quiet points: the peers' invariants, and equal counts on both sides of each session. At the end:
every await has ended, every message has arrived, and once all is dropped every table is empty.

With `cuts`, sessions may end: then promises may break and messages be lost, but nothing else may differ. Durable
sessions are cut, and nothing at all may differ.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from random import Random
from typing import Any, cast, final
from unittest.mock import patch
from weakref import WeakKeyDictionary, ref

import attrs
import trio
import trio.testing

import ocapn
from ocapn import (
    E,
    Limits,
    MemoryNetlayer,
    MemoryNetwork,
    OCapNError,
    Peer,
    Promise,
    Ref,
    RemoteError,
    Resolver,
    SturdyRef,
    Tagged,
    Target,
    method,
    open_peer,
    send_only,
)
from ocapn.codec.cbor import CODECS
from ocapn.netlayers.base import Channel
from ocapn.netlayers.memory import Link
from ocapn.peer import Policy
from ocapn.promise import make_promise
from ocapn.references import current_node
from tests.model.script import Script, Step
from tests.model.shadow import (
    FIELD,
    INDEX,
    PENDING,
    UNTAG,
    Answer,
    Bad,
    Node,
    Obj,
    Part,
    Res,
    depends,
    final_of,
)

#: Nothing may expire while links are held.
LIMITS = Limits(handshake=1e6, gift_life=2e3, silence=1e6)
MOST_HELD = 14

# What a message makes the object do.
(
    NOTHING,
    NUMBER,
    HOLDING,
    VALUE,
    RAISE,
    LATER,
    ECHO,
    THING,
    PROMISE,
    AWAIT,
    ONWARD,
    LATER_RAISE,
    PROMISES,
) = range(13)


class ModelError(AssertionError):
    """The peers did what the shadow says they must not."""


@final
class Thing(Target):
    """An object of the simulation."""

    __slots__ = ("obj", "world")

    def __init__(self, world: World, obj: Obj) -> None:
        self.world = world
        self.obj = obj

    @method
    def hit(self, number: object, *payload: object) -> object:
        return self.world.hit(self, number, payload)


@final
class Sent:
    """A message, as the shadow sees it."""

    __slots__ = (
        "answer",
        "arrived",
        "before",
        "lost",
        "number",
        "payload",
        "pick",
        "plan",
        "sender",
        "target",
    )

    def __init__(self, number: int, sender: int, target: object, plan: int, pick: int) -> None:
        self.number = number
        self.sender = sender
        self.target = target
        self.plan = plan
        self.pick = pick
        self.payload: list[object] = []
        self.answer: Answer | None = None
        self.before: frozenset[Sent] = frozenset()  # sent earlier through the same reference
        self.arrived: Obj | None = None
        self.lost = False

    def __repr__(self) -> str:
        return f"m{self.number} of peer {self.sender} to {self.target}"


@final
class Wait:
    """An await that must end."""

    __slots__ = ("done", "what")

    def __init__(self, what: str) -> None:
        self.what = what
        self.done = False


@final
class World:
    def __init__(self, script: Script, log: Callable[[str], object] | None = None) -> None:
        self.script = script
        self.random = Random(script.seed)
        self.count = script.peers
        self.peers: list[Peer] = []
        self.holdings: list[list[tuple[Any, object]]] = [[] for _ in range(self.count)]
        self.resolvers: list[list[tuple[Any, Node]]] = [[] for _ in range(self.count)]
        self.open: dict[Node, Resolver] = {}
        self.things: dict[Obj, ref[Thing]] = {}
        self.messages: list[Sent] = []
        self.nodes = 0
        self.objects = 0
        self.gates: list[trio.Event] = []
        self.waits: list[Wait] = []
        self.exported: list[tuple[SturdyRef, object]] = []
        self.last: WeakKeyDictionary[Any, frozenset[Sent]] = WeakKeyDictionary()
        self.failures: list[str] = []
        self.held_links: list[Link] = []
        self.network = MemoryNetwork(delay=self._delay if script.delays else None)
        self.log = log
        self.nursery: trio.Nursery
        self.ending = False

    def _delay(self, a: str, b: str) -> float:
        return self.random.choice((0.0, 0.0, 0.001, 0.02, 0.2))

    def say(self, text: str) -> None:
        if self.log is not None:
            self.log(f"{trio.current_time():8.3f} {text}")

    def fail(self, text: str) -> None:
        self.say(f"FAILED {text}")
        self.failures.append(text)

    def node(self, home: int) -> Node:
        self.nodes += 1
        return Node(self.nodes, home)

    @contextmanager
    def on(self, p: int) -> Iterator[None]:
        token = current_node.set(self.peers[p]._node)
        try:
            yield
        finally:
            current_node.reset(token)

    # Running

    async def run(self) -> None:
        async with AsyncExitStack() as stack:
            codec = CODECS["cbor" if self.script.cbor else "syrup"]
            stack.enter_context(patch.object(Channel, "codec", codec))
            for p in range(self.count):
                netlayer = MemoryNetlayer(self.network, f"peer{p}")
                policy: Policy = "offer" if self.script.durable else "never"
                peer = await stack.enter_async_context(open_peer([netlayer], limits=LIMITS, durable=policy))
                peer._node.random = self.random.randbytes
                self.peers.append(peer)
            try:
                async with trio.open_nursery() as nursery:
                    self.nursery = nursery
                    await self._play()
                    nursery.cancel_scope.cancel()
            finally:
                self.drop_all()

    async def _play(self) -> None:
        for p in range(self.count):
            thing = self.new_thing(p)
            self.exported.append((self.peers[p].export(thing, b"root%d" % p), thing.obj))
            self.hold(p, thing, thing.obj)
        pairs = [(0, 1), (0, 2), (1, 2)]
        for bit, (p, q) in enumerate(pairs):
            if q < self.count and self.script.links >> bit & 1:
                await self._enliven(p, q, Wait("the start"))
                await self._enliven(q, p, Wait("the start"))
        for number, step in enumerate(self.script.steps):
            operation = operation_of(step)
            self.say(f"-- {number}: {operation.__name__} {step[1:]}")
            await operation(self, *step[1:])
            if self.failures:
                break
        if not self.failures:
            await self.finish()
        if self.failures:
            raise ModelError(self.failures[0])

    # Holding

    def new_thing(self, p: int) -> Thing:
        self.objects += 1
        thing = Thing(self, Obj(self.objects - 1, p))
        self.things[thing.obj] = ref(thing)
        return thing

    def hold(self, p: int, handle: Any, shadow: object) -> None:
        if self.ending:
            return
        held = self.holdings[p]
        held.append((handle, shadow))
        if len(held) > MOST_HELD:
            del held[self.count]  # not the first, by which the peers reach each other

    def pick(self, p: int, n: int) -> tuple[Any, object]:
        held = self.holdings[p]
        return held[-1 - n % len(held)]

    def make(self, p: int, n: int) -> tuple[Any, object]:
        """A value to pass, and its shadow."""
        form = n // 5 % 8
        handle, shadow = self.pick(p, n)
        if form == 3:
            return [handle, n], [shadow, n]
        if form == 4:
            other, other_shadow = self.pick(p, n + 1)
            return {"a": handle, "b": other}, {"a": shadow, "b": other_shadow}
        if form == 5:
            return Tagged("t", handle), Tagged("t", shadow)
        if form == 6:
            return n, n
        if form == 7:
            return [[handle], {"a": [handle]}], [[shadow], {"a": [shadow]}]
        return handle, shadow

    # Comparing

    def take(self, p: int, value: Any, shadow: object, what: str) -> None:
        """`value` came to peer `p`, where `shadow` ought to: compares, and holds what can be held."""
        if isinstance(shadow, Res):
            original = self.open.get(shadow.node)
            at_home = original is not None and shadow.node.home == p
            if at_home and value is not original and not isinstance(value, Promise):
                self.fail(f"{what}: the resolver that came home is another")
            if not self.ending:
                self.resolvers[p].append((value, shadow.node))
            return
        if isinstance(value, Promise):
            self.hold(p, value, shadow)
            return
        expected = final_of(shadow)
        if expected is PENDING:
            self.fail(f"{what}: {shadow} is settled, as {value!r}, before it was resolved")
        elif isinstance(expected, Obj):
            self._take_reference(p, value, expected, what)
            self.hold(p, value, expected)
        elif isinstance(expected, list):
            if type(value) is not list or len(value) != len(expected):
                self.fail(f"{what}: {value!r} came for {expected!r}")
                return
            for part, part_shadow in zip(value, expected, strict=True):
                self.take(p, part, part_shadow, what)
        elif isinstance(expected, dict):
            if type(value) is not dict or value.keys() != expected.keys():
                self.fail(f"{what}: {value!r} came for {expected!r}")
                return
            for key, part_shadow in expected.items():
                self.take(p, value[key], part_shadow, what)
        elif isinstance(expected, Tagged):
            if not isinstance(value, Tagged) or value.tag != expected.tag:
                self.fail(f"{what}: {value!r} came for {expected!r}")
                return
            self.take(p, value.value, expected.value, what)
        elif type(value) is not type(expected) or value != expected:
            self.fail(f"{what}: {value!r} came for {expected!r}")

    def _take_reference(self, p: int, value: Any, obj: Obj, what: str) -> None:
        thing = self.things[obj]()
        if thing is None:
            if not (isinstance(value, Ref) and value._import.session.ended is not None):
                self.fail(f"{what}: {obj} is gone, and a reference to it came")
        elif obj.home == p:
            if value is not thing:
                self.fail(f"{what}: {value!r} came for {obj}, which is at home there")
        elif not isinstance(value, Ref):
            self.fail(f"{what}: {value!r} came for {obj}")
        else:
            slot = value._import
            home = self.peers[obj.home]._node._by_id.get(slot.session.id)
            if slot.session.ended is None and home is not None:
                export = home.tables.exports.get(slot.position)
                if export is None or export.value is not thing:
                    self.fail(f"{what}: {value!r} names {export and export.value!r}, not {obj}")
            elif not self.script.cuts:
                self.fail(f"{what}: {value!r} came for {obj}, of a session that {obj.home} has not")
            for other, shadow in self.holdings[p]:
                if (
                    isinstance(other, Ref)
                    and other is not value
                    and other._import.session is slot.session
                    and final_of(shadow) is obj
                ):
                    self.fail(f"{what}: two references to {obj} at peer {p}")

    # Messages

    def send(
        self,
        p: int,
        handle: Any,
        shadow: object,
        plan: int,
        pick: int,
        payload: list[tuple[Any, object]],
        only: bool,
    ) -> tuple[Promise, Answer] | None:
        message = Sent(len(self.messages), p, shadow, plan, pick)
        self.messages.append(message)
        message.payload = [one for _, one in payload]
        earlier = self.last.get(handle, frozenset())
        message.before = earlier.union(*[one.before for one in earlier])
        self.last[handle] = frozenset([message])
        args = [value for value, _ in payload]
        if not only:
            self.nodes += 1
            message.answer = Answer(self.nodes, p, shadow)
        self.say(f"   {message}, plan {plan}, with {message.payload}, answer {message.answer}")
        with self.on(p):
            if message.answer is None:
                try:
                    send_only(handle).hit(message.number, *args)
                except ocapn.SessionEnded:
                    if not self.script.cuts:
                        raise
                    message.lost = True
                return None
            return E(handle).hit(message.number, *args), message.answer

    def hit(self, thing: Thing, number: object, payload: tuple[Any, ...]) -> object:
        assert isinstance(number, int)
        message = self.messages[number]
        if message.plan in (LATER, AWAIT, LATER_RAISE):
            return self._hit_later(thing, message, payload)
        try:
            self._arrive(thing, message, payload)
            return self._result(thing.obj.home, message, message.plan, payload)
        except RemoteError:
            raise
        except Exception as error:
            self.fail(f"{message} at {thing.obj}: {error!r}")
            raise

    def _arrive(self, thing: Thing, message: Sent, payload: tuple[Any, ...]) -> None:
        obj = thing.obj
        self.say(f"   {message} arrives at {obj}")
        if message.arrived is not None:
            self.fail(f"{message} arrived twice")
        target = final_of(message.target)
        if target is not obj:
            self.fail(f"{message} arrived at {obj}, and its target is {target}")
        message.arrived = obj
        if self.script.cuts:
            for other in self.messages:
                if other.arrived is obj and message in other.before:
                    self.fail(f"{message} arrived at {obj} after {other}, sent later")
        else:
            for other in message.before:
                if other.arrived is None and final_of(other.target) is obj:
                    self.fail(f"{message} arrived at {obj} before {other}, sent earlier")
        if len(payload) != len(message.payload):
            self.fail(f"{message} arrived with {len(payload)} arguments, not {len(message.payload)}")
        for value, shadow in zip(payload, message.payload, strict=False):
            self.take(obj.home, value, shadow, f"{message} at {obj}")

    def _resolve_answer(self, message: Sent, value: object, shadow: object) -> object:
        answer = message.answer
        if answer is not None:
            if depends(shadow, answer, inside=True):
                value = shadow = -1
            answer.resolution = shadow
            self.say(f"   {answer}, the answer of {message}, becomes {shadow}")
        return value

    def _result(self, p: int, message: Sent, plan: int, payload: tuple[Any, ...]) -> object:
        value: object = None
        shadow: object = None
        if self.ending:
            plan = NUMBER
        if plan == NUMBER:
            value = shadow = message.number
        elif plan == HOLDING:
            value, shadow = self.pick(p, message.pick)
        elif plan == VALUE:
            value, shadow = self.make(p, message.pick * 5 + 15)
        elif plan == RAISE:
            text = f"raised by m{message.number}"
            if message.answer is not None:
                message.answer.resolution = Bad(text)
            raise RemoteError(text)
        elif plan == ECHO and payload and not isinstance(message.payload[0], Res):
            value, shadow = payload[0], message.payload[0]
        elif plan == THING:
            thing = self.new_thing(p)
            value, shadow = thing, thing.obj
        elif plan in (PROMISE, PROMISES):
            value, shadow = self.promise(p)
            if plan == PROMISES:
                value, shadow = {"a": value, "b": [value]}, {"a": shadow, "b": [shadow]}
        elif plan == ONWARD:
            handle, target = self.pick(p, message.pick)
            more = [(v, s) for v, s in zip(payload, message.payload, strict=False) if not isinstance(s, Res)]
            sent = self.send(
                p, handle, target, message.pick % 9, message.pick + 1, more, message.answer is None
            )
            if sent is not None:
                value, shadow = sent
        return self._resolve_answer(message, value, shadow)

    async def _hit_later(self, thing: Thing, message: Sent, payload: tuple[Any, ...]) -> object:
        home = thing.obj.home
        try:
            self._arrive(thing, message, payload)
            if message.plan == AWAIT:
                answer = message.answer
                if payload and isinstance(payload[0], Promise) and not isinstance(message.payload[0], Res):
                    shadow = message.payload[0]
                    if answer is not None:
                        if depends(shadow, answer):
                            return self._resolve_answer(message, -2, -2)
                        answer.waits.append(shadow)
                    wait = Wait(f"the method of {message} on {shadow}")
                    self.waits.append(wait)
                    try:
                        value = await payload[0]
                    except OCapNError as error:
                        self._broken(error, shadow, wait.what)
                        if answer is not None:
                            answer.resolution = Bad(str(error))
                        raise RemoteError(str(error)) from None
                    finally:
                        wait.done = True
                    self.take(home, value, shadow, wait.what)
                    return self._resolve_answer(message, value, final_of(shadow))
                return self._result(home, message, HOLDING, payload)
            gate = trio.Event()
            self.gates.append(gate)
            await gate.wait()
            plan = message.pick % 4 if message.plan == LATER else RAISE
            return self._result(home, message, plan, payload)
        except RemoteError:
            raise
        except Exception as error:
            self.fail(f"{message} at {thing.obj}: {error!r}")
            raise

    # Promises

    def promise(self, p: int) -> tuple[Promise, Node]:
        with self.on(p):
            promise, resolver = make_promise()
        node = self.node(p)
        self.open[node] = resolver
        self.resolvers[p].append((resolver, node))
        return promise, node

    def _broken(self, error: BaseException, shadow: object, what: str) -> None:
        """A promise broke: is that what the shadow says?"""
        if self.script.cuts:
            return
        expected = final_of(shadow)
        if not isinstance(expected, Bad):
            self.fail(f"{what}: {shadow} is broken with {error!r}, and it ought to be {expected!r}")
        elif expected.text is not None and str(error) != expected.text:
            self.fail(f"{what}: {shadow} is broken with {error!r}, and not with {expected.text!r}")

    async def wait(self, p: int, handle: Any, shadow: object, record: Wait, patience: float) -> None:
        with trio.move_on_after(patience):
            try:
                value = await handle
            except OCapNError as error:
                self._broken(error, shadow, record.what)
            else:
                self.take(p, value, shadow, record.what)
                if isinstance(value, (Ref, Thing)):
                    self.last[value] = self.last.get(value, frozenset()) | self.last.get(handle, frozenset())
        record.done = True

    async def _enliven(self, p: int, n: int, record: Wait) -> None:
        sturdyref, shadow = self.exported[n % len(self.exported)]
        try:
            value = await self.peers[p].enliven(sturdyref)
        except OCapNError as error:
            self._broken(error, shadow, record.what)
        else:
            self.take(p, value, shadow, record.what)
        record.done = True

    # Steps

    async def do_send(self, a: int, b: int, c: int, d: int) -> None:
        p = a % self.count
        handle, shadow = self.pick(p, b)
        payload = []
        if d:
            payload.append(self.make(p, d - 1))
            if d % 7 == 6:
                payload.append(self.make(p, d * 3))
        sent = self.send(p, handle, shadow, c % 13, d, payload, a // self.count % 4 == 1)
        if sent is not None:
            self.hold(p, *sent)

    async def do_send_twice(self, a: int, b: int, c: int, d: int) -> None:
        """Two messages through one reference, in a row."""
        p = a % self.count
        handle, shadow = self.pick(p, b)
        self.send(p, handle, shadow, NOTHING, 0, [], True)
        sent = self.send(p, handle, shadow, c % 13, d, [self.make(p, d)], False)
        assert sent is not None
        self.hold(p, *sent)

    async def do_talk(self, a: int, b: int, c: int, d: int) -> None:
        """Several messages through one reference while other things happen; of a promise, then to what it became."""
        p = a % self.count
        handle, shadow = self.pick(p, b)
        record = Wait(f"peer {p} talking to {shadow}")
        self.waits.append(record)
        self.nursery.start_soon(self._talk, p, handle, shadow, c, d, record)

    async def _talk(self, p: int, handle: Any, shadow: object, c: int, d: int, record: Wait) -> None:
        for n in range(3 + c % 4):
            self.send(p, handle, shadow, NOTHING, 0, [], (n + d) % 3 == 0)
            if d % 2:
                await trio.sleep(0.004 * (1 + d // 2 % 4))
            for _ in range(c // 4 % 5):
                await trio.lowlevel.checkpoint()
            if isinstance(handle, Promise) and ocapn.is_settled(handle) and d // 8 % 2 == 0:
                try:
                    value = await handle
                except OCapNError as error:
                    self._broken(error, shadow, record.what)
                    break
                self.take(p, value, shadow, record.what)
                if not isinstance(value, (Ref, Thing)):
                    break
                self.last[value] = self.last.get(value, frozenset()) | self.last.get(handle, frozenset())
                handle = value
        record.done = True

    async def do_promise(self, a: int, b: int, c: int, d: int) -> None:
        p = a % self.count
        self.hold(p, *self.promise(p))

    async def do_resolve(self, a: int, b: int, c: int, d: int) -> None:
        p = a % self.count
        if not self.resolvers[p]:
            return
        handle, node = self.resolvers[p].pop(-1 - b % len(self.resolvers[p]))
        if node.used:
            return
        node.used = True
        text = f"p{node.number} broken"
        value, shadow = self.make(p, d)
        breaks = c % 7 == 6
        if depends(shadow, node, inside=True) and not (shadow is node and isinstance(handle, Resolver)):
            breaks = True
        self.say(f"   {node} becomes {'broken' if breaks else shadow}")
        node.resolution = Bad(text) if breaks else shadow
        if isinstance(handle, Resolver) and c % 2:
            if breaks:
                handle.break_(text)
                return
            handle.fulfill(value)
            if isinstance(shadow, (Obj, Node)):
                before = frozenset[Sent]().union(
                    *[self.last.get(own, frozenset()) for own, one in self.holdings[p] if one is node]
                )
                self.last[value] = self.last.get(value, frozenset()) | before
            return
        with self.on(p):
            if breaks:
                E(handle)["break"](RemoteError(text))
            else:
                E(handle).fulfill(value)

    async def do_pass_resolver(self, a: int, b: int, c: int, d: int) -> None:
        p = a % self.count
        if not self.resolvers[p]:
            return
        handle, node = self.resolvers[p][-1 - b % len(self.resolvers[p])]
        if node.used:
            return
        target, shadow = self.pick(p, c)
        self.send(p, target, shadow, NOTHING, d, [(handle, Res(node))], True)

    async def do_await(self, a: int, b: int, c: int, d: int) -> None:
        p = a % self.count
        handle, shadow = self.pick(p, b)
        if isinstance(handle, Promise):
            record = Wait(f"peer {p} awaiting {shadow}")
            self.waits.append(record)
            self.nursery.start_soon(
                self.wait, p, handle, shadow, record, 0.01 if c % 5 == 4 else float("inf")
            )

    async def do_part(self, a: int, b: int, c: int, d: int) -> None:
        p = a % self.count
        handle, shadow = self.pick(p, b)
        if not isinstance(handle, Promise):
            return
        self.nodes += 1
        kind = c % 3
        with self.on(p):
            if kind == FIELD:
                key: str | int = "ab"[d % 2]
                promise = ocapn.field(handle, cast(str, key))
            elif kind == INDEX:
                key = d % 3
                promise = ocapn.index(handle, key)
            else:
                assert kind == UNTAG
                key = "t"
                promise = ocapn.untag(handle, key)
        self.hold(p, promise, Part(self.nodes, p, shadow, kind, key))

    async def do_drop(self, a: int, b: int, c: int, d: int) -> None:
        held = self.holdings[a % self.count]
        for _ in range(1 + c % 3):
            if len(held) > 1:
                held.pop(max(1, len(held) - 1 - b % len(held)))

    async def do_open(self, a: int, b: int, c: int, d: int) -> None:
        if self.gates:
            self.gates.pop(a % len(self.gates)).set()

    async def do_hold(self, a: int, b: int, c: int, d: int) -> None:
        links = [link for link in self.network.links if link.alive]
        if not links:
            return
        link = links[a % len(links)]
        ends = [peer for peer in self.peers if peer.locator().designator in (link.a, link.b)]
        if len(self.network.links_between(link.a, link.b)) == 1 and all(
            other.locator() in peer._node.sessions for peer in ends for other in ends if other is not peer
        ):
            self.held_links.append(link)
            link.hold(a_to_b=b % 3 != 1, b_to_a=b % 3 != 2)

    async def do_release(self, a: int, b: int, c: int, d: int) -> None:
        if self.held_links:
            self.held_links.pop(a % len(self.held_links)).release()

    async def do_pause(self, a: int, b: int, c: int, d: int) -> None:
        if a % 4 == 3:
            await trio.sleep(0.03)
        else:
            for _ in range(1 + a % 8):
                await trio.lowlevel.checkpoint()

    async def do_quiet(self, a: int, b: int, c: int, d: int) -> None:
        await self.quiet()

    async def do_export(self, a: int, b: int, c: int, d: int) -> None:
        p = a % self.count
        handle, shadow = self.pick(p, b)
        self.exported.append((self.peers[p].export(handle, b"more%d" % len(self.exported)), shadow))

    async def do_enliven(self, a: int, b: int, c: int, d: int) -> None:
        p = a % self.count
        record = Wait(f"peer {p} enlivening {b % len(self.exported)}")
        self.waits.append(record)
        self.nursery.start_soon(self._enliven, p, b, record)

    async def do_cut(self, a: int, b: int, c: int, d: int) -> None:
        if not self.script.cuts and not self.script.durable:
            return
        p = a % self.count
        q = (p + 1 + b % (self.count - 1)) % self.count
        if self.script.durable:
            ends = [
                session
                for here, there in ((p, q), (q, p))
                for session in self.peers[here].sessions
                if session.location.designator == f"peer{there}"
            ]
            if len(ends) == 2 and all(session.durable for session in ends):
                self.network.cut(f"peer{p}", f"peer{q}")
        elif c % 2:
            self.network.cut(f"peer{p}", f"peer{q}")
        else:
            for session in self.peers[p].sessions:
                if session.location.designator == f"peer{q}":
                    session.end("the script says so")

    # Quiet points

    async def quiet(self) -> None:
        for _ in range(3):
            gc.collect()
            await trio.sleep(3)
        for peer in self.peers:
            peer.check()
        for p, peer in enumerate(self.peers):
            for q, other in enumerate(self.peers):
                mine = peer._node.sessions.get(other.locator())
                theirs = other._node.sessions.get(peer.locator())
                if p == q or mine is None or theirs is None or mine.id != theirs.id:
                    continue
                if any(link.under_way for link in self.network.links_between(f"peer{p}", f"peer{q}")):
                    continue
                exports = {position: slot.count for position, slot in mine.tables.exports.items()}
                imports = {position: slot.count for position, slot in theirs.tables.imports.items()}
                for position, twice in theirs.tables._resolvers.items():
                    imports[position] = imports.get(position, 0) + twice // 2
                if exports != imports:
                    self.fail(f"peer {p} exports {exports} to peer {q}, which holds {imports}")
                if mine.tables.questions.keys() != theirs.tables.answers.keys():
                    self.fail(
                        f"peer {p} asks {set(mine.tables.questions)} of {q}, which owes {set(theirs.tables.answers)}"
                    )

    async def finish(self) -> None:
        """Everything goes on to its end."""
        self.say("-- finishing")
        for link in self.held_links:
            link.release()
        for _ in range(100):
            gates, self.gates = self.gates, []
            for gate in gates:
                gate.set()
            waiting = [(node, resolver) for node, resolver in self.open.items() if not node.used]
            for node, resolver in waiting:
                node.used = True
                node.resolution = node.number
                resolver.fulfill(node.number)
            await self.quiet()
            if self.gates or waiting or any(not node.used for node in self.open):
                continue
            if self.script.cuts:
                for resolver in list(self.open.values()):
                    resolver.break_("given up")  # the message with its resolution was lost
                self.open.clear()
                await self.quiet()
            break
        else:
            self.fail("it does not end")
        known: set[int] = set()
        while not self.failures:
            new = [
                (p, handle, shadow)
                for p, held in enumerate(self.holdings)
                for handle, shadow in held
                if isinstance(handle, Promise) and id(handle) not in known
            ]
            if not new:
                break
            for p, handle, shadow in new:
                known.add(id(handle))
                record = Wait(f"peer {p} awaiting {shadow} at the end")
                self.waits.append(record)
                self.nursery.start_soon(self.wait, p, handle, shadow, record, float("inf"))
            del handle
            keep = new  # so that no id is used again
            await self.quiet()
            known.update(id(handle) for _, handle, _ in keep)
            self.ending = True
        self.ending = True
        for record in self.waits:
            if not record.done:
                self.fail(f"{record.what}: it never ends")
        if not self.script.cuts:
            for message in self.messages:
                target = final_of(message.target)
                if isinstance(target, Obj) and message.arrived is not target:
                    self.fail(f"{message} never arrived at {target}")
        if self.failures:
            return
        new = keep = []
        handle = shadow = resolver = waiting = node = None  # type: ignore[assignment]
        del new, keep, handle, shadow, resolver, waiting, node
        self.drop_all()
        await self.quiet()
        if self.script.cuts:
            await trio.sleep(2.1e3)  # gifts that nobody can fetch any more
        await trio.sleep(0.37)  # not at the moment when durable sessions show that they are alive
        for p, peer in enumerate(self.peers):
            for session in peer.sessions:
                stats = session.stats()
                left = {key: stats[key] for key in EMPTY if stats[key]}
                if left:
                    self.fail(f"peer {p} keeps {left} for {session.location.designator}: {session.dump()}")

    def drop_all(self) -> None:
        self.ending = True
        for held in self.holdings:
            held.clear()
        for some in self.resolvers:
            some.clear()
        self.open.clear()
        self.exported.clear()
        for peer in self.peers:
            peer._node.swiss.clear()


EMPTY = (
    "exports",
    "imports",
    "questions",
    "answers",
    "resolvers",
    "gifts_waiting",
    "withdrawals_waiting",
    "turns_waiting",
    "messages_on_promises",
    "outbox_messages",
)

_W = World
OPERATIONS = (
    *[_W.do_send] * 9,
    *[_W.do_send_twice] * 3,
    *[_W.do_talk] * 7,
    *[_W.do_promise] * 3,
    *[_W.do_resolve] * 6,
    *[_W.do_pass_resolver] * 2,
    *[_W.do_await] * 4,
    *[_W.do_part] * 3,
    *[_W.do_drop] * 4,
    *[_W.do_open] * 2,
    *[_W.do_hold] * 3,
    *[_W.do_release] * 3,
    *[_W.do_pause] * 6,
    *[_W.do_quiet] * 2,
    _W.do_export,
    *[_W.do_enliven] * 2,
    *[_W.do_cut] * 2,
)


def operation_of(step: Step) -> Callable[[World, int, int, int, int], Awaitable[None]]:
    kind = step[0]
    return getattr(World, kind) if isinstance(kind, str) else OPERATIONS[kind % len(OPERATIONS)]


def named(script: Script) -> Script:
    """The same script with the names of its operations: it means the same whatever becomes of OPERATIONS."""
    return attrs.evolve(script, steps=tuple((operation_of(s).__name__, *s[1:]) for s in script.steps))


def play(script: Script, log: Callable[[str], object] | None = None) -> None:
    """Runs a script, always in the same way. Raises ModelError, or what the peers let escape."""
    run = trio._core._run
    vars(run)["_ALLOW_DETERMINISTIC_SCHEDULING"] = True  # what pytest-trio does under Hypothesis
    run._r.seed(script.seed)
    world = World(script, log)
    logger = logging.getLogger("ocapn")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    was_enabled = gc.isenabled()
    gc.disable()
    gc.freeze()
    try:
        trio.run(world.run, clock=trio.testing.MockClock(autojump_threshold=0))
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()
        logger.setLevel(level)
