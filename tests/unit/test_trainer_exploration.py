from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from agentprm.config import Exploration, Posterior, Reset
from agentprm.protocol import Episode, JobResult, Sampling, Start
from services.trainer.rollouts.collect import NoGames
from services.trainer.rollouts.exploration import Resets, begin, deal, led
from services.trainer.rollouts.online import sample_states
from services.trainer.rollouts.vine import reachable, sample_places
from services.trainer.tiny.hindsight import hindsight, hindsight_hints
from services.trainer.tiny.tokenizer import create_tokenizer
from tests.unit.trainer_collector import GAMES, Alone
from tests.unit.trainer_episodes import episode

COMMANDS = ["look", "inventory", "help", "go to cabinet 1"]


def played(name: str, *, won: bool = True, start: int = 0, broken: int | None = None) -> Episode:
    """Four turns, of which the job chose those from `start` on; that at `broken` was refused."""
    bare = episode(COMMANDS, [0, 0, 0, float(won)], game=name)
    turns = tuple(
        turn.model_copy(
            update={
                "admissible": ()
                if t < start
                else ("close fridge 1",)
                if t == broken
                else tuple(COMMANDS)
            }
        )
        for t, turn in enumerate(bare.turns)
    )
    return bare.model_copy(update={"turns": turns, "start": start})


def test_every_way_has_its_share_of_the_rollouts() -> None:
    plan = Exploration.model_validate(
        {
            "reset": {"fraction": 0.5},
            "steered": {"fraction": 0.2, "strategies": ["a"]},
            "posterior": {"fraction": 0.1},
        }
    )
    ways = deal(plan, 40, seed=1)
    assert Counter(ways) == {"reset": 20, "steered": 8, "posterior": 4, "plain": 8}
    assert ways == deal(plan, 40, seed=1) != deal(plan, 40, seed=2)
    assert deal(Exploration(), 3, seed=1) == ["plain"] * 3
    halves = Exploration(reset=Reset(), posterior=Posterior())
    assert len(deal(halves, 3, seed=1)) == 3


def test_the_ways_cannot_have_more_than_all_rollouts() -> None:
    with pytest.raises(ValueError, match=r"the fractions are 1\.1 in all, at most 1"):
        Exploration.model_validate({"reset": {"fraction": 0.6}, "posterior": {"fraction": 0.5}})
    with pytest.raises(ValueError, match="strategies"):
        Exploration.model_validate({"steered": {"strategies": []}})


def test_a_reset_begins_in_a_later_state_of_a_won_episode_of_its_game() -> None:
    own, lost = played("a"), played("b", won=False)
    resets = Resets([own, lost], 30, seed=3)
    begun = [resets.beginning(own.game, random.Random(k)) for k in range(50)]
    assert {len(b.start.turns) for b in begun} == {1, 2, 3}, "not in the first state"
    for beginning in begun:
        t = len(beginning.start.turns)
        assert beginning.game == own.game
        assert [turn.action for turn in beginning.start.turns] == [
            turn.action for turn in own.turns[:t]
        ]
        assert (beginning.start.action, beginning.hint) == (None, "")


def test_every_state_of_the_won_episodes_of_a_game_is_as_likely() -> None:
    short, long = played("a", start=3), played("a")  # one and three states to begin in
    resets = Resets([short, long], 30, seed=3)
    begun = Counter(
        len(resets.beginning(long.game, random.Random(k)).start.turns) for k in range(1000)
    )
    assert begun[1] == pytest.approx(250, abs=60)
    assert begun[2] == pytest.approx(250, abs=60)
    assert begun[3] == pytest.approx(500, abs=60)


def test_no_reset_begins_where_no_turn_is_left() -> None:
    """Demonstrations from elsewhere may be longer than the episodes of this run."""
    resets = Resets([played("a")], 3, seed=3)
    begun = [resets.beginning(played("a").game, random.Random(k)) for k in range(20)]
    assert {len(b.start.turns) for b in begun} == {1, 2}


