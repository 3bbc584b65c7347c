"""What the trainer's process sees of a machine's GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agentprm.config import load_config
from agentprm.models.devices import processes_of_fits
from agentprm.visible import VARIABLE, visible_to_fits

MAIN = """
import os, sys, types
import services.trainer.__main__ as trainer
stub = types.ModuleType("services.trainer.train")
def train(settings, config):
    print("torch" in sys.modules, os.environ.get("CUDA_VISIBLE_DEVICES"))
    import torch
    print(torch.cuda._parse_visible_devices()[:9])
    return 0
stub.train = train
sys.modules["services.trainer.train"] = stub
sys.exit(trainer.main())
"""
"""The trainer, with what torch reads from its environment in place of a run."""


@pytest.mark.parametrize(
    ("device", "processes", "visible", "expected"),
    [
        ("auto", 1, None, "0"),
        ("cuda", 1, None, "0"),
        ("cuda:2", 1, None, "2"),
        ("auto", 1, "4,5,6", "4"),
        ("cuda:2", 1, "4, 5, 6", "6"),
        ("cuda:1", 1, "GPU-a1,GPU-b2", "GPU-b2"),
        ("auto", 1, "", ""),
        ("cpu", 1, "4,5", ""),
        ("cpu", 4, None, ""),
        ("auto", 4, "4,5,6,7", None),
        ("cuda:1", 4, None, None),
        ("mps", 1, None, None),
    ],
)
def test_one_process_sees_one_device(
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    processes: int,
    visible: str | None,
    expected: str | None,
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    if visible is not None:
        monkeypatch.setenv(VARIABLE, visible)
    assert visible_to_fits(device, processes).get(VARIABLE) == expected


@pytest.mark.parametrize(
    ("asked", "device", "accelerate", "gpus", "expected"),
    [
        (2, "auto", "ddp", 0, 2),
        (2, "auto", "ddp", 1, 1),
        (2, "cpu", "ddp", 1, 2),
        (4, "cuda", "fsdp", 3, 3),
        (1, "auto", "ddp", 8, 1),
        (16, "auto", "two-machines.yaml", 8, 16),
    ],
)
def test_processes_of_a_fit_are_no_more_than_the_gpus(
    monkeypatch: pytest.MonkeyPatch,
    asked: int,
    device: str,
    accelerate: str,
    gpus: int,
    expected: int,
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    assert processes_of_fits(asked, device, accelerate) == expected


def test_a_gpu_that_is_not_there_stops_the_training_before_it_begins(tmp_path: Path) -> None:
    """Fits take what CUDA shows them, and would go on on the CPU where it shows nothing."""
    config = load_config("smoke").model_copy(update={"device": "cuda:63"})
    (tmp_path / "config.json").write_text(config.model_dump_json())
    refused = subprocess.run(
        [
            *(sys.executable, "-m", "services.trainer", "--run", str(tmp_path)),
            *("--redis-url", "redis://127.0.0.1:9"),
            *(f"--{name}-url=http://127.0.0.1:9" for name in ("env", "policy", "prm")),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert refused.returncode == 1
    assert "device = 'cuda:63'" in refused.stderr
    assert not (tmp_path / "records").exists()


def test_a_gpu_that_is_not_visible_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "4,5")
    with pytest.raises(ValueError, match=r"device = 'cuda:2'.*'4,5' shows fewer GPUs"):
        visible_to_fits("cuda:2", 1)


@pytest.mark.parametrize(
    ("device", "processes", "expected"),
    [
        ("cuda:1", "1", ["False 1", "[1]"]),
        ("auto", "2", ["False None", str(list(range(9)))]),
    ],
)
def test_the_trainer_s_torch_sees_the_devices_of_the_run(
    tmp_path: Path, device: str, processes: str, expected: list[str]
) -> None:
    config = load_config("smoke", overrides={"device": device})
    (tmp_path / "config.json").write_text(config.model_dump_json())
    flags = ["--run", str(tmp_path), "--redis-url", "redis://127.0.0.1:1/0"]
    flags += ["--num-processes", processes]
    for name in ("env", "policy", "prm"):
        flags += [f"--{name}-url", "http://127.0.0.1:1"]
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    done = subprocess.run(
        [sys.executable, "-c", MAIN, *flags],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == expected
