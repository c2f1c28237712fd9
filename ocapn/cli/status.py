"""`ocapn status`: how a running peer is."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

from ocapn import control
from ocapn.cli.command import Command
from ocapn.cli.exits import ExitCode, Failure
from ocapn.cli.output import printable
from ocapn.cli.signals import SIGNALS

_DESCRIPTION: Final = """
Shows how a running peer is: what it keeps connections with and how often it has tried, its
sessions, what waits in them, and what a restart has brought back. The peer tells it over a local
socket file that its own user alone can open; 'ocapn serve --baggage DIR' makes DIR.control.
"""

_EPILOG: Final = """
Example:
  $ ocapn serve --export counter=count:Counter --baggage ~/counter > counter.ref &
  $ ocapn status ~/counter
"""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "place",
        metavar="PATH",
        help="the socket file, or the baggage of the peer, whose name with .control it has",
    )
    parser.add_argument("--json", action="store_true", help="a JSON document, for programs")


def control_path(baggage: str) -> str:
    """Where a peer with this baggage can be asked how it is."""
    return f"{Path(baggage).absolute()}.control"


def _run(given: argparse.Namespace) -> None:
    place = control_path(given.place) if Path(given.place).is_dir() else given.place
    try:
        found = SIGNALS.run(partial(control.ask, place))
    except ValueError as error:
        raise Failure(ExitCode.MALFORMED, f"{place}: {error}") from error
    if given.json:
        print(json.dumps(found, indent=2))
        return
    for line in _lines(found):
        print(printable(line))


def _lines(found: dict[str, Any]) -> Iterator[str]:
    rows: list[tuple[str, ...]]
    yield f"Peer {', '.join(found['peer'])}, process {found['pid']}"
    connections, sessions = found["connections"], found["sessions"]
    if connections:
        yield ""
        yield f"Connections that are kept: {len(connections):,}"
        rows = [("status", "for", "failed", "next after", "peer")]
        for one in connections:
            delay = one["delay"]
            rows.append(
                (
                    one["status"],
                    _time(one["for"]),
                    f"{one['attempts_failed']:,}",
                    "never" if delay is None else _time(delay) if one["attempts_failed"] else "",
                    one["peer"],
                )
            )
        heads, *lines = _table(rows)
        yield heads
        for one, line in zip(connections, lines, strict=True):
            yield line
            if one["cause"]:
                yield f"    {one['cause']}"
    yield ""
    yield f"Sessions: {len(sessions):,}"
    rows = [("status", "kept", "proved", "age", "heard", "outbox", "waiting", "methods", "peer")]
    for one in sessions:
        rows.append(
            (
                one["status"],
                "yes" if one["durable"] else "no",
                "yes" if one["authenticated"] else "no",
                _time(one["age"]),
                _time(one["heard"]),
                f"{one['outbox_messages'] + one['frames_kept']:,}",
                f"{one['waiting_for_renewal']:,}",
                f"{one['running_methods']:,}",
                one["peer"],
            )
        )
    if sessions:
        yield from _table(rows)
    if found["storage"] is not None:
        stored = found["storage"]
        yield ""
        yield f"Storage: {stored['keys']:,} keys of {stored['peers']:,} peers, {stored['size']:,} bytes"
    if found["restored"]:
        yield ""
        yield f"Brought back by the restart: {len(found['restored']):,}"
        rows = [("now", "age", "silent", "outbox", "peer")]
        for one in found["restored"]:
            times = _time(one["age"]), _time(one["silent"])
            rows.append((one["status"], *times, f"{one['outbox']:,}", one["peer"]))
        yield from _table(rows)
    if found["set_aside"]:
        yield ""
        yield f"Set aside, as they cannot be used: {len(found['set_aside']):,}"
        for one in found["set_aside"]:
            yield f"  {one['session']}…  {one['peer'] or 'an unknown peer'}: {one['reason']}"


def _table(rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _time(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


COMMAND: Final = Command(
    name="status",
    summary="shows how a running peer is: connections, sessions, what waits",
    usage="PATH [--json]",
    description=_DESCRIPTION,
    epilog=_EPILOG,
    codes=(ExitCode.NO_SESSION, ExitCode.MALFORMED),
    add_arguments=_add_arguments,
    run=_run,
)