def test_a_game_without_a_won_episode_gives_way_to_one_that_has_one() -> None:
    lost = played("lost", won=False)
    resets = Resets([played("a"), played("b"), played("c"), lost], 30, seed=3)
    instead = {resets.beginning(lost.game, random.Random(k)).game.id for k in range(20)}
    assert len(instead) == 1, "the same one in all its rollouts"
    assert instead <= {f"train/{name}/trial" for name in "abc"}
    with pytest.raises(NoGames, match="no won episode"):
        Resets([lost], 30, seed=3).beginning(lost.game, random.Random(0))


def test_an_iteration_begins_in_what_was_won_before_it(tmp_path: Path) -> None:
    """And so as before when a trainer starts again that has some of its rollouts already."""
    collector, plan = Alone(tmp_path), Exploration(reset=Reset(fraction=1.0))

    def record(stage: str, won: Episode) -> None:
        result = JobResult(job_id=f"{stage}-0000", worker="w", seconds=0, episodes=[won])
        collector.records.append(result)

    record("demonstrations", played("a"))
    before = begin(collector, plan, 0, GAMES, Sampling())
    assert {b.game.id for b in before} == {"train/a/trial"}
    assert {len(b.start.turns) for b in before} == {1, 2, 3}
    record("pi_0-rollouts", played("b"))
    assert begin(collector, plan, 0, GAMES, Sampling()) == before
    after = begin(collector, plan, 1, GAMES, Sampling())
    assert {b.game.id for b in after} == {"train/a/trial", "train/b/trial"}


def test_only_states_that_were_played_and_that_a_prefix_reaches_are_begun_in() -> None:
    assert reachable(played("a")) == range(4)
    assert reachable(played("a", start=2)) == range(2, 4)
    assert reachable(played("a", broken=1)) == range(2)
    later = Resets([played("a", start=2)], 30, seed=0)
    game = played("a").game
    begun = [later.beginning(game, random.Random(k)) for k in range(20)]
    assert {len(b.start.turns) for b in begun} == {2, 3}


def test_the_explorer_leads_to_a_state_and_takes_the_first_action_with_a_target() -> None:
    explored = played("a", won=False)
    begun = [led(explored, random.Random(k)) for k in range(50)]
    assert {len(b.start.turns) for b in begun} == {0, 1, 2, 3}
    for beginning in begun:
        t = len(beginning.start.turns)
        assert beginning.start.turns == explored.turns[:t]
        assert beginning.start.action == explored.turns[t].action
        assert beginning.start.rationalise


def test_a_game_that_the_explorer_gave_up_at_once_is_begun_anew() -> None:
    nothing = episode([], [])
    begun = led(nothing, random.Random(0))
    assert (begun.way, begun.game, begun.start) == ("posterior", nothing.game, Start())


def test_turns_that_were_given_are_no_states_of_d_and_no_branches() -> None:
    reset = played("a", start=2)
    states = sample_states([reset], 100, per_game=100, seed=0)
    assert sorted(len(state.history) for state in states) == [2, 3]
    assert sorted(place.t for place in sample_places([reset], 100, seed=0)) == [2, 3]


# --- strategies for a model that knows no other words --------------------------------------------


def test_hindsight_tells_where_the_expert_looked_in_words_of_the_tiny_model() -> None:
    commands = [
        "go to drawer 1",
        "open drawer 1",
        "go to cabinet 3",
        "go to drawer 2",
        "take mug 1 from drawer 2",
        "go to fridge 1",
    ]
    searched = episode(commands, [0] * 6)
    assert hindsight(searched) == "go to drawer, cabinet"
    assert hindsight(episode(["look", "take mug 1 from shelf 1"], [0, 0])) == ""
    tokenizer = create_tokenizer(2048)
    for text in ("go to drawer, cabinet", "mug 1 in cabinet 3, mug 2 in fridge 1"):
        ids = tokenizer.encode(text)
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text


def test_a_share_of_the_demonstrations_is_read_with_their_strategy() -> None:
    episodes = [
        episode(["go to drawer 1"], [0]).model_copy(update={"id": str(k)}) for k in range(200)
    ]
    assert hindsight_hints(episodes, 0.0, seed=1) == [""] * 200
    assert hindsight_hints(episodes, 1.0, seed=1) == ["go to drawer"] * 200
    half = hindsight_hints(episodes, 0.5, seed=1)
    assert 70 < half.count("go to drawer") < 130
    assert half == hindsight_hints(episodes, 0.5, seed=1)
