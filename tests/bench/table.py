"""The figures as a table: for the terminal, and for the README."""

from __future__ import annotations

import datetime
import os
import platform
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import ocapn
from tests.bench.figures import Figure

_BLOCK: Final = re.compile(r"(?<=<!-- figures -->\n).*?(?=<!-- end of figures -->)", re.DOTALL)
#: What is asked of the ratio, at least or, of a latency, sizes and shares, at most; and what the README calls it.
ASKED: Final[dict[str, tuple[float, str]]] = {
    "sequential": (0.5, "one call after another, on one core; of a raw trio echo likewise"),
    "outstanding_1000": (6, "1,000 calls under way; of the raw echo with a core for each process"),
    "one_way": (14, "messages that want no answer; of the same"),
    "chain_100": (4, "calls in chains of promises, 100 deep; of the same"),
    "sessions": (0.4, "connect, handshake, first call; of a raw connect and echo"),
    "durable_sequential": (
        0.75,
        "one call after another, a baggage on both sides; of two bare SQLite commits",
    ),
    "durable_outstanding_1000": (0.75, "1,000 calls under way, a baggage on both sides; of the same without"),
    "syrup_encode_small": (3, "a message of 150 bytes to Syrup; of cbor2 on the same value"),
    "syrup_decode_small": (1.2, "and back"),
    "syrup_encode_10k": (1, "a value of 10 kB to Syrup; of cbor2 likewise"),
    "syrup_decode_10k": (1, "and back"),
    "pycapnp_sequential": (1.3, "one call after another, on one core; of pycapnp"),
    "pycapnp_outstanding_1000": (2, "1,000 calls under way; of pycapnp"),
    "pycapnp_one_way": (4, "messages that want no answer; of pycapnp"),
    "million_references": (1 / 1.3, "1,000 calls under way, 1,000,000 references held; of 100 held"),
    "five_thousand_sessions": (1 / 1.3, "calls in 5,000 sessions in turn, over memory; of one session"),
    "memory_of_a_reference_held": (1, "memory of a reference, where it is held; of 400 bytes"),
    "memory_of_a_reference_given": (1, "and with its object where that is; of 400 bytes"),
    "memory_of_a_session": (1, "memory of an idle session, with its connection over memory; of 20 kB"),
    "latency_beside_bulk": (3, "99th percentile of calls beside 64 kB messages of another session; of idle"),
    "garbage_bytes": (1, "bytes that tell of garbage, of all bytes of calls, in percent; of 5"),
}


def _number(value: float) -> str:
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def plain(figures: Mapping[str, Figure]) -> str:
    """For a terminal."""
    lines = [f"{'':28}{'measured':>12}{'baseline':>12} {'':6}{'ratio':>8}{'asked':>8}"]
    for name, one in figures.items():
        asked = _asked(name, one)
        numbers = f"{_number(one.rate):>12}{_number(one.baseline):>12}"
        lines.append(f"{name:28}{numbers} {one.unit:6}{one.ratio:>8.2f}{asked:>8}")
    return "\n".join(lines)


def _asked(name: str, one: Figure) -> str:
    if name not in ASKED:
        return ""
    return f"{'≥' if one.unit == '/s' else '≤'} {ASKED[name][0]:.3g}"


def markdown(figures: Mapping[str, Figure]) -> str:
    """For the README: the figures of which something is asked, where and when they were measured."""
    build = "compiled" if ocapn.compiled else "pure Python"
    system = f"{platform.system()} {platform.release().partition('-')[0]}"
    machine = f"{_processor()}, {len(os.sched_getaffinity(0))} cores, {system}"
    python = f"{platform.python_implementation()} {platform.python_version()}"
    day = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    lines = [
        f"Measured on {day}: ocapn {ocapn.__version__}, {build}; {python}; {machine}.",
        "",
        "| | measured | baseline | ratio | asked |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, (_, text) in ASKED.items():
        if name in figures:
            one = figures[name]
            unit = "" if one.unit == "/s" else f" {one.unit}"
            numbers = f"{_number(one.rate)}{unit} | {_number(one.baseline)}{unit}"
            lines.append(f"| {text} | {numbers} | {one.ratio:.2f} | {_asked(name, one)} |")
    return "\n".join(lines) + "\n"


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return platform.machine() if found is None else found[1].strip()


def check(readme: Path) -> None:
    """Exits if the file has no place for the table."""
    if not readme.is_file() or len(_BLOCK.findall(readme.read_text())) != 1:
        sys.exit(
            f"{readme} has no place for the figures: one line `<!-- figures -->`, and one `<!-- end of figures -->`"
        )


def write(readme: Path, figures: Mapping[str, Figure]) -> None:
    """Puts the table into the README, in the place of the one that is there."""
    table = markdown(figures)
    readme.write_text(_BLOCK.sub(lambda _: table, readme.read_text()))
