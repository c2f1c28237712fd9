"""Baggages for the commands: opened, with errors of one line.

The one place where the commands meet the package `durable`. It is imported by its name and only when it is wanted, as
the library `ocapn` does not know it: whoever embeds a peer without a baggage does not load SQLite for it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from ocapn.cli.exits import ExitCode, Failure, leaves

#: For help texts.
ALONE: Final = "No other process may have the baggage open: end the peer first."


def durable() -> Any:
    """The package. Raises Failure where it does not work."""
    try:
        return importlib.import_module("durable")
    except ImportError as error:  # no fcntl, say
        raise Failure(ExitCode.BAGGAGE, f"a baggage cannot be kept on this system: {error}") from error


def inspection() -> Any:
    """`durable.inspection`. Raises Failure where it does not work."""
    durable()
    return importlib.import_module("durable.inspection")


@contextmanager
def present(path: str, corrupt: ExitCode = ExitCode.BAGGAGE) -> Iterator[None]:
    """For a block that uses the baggage in a directory. Raises Failure, if none is there, and for what it raises.

    `corrupt` is the exit code of one that is damaged.
    """
    named(path)
    with told(corrupt):
        if not inspection().is_baggage(Path(path)):
            raise Failure(
                ExitCode.FILE,
                f"there is no baggage in {path}; 'ocapn serve --baggage' and durable.open_baggage make one",
            )
        yield


@contextmanager
def opened(
    path: str, seal: Callable[[], Any] = lambda: None, corrupt: ExitCode = ExitCode.BAGGAGE
) -> Iterator[Any]:
    """The baggage in a directory, which must be there, opened with what `seal` returns. Raises Failure as `present`."""
    with present(path, corrupt), durable().open_baggage(path, seal=seal()) as baggage:
        yield baggage


@contextmanager
def made(path: str, seal: Any = None) -> Iterator[Any]:
    """The baggage in a directory, which is made if it is not there. Raises Failure, also for what the block raises."""
    named(path)
    with told(), durable().open_baggage(path, seal=seal) as baggage:
        yield baggage


def named(path: str) -> None:
    """Raises Failure if no directory is named."""
    if not path:
        raise Failure(ExitCode.USAGE, "no directory is named: '.' is the current one")


@contextmanager
def told(corrupt: ExitCode = ExitCode.BAGGAGE) -> Iterator[None]:
    """What `durable` raises in the block becomes a Failure, which says what to do."""
    try:
        yield
    except Exception as error:
        found = list(leaves(error))
        ours = [leaf for leaf in found if isinstance(leaf, durable().DurableError)]
        if not ours or any(isinstance(leaf, (Failure, BrokenPipeError)) for leaf in found):
            raise
        raise _failure(ours[0], corrupt) from error


def _failure(error: BaseException, corrupt: ExitCode) -> Failure:
    package = durable()
    if isinstance(error, package.MissingKind):
        return Failure(ExitCode.USAGE, f"{error}; 'ocapn serve' imports it with --import MODULE")
    if isinstance(error, (package.MissingUpgrade, package.NotStorable)):
        return Failure(ExitCode.USAGE, f"{error}")
    if isinstance(error, package.BaggageCorrupt):
        return Failure(corrupt, f"the baggage is damaged: {error}; go back to a copy of it, if there is one")
    return Failure(ExitCode.BAGGAGE, f"{error}")


def damage(failure: Failure) -> Any | None:
    """The BaggageCorrupt that is the cause of a failure, if one is."""
    if failure.__cause__ is None:
        return None
    found = [one for one in leaves(failure.__cause__) if isinstance(one, durable().BaggageCorrupt)]
    return found[0] if found else None


def is_durable(cls: type) -> bool:
    """Whether objects of the class are of a durable kind."""
    return hasattr(cls, "_durable_kind")
