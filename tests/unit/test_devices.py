"""What a model computes in, and where it is, by the settings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from agentprm.cli.processes import Machine, ProcessFailed
from agentprm.cli.services import POLICY, PRM, Options, start_services
from agentprm.config import load_config
from agentprm.models import devices
from agentprm.models.devices import pick_dtype

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


@pytest.mark.parametrize(
    ("name", "device", "stored", "bf16", "expected"),
    [
        ("auto", CPU, torch.bfloat16, True, "float32"),
        ("auto", GPU, torch.float32, True, "bfloat16"),  # as fits store their weights
        ("auto", GPU, torch.float32, False, "auto"),
        ("auto", GPU, torch.float16, True, "auto"),
        ("auto", GPU, None, True, "auto"),
        ("float32", GPU, torch.float32, True, "float32"),
        ("bfloat16", CPU, torch.float32, False, "bfloat16"),
    ],
)
def test_what_is_computed_in(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    device: torch.device,
    stored: torch.dtype | None,
    bf16: bool,
    expected: str,
) -> None:
    monkeypatch.setattr(devices, "computes_bf16", lambda _: bf16)
    assert pick_dtype(name, device, stored) == expected


def test_services_may_be_elsewhere_than_fits() -> None:
    options = Options.of(load_config("llama-3b"))
    places = [options.device, options.device_of(POLICY), options.device_of(PRM)]
    assert places == ["cuda:0", "cuda:1", "cuda:2"]
    assert Options.of(load_config("tiny")).device_of(PRM) == "auto"


@pytest.mark.parametrize(
    ("gpus", "more", "why"),
    [
        (0, {}, "shows no GPU.*for device = 'cuda:0' and prm_device.*--set device=cpu --set prm_"),
        (1, {}, "shows only cuda:0.*for prm_device = 'cuda:2' and policy_device = 'cuda:1': "),
        (2, {}, "shows cuda:0 to cuda:1.*prm_device = 'cuda:2': .*--set prm_device=cuda:1;"),
        (9, {"prm_device": "gpu"}, "prm_device = 'gpu' is no device"),
    ],
)
def test_a_run_asks_for_all_its_gpus_before_anything_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: int, more: dict[str, str], why: str
) -> None:
    """Else policy and PRM would miss theirs when the first fit has ended."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    options = Options.of(load_config("llama-3b", overrides=more))
    with Machine(tmp_path) as machine, pytest.raises(ProcessFailed, match=why):
        start_services(machine, "games", options)
    assert not (tmp_path / "processes.json").exists()


def test_gpus_that_are_there_or_not_asked_for_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    devices.require_gpus(Options.of(load_config("llama-3b")).devices())
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    devices.require_gpus({**Options.of(load_config("tiny")).devices(), "prm_device": "cpu"})
    on_servers = {"policy_engine": "sglang", "sglang_urls": ["http://a:1"]}
    options = Options.of(load_config("llama-3b", overrides=on_servers))
    assert options.devices() == {"device": "cuda:0", "prm_device": "cuda:2"}


def test_a_gpu_that_emulates_bfloat16_does_not_compute_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    emulates = {True: True, False: False}  # as a T4 answers
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: emulates[including_emulation],
    )
    assert not devices.computes_bf16(GPU)
