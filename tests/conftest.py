"""Fixtures that more than one part needs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from tests.turns import in_turn

# Before torch is imported: several processes compute on few cores, here and in what tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_SHARED = Path(__file__).parents[2] / "shared" / "alfworld"
_GIVEN = os.environ.get("ALFWORLD_DATA")  # read now: importing alfworld sets it
_CACHE = Path.home() / ".cache" / "agentprm" / "alfworld"

for _name in ("AGENTPRM_API_KEYS", "AGENTPRM_API_KEY", "AGENTPRM_NO_AUTH"):
    os.environ.pop(_name, None)  # tests say themselves which keys there are


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """Commands under test configure structlog for their process, which here is all tests'."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def alfworld_data() -> Path:
    """The directory of the real ALFWorld games; tests that need it are skipped without it."""
    if _GIVEN:
        return Path(_GIVEN)
    if (_SHARED / "unpack").exists():
        with in_turn("games"):
            subprocess.run([_SHARED / "unpack", _CACHE], check=True, stdout=subprocess.DEVNULL)
    if not (_CACHE / "json_2.1.1" / "valid_seen").is_dir():
        pytest.skip("no ALFWorld games: run alfworld-download and set ALFWORLD_DATA")
    return _CACHE
