from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import shim
from .disk import recording


@pytest.fixture
def place() -> Iterator[Path]:
    """In memory where that can be: thousands of small files are made."""
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    directory = Path(tempfile.mkdtemp(dir=where))
    try:
        with recording(directory):
            pass
        yield directory
    except shim.Unavailable as reason:
        pytest.skip(str(reason))
    finally:
        shutil.rmtree(directory)
