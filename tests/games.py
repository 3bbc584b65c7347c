"""Where the tests find real ALFWorld games, and what to skip where there are none."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

import pytest

_CACHE = Path("~/.cache/agentprm/alfworld").expanduser()
_ARCHIVES = Path(__file__).resolve().parents[2] / "shared" / "alfworld"


@cache
def data_dir() -> Path:
    """The directory that holds json_2.1.1; skips the test where there is none."""
    for place in (os.environ.get("ALFWORLD_DATA"), _CACHE):
        if place and (Path(place) / "json_2.1.1").is_dir():
            return Path(place)
    if (_ARCHIVES / "unpack").is_file():
        subprocess.run([_ARCHIVES / "unpack", _CACHE], check=True, timeout=120)
        return _CACHE
    pytest.skip("no ALFWorld games: set ALFWORLD_DATA to what alfworld-download filled")
