from __future__ import annotations

import math
from pathlib import Path

import orjson
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from agentprm.config import PRMSettings
from agentprm.facts import METADATA, read_facts
from agentprm.prompts import load_prompt
from services.trainer.fits.relative import CENTER, fit_relative_prm, ranking_measures
from services.trainer.targets.monte_carlo import monte_carlo_targets
from services.trainer.training.fitting import Metrics, load_tokenizer
from services.trainer.training.prm_model import load_prm
from services.trainer.training.rows import NothingToTrainOnError, action_row
from tests.unit.trainer_episodes import (
    INVENTORY_LOSES,
    LOOK_WINS,
    create_small,
    episode,
    in_eight_games,
)

PROMPT = load_prompt("chat")
# In every game `look` leads to a win, `inventory` to a loss, and `help` to a win every other time.
EPISODES = in_eight_games(
    LOOK_WINS,
    INVENTORY_LOSES,
    (["help", "go to cabinet 1"], [0.0, 1.0]),
    (["help", "go to fridge 1"], [0.0, 0.0]),
)
TARGETS = monte_carlo_targets(EPISODES, 0.8)


def test_the_first_step_is_that_of_bradley_terry(tmp_path: Path) -> None:
    """Loss and gradient of the mean over all pairs, whatever the batches of the step are."""
    small = create_small(tmp_path)
    settings = PRMSettings(
        epochs=1,
        batch_tokens=500,
        accumulation=1000,
        validation_fraction=0.0,
        precision="fp32",
        log_every=1,
        pair_margin=0.2,
    )
    lines: list[Metrics] = []
    episodes, targets = EPISODES[:11], TARGETS[:11]  # the third game is cut short
    fit_relative_prm(
        small,
        episodes,
        targets,
        tmp_path / "out",
        settings,
        PROMPT,
        seed=0,
        split_seed=0,
        gamma=0.8,
        log=lines.append,
    )
    assert lines[0]["pairs"] == 3 * 3 + 2  # first states of a, b and c; after `help` in a and b
    assert lines[0]["states_with_one_action"] == 7

    tokenizer = load_tokenizer(small)
    model = load_prm(small, tokenizer.pad_token_id, seed=0)
    plain = type(model).forward
    order = {"look": 2, "go to cabinet 1": 2, "help": 1, "inventory": 0, "go to fridge 1": 0}
    total = torch.tensor(0.0)
    for game in range(3):
        of_game = episodes[4 * game : 4 * game + 4]
        tried = {(e.turns[:t], e.turns[t].action): e.state(t) for e in of_game for t in (0, 1)}
        for (history, action), state in tried.items():
            for (other_history, other), _ in tried.items():
                if history == other_history and order[action.command] > order[other.command]:
                    better, worse = (
                        plain(
                            model, torch.tensor([action_row(tokenizer, PROMPT, state, a)[0]])
                        ).logits.squeeze()
                        for a in (action, other)
                    )
                    loss = torch.log(1 + torch.exp(worse - better))
                    total = total + (loss + CENTER * (better + worse) ** 2) / 11
    torch.autograd.backward(total)
    norm = math.sqrt(sum(p.grad.square().sum().item() for p in model.parameters()))
    assert lines[1]["loss"] == pytest.approx(total.item(), rel=1e-4)
    assert lines[1]["grad_norm"] == pytest.approx(norm, rel=1e-3)


