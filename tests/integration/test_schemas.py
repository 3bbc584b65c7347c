"""What the services do is what their OpenAPI documents say, whatever the request."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import ADMIN, Guarded

EXAMPLES = 5
"""Drawn at random for each operation, beside those that try every bound of its document."""
NOT_CHECKED = [
    "positive_data_acceptance",  # a document cannot say which games and versions there are
    "negative_data_rejection",  # OpenEnv's and OpenAI's requests have fields that are passed over
]


@pytest.mark.parametrize("service", ["env", "policy", "prm"])
def test_schemathesis_finds_nothing_amiss(guarded: Guarded, tmp_path: Path, service: str) -> None:
    """No 5xx, no undeclared status, body or method, nothing without a key."""
    command = [
        *(str(Path(sys.executable).with_name("schemathesis")), "--no-color", "run"),
        f"{guarded.urls[service]}/openapi.json",
        *("--header", f"Authorization: Bearer {ADMIN}"),
        *("--max-examples", str(EXAMPLES), "--generation-deterministic", "--seed", "1"),
        *("--exclude-checks", ",".join(NOT_CHECKED), "--request-timeout", "60"),
        *("--no-shrink", "--continue-on-failure"),
    ]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    assert "Unresolvable references" not in run.stdout
