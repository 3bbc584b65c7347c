"""docker-compose.yml and docker-compose.gpu.yml, as they are written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FILES = ("docker-compose.yml", "docker-compose.gpu.yml")


def services(name: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / name).read_text())["services"]
    return found


@pytest.mark.parametrize("name", FILES)
def test_no_secret_is_in_the_arguments_of_a_process(name: str) -> None:
    """What compose itself puts there; `$$NAME` is for a shell inside."""
    for service, facts in services(name).items():
        arguments = json.dumps([facts.get(k) for k in ("entrypoint", "command", "healthcheck")])
        assert not re.search(r"(?<!\$)\$\{?\w*(PASSWORD|KEY|TOKEN|AUTH)", arguments), service


def test_every_setting_is_in_the_example() -> None:
    text = "".join((ROOT / name).read_text() for name in FILES)
    listed = re.findall(r"^#([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.M)
    assert set(re.findall(r"(?<!\$)\$\{([A-Z_]+)", text)) == set(listed)
