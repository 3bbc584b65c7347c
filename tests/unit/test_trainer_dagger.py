from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from agentprm.config import SFTSettings
from agentprm.prompts import load_prompt
from agentprm.protocol import Action, Episode
from services.trainer.fits.dagger import fit_dagger, labelled_row
from services.trainer.fits.sft import _weights
from services.trainer.training.fitting import load_tokenizer
from services.trainer.training.rows import action_row
from tests.unit.trainer_episodes import create_small, episode

EXPERT = Action(reason="find mug", command="go to cabinet 1")
OWN = Action(reason="find mug", command="inventory")


def labelled(commands: list[str], index: int = 0) -> Episode:
    """The learner's episode, in which the expert would go to the cabinet all the time."""
    played = episode(commands, [0.0] * len(commands), index=index)
    turns = tuple(turn.model_copy(update={"expert": EXPERT}) for turn in played.turns)
    return played.model_copy(update={"turns": turns})


@pytest.mark.parametrize("name", ["chat", "state"])
def test_only_the_experts_action_is_trained_on(tmp_path: Path, name: str) -> None:
    tokenizer, prompt = load_tokenizer(create_small(tmp_path)), load_prompt(name)
    row = labelled_row(tokenizer, prompt, labelled(["look", "inventory"]), 1)
    weights = _weights(row, SFTSettings(observation_weight=0.5))
    trained = [token for token, weight in zip(row.ids, weights, strict=True) if weight]
    assert set(weights) == {0.0, 1.0}
    text = prompt.action_text(EXPERT)
    assert tokenizer.decode(trained).replace(" ", "").startswith(text.replace(" ", ""))
    read = tokenizer.decode([t for t, weight in zip(row.ids, weights, strict=True) if not weight])
    assert "look" in read  # what the learner did before
    assert "inventory" not in read  # what it did then


def test_a_turn_without_a_label_is_refused(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(create_small(tmp_path))
    with pytest.raises(ValueError, match="turn 0 of job/0 was played without the expert's advice"):
        labelled_row(tokenizer, load_prompt("chat"), episode(["look"], [0.0]), 0)


def test_the_policy_learns_the_label_and_not_what_the_learner_did(tmp_path: Path) -> None:
    base, out, prompt = create_small(tmp_path), tmp_path / "out", load_prompt("chat")
    rollouts = [labelled(["look", OWN.command], index=k) for k in range(4)]
    turns = [(rollout, t) for rollout in rollouts for t in (0, 1)]
    settings = SFTSettings(epochs=60, learning_rate=1e-2, batch_tokens=600, precision="fp32")
    demonstrations = [episode(["look"], [1.0], game="z")]
    metrics = fit_dagger(base, demonstrations, turns, out, settings, prompt, seed=0)
    assert metrics["rows"] == 1 + 8

    tokenizer, state = load_tokenizer(out), rollouts[0].state(1)
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)

    def log_prob(action: Action) -> float:
        ids, (start, end) = action_row(tokenizer, prompt, state, action)
        log_probs: torch.Tensor = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        tokens = torch.tensor(ids[start:end])
        total = log_probs[start - 1 : end - 1].gather(-1, tokens[:, None]).sum()
        return float(total.detach())

    assert log_prob(EXPERT) > -0.5
    assert log_prob(OWN) < -3