@pytest.mark.parametrize("name", ["chat", "state"])
def test_it_orders_the_actions_of_games_it_has_not_seen(tmp_path: Path, name: str) -> None:
    small, out, prompt = create_small(tmp_path), tmp_path / "out", load_prompt(name)
    settings = PRMSettings(
        epochs=12, learning_rate=1e-2, batch_tokens=2000, validation_fraction=0.25
    )
    metrics = fit_relative_prm(
        small, EPISODES, TARGETS, out, settings, prompt, seed=0, split_seed=0, gamma=0.8, alpha=0.3
    )
    assert metrics["val_pair_accuracy"] == 1
    assert metrics["val_pair_loss"] < math.log(2)
    assert metrics["pairs"] == 8 * 4
    assert (metrics["training_rows"], metrics["validation_rows"]) == (6 * 4, 2 * 4)

    facts = read_facts(out)
    assert facts.objective == "relative"
    assert (facts.gamma, facts.alpha) == (0.8, 0.3)
    assert facts.calibration is None, "its numbers are no probabilities"
    assert facts.ranking is not None
    assert facts.ranking.accuracy == 1
    assert (facts.ranking.pairs, facts.ranking.states, facts.ranking.games) == (8, 4, 2)
    metadata = orjson.loads((out / METADATA).read_bytes())
    assert not set(metadata["training_games"]) & set(metadata["validation_games"])
    assert len(metadata["validation_games"]) == 2

    # Plain transformers on the directory.
    model = AutoModelForSequenceClassification.from_pretrained(out, dtype=torch.float32)
    tokenizer = load_tokenizer(out)
    z = []
    for i in (0, 2, 1):
        ids, _ = action_row(tokenizer, prompt, EPISODES[i].state(0), EPISODES[i].turns[0].action)
        z.append(model(torch.tensor([ids])).logits.item())
    assert z == sorted(z, reverse=True)
    assert 0.1 < torch.sigmoid(torch.tensor(z)).mean() < 0.9, "the scale is held near its middle"


def test_a_pair_of_which_one_action_is_too_long_is_left_out(tmp_path: Path) -> None:
    """In one game it is the better action that is too long, in another the worse one."""
    small, long = create_small(tmp_path), "put mug 1 in/on sidetable 1"
    tried = [("look", 1.0, "a"), ("help", 0.0, "a")]
    tried += [("look", 0.0, "b"), (long, 1.0, "b"), ("look", 1.0, "c"), (long, 0.0, "c")]
    episodes = [episode([command], [reward], game) for command, reward, game in tried]
    targets = [[reward] for _, reward, _ in tried]
    look, other, too_long = (
        len(action_row(load_tokenizer(small), PROMPT, each.state(0), each.turns[0].action)[0])
        for each in (episodes[0], episodes[1], episodes[3])
    )
    assert max(look, other) < too_long
    settings = PRMSettings(epochs=1, max_tokens=too_long - 1, validation_fraction=0)
    metrics = fit_relative_prm(
        small, episodes, targets, tmp_path / "out", settings, PROMPT,
        seed=0, split_seed=0, gamma=0.8,
    )  # fmt: skip
    assert (metrics["pairs"], metrics["too_long"], metrics["training_rows"]) == (3, 2, 1)

    settings = settings.model_copy(update={"max_tokens": 8})
    with pytest.raises(NothingToTrainOnError, match=r"of the other 3 those longer than 8 tokens"):
        fit_relative_prm(
            small, episodes, targets, tmp_path / "none", settings, PROMPT,
            seed=0, split_seed=0, gamma=0.8,
        )  # fmt: skip


def test_the_ranking_by_hand() -> None:
    measures = ranking_measures(torch.tensor([math.log(3), 0.0, -math.log(3), 5.0]))
    assert measures["accuracy"] == (1 + 0.5 + 0 + 1) / 4
    losses = [-math.log(3 / 4), math.log(2), -math.log(1 / 4), math.log(1 + math.exp(-5))]
    assert measures["loss"] == pytest.approx(sum(losses) / 4)


def test_without_a_pair_it_says_what_is_missing(tmp_path: Path) -> None:
    alone = [EPISODES[0], EPISODES[4]]
    with pytest.raises(
        NothingToTrainOnError, match=r"of 4 states 4 have one action only.*rollouts\.vine"
    ):
        fit_relative_prm(
            create_small(tmp_path), alone, [TARGETS[0], TARGETS[4]], tmp_path / "o",
            PRMSettings(), PROMPT, seed=0, split_seed=0, gamma=0.8,
        )  # fmt: skip
