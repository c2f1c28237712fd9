"""The `ocapn` command."""

from __future__ import annotations


def main() -> int:
    """The entry point; returns the exit code."""
    return 0
