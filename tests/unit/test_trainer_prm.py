from __future__ import annotations

import hashlib
from pathlib import Path

import orjson
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from agentprm.config import PRMSettings
from agentprm.facts import METADATA, read_facts
from agentprm.prompts import load_prompt
from services.trainer.fits.prm import fit_prm
from services.trainer.targets.monte_carlo import monte_carlo_targets, split_by_game
from services.trainer.training.fitting import load_tokenizer
from services.trainer.training.prm_model import load_prm
from services.trainer.training.rows import NothingToTrainOnError, episode_rows
from tests.unit.trainer_episodes import (
    INVENTORY_LOSES,
    LOOK_WINS,
    create_small,
    episode,
    in_eight_games,
)

# Those that were won come first: an episode's place in its side of the split is no hint to it.
EPISODES = sorted(in_eight_games(LOOK_WINS, INVENTORY_LOSES), key=lambda each: not each.won)
ONE_GAME = slice(0, 16, 8)
TARGETS = monte_carlo_targets(EPISODES, 0.8)
SETTINGS = PRMSettings(epochs=30, learning_rate=1e-2, batch_tokens=600, validation_fraction=0.25)


@pytest.mark.parametrize("name", ["chat", "state"])
def test_it_recovers_the_targets_on_games_it_has_not_seen(
    tmp_path: Path,
    name: str,
) -> None:
    small = create_small(tmp_path)
    out, prompt = tmp_path / "out", load_prompt(name)
    metrics = fit_prm(
        small, EPISODES, TARGETS, out, SETTINGS, prompt, seed=0, split_seed=0, gamma=0.8, alpha=0.3
    )
    assert metrics["val_explained_variance"] > 0.9
    assert metrics["val_auc"] == 1
    assert metrics["val_bce"] - metrics["val_entropy"] < 0.1
    rows = 1 if prompt.append_only else 2  # of an episode
    assert (metrics["training_rows"], metrics["validation_rows"]) == (12 * rows, 4 * rows)

    metadata = orjson.loads((out / METADATA).read_bytes())
    assert (metadata["seed"], metadata["split_seed"], metadata["gamma"]) == (0, 0, 0.8)
    assert metadata["template_hash"] == prompt.hash
    assert len(metadata["validation_games"]) == 2
    facts = read_facts(out)
    assert facts.template_hash == prompt.hash
    assert (facts.gamma, facts.alpha) == (0.8, 0.3)
    assert facts.data is not None
    assert facts.data.splits == ["train"]
    assert (facts.data.training.games, facts.data.training.episodes) == (6, 12)
    assert (facts.data.validation.games, facts.data.validation.episodes) == (2, 4)
    assert facts.data.training.hash != facts.data.validation.hash
    ids = "\n".join(metadata["training_games"])
    assert facts.data.training.hash == hashlib.sha256(ids.encode()).hexdigest()[:12]
    assert facts.calibration is not None
    assert facts.calibration.ece == pytest.approx(metrics["val_ece"], abs=1e-6)
    assert (facts.calibration.games, facts.calibration.turns) == (2, 8)
    assert sum(b.turns for b in facts.calibration.bins) == 8
    assert facts.calibration.bins[-1].won == 1  # the highest Q belong to turns of won episodes
    assert facts.calibration.bins[0].won == 0
    assert not set(metadata["training_games"]) & set(metadata["validation_games"])
    assert {p.suffix for p in out.iterdir()} == {".json", ".safetensors", ".jinja"}

    # Plain transformers on the directory, cut after each action.
    model = AutoModelForSequenceClassification.from_pretrained(out, dtype=torch.float32)
    tokenizer = load_tokenizer(out)
    for played, targets in zip(EPISODES[ONE_GAME], TARGETS[ONE_GAME], strict=True):
        for row in episode_rows(tokenizer, prompt, played, 2048):
            for (_, end), turn in zip(row.spans, row.turns, strict=True):
                logit = model(torch.tensor([row.ids[:end]])).logits
                assert torch.sigmoid(logit).item() == pytest.approx(targets[turn], abs=0.15)


