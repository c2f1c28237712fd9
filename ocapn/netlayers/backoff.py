"""How long to wait until something that was lost is tried again."""

from __future__ import annotations

from typing import Final, final

import trio

#: The first time, and at most, seconds.
FIRST_DELAY: Final = 0.5
MOST_DELAY: Final = 60.0


@final
class Backoff:
    """Twice as long each time, until it has lasted: what comes and goes is asked for less and less often."""

    def __init__(self) -> None:
        self._delay = FIRST_DELAY
        self._since = trio.current_time()

    def there(self) -> None:
        """It is there."""
        self._since = trio.current_time()

    def lost(self) -> None:
        """It was there, and is not any more."""
        if trio.current_time() - self._since > MOST_DELAY:
            self._delay = FIRST_DELAY

    async def wait(self) -> None:
        await trio.sleep(self._delay)
        self._delay = min(2 * self._delay, MOST_DELAY)
