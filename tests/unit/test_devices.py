"""What a model computes in, and where it is, by the settings."""

from __future__ import annotations

import pytest
import torch

from agentprm.cli.services import POLICY, PRM, Options
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
