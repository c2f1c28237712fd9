"""Scripts: what the machine does, as plain numbers that Hypothesis draws, shrinks and prints."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import attrs

#: An operation, by number or name, and what it is applied to; each number is taken modulo what there is.
Step = tuple[int | str, int, int, int, int]


@attrs.frozen
class Script:
    """One run. `links` has a bit for each pair of peers that are linked from the start (0-1, 0-2, 1-2)."""

    steps: tuple[Step, ...]
    peers: int = 2
    links: int = 7
    seed: int = 0
    delays: bool = False
    cuts: bool = False
    durable: bool = False
    cbor: bool = False

    def __str__(self) -> str:
        lines = "".join(f"        {step},\n".replace("'", '"') for step in self.steps)
        return (
            f"Script(\n    (\n{lines}    ),\n    peers={self.peers}, links={self.links}, seed={self.seed}, "
            f"delays={self.delays}, cuts={self.cuts}, durable={self.durable}, cbor={self.cbor},\n)"
        )


def random_script(
    random: Random, *, cuts: bool | None = None, longest: int = 60, durable: bool = False
) -> Script:
    """A script for a campaign. Durable sessions are cut as well, and nothing ends by it."""
    length = random.randint(3, longest)
    top = random.choice((2, 5, 20, 255))  # few different things: steps meet more often
    # Few kinds of steps in one script: more of what only many of a kind bring about.
    kinds = [random.randint(0, 255) for _ in range(random.choice((4, 6, 8, 12, 60)))]

    def number() -> int:
        return random.randint(0, top)

    script = Script(
        tuple((random.choice(kinds), number(), number(), number(), number()) for _ in range(length)),
        peers=random.choice((2, 3, 3)),
        links=random.randint(1, 7),
        seed=random.randint(0, 1 << 16),
        delays=random.random() < 0.5,
        cuts=not durable and (random.random() < 0.3 if cuts is None else cuts),
        durable=durable,
    )
    return attrs.evolve(script, cbor=bool(script.seed & 1))


def shrink(script: Script, fails: Callable[[Script], bool], most: int = 3000) -> Script:
    """A smaller script that still fails: steps left out, then numbers made small."""
    tries = 0

    def better(candidate: Script) -> bool:
        nonlocal tries
        tries += 1
        return tries <= most and fails(candidate)

    changed = True
    while changed and tries < most:
        changed = False
        size = max(1, len(script.steps) // 2)
        while size:
            at = 0
            while at < len(script.steps):
                candidate = attrs.evolve(script, steps=script.steps[:at] + script.steps[at + size :])
                if better(candidate):
                    script, changed = candidate, True
                else:
                    at += size
            size //= 2
        for simpler in (
            {"cuts": False},
            {"delays": False},
            {"peers": 2},
            {"seed": 0},
            {"links": 7},
            {"cbor": False},
        ):
            candidate = attrs.evolve(script, **simpler)
            if candidate != script and better(candidate):
                script, changed = candidate, True
        for i, (_, *numbers) in enumerate(script.steps):
            for j in range(1, 5):
                for value in sorted({0, 1, 2, numbers[j - 1] // 2, numbers[j - 1] - 1}):
                    name, *old = script.steps[i]
                    if 0 <= value < old[j - 1]:
                        old[j - 1] = value
                        one = (name, old[0], old[1], old[2], old[3])
                        candidate = attrs.evolve(
                            script, steps=(*script.steps[:i], one, *script.steps[i + 1 :])
                        )
                        if better(candidate):
                            script, changed = candidate, True
                            break
    return script
