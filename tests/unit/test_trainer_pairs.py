from __future__ import annotations

import pytest

from services.trainer.targets.monte_carlo import monte_carlo_targets
from services.trainer.targets.pairs import preference_pairs
from tests.unit.trainer_episodes import episode

# Game a, first state: `look` has Q̂ (1/2 + 0) / 2, `help` 0.5, `inventory` 0. After `look` two more
# actions of Q̂ 1 and 0; all other states have one action. Game b repeats the words of game a.
EPISODES = [
    episode(["look", "go to cabinet 1"], [0, 1]),
    episode(["look", "go to fridge 1"], [0, 0]),
    episode(["help", "look"], [0, 1]),
    episode(["inventory"], [0]),
    episode(["look"], [0], game="b"),
]
TARGETS = monte_carlo_targets(EPISODES, 0.5)


def commands(margin: float) -> list[tuple[str, str]]:
    found = preference_pairs(EPISODES, TARGETS, margin)
    return [(pair.chosen.command, pair.rejected.command) for pair in found.pairs]


def test_the_pairs_of_a_state_are_those_whose_targets_differ_enough() -> None:
    first = [("help", "look"), ("look", "inventory"), ("help", "inventory")]
    assert commands(0.25) == [*first, ("go to cabinet 1", "go to fridge 1")]
    assert commands(0.3) == [("help", "inventory"), ("go to cabinet 1", "go to fridge 1")]
    assert commands(0.6) == [("go to cabinet 1", "go to fridge 1")]


@pytest.mark.parametrize(
    ("margin", "pairs", "no_pair", "discarded"), [(0.25, 4, 0, 0), (0.3, 2, 0, 2), (0.6, 1, 1, 3)]
)
def test_the_counts_by_hand(margin: float, pairs: int, no_pair: int, discarded: int) -> None:
    counts = preference_pairs(EPISODES, TARGETS, margin).counts
    # two in game a with several actions, the one after `help`, and the one of game b
    assert (counts["states"], counts["states_with_one_action"]) == (4, 2)
    assert counts["pairs"] == pairs
    assert counts["states_without_pair"] == no_pair
    assert counts["discarded_pairs"] == discarded


def test_a_pair_names_the_state_of_both() -> None:
    found = preference_pairs(EPISODES, TARGETS, 0.25).pairs
    assert [(pair.episode, pair.t) for pair in found] == [(2, 0), (0, 0), (2, 0), (0, 1)]
    assert len({pair.state for pair in found}) == 2


def test_the_turns_before_a_branch_are_no_visits() -> None:
    """They were given to a continuation, and their targets are NaN."""
    tried = episode(["inventory", "help"], [0, 1]).model_copy(update={"start": 1})
    episodes = [tried, episode(["look", "look"], [0, 0]), episode(["inventory", "look"], [0, 0])]
    targets = monte_carlo_targets(episodes, 1.0)
    found = preference_pairs(episodes, targets, 0.1)
    assert [(p.chosen.command, p.rejected.command) for p in found.pairs] == [("help", "look")]
    assert (found.states, found.one_action, found.discarded) == (3, 1, 1)
    alone = preference_pairs(episodes[:2], targets[:2], 0.1)
    assert (alone.states, alone.one_action) == (3, 3), "nobody but the given turn looked there"
