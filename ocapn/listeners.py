"""Telling many listeners what happens, none of whom can hold up who tells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Generic, TypeVar, final
from weakref import ref

import trio

T = TypeVar("T")

#: Events that one listener may leave unread; of more it learns how many.
_EVENTS: Final = 64


class _Listener(Generic[T]):
    __slots__ = ("_receive", "missed", "send")

    def __init__(self, send: trio.MemorySendChannel[T], receive: trio.MemoryReceiveChannel[T]) -> None:
        self.send = send
        self._receive = ref(receive)
        self.missed = 0

    def tell(self, make: Callable[[int], T]) -> bool:
        """Whether it still listens: it may also have let go of the channel without closing it."""
        if self._receive() is None:
            self.send.close()
            return False
        try:
            self.send.send_nowait(make(self.missed))
        except trio.WouldBlock:
            self.missed += 1
        except trio.BrokenResourceError:
            return False
        else:
            self.missed = 0
        return True


@final
class Listeners(Generic[T]):
    """Those who listen to one thing."""

    __slots__ = ("_listeners", "_over")

    def __init__(self) -> None:
        self._listeners: list[_Listener[T]] = []
        self._over = False

    def listen(self) -> trio.MemoryReceiveChannel[T]:
        """What is told from now on; nothing, once all is told."""
        send, receive = trio.open_memory_channel[T](_EVENTS)
        if self._over:
            send.close()
        else:
            self._listeners.append(_Listener(send, receive))
        return receive

    def tell(self, make: Callable[[int], T]) -> None:
        """`make` is given how many events the listener has missed since the last that it was told."""
        self._listeners = [one for one in self._listeners if one.tell(make)]

    def close(self) -> None:
        """There is no more to tell: the listeners' streams end."""
        self._over = True
        for listener in self._listeners:
            listener.send.close()
        self._listeners.clear()
