"""How much a service keeps of what it computed, where it is told and where it is not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from agentprm.ensembles import write_ensemble
from agentprm.models.devices import bytes_to_keep, tokens_to_hold
from agentprm.prompts import load_prompt
from agentprm.registry import Registry
from services.policy import backend as policy
from services.policy.settings import PolicySettings
from services.prm import backend as prm
from services.prm.settings import PRMServiceSettings

GIB = 2**30


class Told(Exception):
    """What a model was told that it may keep."""


@pytest.fixture(autouse=True)
def _gpu_of_80_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    def properties(device: torch.device) -> SimpleNamespace:
        assert device.type == "cuda"
        return SimpleNamespace(total_memory=80 * GIB)

    def told(*_: object, cache_bytes: int, **__: object) -> None:
        raise Told(cache_bytes)

    monkeypatch.setattr("torch.cuda.get_device_properties", properties)
    monkeypatch.setattr("services.policy.engine.embedded.EmbeddedEngine.load", told)
    monkeypatch.setattr("services.prm.backend.Scorer", told)


@pytest.mark.parametrize(
    ("flag", "device", "of_policy", "of_prm"),
    [
        (None, "cpu", 1.5, 1),
        (None, "cuda", 10, 10),
        (None, "cuda:1", 10, 10),
        (0.0, "cuda", 0, 0),
        (2.5, "cuda", 2.5, 2.5),
        (2.5, "cpu", 2.5, 2.5),
    ],
)
def test_a_service_keeps_what_it_is_told_or_what_suits_its_device(
    tmp_path: Path, flag: float | None, device: str, of_policy: float, of_prm: float
) -> None:
    registry, prompt = Registry(tmp_path), load_prompt("chat")
    more = {} if flag is None else {"cache_gib": flag}
    asked = PolicySettings.model_validate({"registry": tmp_path, "device": device, **more})
    with pytest.raises(Told) as told:
        policy.open_backend(asked, prompt).serving._build(tmp_path)
    assert told.value.args == (of_policy * GIB,)
    with registry.write("prm/0") as draft:
        (draft / "facts.json").write_text("{}")
    asked_prm = PRMServiceSettings.model_validate({"registry": tmp_path, "device": device, **more})
    with pytest.raises(Told) as told:
        prm.open_backend(asked_prm, prompt).serving._build(registry.open("prm/0"))
    assert told.value.args == (of_prm * GIB,)


def test_members_of_an_ensemble_share_what_there_is_on_a_gpu(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    members = [f"prm/{k}" for k in range(4)]
    for member in members:
        with registry.write(member) as draft:
            (draft / "facts.json").write_text("{}")
    write_ensemble(registry, "prm/4", members)
    settings = PRMServiceSettings(registry=tmp_path, device="cuda")
    with pytest.raises(Told) as told:
        prm.open_backend(settings, load_prompt("chat")).serving._build(registry.open("prm/4"))
    assert told.value.args == (2.5 * GIB,)


@pytest.mark.parametrize(
    ("device", "per_token", "expected"),
    [
        ("cpu", 114_688, 131_072),
        ("cuda", 1024, 131_072),
        ("cuda", 114_688, 80 * GIB // 8 * 4 // 5 // 114_688),  # a Llama 3.2 3B in bfloat16
    ],
)
def test_a_batch_holds_no_more_than_an_eighth_of_a_gpu(
    device: str, per_token: int, expected: int
) -> None:
    assert tokens_to_hold(torch.device(device), per_token, 131_072) == expected


def test_a_mac_counts_as_a_cpu() -> None:
    assert bytes_to_keep(None, torch.device("mps"), on_cpu=1.5) == 1.5 * GIB
