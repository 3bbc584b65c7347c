"""Environment, policy and PRM as processes that ask for keys."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from agentprm.cli.ports import free_port
from agentprm.registry import Registry
from tests.env_server import write_kitchen
from tests.models import tiny_causal_lm
from tests.scorers import tiny_scorer

READ = "read-key-0123456789"
ADMIN = "admin-key-0123456789"
POLICY_TO_PRM = "policy-to-prm-0123456789"


@dataclass(frozen=True)
class Guarded:
    """Services that take the keys `READ` and `ADMIN`; URLs and logs by name."""

    urls: dict[str, str]
    logs: Path

    def call(self, service: str, method: str, path: str, key: str | None, **more: Any) -> Any:
        """A request with a key; the `httpx.Response`."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        headers |= more.pop("headers", {})
        url = self.urls[service] + path
        return httpx.request(method, url, headers=headers, timeout=60, **more)

    def lines(self, service: str) -> list[dict[str, Any]]:
        """What a service has logged."""
        text = (self.logs / f"{service}.log").read_text()
        whole = text[: text.rfind("\n") + 1]
        return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    home = tmp_path_factory.mktemp("guarded")
    data = home / "games"
    write_kitchen(data)
    registry = Registry(home / "checkpoints")
    registry.adopt(tiny_causal_lm(home / "policy", 0, max_position_embeddings=4096), "policy/0")
    with registry.write("prm/0") as draft:
        tiny_scorer(draft, seed=0)
    ports = {name: free_port() for name in ("env", "policy", "prm")}
    urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    models = ["--registry", str(registry.root), "--device", "cpu"]
    flags = {
        "env": ["--data", str(data), "--capacity", "64", "--privileged", "true"],
        "policy": [*models, "--checkpoint", "policy/0", "--prm-url", urls["prm"]],
        "prm": [*models, "--checkpoint", "prm/0"],
    }
    keys = {
        "AGENTPRM_API_KEYS": f"read:{READ},admin:{ADMIN},read:{POLICY_TO_PRM}",
        "AGENTPRM_API_KEY": POLICY_TO_PRM,
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    with ExitStack() as stack:
        processes = []
        for name, port in ports.items():
            log = stack.enter_context((home / f"{name}.log").open("wb"))
            process = subprocess.Popen(
                [sys.executable, "-m", f"services.{name}", "--port", str(port), *flags[name]],
                env=os.environ | keys,
                stderr=log,
            )
            stack.callback(_stop, process)
            processes.append(process)
        for process, url in zip(processes, urls.values(), strict=True):
            _wait_until_healthy(process, url)
        yield Guarded(urls, home)


def _wait_until_healthy(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + 120
    while True:
        assert process.poll() is None, "the service ended"
        assert time.monotonic() < deadline
        try:
            if httpx.get(f"{url}/health").json()["status"] == "healthy":
                return
        except httpx.TransportError:
            time.sleep(0.1)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(30)
