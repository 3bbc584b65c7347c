"""Generated games: reproducible, in the right rooms, of all task types, and winnable."""

import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest
from alfworld.gen import constants

from agentprm.protocol import Split
from benchmarks.realism import agreement, spearman
from services.env.alfworld import TASK_TYPES
from services.env.engine.compiled import CompiledGame
from services.env.engine.compiled.solver import next_command
from services.env.games import GameIndex
from services.env.games.generate import generate
from services.env.games.generate.goals import Goals
from services.env.games.generate.learned import learned
from services.env.games.generate.rooms import UNSEEN, furnished, rooms_of
from services.env.games.generate.writer import STEPS
from services.env.games.initial import read_initial

COUNT = 24
NAME = re.compile(r"[A-Za-z]+(_bar_(_plus_|_minus_)\d\d_dot_\d\d){3}(_bar_SinkBasin)?")
BATHTUB = re.compile(r"Bathtub(_bar_(_plus_|_minus_)\d\d_dot_\d\d){3}_bar_BathtubBasin")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few games of each split."""
    output = tmp_path_factory.mktemp("generated")
    for split in Split:
        assert len(list(generate(split, COUNT, 3, output))) == COUNT
    return output


def contents(directory: Path) -> dict[str, bytes]:
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("one", 5), ("same", 5), ("other", 6)):
        list(generate(Split.TRAIN, 6, seed, tmp_path / name))
    assert contents(tmp_path / "one") == contents(tmp_path / "same")
    one, other = (set(contents(tmp_path / name).values()) for name in ("one", "other"))
    assert len(one) == 12
    assert not one & other


def test_rooms_belong_to_splits(directory: Path) -> None:
    for split in Split:
        rooms = {
            json.loads(path.read_bytes())["scene"]["scene_num"]
            for path in (directory / "json_2.1.1" / split).rglob("traj_data.json")
        }
        assert (rooms <= set(UNSEEN)) == (split == Split.VALID_UNSEEN)
        assert (not rooms & set(UNSEEN)) == (split != Split.VALID_UNSEEN)
    assert len(rooms_of(Split.TRAIN)) == 116


def test_every_room_is_furnished_and_every_split_poses_every_task() -> None:
    for split in Split:
        rooms = rooms_of(split)
        assert all(len(room.receptacles) > 3 and room.objects for room in rooms)
        for room in rooms:
            assert len({receptacle.id for receptacle in room.receptacles}) == len(room.receptacles)
        for task_type in TASK_TYPES:
            goal, room = Goals(rooms).draw(task_type, random.Random(0))
            assert goal.task_type == task_type
            assert room in rooms
    assert furnished(7) is furnished(7)


def test_task_types_come_in_the_mix_of_the_train_split(directory: Path) -> None:
    for split in Split:
        games = GameIndex.open(directory).select(split)
        mix = Counter(game.task_type for game in games)
        for task_type, by_kind in learned().goals.items():
            share = sum(sum(pairs.values()) for pairs in by_kind.values()) / learned().games
            assert abs(mix[task_type] - COUNT * share) < 1
        assert sum(mix.values()) == COUNT


def test_games_are_what_their_names_say(directory: Path) -> None:
    index = GameIndex.open(directory)
    assert index.data_version == "json_2.1.1/move"
    for game in index.games.values():
        trajectory = json.loads(index.path(game).with_name("traj_data.json").read_bytes())
        asked, room = trajectory["pddl_params"], trajectory["scene"]["scene_num"]
        target = asked["parent_target"] or asked["toggle_target"]
        task = f"{trajectory['task_type']}-{asked['object_target']}-None-{target}-{room}"
        _, of_task, trial = game.id.split("/")
        assert (of_task, trial) == (task, trajectory["task_id"])
        assert asked["object_target"].lower() in game.task
        compiled = CompiledGame.parse(index.path(game))
        assert compiled.goal.task_type == game.task_type
        assert compiled.task == game.task


def test_things_are_named_and_placed_as_in_alfworld(directory: Path) -> None:
    for path in directory.rglob("game.tw-pddl"):
        initial = read_initial(json.loads(path.read_bytes())["pddl_problem"])
        for name in [*initial.objects, *initial.receptacles]:
            assert NAME.fullmatch(name) or BATHTUB.fullmatch(name) or "_bar_00_dot_00" in name
        assert set(initial.objects.values()) <= constants.NON_RECEPTACLES_SET
        assert initial.places.keys() == initial.receptacles.keys()
        assert all(place.startswith("loc_bar_") for place in initial.places.values())
        holders = Counter(thing for thing, _ in initial.contents)
        assert set(holders.values()) == {1}


def test_everyone_who_knows_where_things_are_wins(directory: Path) -> None:
    for path in directory.rglob("game.tw-pddl"):
        game = CompiledGame.parse(path)
        state = game.reset()
        assert not state.won
        for _ in range(STEPS):
            command = next_command(state)
            if command is None:
                break
            state.step(command)
        assert state.won
        state = game.reset()
        for command in json.loads(path.read_bytes())["walkthrough"]:
            assert not state.won
            state.step(command)
        assert state.won


def test_rank_correlation() -> None:
    assert spearman([1, 2, 3], [10, 20, 40]) == pytest.approx(1)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    # The example with ties of Spearman's coefficient as Pearson's of mean ranks, by hand.
    assert spearman([1, 1, 2, 3], [1, 2, 2, 3]) == pytest.approx(0.8333, abs=1e-4)
    assert spearman([1, 1], [1, 2]) == 0


def test_agreement_is_by_type_of_object() -> None:
    real = Counter(
        {("Mug", "Desk"): 30, ("Mug", "Shelf"): 20, ("Mug", "Bed"): 5, ("Pen", "Bed"): 9}
    )
    turned = Counter({("Mug", "Desk"): 5, ("Mug", "Shelf"): 20, ("Mug", "Bed"): 30})
    assert agreement(real, real).by_type_lowest == pytest.approx(1)
    compared = agreement(real, turned)
    assert (compared.pairs, compared.types, compared.types_below_0_6) == (4, 1, ["Mug"])
