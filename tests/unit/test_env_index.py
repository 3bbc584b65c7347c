"""The game index on copies of real games."""

import json
import shutil
from pathlib import Path

import pytest

from agentprm.protocol import Split
from services.env.games import DataError, GameIndex
from services.env.games.index import CACHE_NAME

pytestmark = pytest.mark.games

TRIALS = [
    "train/look_at_obj_in_light-AlarmClock-None-DeskLamp-301/trial_T20190907_174127_043461",
    "train/pick_two_obj_and_place-Mug-None-Cabinet-318",
    "valid_seen/pick_and_place_simple-Book-None-Sofa-229/trial_T20190907_042856_259139",
]


@pytest.fixture
def data(alfworld_data: Path, tmp_path: Path) -> Path:
    """A data directory with a few games, no cache beside them."""
    for trial in TRIALS:
        copied = Path("json_2.1.1", trial)
        shutil.copytree(alfworld_data / copied, tmp_path / "data" / copied)
    return tmp_path / "data"


def test_games_splits_and_goals(data: Path) -> None:
    index = GameIndex.open(data)
    assert [g.id for g in index.select(Split.VALID_SEEN)] == [TRIALS[2]]
    lamp = index.games[TRIALS[0]]
    assert (lamp.task_type, lamp.task) == (
        "look_at_obj_in_light",
        "look at alarmclock under the desklamp.",
    )
    assert index.data_version == "json_2.1.1/move"
    assert index.path(lamp).is_file()
    assert index.placement.p("alarmclock", "desk") > index.placement.p("alarmclock", "bed")
    assert "drawer" in index.placement.openable
    assert GameIndex.open(data / "json_2.1.1").games == index.games


def test_what_alfworld_would_not_load_is_left_out(data: Path) -> None:
    root = data / "json_2.1.1" / "train"
    before = set(GameIndex.open(data).games)
    shutil.copytree(root / Path(TRIALS[0]).parts[1], root / "look_at_obj_in_light-AppleSliced-x-1")
    shutil.copytree(root / Path(TRIALS[0]).parts[1], root / "pick_and_place_with_movable_recep-y-2")
    shutil.copytree(root / Path(TRIALS[0]).parts[1], root / "look_at_obj_in_light-Broken-3")
    game = next((root / "look_at_obj_in_light-Broken-3").glob("*/game.tw-pddl"))
    game.write_text(json.dumps(json.loads(game.read_text()) | {"solvable": False}))
    shutil.copytree(root / Path(TRIALS[0]).parts[1], root / "look_at_obj_in_light-Damaged-4")
    next((root / "look_at_obj_in_light-Damaged-4").glob("*/game.tw-pddl")).write_text("{")
    shutil.copytree(root / Path(TRIALS[0]).parts[1], root / "look_at_obj_in_light-Cut-5")
    game = next((root / "look_at_obj_in_light-Cut-5").glob("*/game.tw-pddl"))
    game.write_text(json.dumps(json.loads(game.read_text()) | {"pddl_problem": "(define"}))
    assert set(GameIndex.open(data).games) == before


def test_the_cache_is_used_until_the_data_change(data: Path) -> None:
    GameIndex.open(data)
    cache = data / "json_2.1.1" / CACHE_NAME
    content = json.loads(cache.read_text())
    content["games"][0]["task"] = "read from the cache"
    cache.write_text(json.dumps(content))
    tasks = {g.task for g in GameIndex.open(data).games.values()}
    assert "read from the cache" in tasks

    game = data / "json_2.1.1" / TRIALS[2] / "game.tw-pddl"
    game.write_text(game.read_text().replace("put a book in sofa", "put some book on sofa"))
    tasks = {g.task for g in GameIndex.open(data).games.values()}
    assert "put some book on sofa." in tasks
    assert "read from the cache" not in tasks

    cache.write_text("damaged")
    assert {g.task for g in GameIndex.open(data).games.values()} == tasks


def test_read_only_data_is_cached_for_the_user(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A directory in the way of the cache file stands for read-only data: root may write anywhere.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    (data / "json_2.1.1" / CACHE_NAME).mkdir()
    index = GameIndex.open(data)
    (cached,) = (tmp_path / "home" / "agentprm").iterdir()
    written = cached.stat().st_mtime_ns
    assert GameIndex.open(data).games == index.games
    assert cached.stat().st_mtime_ns == written


def test_without_a_train_split_the_prior_is_uniform(data: Path) -> None:
    shutil.rmtree(data / "json_2.1.1" / "train")
    placement = GameIndex.open(data).placement
    assert placement.p("mug", "cabinet") == placement.p("mug", "bed") > 0


def test_missing_data_say_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="alfworld-download"):
        GameIndex.open(tmp_path / "nowhere")
    with pytest.raises(DataError, match="an environment of your own, as module:Class"):
        GameIndex.open(Path("my_module"))  # the class was forgotten
    (tmp_path / "json_2.1.1" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match="ALFWORLD_DATA"):
        GameIndex.open(tmp_path)
