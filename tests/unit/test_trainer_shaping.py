from __future__ import annotations

import math
import shutil
import struct
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from transformers import AutoModelForSequenceClassification

from agentprm.config import EXPERT, Config, PRMSettings, Shaping, load_config, read_config
from agentprm.prompts import load_prompt
from agentprm.protocol import Action, JobResult, Sampling, Turn
from agentprm.registry import Registry
from services.trainer.fits.jobs import FitJob, Fits
from services.trainer.fits.prm import fit_prm
from services.trainer.progress import Progress
from services.trainer.rollouts.records import Records
from services.trainer.targets.monte_carlo import monte_carlo_targets
from services.trainer.targets.reference import (
    VALUE,
    predict_values,
    reference_jobs,
    reference_values,
)
from services.trainer.targets.shaping import advantages, shaped
from services.trainer.training.fitting import ignore, load_tokenizer
from services.trainer.training.rows import episode_rows
from tests.unit.trainer_collector import Alone
from tests.unit.trainer_episodes import (
    INVENTORY_LOSES,
    LOOK_WINS,
    create_small,
    episode,
    in_eight_games,
)

# --- eq. 13 on a corridor of three rooms --------------------------------------------------------
#
# The game is won in room 2; the reference walks east, so with γ = 0.9 its value is 1 in room 1 and
# 0.9 in room 0. The learner: west (against the wall), east, west, east, east.

GAMMA = 0.9
VALUES = {0: 0.9, 1: 1.0}
ROOMS = [0, 0, 1, 0, 1]
WALK = [
    Turn(
        observation=f"room {room}",
        action=Action(command=command),
        reward=float(t == 4),
        policy_version="policy/0",
    )
    for t, (room, command) in enumerate(
        zip(ROOMS, ["west", "east", "west", "east", "east"], strict=True)
    )
]
WALKED = episode(["look"], [1.0]).model_copy(update={"turns": tuple(WALK)})
BY_HAND = [
    0.9 * 0.9 - 0.9,  # west in room 0: a turn is lost
    0.9 * 1.0 - 0.9,  # east is what the reference does: nothing is gained on it
    0.9 * 0.9 - 1.0,  # west in room 1
    0.9 * 1.0 - 0.9,
    1.0 - 1.0,  # the end: the reward, and no value after it
]


def test_the_advantage_is_what_an_action_gains_on_the_reference() -> None:
    [found] = advantages([WALKED], [[VALUES[room] for room in ROOMS]], GAMMA)
    assert found == pytest.approx(BY_HAND)
    assert max(found) == pytest.approx(0)  # nothing is better than the best policy's own action


def test_the_target_mixes_return_and_advantage_as_equation_13_says() -> None:
    q = monte_carlo_targets([WALKED], GAMMA)  # 0.9^4, 0.9^3, 0.9^2, 0.9, 1
    [target] = shaped(q, [BY_HAND], 0.25)
    for t, value in enumerate(target):
        mixed = 0.75 * 0.9 ** (4 - t) + 0.25 * BY_HAND[t]
        assert value == pytest.approx((mixed + 0.25) / 1.25)
    [imitation] = shaped(q, [BY_HAND], 1.0)
    assert imitation == pytest.approx([(a + 1) / 2 for a in BY_HAND])


def test_a_pair_has_the_mean_of_its_advantages_over_all_visits() -> None:
    """`look` ends one episode and not the other; each has its own s'."""
    episodes = [episode(["look", "go to cabinet 1"], [0, 1]), episode(["look"], [0])]
    found = advantages(episodes, [[0.4, 0.6], [0.4]], 0.5)
    looking = ((0.5 * 0.6 - 0.4) + (0 - 0.4)) / 2
    assert found[0] == pytest.approx([looking, 1 - 0.6])
    assert found[1] == pytest.approx([looking])


def test_turns_that_were_given_have_no_advantage() -> None:
    branch = episode(["look", "inventory", "go to cabinet 1"], [0, 0, 1]).model_copy(
        update={"start": 1}
    )
    [found] = advantages([branch], [[math.nan, 0.5, 0.8]], 0.5)
    assert math.isnan(found[0])
    assert found[1:] == pytest.approx([0.5 * 0.8 - 0.5, 1 - 0.8])


def test_a_game_that_was_given_up_at_once_has_no_advantage() -> None:
    episodes = [episode(["look", "go to cabinet 1"], [0, 1]), episode([], [])]
    found = advantages(episodes, [[0.1, 0.2], []], 0.5)
    assert found == [pytest.approx([0.5 * 0.2 - 0.1, 1 - 0.2]), []]


def test_an_advantage_above_1_counts_as_1() -> None:
    """Half of the reward comes early, where V^mu has not seen it coming."""
    rewarded = episode(["look", "go to cabinet 1"], [0.5, 0.5])
    [found] = advantages([rewarded], [[0.2, 0.9]], 0.95)
    assert found[0] == pytest.approx(0.5 + 0.95 * 0.9 - 0.2)
    assert found[0] > 1
    assert shaped([[1.0, 0.5]], [found], 1.0)[0] == pytest.approx([1.0, (0.5 - 0.9 + 1) / 2])


q_values = st.floats(0, 1)
a_values = st.floats(-1, 1)


@given(q_values, a_values)
def test_without_alpha_the_target_is_the_plain_one_to_the_last_bit(q: float, a: float) -> None:
    [[target]] = shaped([[q]], [[a]], 0.0)
    assert struct.pack("d", target) == struct.pack("d", abs(q))


