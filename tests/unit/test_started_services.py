"""Which services a machine starts for a command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from agentprm.cli.machine import measure_run
from agentprm.cli.processes import Machine
from agentprm.cli.services import Endpoints, Options, start_services
from agentprm.config import Config, Evaluation, load_config
from agentprm.measurements import Measurement


def options(**overrides: Any) -> Options:
    return Options.of(load_config("smoke", overrides=overrides))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[str, ...]]:
    """The flags of what would be started, by name; all of it has to be waited for."""
    started: dict[str, tuple[str, ...]] = {}

    def start(_: Machine, name: str, module: str, *flags: str, **__: Any) -> str:
        started[name] = flags
        return f"http://{name}"

    def wait(_: Machine, names: Sequence[str]) -> None:
        assert set(names) == started.keys()

    monkeypatch.setattr(Machine, "start", start)
    monkeypatch.setattr(Machine, "wait_reachable", wait)
    return started


def test_a_prm_is_started_where_it_is_used(
    tmp_path: Path, started: Mapping[str, tuple[str, ...]]
) -> None:
    with Machine(tmp_path) as machine:
        endpoints = start_services(machine, "games", options(policy_replicas=2))
    assert endpoints == Endpoints("http://env", "http://policy,http://policy-2", "http://prm")
    assert started.keys() == {"env", "policy", "policy-2", "prm"}
    for policy in ("policy", "policy-2"):
        assert started[policy][-2:] == ("--prm-url", "http://prm")


@pytest.mark.parametrize(
    "without", [{"algorithm": "sft"}, {"algorithm": "dagger"}, {"update": "outcome-rejection"}]
)
def test_no_prm_is_started_where_none_is_used(
    tmp_path: Path, started: Mapping[str, tuple[str, ...]], without: dict[str, str]
) -> None:
    with Machine(tmp_path) as machine:
        endpoints = start_services(machine, "games", options(**without))
    assert endpoints == Endpoints("http://env", "http://policy", "")
    assert started.keys() == {"env", "policy"}
    assert "--prm-url" not in started["policy"]


def test_a_gpu_for_a_prm_is_asked_for_where_there_is_one() -> None:
    assert "prm_device" in options(prm_device="cuda:1").devices()
    assert "prm_device" not in options(prm_device="cuda:1", algorithm="sft").devices()


@pytest.mark.parametrize("prm", [None, "prm/0"])
@pytest.mark.parametrize("algorithm", ["agent-prm", "sft"])
def test_measurements_say_whether_a_prm_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prm: str | None, algorithm: str
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(
        "agentprm.cli.machine._work",
        lambda machine, module, games, options, *_, **__: asked.append(options.prm),
    )
    alone = Measurement(name="alone", policy="policy/0", plan=Evaluation())
    steered = alone.model_copy(update={"name": "steered", "prm": prm})
    config: Config = load_config("smoke", overrides={"algorithm": algorithm})
    measure_run(tmp_path, config, "games", [alone, steered])
    assert asked == [prm is not None]
