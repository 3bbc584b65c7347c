from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentprm.protocol import Action
from services.trainer.targets.monte_carlo import (
    discounted_returns,
    monte_carlo_targets,
    split_by_game,
)
from tests.unit.trainer_episodes import episode


def test_the_return_counts_forward_from_the_turn() -> None:
    # A reward in the last of four turns: gamma^(T-1-t) r, and not gamma^t r.
    assert discounted_returns([0, 0, 0, 1], 0.5) == [0.125, 0.25, 0.5, 1]


def test_rewards_on_the_way_add_up() -> None:
    # 1 + 0.5 * 2 + 0.25 * 4; 2 + 0.5 * 4; 4
    assert discounted_returns([1, 2, 4], 0.5) == [3, 4, 4]


def test_a_pair_has_the_mean_of_the_returns_of_all_rollouts_through_it() -> None:
    episodes = [
        episode(["look", "go to cabinet 1"], [0, 1]),  # won in two turns
        episode(["look", "inventory", "go to fridge 1"], [0, 0, 1]),  # won in three
        episode(["look", "inventory"], [0, 0]),  # lost
    ]
    targets = monte_carlo_targets(episodes, 0.5)
    looking = (0.5 + 0.25 + 0) / 3
    assert targets[0] == pytest.approx([looking, 1])
    assert targets[1] == pytest.approx([looking, (0.5 + 0) / 2, 1])
    assert targets[2] == pytest.approx([looking, (0.5 + 0) / 2])


def test_the_same_words_after_another_history_or_in_another_game_are_another_pair() -> None:
    episodes = [
        episode(["look", "go to cabinet 1"], [0, 1], game="a"),
        episode(["inventory", "go to cabinet 1"], [0, 0], game="a"),
        episode(["look", "go to cabinet 1"], [0, 0], game="b"),
    ]
    targets = monte_carlo_targets(episodes, 1.0)
    assert targets == [[1, 1], [0, 0], [0, 0]]


@pytest.mark.parametrize(
    "change",
    [
        {"observation": "You are in the dark."},
        {"action": Action(reason="have mug . heat", command="look")},
        {"action": Action(reason="find mug", command="help")},
        {"action": Action(reason="find muglo", command="ok")},  # the same letters in a row
    ],
)
def test_a_pair_is_told_apart_by_each_of_its_texts(change: dict[str, str | Action]) -> None:
    first = episode(["look"], [1])
    turn = first.turns[0].model_copy(update={"reward": 0.0, **change})
    second = first.model_copy(update={"turns": (turn,)})
    assert monte_carlo_targets([first, second], 1.0) == [[1], [0]]


@given(
    rewards=st.lists(st.floats(0, 1), min_size=1, max_size=12),
    gamma=st.floats(0.01, 1),
)
def test_the_return_is_the_sum_of_the_paper(rewards: list[float], gamma: float) -> None:
    for t, value in enumerate(discounted_returns(rewards, gamma)):
        paper = sum(gamma ** (k - t) * rewards[k] for k in range(t, len(rewards)))
        assert value == pytest.approx(paper)


@given(
    games=st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=30),
    fraction=st.floats(0, 0.99),
    seed=st.integers(0, 5),
)
def test_no_game_is_on_both_sides_of_the_split(
    games: list[str], fraction: float, seed: int
) -> None:
    episodes = [episode(["look"], [0], game=game) for game in games]
    training, validation = split_by_game(episodes, fraction, seed)
    assert sorted(training + validation) == list(range(len(games)))
    assert not {games[i] for i in training} & {games[i] for i in validation}
    assert training
    assert bool(validation) == (fraction > 0 and len(set(games)) > 1)


def test_a_game_is_on_one_side_whatever_else_there_is() -> None:
    """Iterations take other games, some of them again: what validates once never trains."""
    trained: set[str] = set()
    validated: set[str] = set()
    for first in range(0, 1000, 100):
        games = [f"{k % 700:03d}" for k in range(first, first + 250)]
        training, validation = split_by_game([episode(["look"], [0], g) for g in games], 0.2, 3)
        trained |= {games[i] for i in training}
        validated |= {games[i] for i in validation}
    assert not trained & validated
    assert len(trained | validated) == 700
    assert len(validated) == pytest.approx(0.2 * 700, abs=3 * (700 * 0.2 * 0.8) ** 0.5)
