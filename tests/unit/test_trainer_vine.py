from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest

from agentprm.config import Config, Vine
from agentprm.prompts import load_prompt
from agentprm.protocol import Action, ActResult, Candidate, Episode, RolloutJob, Sampling, Start
from services.trainer.rollouts.vine import (
    Place,
    actions_to_try,
    random_actions,
    sample_places,
    vine_jobs,
)
from services.trainer.targets.monte_carlo import monte_carlo_targets
from services.trainer.training.fitting import load_tokenizer
from services.trainer.training.rows import episode_rows
from tests.unit.trainer_collector import Alone
from tests.unit.trainer_episodes import create_small, episode

# A rollout that is lost, and continuations from its second state, which the first turn led to.
ROLLOUT = episode(["look", "inventory", "go to fridge 1"], [0, 0, 0])
SAME = [  # the recorded action again: won in one turn more, in two more, lost
    episode(["look", "inventory", "go to cabinet 1"], [0, 0, 1]),
    episode(["look", "inventory", "look", "go to cabinet 1"], [0, 0, 0, 1]),
    episode(["look", "inventory", "look"], [0, 0, 0]),
]
OTHER = [  # another action, which wins at once or leads to a win
    episode(["look", "go to cabinet 1"], [0, 1]),
]
VINE = [e.model_copy(update={"start": 1}) for e in (*SAME, *OTHER)]


def test_a_pair_has_the_mean_of_its_continuations_and_of_the_visit_that_was_recorded() -> None:
    targets = monte_carlo_targets([ROLLOUT, *VINE], 0.5)
    recorded = (0 + 0.5 + 0.25 + 0) / 4  # discounted from the second turn, not from the first
    assert targets[0] == pytest.approx([0, recorded, 0])
    assert targets[1][1:] == pytest.approx([recorded, 1])
    assert targets[2][1:] == pytest.approx([recorded, (0.5 + 0) / 2, 1])
    assert targets[3][1:] == pytest.approx([recorded, (0.5 + 0) / 2])
    assert targets[4][1:] == [1]


def test_the_turns_that_led_to_a_branch_are_no_visits() -> None:
    """Four continuations of which three win, and still the first turn has one lost visit."""
    targets = monte_carlo_targets([ROLLOUT, *VINE], 0.5)
    assert targets[0][0] == 0
    assert all(math.isnan(values[0]) for values in targets[1:])


