from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM
from trl import DPOTrainer

from agentprm.config import DPOSettings
from agentprm.prompts import load_prompt
from agentprm.protocol import Action, State
from services.trainer.fits.dpo import fit_dpo
from services.trainer.training.fitting import Metrics, load_tokenizer
from services.trainer.training.rows import action_row
from services.trainer.training.saving import Save
from services.trainer.training.streaming import NoSamplesError
from tests.unit.trainer_episodes import (
    BAD,
    GOOD,
    STATES,
    altered,
    create_small,
    log_prob,
    preference,
    preferences,
)

PROMPT = load_prompt("chat")


def margin(directory: Path) -> float:
    """log π(good) − log π(bad) in the third state."""
    good, bad = (log_prob(directory, PROMPT, STATES[2], action) for action in (GOOD, BAD))
    return good - bad


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_loss_and_its_gradient_are_those_made_by_hand(
    tmp_path: Path, accumulation: int
) -> None:
    """−log σ(β Δ) of each pair, an anchor's among them, and the likelihood of what was chosen.

    The reference is another policy than the one that is fitted.
    """
    small = create_small(tmp_path)
    other = altered(small, tmp_path / "other")
    given = [
        preference(STATES[0], GOOD, BAD),
        preference(STATES[5], Action(reason="find a mug first", command="look"), GOOD),
        preference(STATES[3], BAD, BAD),
        preference(STATES[2], BAD, Action(command="look")),
    ]
    settings = DPOSettings(
        max_steps=1,
        batch_pairs=4,
        accumulation=accumulation,
        beta=0.3,
        chosen_weight=0.7,
        precision="fp32",
        log_every=1,
    )
    lines: list[Metrics] = []
    fit_dpo(small, other, given, tmp_path / "out", settings, PROMPT, seed=0, log=lines.append)

    tokenizer = load_tokenizer(small)
    policy, reference = (
        AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        for directory in (small, other)
    )

    def log_prob_of(model: torch.nn.Module, state: State, action: Action) -> tuple[Tensor, int]:
        ids, (start, end) = action_row(tokenizer, PROMPT, state, action)
        said = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        return said[range(start - 1, end - 1), ids[start:end]].sum(), end - start

    losses, likelihood, tokens = list[Tensor](), torch.tensor(0.0), 0
    for pair in given:
        chosen, length = log_prob_of(policy, pair.state, pair.chosen)
        rejected, _ = log_prob_of(policy, pair.state, pair.rejected)
        with torch.no_grad():
            before, _ = log_prob_of(reference, pair.state, pair.chosen)
            instead, _ = log_prob_of(reference, pair.state, pair.rejected)
        delta = (chosen - before) - (rejected - instead)
        losses.append(-F.logsigmoid(0.3 * delta))
        likelihood, tokens = likelihood + chosen, tokens + length
    assert losses[2].item() == pytest.approx(math.log(2))
    assert min(abs(loss.item() - math.log(2)) for loss in losses[:2]) > 0.05
    loss = torch.stack(losses).mean() - 0.7 * likelihood / tokens
    torch.autograd.backward(loss)
    norm = math.sqrt(sum(p.grad.square().sum().item() for p in policy.parameters()))
    assert lines[0]["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert lines[0]["grad_norm"] == pytest.approx(norm, rel=1e-3)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_it_learns_what_is_preferred_and_reads_no_preference_before_it_is_due(
    tmp_path: Path,
    accumulation: int,
) -> None:
    small = create_small(tmp_path)
    source, published, lines = preferences(), list[tuple[int, int, Path]](), list[Metrics]()

    def publish(save: Save, step: int) -> None:
        directory = tmp_path / str(step)
        save(directory)
        published.append((step, source.taken, directory))

    settings = DPOSettings(
        learning_rate=1e-3,
        max_steps=12,
        batch_pairs=4,
        accumulation=accumulation,
        publish_every=5,
        log_every=1,
    )
    metrics = fit_dpo(
        small, small, source, tmp_path / "out", settings, PROMPT, publish, seed=0, log=lines.append
    )
    assert metrics["steps"] == 12
    assert metrics["preferences"] == source.taken == 48
    assert [(step, taken) for step, taken, _ in published] == [(5, 20), (10, 40)]
    assert lines[-1]["accuracy"] == metrics["accuracy"] == 1
    margins = [margin(d) for d in (small, published[0][2], published[1][2], tmp_path / "out")]
    assert margins == sorted(margins)
    assert margins[-1] > margins[0] + 1


