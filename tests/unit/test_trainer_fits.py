"""What the fits of a run have in common: memory, and which games they hold out."""

from __future__ import annotations

import gc
from pathlib import Path

import orjson
import pytest
from rich.console import Console
from torch.optim import Optimizer
from transformers import AutoModelForCausalLM, PreTrainedModel, TrainingArguments

from agentprm.config import Algorithm, load_config
from agentprm.facts import METADATA
from agentprm.prompts import load_prompt
from agentprm.protocol import JobResult
from services.trainer.fits.jobs import FitJob, Fits
from services.trainer.progress import Progress
from services.trainer.rollouts.records import Records
from services.trainer.rollouts.transitions import draw_transitions
from services.trainer.targets.monte_carlo import split_by_game
from services.trainer.training.trainers import StepMeanTrainer
from tests.unit.trainer_episodes import create_small, episode


def fits_of(run: Path, algorithm: Algorithm = Algorithm.AGENT_PRM) -> Fits:
    fast = {"sft.epochs": 1, "prm.epochs": 1, "algorithm": algorithm, "prm.warm_start": True}
    config = load_config("smoke", overrides=fast)
    records, quiet = Records(run / "records"), Progress(Console(quiet=True))
    return Fits(run, config, records, load_prompt("chat"), lambda *_: None, quiet, None)


def record(records: Records, stage: str, games: list[str]) -> None:
    episodes = [
        episode(["look", "go to cabinet 1"], [0, k % 2], game=game).model_copy(
            update={"id": f"{stage}-0000/{k}"}
        )
        for k, game in enumerate(games)
    ]
    records.append(JobResult(job_id=f"{stage}-0000", worker="w", seconds=0, episodes=episodes))


def held() -> int:
    """Models and optimizers that are in memory, without a search for those that could go."""
    return sum(issubclass(type(each), PreTrainedModel | Optimizer) for each in gc.get_objects())


def test_a_fit_leaves_no_weights_in_memory(tmp_path: Path) -> None:
    small, fits = create_small(tmp_path), fits_of(tmp_path)
    record(fits.records, "demonstrations", list("abcd"))
    record(fits.records, "pi_0-rollouts", list("abcd"))
    gc.collect()
    gc.disable()  # by chance it would hide what is held
    try:
        before = held()
        for kind in ("sft", "prm"):
            out = tmp_path / kind
            fits.perform(FitJob(kind=kind, iteration=0, base=small, out=out))
            assert held() == before
            assert (out / "model.safetensors").is_file()
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("algorithm", "rows"), [(Algorithm.AGENT_PRM, 2), (Algorithm.INVERSE_PRM, 4)]
)
def test_demonstrations_that_were_lost_are_imitated_by_inverse_prm_alone(
    tmp_path: Path, algorithm: Algorithm, rows: int
) -> None:
    fits, out = fits_of(tmp_path, algorithm), tmp_path / "out"
    record(fits.records, "demonstrations", list("abcd"))  # of which b and d are won
    fits.perform(FitJob(kind="sft", iteration=0, base=create_small(tmp_path), out=out))
    assert orjson.loads((out / METADATA).read_bytes())["metrics"]["rows"] == rows


def test_processes_hold_their_gradients_once(tmp_path: Path) -> None:
    """Not in the model and in the buckets that are sent as well, a third more in all."""
    model = AutoModelForCausalLM.from_pretrained(create_small(tmp_path))
    arguments = TrainingArguments(str(tmp_path / "scratch"), use_cpu=True)
    assert StepMeanTrainer(model, arguments).accelerator.ddp_handler.gradient_as_bucket_view


def test_what_a_prm_holds_out_no_prm_before_it_was_fitted_on(tmp_path: Path) -> None:
    """Q_i may begin as Q_{i-1}, and both are fitted on the same demonstrations."""
    fits = fits_of(tmp_path, Algorithm.INVERSE_PRM)
    names = [f"{k:03d}" for k in range(300)]
    record(fits.records, "demonstrations", names)
    trained: set[str] = set()
    for i in range(3):
        record(fits.records, f"pi_{i}-rollouts", names[100 * i : 100 * i + 100] * 2)
        episodes = [e for drawn in draw_transitions(fits.records, i, 0) for e in drawn]
        split_seed = fits._conditions(f"q_{i}")["split_seed"]
        sides = split_by_game(episodes, fits.config.prm.validation_fraction, split_seed)
        training, validation = ({episodes[k].game.id for k in side} for side in sides)
        assert validation
        assert not validation & trained
        trained |= training
