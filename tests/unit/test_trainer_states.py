"""Which states of D a policy update asks about."""

from __future__ import annotations

from itertools import groupby, pairwise

from services.trainer.rollouts.online import sample_turns
from tests.unit.trainer_episodes import episode

PLAYED = [episode(["look"] * 8, [0.0] * 8, game=f"{k // 2:02}", index=k) for k in range(40)]


def test_the_states_of_an_episode_follow_one_another() -> None:
    turns = sample_turns(PLAYED, 1000, per_game=6, seed=1)
    assert len(turns) == 120
    ids = [each.id for each, _ in turns]
    assert len(list(groupby(ids))) == len(set(ids))
    assert all(t < later for (one, t), (two, later) in pairwise(turns) if one.id == two.id)


def test_games_come_in_random_order_and_no_state_twice() -> None:
    turns = sample_turns(PLAYED, 30, per_game=6, seed=1)
    games = list(dict.fromkeys(each.game.id for each, _ in turns))
    assert len(games) == 5
    assert games != sorted(games)
    assert len({(each.id, t) for each, t in turns}) == 30
    assert turns == sample_turns(PLAYED, 1000, per_game=6, seed=1)[:30]
    assert turns != sample_turns(PLAYED, 30, per_game=6, seed=2)
