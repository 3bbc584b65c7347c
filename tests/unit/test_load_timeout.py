"""`AGENTPRM_LOAD_TIMEOUT` reaches all that wait for a load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from agentprm.redis_server import RedisServer
from services.policy import app as policy
from services.policy.settings import PolicySettings
from services.prm import app as prm
from services.prm.settings import PRMServiceSettings
from services.trainer.opening import connect
from services.trainer.settings import TrainerSettings


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTPRM_LOAD_TIMEOUT", "2000")


def seconds(app: FastAPI) -> float:
    """Until an answer to a load is given up."""
    limits: list[Any] = [m.kwargs["limits"] for m in app.user_middleware if "limits" in m.kwargs]
    return float(limits[0].slower["/v1/checkpoints/load"])


def test_the_services(tmp_path: Path) -> None:
    assert seconds(prm.build_app(PRMServiceSettings(registry=tmp_path))) == 2300
    assert seconds(policy.build_app(PolicySettings(registry=tmp_path))) == 2300


def test_the_trainer(tmp_path: Path) -> None:
    url = "http://127.0.0.1:9"
    with RedisServer(tmp_path / "redis") as redis:
        settings = TrainerSettings(
            run=tmp_path, redis_url=redis.url, env_url=url, policy_url=url, prm_url=url
        )
        with connect(settings) as services:
            clients: list[Any] = [services.policy.next, services.prm.next]
    assert [client._deadline for client in clients] == [2300, 2300]
