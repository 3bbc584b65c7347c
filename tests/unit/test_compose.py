"""docker-compose.yml and docker-compose.gpu.yml, as they are written."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FILES = ("docker-compose.yml", "docker-compose.gpu.yml")


def services(name: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / name).read_text())["services"]
    return found


class _Health(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Into no test's output."""


@pytest.mark.parametrize("status", [200, 503])
@pytest.mark.parametrize("service", ["env", "policy", "prm"])
def test_the_health_check_asks_the_service_and_no_proxy(service: str, status: int) -> None:
    text = (ROOT / f"services/{service}/Dockerfile").read_text()
    [port] = re.findall(r"^EXPOSE (\d+)", text, re.M)
    [check] = re.findall(r"^HEALTHCHECK .*\\\n +CMD (\[.*\])$", text, re.M)
    python, *arguments = json.loads(check)
    assert python == "python"
    handler = type("Health", (_Health,), {"status": status})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        here = [part.replace(f":{port}/", f":{server.server_port}/") for part in arguments]
        nowhere = {"http_proxy": "http://127.0.0.1:9", "no_proxy": "", "NO_PROXY": ""}
        done = subprocess.run([sys.executable, *here], env=os.environ | nowhere, timeout=60)
        server.shutdown()
    assert (done.returncode == 0) == (status == 200)


@pytest.mark.parametrize("name", FILES)
def test_no_secret_is_in_the_arguments_of_a_process(name: str) -> None:
    """What compose itself puts there; `$$NAME` is for a shell inside."""
    for service, facts in services(name).items():
        arguments = json.dumps([facts.get(k) for k in ("entrypoint", "command", "healthcheck")])
        assert not re.search(r"(?<!\$)\$\{?\w*(PASSWORD|KEY|TOKEN|AUTH)", arguments), service


def test_every_log_is_bounded() -> None:
    first, second = map(services, FILES)
    for name in first.keys() | second.keys():
        logging = first.get(name, {}).get("logging") or second.get(name, {}).get("logging")
        assert logging is not None, name
        assert logging["driver"] == "json-file", name
        assert logging["options"] == {"max-size": "10m", "max-file": "3"}, name


def test_textworld_can_load_its_planner_from_the_temporary_directory() -> None:
    [tmp] = services("docker-compose.yml")["env"]["tmpfs"]
    path, _, options = tmp.partition(":")
    assert path == "/tmp"
    assert "exec" in options.split(",")


def test_every_setting_is_in_the_example() -> None:
    text = "".join((ROOT / name).read_text() for name in FILES)
    listed = re.findall(r"^#([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.M)
    handed_on = {
        variable
        for name in FILES
        for service in services(name).values()
        for variable, value in service.get("environment", {}).items()
        if value is None
    }
    assert handed_on | set(re.findall(r"(?<!\$)\$\{([A-Z_]+)", text)) == set(listed)


def test_all_that_wait_for_a_load_get_its_limit_or_nothing() -> None:
    """An empty value they would refuse."""
    variable = "AGENTPRM_LOAD_TIMEOUT"
    given = {
        name: service["environment"][variable]
        for name, service in services("docker-compose.yml").items()
        if variable in service.get("environment", {})
    }
    assert given == {"policy": None, "prm": None, "trainer": None}
