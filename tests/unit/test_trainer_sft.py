from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from agentprm.config import SFTSettings
from agentprm.prompts import load_prompt
from agentprm.protocol import Episode
from services.trainer.fits.sft import fit_sft
from services.trainer.training.fitting import Metrics, load_tokenizer
from services.trainer.training.rows import episode_rows
from tests.unit.trainer_episodes import create_small, episode

EPISODES = [
    episode(["look", "go to cabinet 1"], [0, 1]),
    episode(["go to fridge 1", "open fridge 1", "take mug 1 from fridge 1"], [0, 0, 0], index=1),
]


@pytest.mark.parametrize("name", ["chat", "state"])
def test_the_first_loss_is_the_weighted_mean_made_by_hand(
    tmp_path: Path,
    name: str,
) -> None:
    small = create_small(tmp_path)
    prompt = load_prompt(name)
    lines: list[Metrics] = []
    settings = SFTSettings(
        epochs=1, batch_tokens=10_000, observation_weight=0.25, precision="fp32", log_every=1
    )
    fit_sft(small, EPISODES, tmp_path / "out", settings, prompt, seed=0, log=lines.append)

    tokenizer = load_tokenizer(small)
    model = AutoModelForCausalLM.from_pretrained(small, dtype=torch.float32).eval()
    total = weight = 0.0
    for played in EPISODES:
        for row in episode_rows(tokenizer, prompt, played, 2048):
            agent = {i for start, end in row.spans for i in range(start, end)}
            with torch.no_grad():
                log_probs = model(torch.tensor([row.ids])).logits[0].log_softmax(-1)
            for i in range(1, len(row.ids)):
                w = 1.0 if i in agent else 0.25
                total -= w * log_probs[i - 1, row.ids[i]].item()
                weight += w
    assert len(lines) == 1
    assert lines[0]["loss"] == pytest.approx(total / weight, rel=1e-4)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_it_learns_the_demonstrations_and_leaves_an_ordinary_directory(
    tmp_path: Path,
    optimizer: str,
) -> None:
    small = create_small(tmp_path)
    out, lines, steps = tmp_path / "out", list[Metrics](), list[tuple[int, int]]()
    settings = SFTSettings.model_validate(
        {
            "epochs": 60,
            "batch_tokens": 400,
            "learning_rate": 1e-2,
            "muon_learning_rate": 1e-2,
            "optimizer": optimizer,
            "log_every": 1,
        }
    )
    metrics = fit_sft(
        small,
        EPISODES,
        out,
        settings,
        load_prompt("chat"),
        seed=0,
        log=lines.append,
        progress=lambda done, of: steps.append((done, of)),
    )
    assert lines[0]["loss"] > 5
    assert lines[-1]["loss"] < 1
    assert steps[-1] == (metrics["steps"], metrics["steps"])
    assert {p.name for p in out.iterdir()} == {
        "agentprm.json",
        "canary.json",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }

    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(out)
    prompt = load_prompt("chat")
    row = episode_rows(tokenizer, prompt, EPISODES[0], 2048)[0]
    start, end = row.spans[1]
    written = model.generate(torch.tensor([row.ids[:start]]), max_new_tokens=20, do_sample=False)
    assert written[0, start:].tolist() == row.ids[start:end]


def test_accumulated_and_checkpointed_batches_make_the_same_step_as_one(
    tmp_path: Path,
) -> None:
    small = create_small(tmp_path)
    twins = [EPISODES[0], EPISODES[0]]
    weights = []
    for accumulation, tokens, checkpointing in ((1, 10_000, False), (2, 100, True)):
        out = tmp_path / str(accumulation)
        settings = SFTSettings(
            epochs=1,
            batch_tokens=tokens,
            accumulation=accumulation,
            checkpointing=checkpointing,
            precision="fp32",
            warmup_fraction=0,
            learning_rate=1e-3,
        )
        metrics = fit_sft(small, twins, out, settings, load_prompt("chat"), seed=0)
        assert metrics["steps"] == 1
        weights.append(AutoModelForCausalLM.from_pretrained(out).model.norm.weight)
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-5)


def test_turns_beyond_the_limit_are_left_out(tmp_path: Path) -> None:
    small = create_small(tmp_path)
    tokenizer, prompt = load_tokenizer(small), load_prompt("chat")
    (whole,) = episode_rows(tokenizer, prompt, EPISODES[1], 2048)
    (short,) = episode_rows(tokenizer, prompt, EPISODES[1], whole.spans[1][1])
    assert short.ids == whole.ids[: whole.spans[1][1]]
    assert short.turns == [0, 1]
    episodes: list[Episode] = EPISODES
    with pytest.raises(ValueError, match="within 16 tokens"):
        fit_sft(small, episodes, tmp_path / "out", SFTSettings(max_tokens=16), prompt, seed=0)