@given(q_values, a_values, q_values, a_values, st.floats(0, 1))
def test_the_map_to_0_and_1_keeps_the_order(
    q1: float, a1: float, q2: float, a2: float, alpha: float
) -> None:
    [[one, two]] = shaped([[q1, q2]], [[a1, a2]], alpha)
    assert 0 <= one <= 1
    mixed = (1 - alpha) * (q1 - q2) + alpha * (a1 - a2)
    assert one - two == pytest.approx(mixed / (1 + alpha), abs=1e-12)


# --- V^μ ------------------------------------------------------------------------------------------

# The first turn of the reference is as often `look`, which wins, as `inventory`, which does not.
EPISODES = in_eight_games(LOOK_WINS, INVENTORY_LOSES)
SETTINGS = PRMSettings(
    epochs=30,
    learning_rate=1e-2,
    batch_tokens=600,
    validation_fraction=0.25,
    precision="fp32",
)


def test_the_value_of_a_state_is_the_mean_return_of_all_visits() -> None:
    assert reference_values(EPISODES[:2], 0.8) == [[0.4, 1.0], [0.4, 0.0]]


@pytest.mark.parametrize("name", ["chat", "state"])
def test_the_value_model_learns_it_and_reads_no_action(tmp_path: Path, name: str) -> None:
    prompt, out = load_prompt(name), tmp_path / "out"
    targets = reference_values(EPISODES, 0.8)
    metrics = fit_prm(
        create_small(tmp_path),
        EPISODES,
        targets,
        out,
        SETTINGS,
        prompt,
        of="state",
        seed=0,
        split_seed=0,
        gamma=0.8,
    )
    assert metrics["val_explained_variance"] > 0.9
    short = SETTINGS.model_copy(update={"max_tokens": 16})  # what is trained, not what is read
    found = predict_values(out, EPISODES, short, prompt)
    for won, lost in zip(found[::2], found[1::2], strict=True):
        assert won == pytest.approx([0.4, 1.0], abs=0.1)
        assert lost == pytest.approx([0.4, 0.0], abs=0.1)
        assert won[0] == pytest.approx(lost[0], abs=1e-5)  # another action in the same state

    # Plain transformers on what stands before the action.
    model = AutoModelForSequenceClassification.from_pretrained(out, dtype=torch.float32)
    for row in episode_rows(load_tokenizer(out), prompt, EPISODES[0], 2048):
        for (start, _), turn in zip(row.spans, row.turns, strict=True):
            logit = model(torch.tensor([row.ids[:start]])).logits
            assert torch.sigmoid(logit).item() == pytest.approx(found[0][turn], abs=1e-5)


def test_a_run_fits_the_value_and_shapes_its_targets(tmp_path: Path) -> None:
    prompt = load_prompt("chat")
    records, registry = Records(tmp_path / "records"), Registry(tmp_path / "checkpoints")
    given = {"pi_0-rollouts": EPISODES[:4], "reference-rollouts": EPISODES[4:]}
    for stage, episodes in given.items():
        job = JobResult(job_id=f"{stage}-0000", worker="t", seconds=0, episodes=episodes)
        records.append(job)

    def fits(alpha: float) -> Fits:
        config = Config.model_validate(
            {
                "preset": "shaped",
                "demonstrations": {"games": 1},
                "rollouts": {"games": 1, "per_game": 1},
                "preferences": {"pairs": 1},
                "prm": {"epochs": 1, "batch_tokens": 600, "precision": "fp32"},
                "shaping": {"alpha": alpha, "reference": EXPERT},
            }
        )
        quiet = Progress(Console(quiet=True))
        return Fits(tmp_path, config, records, prompt, ignore, quiet, None)

    plain = monte_carlo_targets(EPISODES[:4], 0.95)
    assert fits(0.0)._targets(EPISODES[:4]) == plain
    with registry.write(VALUE) as out:
        fits(0.5).perform(FitJob(kind="value", iteration=0, base=create_small(tmp_path), out=out))
    values = predict_values(registry.open(VALUE), EPISODES[:4], SETTINGS, prompt)
    assert (
        fits(0.5)._targets(EPISODES[:4])
        == [
            pytest.approx(
                [
                    (0.5 * q + 0.5 * (turn.reward + 0.95 * after - before) + 0.5) / 1.5
                    for q, turn, before, after in zip(
                        plain[i], played.turns, values[i], [*values[i][1:], 0], strict=True
                    )
                ],
                # the two episodes of a game part with their first action
            )
            for i, played in enumerate(EPISODES[:4])
        ]
    )


def test_a_reference_from_elsewhere_plays_each_game_as_often_as_asked(tmp_path: Path) -> None:
    plan = Shaping(alpha=0.5, reference=str(create_small(tmp_path)), games=3, per_game=4)
    collector, registry = Alone(tmp_path), Registry(tmp_path / "checkpoints")
    jobs = reference_jobs(collector, registry, plan, Sampling())
    assert sorted(Counter(game for job in jobs for game in job.games).values()) == [4, 4, 4]
    assert {job.policy_version for job in jobs} == {"reference/0"}
    again = reference_jobs(collector, registry, plan, Sampling())
    assert again == jobs, "which has its copy already"


def test_a_reference_that_is_nowhere_is_refused_for_a_new_run_only(tmp_path: Path) -> None:
    policy, run = tmp_path / "policy", tmp_path / "run"
    with pytest.raises(FileNotFoundError, match="neither expert, policy/0 nor"):
        load_config("smoke", overrides={"shaping.reference": str(policy)})
    policy.mkdir()
    (policy / "config.json").write_text("{}")
    config = load_config("smoke", overrides={"shaping.reference": str(policy)})
    assert config.shaping.directory == policy
    run.mkdir()
    (run / "config.json").write_text(config.model_dump_json())
    shutil.rmtree(policy)
    assert read_config(run) == config  # which has its copy of it, or says what is missing then