def test_of_a_tie_only_the_likelihood_counts(tmp_path: Path) -> None:
    small = create_small(tmp_path)
    ties = [tie.model_copy(update={"rejected": GOOD}) for tie in preferences(last=12)]
    losses = list[Metrics]()
    settings = DPOSettings(max_steps=3, batch_pairs=4, chosen_weight=0.0, log_every=1)
    fit_dpo(small, small, ties, tmp_path / "flat", settings, PROMPT, seed=0, log=losses.append)
    assert [line["loss"] for line in losses] == pytest.approx([math.log(2)] * 3, abs=1e-4)
    settings = DPOSettings(learning_rate=1e-3, max_steps=3, batch_pairs=4, chosen_weight=1.0)
    fit_dpo(small, small, ties, tmp_path / "out", settings, PROMPT, seed=0)
    assert margin(tmp_path / "out") > margin(small) + 0.01


def test_how_often_it_prefers_the_chosen_is_told_of_preferences_and_not_of_anchors(
    tmp_path: Path,
) -> None:
    """A mean over anchors too would be at most a quarter, and a quarter of the margin."""
    small = create_small(tmp_path)
    mixed = [
        preference if k % 4 == 0 else preference.model_copy(update={"rejected": GOOD})
        for k, preference in enumerate(preferences(last=48))
    ]
    lines = list[Metrics]()
    settings = DPOSettings(learning_rate=1e-3, batch_pairs=4, accumulation=2, log_every=2)
    metrics = fit_dpo(
        small, small, mixed, tmp_path / "out", settings, PROMPT, seed=0, log=lines.append
    )
    assert [line["accuracy"] for line in lines][-1] == metrics["accuracy"] == 1
    assert metrics["margin"] == pytest.approx(4 * lines[-1]["rewards/margins"])
    assert metrics["margin"] > 0


def test_a_last_step_that_is_shorter_counts_as_much_as_it_has(tmp_path: Path) -> None:
    """A line over a step of eight anchors and one of four preferences, which are learned already.

    The first step has a line of its own.
    """
    small = create_small(tmp_path)
    source = list(preferences(last=52))
    anchors = [anchor.model_copy(update={"rejected": GOOD}) for anchor in source[32:48]]
    settings = DPOSettings(learning_rate=1e-3, batch_pairs=8, accumulation=2, log_every=3)
    learned = fit_dpo(small, small, source[:32], tmp_path / "in", settings, PROMPT, seed=0)
    assert learned["accuracy"] == 1
    mixed = [*anchors, *source[48:]]
    metrics = fit_dpo(tmp_path / "in", small, mixed, tmp_path / "out", settings, PROMPT, seed=0)
    assert (metrics["steps"], metrics["preferences"]) == (3, 20)
    assert metrics["accuracy"] == pytest.approx(1)


def test_every_step_has_as_many_preferences_as_go_round(tmp_path: Path) -> None:
    """Of three batches a step: three of the four that it may have, and none is lost."""
    small = create_small(tmp_path)
    source = preferences(last=10)
    settings = DPOSettings(max_steps=100, batch_pairs=4, accumulation=3)
    metrics = fit_dpo(small, small, source, tmp_path / "out", settings, PROMPT, seed=0)
    assert (metrics["steps"], metrics["preferences"], metrics["left_over"]) == (3, 9, 1)


def test_it_ends_with_the_preferences(tmp_path: Path) -> None:
    small = create_small(tmp_path)
    out = tmp_path / "out"
    settings = DPOSettings(max_steps=100, batch_pairs=4, checkpointing=True)
    metrics = fit_dpo(small, small, preferences(last=10), out, settings, PROMPT, seed=0)
    assert metrics["steps"] == 3  # of 4, 4 and 2
    assert metrics["preferences"] == 10
    assert (out / "model.safetensors").is_file()


def test_checkpointing_hooks_the_embeddings_once_however_many_steps_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL turns it off and on in every step."""
    small = create_small(tmp_path)
    hooks: list[int] = []
    theirs = DPOTrainer.compute_loss

    def counting(trainer: DPOTrainer, *inputs: Any) -> Any:
        loss = theirs(trainer, *inputs)
        hooks.append(len(trainer.model.get_input_embeddings()._forward_hooks))
        return loss

    monkeypatch.setattr(DPOTrainer, "compute_loss", counting)
    settings = DPOSettings(max_steps=4, batch_pairs=2, checkpointing=True)
    fit_dpo(small, small, preferences(last=8), tmp_path / "out", settings, PROMPT, seed=0)
    assert len(hooks) == 4
    assert len(set(hooks)) == 1


def test_without_a_preference_that_fits_there_is_nothing_to_train_on(
    tmp_path: Path,
) -> None:
    """Either action may be what makes it too long, if only by a token."""
    small, brief = create_small(tmp_path), Action(command="look")
    given = [preference(STATES[0], GOOD, brief), preference(STATES[0], brief, GOOD)]
    ids, _ = action_row(load_tokenizer(small), PROMPT, STATES[0], GOOD)
    settings = DPOSettings(max_tokens=len(ids) - 1)
    with pytest.raises(NoSamplesError, match="none was short enough"):
        fit_dpo(small, small, given, tmp_path / "out", settings, PROMPT, seed=0)
