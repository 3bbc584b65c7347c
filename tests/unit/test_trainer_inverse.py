"""InversePRM: its loss against plain forward passes, its optimum against one by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
)

import services.trainer.fits.inverse as inverse
from agentprm.config import Algorithm, PRMSettings, changed, load_config
from agentprm.encoding import encode
from agentprm.facts import METADATA, read_facts
from agentprm.prompts import load_prompt
from agentprm.protocol import Action, Episode, JobResult
from services.trainer.fits.inverse import (
    effective_horizon,
    fit_inverse_prm,
    require_full_attention,
)
from services.trainer.rollouts.records import Records
from services.trainer.rollouts.transitions import NextActions, draw_transitions
from services.trainer.training.batches import AlternatingBatches
from services.trainer.training.fitting import load_tokenizer
from services.trainer.training.forks import episode_forks
from services.trainer.training.prm_model import load_prm
from services.trainer.training.rows import action_row
from tests.unit.trainer_episodes import create_small, episode

LOOK, INVENTORY, FRIDGE, CABINET = "look", "inventory", "go to fridge 1", "go to cabinet 1"


def do(command: str) -> Action:
    return Action(reason="find mug", command=command)


def played(*commands: str, index: int, stage: str = "job", game: str = "a") -> Episode:
    """An episode whose rewards are of no account."""
    made = episode(commands, [0.0] * len(commands), game=game)
    return made.model_copy(update={"id": f"{stage}/{index}"})


# --- rows that fork ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["chat", "state"])
def test_one_pass_is_what_transformers_computes_for_each_conversation(
    tmp_path: Path, name: str
) -> None:
    """Q(s, a) and Q(s', a') of all transitions, the next action taken or not."""
    small = create_small(tmp_path)
    tokenizer, prompt = load_tokenizer(small), load_prompt(name)
    whole = played(LOOK, FRIDGE, INVENTORY, LOOK, index=0)
    half = whole.model_copy(update={"start": 2})
    chosen = {1: do(FRIDGE), 2: do(CABINET), 3: do(INVENTORY)}
    model = load_prm(small, tokenizer.pad_token_id, seed=3).eval()
    plain = type(model).forward
    for each in (whole, half):
        samples = [
            inverse.Sample(fork, expert=True)
            for fork in episode_forks(tokenizer, prompt, each, chosen, 2048)
        ]
        batch = inverse.Collator(tokenizer.pad_token_id)(samples)
        with torch.no_grad():
            logits = model(
                batch["input_ids"],
                batch["attention_mask"],
                batch["positions"],
                position_ids=batch["position_ids"],
            )
        now, after = (part[batch["weights"] > 0] for part in logits.chunk(2, dim=1))
        over = batch["ends"][batch["weights"] > 0]
        places = range(each.start, 4)
        assert over.tolist() == [t == 3 for t in places]
        for k, t in enumerate(places):
            taken = [(t, each.turns[t].action, now[k])]
            taken += [(t + 1, chosen[t + 1], after[k])] if t < 3 else []
            for turn, action, logit in taken:
                ids, _ = action_row(tokenizer, prompt, each.state(turn), action)
                alone = plain(model, torch.tensor([ids])).logits
                assert logit.item() == pytest.approx(alone.item(), abs=1e-5)


def test_a_fork_costs_the_answers_that_were_not_given(tmp_path: Path) -> None:
    tokenizer, prompt = load_tokenizer(create_small(tmp_path)), load_prompt("chat")
    each = played(LOOK, FRIDGE, INVENTORY, index=0)
    steps = each.transcript().steps
    whole = encode(tokenizer, prompt.transcript("put a mug in cabinet.", steps))
    (same,) = episode_forks(tokenizer, prompt, each, {1: do(FRIDGE), 2: do(INVENTORY)}, 2048)
    assert same.ids == whole.ids
    assert same.next_ends == [whole.spans[1][1] - 1, whole.spans[2][1] - 1, None]
    (other,) = episode_forks(tokenizer, prompt, each, {1: do(CABINET), 2: do(INVENTORY)}, 2048)
    assert [branch.at for branch in other.branches] == [whole.spans[1][0]]
    assert len(other) == len(whole.ids) + len(other.branches[0].ids)


@pytest.mark.parametrize("name", ["chat", "state"])
def test_a_transition_of_which_one_conversation_is_too_long_is_left_out(
    tmp_path: Path, name: str
) -> None:
    tokenizer, prompt = load_tokenizer(create_small(tmp_path)), load_prompt(name)
    each = played(LOOK, FRIDGE, INVENTORY, index=0)
    chosen = {1: do(CABINET), 2: do(CABINET)}

    def transitions(max_tokens: int) -> int:
        forks = episode_forks(tokenizer, prompt, each, chosen, max_tokens)
        return sum(len(fork.ends) for fork in forks)

    last, _ = action_row(tokenizer, prompt, each.state(2), each.turns[2].action)
    second, _ = action_row(tokenizer, prompt, each.state(1), chosen[1])
    # a' in the last state is longer than what was done there
    assert [transitions(n) for n in (2048, len(last), len(second), 16)] == [3, 2, 1, 0]


# --- the loss ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["chat", "state"])
def test_loss_and_gradient_are_those_of_the_paper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Algorithm 2, transition by transition, by transformers' forward and autograd alone.

    The gradient flows through Q(s', a') as well; Q(s', a') is 0 behind the last turn.
    """
    small = create_small(tmp_path)
    tokenizer, prompt = load_tokenizer(small), load_prompt(name)
    expert = [played(LOOK, CABINET, index=0), played(CABINET, index=1)]
    learner = [played(FRIDGE, INVENTORY, LOOK, FRIDGE, index=2)]
    chosen = {
        "job/0": {1: do(INVENTORY)},
        "job/2": {1: do(INVENTORY), 2: do(CABINET), 3: do(CABINET)},
    }
    seen = first_step(monkeypatch)
    settings = PRMSettings(epochs=1, validation_fraction=0, precision="fp32", max_grad_norm=1e9)
    fit_inverse_prm(
        small,
        expert,
        learner,
        chosen,
        tmp_path / "out",
        settings,
        prompt,
        10,
        seed=5,
        split_seed=0,
        gamma=0.9,
    )

    model = load_prm(small, tokenizer.pad_token_id, seed=5)
    horizon = (1 - 0.9**10) / (1 - 0.9)

    def q(each: Episode, t: int, action: Action) -> torch.Tensor:
        ids, _ = action_row(tokenizer, prompt, each.state(t), action)
        plain: Callable[..., Any] = type(model).forward
        logit: torch.Tensor = plain(model, torch.tensor([ids])).logits[0, 0]
        return logit * horizon

    def reward(each: Episode, t: int) -> torch.Tensor:
        value = q(each, t, each.turns[t].action)
        if t + 1 == len(each.turns):
            return value
        return value - 0.9 * q(each, t + 1, chosen[each.id][t + 1])

    def mean(episodes: Sequence[Episode], sign: float) -> torch.Tensor:
        losses = [
            -torch.log(torch.sigmoid(sign * reward(each, t)))
            for each in episodes
            for t in range(len(each.turns))
        ]
        return torch.stack(losses).mean()

    loss = 0.5 * mean(expert, 1.0) + 0.5 * mean(learner, -1.0)
    torch.autograd.backward(loss)
    assert seen["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert len(seen["gradients"]) > 10
    for parameter, value in model.named_parameters():
        if value.grad is not None:
            torch.testing.assert_close(
                seen["gradients"][parameter], value.grad, rtol=1e-3, atol=1e-5
            )


def first_step(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Loss and gradients of the first optimizer step of the next fit."""
    seen: dict[str, Any] = {"loss": 0.0}
    plain: Callable[..., Any] = inverse.InversePRMTrainer.training_step

    def step(self: Any, model: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss: torch.Tensor = plain(self, model, *args, **kwargs)
        seen["loss"] += loss.item()
        seen["gradients"] = {
            name: value.grad.clone()
            for name, value in model.named_parameters()
            if value.grad is not None
        }
        return loss

    monkeypatch.setattr(inverse.InversePRMTrainer, "training_step", step)
    return seen


# --- a chain by hand -----------------------------------------------------------------------------

# Two turns. In either the expert does the good thing three times of four, the learner once of four.
GOOD, BAD = (LOOK, CABINET), (INVENTORY, FRIDGE)


def chain(stage: str, good: int) -> list[Episode]:
    """Sixteen episodes, `good` of four good in each turn, whatever was done before."""
    turns = [[GOOD[t] if k < good else BAD[t] for k in range(4)] for t in range(2)]
    return [
        played(*commands, index=k, stage=stage)
        for k, commands in enumerate(itertools.product(*turns))
    ]


def test_it_recovers_the_expert_s_ordering_of_actions_and_the_values_by_hand(
    tmp_path: Path,
) -> None:
    """r(s, a) = log ρ_E(s, a) / ρ_L(s, a); Q is summed up along π's next actions, from the end.

    In the first turn the good action is three times as likely under the expert as under the
    learner, the bad one a third as likely.
    Behind the good one the ratios are 3 · 3 and 3 · 1/3, behind the bad one 1/3 · 3 and 1/3 · 1/3.
    π chooses FRIDGE everywhere in the second turn, also where CABINET was recorded.
    """
    gamma = 0.5
    expert, learner = chain("expert", 3), chain("learner", 1)
    chosen: NextActions = {each.id: {1: do(FRIDGE)} for each in [*expert, *learner]}
    small, prompt, out = create_small(tmp_path), load_prompt("chat"), tmp_path / "out"
    settings = PRMSettings(
        epochs=140,
        learning_rate=4e-3,
        batch_tokens=4000,
        validation_fraction=0,
        precision="fp32",
    )
    fit_inverse_prm(
        small,
        expert,
        learner,
        chosen,
        out,
        settings,
        prompt,
        max_steps=2,
        seed=0,
        split_seed=0,
        gamma=gamma,
    )
    model = AutoModelForSequenceClassification.from_pretrained(out, dtype=torch.float32)
    tokenizer = load_tokenizer(out)

    def q(*commands: str) -> float:
        each = played(*commands, index=0)
        t = len(commands) - 1
        ids, _ = action_row(tokenizer, prompt, each.state(t), each.turns[t].action)
        logit: float = model(torch.tensor([ids])).logits.item()
        return (1 + gamma) * logit

    log3 = math.log(3)
    by_hand = {
        (LOOK, CABINET): 2 * log3,
        (LOOK, FRIDGE): 0.0,
        (INVENTORY, CABINET): 0.0,
        (INVENTORY, FRIDGE): -2 * log3,
        (LOOK,): log3 + gamma * 0.0,
        (INVENTORY,): -log3 + gamma * -2 * log3,
    }
    for commands, value in by_hand.items():
        assert q(*commands) == pytest.approx(value, abs=0.15), commands
    assert read_facts(out).algorithm == "inverse-prm"
    assert orjson.loads((out / METADATA).read_bytes())["effective_horizon"] == 1 + gamma


def test_games_held_out_take_no_part_and_are_measured_as_they_are_served(tmp_path: Path) -> None:
    expert = [played(LOOK, CABINET, index=k, game=g) for k, g in enumerate("abcdefgh")]
    learner = [played(FRIDGE, INVENTORY, index=8 + k, game=g) for k, g in enumerate("abcdefgh")]
    chosen = {each.id: {1: do(INVENTORY)} for each in [*expert, *learner]}
    settings = PRMSettings(
        epochs=10, learning_rate=1e-2, batch_tokens=900, validation_fraction=0.25, precision="fp32"
    )
    small, prompt, out = create_small(tmp_path), load_prompt("chat"), tmp_path / "out"
    metrics = fit_inverse_prm(
        small, expert, learner, chosen, out, settings, prompt, 30, seed=0, split_seed=0, gamma=0.8
    )
    assert metrics["expert_transitions"] == metrics["learner_transitions"] == 6 * 2
    assert metrics["val_q_expert"] > metrics["val_q_learner"] + 0.01

    held_out = orjson.loads((out / METADATA).read_bytes())["validation_games"]
    model = AutoModelForSequenceClassification.from_pretrained(out, dtype=torch.float32)
    tokenizer = load_tokenizer(out)
    for name, episodes in (("expert", expert), ("learner", learner)):
        served = []
        for each in (each for each in episodes if each.game.id in held_out):
            for t, turn in enumerate(each.turns):
                ids, _ = action_row(tokenizer, prompt, each.state(t), turn.action)
                served.append(torch.sigmoid(model(torch.tensor([ids])).logits).item())
        assert len(served) == 2 * 2
        assert metrics[f"val_q_{name}"] == pytest.approx(sum(served) / 4, abs=1e-5)


def test_the_effective_horizon() -> None:
    assert effective_horizon(0.5, 3) == 1.75
    assert effective_horizon(1.0, 30) == 30
    assert effective_horizon(0.95, 1000) == pytest.approx(20)


# --- the two sets --------------------------------------------------------------------------------


def records_of(directory: Path, stages: dict[str, list[Episode]]) -> Records:
    records = Records(directory)
    for stage, episodes in stages.items():
        ours = [e.model_copy(update={"id": f"{stage}-0000/{k}"}) for k, e in enumerate(episodes)]
        result = JobResult(job_id=f"{stage}-0000", worker="t", seconds=0, episodes=ours)
        records.append(result)
    return records


def test_no_outcome_of_the_learner_is_read(tmp_path: Path) -> None:
    """Turned round, wins and losses leave everything that is trained on as it is."""
    expert = [played(LOOK, CABINET, index=k, game=g) for k, g in enumerate("abcd")]
    learner = [
        episode([FRIDGE, LOOK, INVENTORY], [0.0, 0.0, float(k % 2)], game=g, index=k)
        for k, g in enumerate("abcdef")
    ]
    turned = [
        each.model_copy(
            update={
                "won": not each.won,
                "turns": tuple(
                    turn.model_copy(update={"reward": 1 - turn.reward}) for turn in each.turns
                ),
            }
        )
        for each in learner
    ]
    small, prompt = create_small(tmp_path), load_prompt("chat")
    settings = PRMSettings(epochs=1, batch_tokens=900, learning_rate=1e-2, validation_fraction=0.3)
    fitted = []
    for name, episodes in (("as they were", learner), ("turned", turned)):
        stages = {"demonstrations": expert, "pi_0-rollouts": episodes}
        own, others = draw_transitions(records_of(tmp_path / name, stages), 0, seed=1)
        chosen = {e.id: dict.fromkeys(range(1, len(e.turns)), do(LOOK)) for e in [*own, *others]}
        out = tmp_path / f"{name} fitted"
        metrics = fit_inverse_prm(
            small, own, others, chosen, out, settings, prompt, 30, seed=0, split_seed=0, gamma=0.95
        )
        fitted.append(((out / "model.safetensors").read_bytes(), metrics["val_bce"]))
    assert fitted[0] == fitted[1]


def test_the_sets_are_drawn_alike_and_d_minus_is_of_all_iterations(tmp_path: Path) -> None:
    stages = {
        "demonstrations": [played(LOOK, CABINET, index=k) for k in range(6)],
        "pi_0-rollouts": [played(FRIDGE, LOOK, LOOK, index=k) for k in range(20)],
        "pi_1-rollouts": [played(FRIDGE, LOOK, LOOK, index=k) for k in range(20)],
        "pi_2-rollouts": [played(FRIDGE, LOOK, LOOK, index=k) for k in range(20)],
    }
    records = records_of(tmp_path, stages)
    expert, learner = draw_transitions(records, 1, seed=0)
    assert len(expert) == 6  # twelve transitions
    assert len(learner) == 4
    drawn = {e.id.split("-roll")[0] for s in range(9) for e in draw_transitions(records, 1, s)[1]}
    assert drawn == {"pi_0", "pi_1"}
    assert draw_transitions(records, 1, seed=0) == (expert, learner)


def test_a_step_holds_as_many_batches_of_either_set() -> None:
    batches = list(AlternatingBatches([[10] * 4], [[20] * 30], budget=40, epochs=3, seed=0))
    assert len(batches) == 3 * 2
    assert [max(batch) < 4 for batch in batches] == [True, False] * 3
    assert all(sorted(batch) == [0, 1, 2, 3] for batch in batches[::2])
    assert len({i for batch in batches[1::2] for i in batch}) > 2  # drawn anew in every epoch


def test_batches_of_several_passes_hold_one_set_each() -> None:
    """Rows are numbered through all passes of the first set, then through those of the second."""
    batches = list(AlternatingBatches([[10] * 4] * 2, [[20] * 6] * 3, 40, epochs=6, seed=0))
    for epoch in range(6):
        first, second = batches[2 * epoch : 2 * epoch + 2]
        assert sorted(first) == [4 * (epoch % 2) + i for i in range(4)]
        assert {(i - 8) // 6 for i in second} == {epoch % 3}
        assert len(second) == 2


def test_the_algorithm_of_a_preset_and_another_one() -> None:
    assert load_config("smoke").algorithm is Algorithm.AGENT_PRM
    config = load_config("smoke", overrides={"algorithm": "inverse-prm"})
    assert config.algorithm is Algorithm.INVERSE_PRM
    assert load_config("tiny").rollouts.vine is not None
    assert load_config("tiny", overrides={"algorithm": "inverse-prm"}).algorithm is config.algorithm
    estimates = {"shaping.alpha": 0.5, "prm.objective": "relative"}
    for name, value in estimates.items():
        with pytest.raises(ValueError, match="which inverse-prm does not read"):
            changed(config, {name: value})


# --- attention -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        MistralConfig(),
        Phi3Config(sliding_window=2047),
        Qwen2Config(use_sliding_window=True, sliding_window=64, max_window_layers=0),
        Gemma2Config(),
    ],
    ids=lambda config: config.model_type,
)
def test_windows_are_refused(config: PreTrainedConfig) -> None:
    with pytest.raises(ValueError, match="needs full attention; this model has"):
        require_full_attention(config)


@pytest.mark.parametrize(
    "config",
    [LlamaConfig(), MistralConfig(sliding_window=None), Qwen2Config(), Phi3Config()],
    ids=lambda config: config.model_type,
)
def test_full_attention_is_taken(config: PreTrainedConfig) -> None:
    require_full_attention(config)