@pytest.mark.parametrize("name", ["chat", "state"])
def test_the_turns_that_led_to_a_branch_are_read_and_not_fitted(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    tokenizer, prompt = (
        load_tokenizer(create_small(tmp_path_factory.mktemp("m"))),
        load_prompt(name),
    )
    whole = episode_rows(tokenizer, prompt, SAME[1], 2048)
    rows = episode_rows(tokenizer, prompt, VINE[1], 2048)
    assert [t for row in rows for t in row.turns] == [1, 2, 3]
    assert rows[-1].ids == whole[-1].ids
    assert [span for row in rows for span in row.spans] == [
        span for row in whole for span in row.spans
    ][1:]
    short = episode_rows(tokenizer, prompt, VINE[1], whole[0].spans[0][1])
    assert not short, "a row that is cut before the branch has nothing to fit"


def with_choices(recorded: Episode) -> Episode:
    """The episode with its own command and one other admissible at every turn."""
    turns = tuple(
        turn.model_copy(update={"admissible": (turn.action.command, "help")})
        for turn in recorded.turns
    )
    return recorded.model_copy(update={"turns": turns})


def test_every_distinct_state_is_drawn_once_and_whatever_came_after_it() -> None:
    lost = with_choices(episode(["look"] * 6, [0] * 6))
    won = with_choices(episode(["look", "look", "inventory"], [0, 0, 1], index=1))
    places = sample_places([lost, won], 100, seed=3)
    assert sorted(place.t for place in places) == [0, 1, 2, 3, 4, 5]
    drawn = sample_places([lost, won], 3, seed=3)
    assert drawn == places[:3]
    assert sample_places([lost, won], 3, seed=4) != drawn
    early = sample_places([lost, won], 100, seed=3, before=2)
    assert sorted(place.t for place in early) == [0, 1]
    # The same states, whether the second episode was won there or went on.
    longer = with_choices(episode(["look", "look", "help", "look"], [0] * 4, index=1))
    assert {p.t for p in sample_places([lost, longer], 100, seed=3) if p.episode == lost} == {
        p.t for p in places
    }


def test_no_state_is_drawn_that_cannot_be_reached_or_leaves_no_choice() -> None:
    recorded = with_choices(episode(["look", "inventory", "help", "look"], [0] * 4))
    forced = recorded.turns[1].model_copy(update={"admissible": ("inventory",)})
    refused = recorded.turns[2].model_copy(update={"admissible": ("look", "inventory")})
    turns = (recorded.turns[0], forced, refused, recorded.turns[3])
    places = sample_places([recorded.model_copy(update={"turns": turns})], 100, seed=0)
    assert sorted(place.t for place in places) == [0, 2]


def test_actions_differ_in_their_commands_and_the_recorded_one_comes_first() -> None:
    recorded = Action(reason="find mug", command="look")
    sampled = [Action(reason=str(k), command=c) for k, c in enumerate(("go", "look", "go", "open"))]
    result = ActResult(
        candidates=[Candidate(text="", action=a, log_prob=-1, tokens=1) for a in sampled], chosen=0
    )
    assert actions_to_try(recorded, result, 3) == [recorded, sampled[0], sampled[3]]
    assert actions_to_try(recorded, result, 2) == [recorded, sampled[0]]


def test_random_actions_are_spread_over_verbs_and_leave_out_what_is_tried() -> None:
    places = [f"go to cabinet {k}" for k in range(1, 10)]
    admissible = ("take mug 1", "look", *places)
    rollout = episode(["look", "go to cabinet 1"], [0, 0])
    turn = rollout.turns[0].model_copy(update={"admissible": admissible})
    place = Place(rollout.model_copy(update={"turns": (turn, rollout.turns[1])}), 0)
    drawn = [random_actions(place, [place.recorded], 1, seed)[0] for seed in range(2000)]
    assert {action.reason for action in drawn} == {place.recorded.reason}
    counts = Counter(action.command for action in drawn)
    assert set(counts) == {"take mug 1", *places}, "`look` was tried"
    assert counts["take mug 1"] == pytest.approx(1000, abs=120)
    assert all(counts[command] == pytest.approx(1000 / 9, abs=50) for command in places)
    everything = random_actions(place, [], 99, 0)
    assert sorted(action.command for action in everything) == sorted(admissible)


def test_a_branch_begins_with_the_turns_before_it() -> None:
    start = Place(with_choices(ROLLOUT), 2).start(Action(command="help"))
    assert [turn.action.command for turn in start.turns] == ["look", "inventory"]
    assert start.action == Action(command="help")
    assert all(turn.admissible == () for turn in start.turns), "which a job need not carry"
    with pytest.raises(ValueError, match="one start for each"):
        RolloutJob(id="j", games=["a", "b"], starts=[start], seed=0)
    assert Start().turns == ()


def test_every_state_has_draws_of_its_own_and_its_policy_is_served(tmp_path: Path) -> None:
    """Six states alike, two in a job, with one of a thousand actions tried beside the recorded."""
    recorded = episode(["look"] * 2, [0, 0])
    choices = ("look", *(f"go to shelf {k}" for k in range(1000)))
    turns = tuple(turn.model_copy(update={"admissible": choices}) for turn in recorded.turns)
    places = [Place(recorded.model_copy(update={"turns": turns}), 1)] * 6
    collector, plan = Alone(tmp_path), Vine(actions=1, random=1, continuations=2)
    jobs = vine_jobs(collector, "pi_1-vine", places, plan, "policy/1", Sampling())
    assert [len(job.games) for job in jobs] == [8, 8, 8]
    assert len({job.seed for job in jobs}) == 3
    actions = [start.action for job in jobs for start in job.starts or []]
    tried = [action.command for action in actions if action and action.command != "look"]
    assert len(tried) == 2 * len(set(tried)) == 2 * len(places)
    assert collector.policy.loaded == ["policy/1"]


def test_where_no_commands_are_listed_there_are_no_random_ones_to_play(tmp_path: Path) -> None:
    recorded = episode(["look"] * 2, [0, 0])  # of an environment that lists none
    turns = tuple(turn.model_copy(update={"admissible": ()}) for turn in recorded.turns)
    places = [Place(recorded.model_copy(update={"turns": turns}), 1)] * 6
    plan = Vine(actions=0, random=1)
    assert vine_jobs(Alone(tmp_path), "pi_1-vine", places, plan, "policy/1", Sampling()) == []


def test_the_continuations_of_a_state_must_fit_into_a_batch() -> None:
    given = {
        "preset": "p",
        "batch": 8,
        "demonstrations": {"games": 1},
        "preferences": {"pairs": 1},
    }
    rollouts = {"games": 1, "per_game": 1}
    assert Config.model_validate({**given, "rollouts": rollouts}).rollouts.vine is None
    fitting = {**rollouts, "vine": {"states": 5}}
    assert Config.model_validate({**given, "rollouts": fitting}).rollouts.vine == Vine(states=5)
    with pytest.raises(ValueError, match="3 actions x 4 continuations are more than the batch"):
        Config.model_validate({**given, "rollouts": {**rollouts, "vine": {"actions": 3}}})
    nothing = {**rollouts, "vine": {"actions": 0}}
    with pytest.raises(ValueError, match="nothing is tried"):
        Config.model_validate({**given, "rollouts": nothing})
    only_random = {**rollouts, "vine": {"actions": 0, "random": 4, "continuations": 2}}
    vine = Config.model_validate({**given, "rollouts": only_random}).rollouts.vine
    assert vine is not None
    assert vine.size == 8
