from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from agentprm.config import DPOSettings, SFTSettings
from agentprm.prompts import load_prompt
from agentprm.protocol import Action
from services.trainer.fits.dpo import fit_dpo
from services.trainer.fits.sft import fit_sft
from services.trainer.training.fitting import Metrics
from services.trainer.training.schedule import rate
from tests.unit.trainer_episodes import create_small, episode, preference

CHAT = load_prompt("chat")
PLAYED = episode(["look", "go to cabinet 1"], [0, 1])
PAIR = preference(PLAYED.state(1), Action(command="go to cabinet 1"), Action(command="look"))


def rates(steps: int, warmup: int, decay: int) -> list[float]:
    return [rate(k, steps=steps, warmup=warmup, decay=decay) for k in range(steps)]


def test_the_rate_rises_stays_and_falls() -> None:
    assert rates(10, 3, 4) == [0.25, 0.5, 0.75, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    assert rates(3, 0, 0) == [1, 1, 1]
    assert rates(1, 1, 0) == [0.5]


@pytest.mark.parametrize("steps", range(1, 12))
def test_no_step_is_at_rate_0(steps: int) -> None:
    """Also where warm-up and decay, rounded, are more than all steps."""
    half = (steps + 1) // 2
    assert all(0 < factor <= 1 for factor in rates(steps, half, half))


def dpo(policy: Path, out: Path) -> Metrics:
    settings = DPOSettings(learning_rate=1e-3, max_steps=1, batch_pairs=1)
    return fit_dpo(policy, policy, [PAIR], out, settings, CHAT, seed=0)


def sft(policy: Path, out: Path) -> Metrics:
    settings = SFTSettings(learning_rate=1e-3, epochs=1, batch_tokens=10_000)
    return fit_sft(policy, [PLAYED], out, settings, CHAT, seed=0)


@pytest.mark.parametrize("fit", [dpo, sft])
def test_a_fit_of_one_step_trains(tmp_path: Path, fit: Callable[[Path, Path], Metrics]) -> None:
    small = create_small(tmp_path)
    assert fit(small, tmp_path / "out")["steps"] == 1
    before, after = (load_file(d / "model.safetensors") for d in (small, tmp_path / "out"))
    moved = max((after[name] - before[name]).abs().max().item() for name in before)
    assert moved == pytest.approx(5e-4, rel=0.1)  # Adam's first step is the rate, here half of 1e-3
