"""Every fit reads other numbers where its settings say so, and only of ALFWorld's rooms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from agentprm.config import Config, DPOSettings, GRPOSettings, PRMSettings, SFTSettings
from agentprm.prompts import load_prompt
from agentprm.protocol import Action, Episode, JobResult
from services.trainer.fits.dagger import fit_dagger
from services.trainer.fits.dpo import fit_dpo
from services.trainer.fits.grpo import fit_grpo
from services.trainer.fits.inverse import Collator, Sample, fit_inverse_prm
from services.trainer.fits.jobs import FitJob, Fits
from services.trainer.fits.prm import fit_prm
from services.trainer.fits.relative import fit_relative_prm
from services.trainer.fits.sft import fit_sft
from services.trainer.progress import Progress
from services.trainer.rollouts.records import Records
from services.trainer.training.rows import Row, all_rows
from services.trainer.world.fit import fit_world
from tests.unit.trainer_episodes import altered, create_small, episode, group, preference

PROMPT = load_prompt("chat")
ELSEWHERE = "You see a cabinet 1, a fridge 1, and a sidetable 1."
GOOD, BAD = Action(command="go to cabinet 1"), Action(command="go to fridge 1")
COMMON: dict[str, Any] = {
    "learning_rate": 1e-12,  # the loss is that of the model as it came
    "batch_tokens": 20_000,
    "precision": "fp32",
    "log_every": 1,
}
ONLINE: dict[str, Any] = {"learning_rate": 1e-12, "precision": "fp32", "max_steps": 1}
SEEDS: dict[str, Any] = {"seed": 0, "split_seed": 0, "gamma": 0.9}


def played(room: str | None) -> list[Episode]:
    """Eight episodes of two kinds, with an expert's label in each turn, in a room or elsewhere."""
    found = []
    for k in range(8):
        made = episode(
            [GOOD.command, (GOOD, BAD)[k % 2].command], [0, k % 2], game=str(k // 2), index=k
        )
        turns = [turn.model_copy(update={"expert": GOOD}) for turn in made.turns]
        if room is not None:
            turns[0] = turns[0].model_copy(update={"observation": room})
        found.append(made.model_copy(update={"turns": tuple(turns)}))
    return found


def sft(small: Path, out: Path, episodes: list[Episode], share: float) -> float:
    settings = SFTSettings(**COMMON, renumbered=share)
    return fit_sft(small, episodes, out, settings, PROMPT, seed=0)["loss"]


def dagger(small: Path, out: Path, episodes: list[Episode], share: float) -> float:
    settings = SFTSettings(**COMMON, renumbered=share)
    labelled = [(each, 1) for each in episodes]
    return fit_dagger(small, episodes[:1], labelled, out, settings, PROMPT, seed=0)["loss"]


def world(small: Path, out: Path, episodes: list[Episode], share: float) -> float:
    return fit_world(small, episodes, out, config(share), 0)["loss"]


def prm(small: Path, out: Path, episodes: list[Episode], share: float) -> float:
    settings = PRMSettings(**COMMON, renumbered=share, validation_fraction=0)
    targets = [[0.1, 0.9]] * len(episodes)
    return fit_prm(small, episodes, targets, out, settings, PROMPT, **SEEDS)["loss"]


def relative(small: Path, out: Path, episodes: list[Episode], share: float) -> float:
    settings = PRMSettings(**COMMON, renumbered=share, validation_fraction=0)
    targets = [[0.5, float(each.won)] for each in episodes]
    return fit_relative_prm(small, episodes, targets, out, settings, PROMPT, **SEEDS)["loss"]


def inverse(small: Path, out: Path, episodes: list[Episode], share: float) -> float:
    settings = PRMSettings(**COMMON, renumbered=share, validation_fraction=0)
    following = {each.id: {1: BAD} for each in episodes}
    expert, learner = episodes[::2], episodes[1::2]
    return fit_inverse_prm(small, expert, learner, following, out, settings, PROMPT, 30, **SEEDS)[
        "loss"
    ]


def dpo(small: Path, out: Path, episodes: list[Episode], share: float) -> float:
    settings = DPOSettings(**ONLINE, renumbered=share, batch_pairs=8, chosen_weight=1.0)
    samples = [preference(each.state(1), GOOD, BAD, each.id) for each in episodes]
    return fit_dpo(small, small, samples, out, settings, PROMPT, seed=1)["loss"]


def grpo(small: Path, out: Path, episodes: list[Episode], share: float) -> float:
    settings = GRPOSettings(**ONLINE, renumbered=share, batch_groups=8, reuse=1, beta=1.0)
    reference = altered(small, out.with_name("reference"))
    groups = [group(each.state(1), [(GOOD, 0.9, 1), (BAD, 0.1, 1)], each.id) for each in episodes]
    return fit_grpo(small, reference, groups, out, settings, PROMPT, seed=1)["loss"]


def rejection(small: Path, out: Path, episodes: list[Episode], share: float) -> float:
    groups = [group(each.state(1), [(GOOD, 0.9, 1), (BAD, 0.1, 1)], each.id) for each in episodes]
    candidates = JobResult(job_id="pi_1-candidates-0000", worker="w", seconds=0, groups=groups)
    return _updated(small, out, candidates, config(share, update="rejection"))


def outcome_rejection(small: Path, out: Path, episodes: list[Episode], share: float) -> float:
    rollouts = JobResult(job_id="pi_0-rollouts-0000", worker="w", seconds=0, episodes=episodes)
    return _updated(small, out, rollouts, config(share, update="outcome-rejection"))


def _updated(small: Path, out: Path, result: JobResult, of: Config) -> float:
    records = Records(out.with_name("records"))
    records.append(result)
    lines: list[dict[str, float]] = []
    quiet = Progress(Console(quiet=True))
    fits = Fits(out.parent, of, records, PROMPT, lambda _, __, v: lines.append({**v}), quiet, None)
    out.mkdir()
    fits.perform(FitJob(kind="policy", iteration=1, base=small, out=out))
    return next(line["loss"] for line in lines if "loss" in line)


def config(share: float, **given: Any) -> Config:
    fit = {**COMMON, "renumbered": share}
    plan = {
        "demonstrations": {"games": 1},
        "rollouts": {"games": 1, "per_game": 1},
        "preferences": {"pairs": 1},
    }
    return Config.model_validate({"preset": "p", **plan, "sft": fit, "rejection": fit, **given})


Fit = Callable[[Path, Path, list[Episode], float], float]
FITS: list[Fit] = [
    sft,
    dagger,
    world,
    prm,
    relative,
    inverse,
    dpo,
    grpo,
    rejection,
    outcome_rejection,
]


@pytest.mark.parametrize("fit", FITS)
def test_what_is_read_has_other_numbers(tmp_path: Path, fit: Fit) -> None:
    """An untrained model says by its loss whether it was given others."""
    small = create_small(tmp_path)

    def loss(name: str, room: str | None, share: float) -> float:
        (tmp_path / name).mkdir()
        return fit(small, tmp_path / name / "out", played(room), share)

    as_it_is = loss("as it is", None, 0.0)
    renumbered = loss("renumbered", None, 1.0)
    assert abs(renumbered - as_it_is) > 1e-5
    assert loss("again", None, 1.0) == pytest.approx(renumbered, rel=1e-6)
    elsewhere = loss("elsewhere", ELSEWHERE, 0.0)
    assert loss("elsewhere, renumbered", ELSEWHERE, 1.0) == pytest.approx(elsewhere, rel=1e-6)


def test_a_hint_has_the_numbers_of_its_episode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The explorer is told where things are."""
    read: list[tuple[str, str]] = []

    def spy(*given: Any) -> list[tuple[int, Row]]:
        _, _, episodes, _, hints = given
        commands = [each.turns[0].action.command for each in episodes]
        read.extend(zip(commands, hints, strict=True))
        return all_rows(*given)

    monkeypatch.setattr("services.trainer.fits.sft.all_rows", spy)
    settings = SFTSettings(**COMMON, renumbered=1.0)
    hints = ["look in cabinet 1"] * 8
    small = create_small(tmp_path)
    fit_sft(small, played(None), tmp_path / "out", settings, PROMPT, seed=0, hints=hints)
    assert len(read) == 2 * 8  # two passes
    assert len(set(read)) > 1
    assert all(hint == command.replace("go to", "look in") for command, hint in read)


def test_games_held_out_keep_their_numbers(tmp_path: Path) -> None:
    """They say how well the PRM does in rooms as they are."""
    small, targets = create_small(tmp_path), [[0.1, 0.9]] * 8
    common = {**COMMON, "validation_fraction": 0.5}
    measured = [
        fit_prm(
            small,
            played(None),
            targets,
            tmp_path / str(share),
            PRMSettings(**common, renumbered=share),
            PROMPT,
            **SEEDS,
        )
        for share in (0.0, 1.0)
    ]
    plain, renumbered = measured
    assert renumbered["val_bce"] == pytest.approx(plain["val_bce"], rel=1e-6)
    assert renumbered["loss"] != pytest.approx(plain["loss"], rel=1e-6)
    assert renumbered["training_rows"] == plain["training_rows"]


def test_a_batch_of_inverse_prm_is_of_one_set_in_every_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows of the expert's passes come before those of the learner's."""
    batches: list[set[bool]] = []

    class Spy(Collator):
        def __call__(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
            batches.append({sample.expert for sample in samples})
            return super().__call__(samples)

    monkeypatch.setattr("services.trainer.fits.inverse.Collator", Spy)
    monkeypatch.setitem(COMMON, "batch_tokens", 400)
    monkeypatch.setitem(COMMON, "epochs", 3)
    inverse(create_small(tmp_path), tmp_path / "out", played(None), 1.0)
    assert len(batches) >= 3 * 2
    assert batches == [{True}, {False}] * (len(batches) // 2)