def test_a_game_is_won_whatever_that_pays(tmp_path: Path) -> None:
    """As in an environment of one's own whose episodes are worth less than a half."""
    paid = [
        each.model_copy(
            update={
                "turns": tuple(
                    turn.model_copy(update={"reward": 0.4 * turn.reward}) for turn in each.turns
                )
            }
        )
        for each in EPISODES
    ]
    settings = SETTINGS.model_copy(update={"epochs": 1})
    targets = monte_carlo_targets(paid, 0.8)
    metrics = fit_prm(
        create_small(tmp_path),
        paid,
        targets,
        tmp_path / "out",
        settings,
        load_prompt("chat"),
        seed=0,
        split_seed=0,
        gamma=0.8,
        alpha=0.0,
    )
    assert "val_auc" in metrics


def test_one_pass_scores_every_turn_as_plain_transformers_does_at_each_cut(
    tmp_path: Path,
) -> None:
    small = create_small(tmp_path)
    tokenizer, prompt = load_tokenizer(small), load_prompt("chat")
    pad = tokenizer.pad_token_id
    rows = [episode_rows(tokenizer, prompt, e, 2048)[0] for e in EPISODES[ONE_GAME]]
    rows[1] = episode_rows(tokenizer, prompt, episode(["look"] * 5, [0] * 5), 2048)[0]
    width, turns = max(len(r.ids) for r in rows), max(len(r.spans) for r in rows)
    ids = torch.tensor([r.ids + [pad] * (width - len(r.ids)) for r in rows])
    mask = torch.tensor([[1] * len(r.ids) + [0] * (width - len(r.ids)) for r in rows])
    ends = [[end - 1 for _, end in r.spans] for r in rows]
    positions = torch.tensor([e + [0] * (turns - len(e)) for e in ends])
    model = load_prm(small, pad, seed=3).eval()
    with torch.no_grad():
        together = model(ids, mask, positions)
        plain = type(model).forward
        for i, row in enumerate(rows):
            for k, (_, end) in enumerate(row.spans):
                alone = plain(model, torch.tensor([row.ids[:end]])).logits.item()
                assert together[i, k].item() == pytest.approx(alone, abs=1e-5)


def test_an_earlier_prm_keeps_its_head_and_a_policy_gets_a_new_one(
    tmp_path: Path,
) -> None:
    small = create_small(tmp_path)
    settings = PRMSettings(epochs=1, batch_tokens=600, validation_fraction=0, checkpointing=True)
    out = tmp_path / "out"
    metrics = fit_prm(
        small,
        EPISODES[ONE_GAME],
        TARGETS[ONE_GAME],
        out,
        settings,
        load_prompt("chat"),
        seed=0,
        split_seed=0,
        gamma=0.8,
    )
    assert metrics["validation_rows"] == 0
    assert read_facts(out).calibration is None
    earlier = load_prm(out, 0, seed=1).score.weight
    torch.testing.assert_close(earlier, load_prm(out, 0, seed=2).score.weight)
    assert not torch.equal(load_prm(small, 0, 1).score.weight, load_prm(small, 0, 2).score.weight)


def test_held_out_games_that_nothing_can_be_read_of_measure_nothing(tmp_path: Path) -> None:
    """Games that were given up at once; what is there to train on is trained on."""
    _, held_out = split_by_game(EPISODES, 0.25, 0)
    episodes = [
        each.model_copy(update={"turns": ()}) if i in held_out else each
        for i, each in enumerate(EPISODES)
    ]
    metrics = fit_prm(
        create_small(tmp_path),
        episodes,
        monte_carlo_targets(episodes, 0.8),
        tmp_path / "out",
        SETTINGS.model_copy(update={"epochs": 1}),
        load_prompt("chat"),
        seed=0,
        split_seed=0,
        gamma=0.8,
    )
    assert (metrics["training_rows"], metrics["validation_rows"]) == (12, 0)
    assert read_facts(tmp_path / "out").calibration is None


def test_where_there_is_nothing_to_train_on_it_says_what_to_raise(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"max_tokens": 16})
    small, prompt = create_small(tmp_path), load_prompt("chat")
    with pytest.raises(NothingToTrainOnError, match=r"16 tokens: raise prm\.max_tokens"):
        fit_prm(
            small, EPISODES, TARGETS, tmp_path / "out", settings, prompt,
            seed=0, split_seed=0, gamma=0.8,
        )  # fmt: skip
