"""`agentprm games` as a process, and what it writes in the stock alfworld package."""

import fcntl
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from agentprm.cli import chosen_games
from services.env.alfworld import TASK_TYPES
from services.env.games.__main__ import app
from services.env.games.provide import LOCK, provide
from tests.synced import require_synced, synced

COUNT = 12


def games(*flags: str, hash_seed: str = "0") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agentprm.cli", "games", *flags],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve generated games, of all task types."""
    output = tmp_path_factory.mktemp("games")
    made = games("generate", "--count", str(COUNT), "--seed", "1", str(output), "--json")
    assert made.returncode == 0, made.stderr
    summary = json.loads(made.stdout)
    assert summary["games"] == COUNT
    assert set(summary["task_types"]) == TASK_TYPES
    return output


@pytest.fixture(scope="module")
def alfworld(directory: Path) -> Iterator[Any]:
    """The stock environment on the generated games."""
    from alfworld.agents.environment.alfred_tw_env import AlfredTWEnv

    config = {
        "env": {
            "goal_desc_human_anns_prob": 0,
            "task_types": [1, 2, 3, 4, 5, 6],
            "domain_randomization": False,
            "expert_type": "handcoded",
        },
        "dataset": {"data_path": str(directory / "json_2.1.1" / "train"), "num_train_games": -1},
        "general": {"training_method": "dqn"},
        "rl": {"training": {"max_nb_steps_per_episode": 50}},
    }
    collected = AlfredTWEnv(config, train_eval="train")
    assert collected.num_games == COUNT
    collected.game_files = list({_task_type(game): game for game in collected.game_files}.values())
    env = collected.init_env(batch_size=1)
    yield env
    env.close()


def _task_type(game: str) -> str:
    task_type: str = json.loads(Path(game).with_name("traj_data.json").read_bytes())["task_type"]
    return task_type


def test_the_stock_package_plays_every_task_type_to_the_end(alfworld: Any) -> None:
    played = set()
    for _ in TASK_TYPES:
        _, infos = alfworld.reset()
        game = infos["extra.gamefile"][0]
        for command in json.loads(Path(game).read_bytes())["walkthrough"]:
            assert command in infos["admissible_commands"][0]
            assert not infos["won"][0]
            _, _, _, infos = alfworld.step([command])
        assert infos["won"][0]
        played.add(_task_type(game))
    assert played == TASK_TYPES


def test_generating_again_in_another_process_writes_the_same(
    directory: Path, tmp_path: Path
) -> None:
    flags = ("--count", str(COUNT), "--seed", "1")
    assert games("generate", *flags, str(tmp_path), hash_seed="77").returncode == 0
    written = sorted(path for path in tmp_path.rglob("*.*") if path.is_file())
    assert len(written) == 2 * COUNT
    for path in written:
        assert path.read_bytes() == (directory / path.relative_to(tmp_path)).read_bytes()


def test_list_filters(directory: Path) -> None:
    listed = games(
        "list", "--games", str(directory), "--task-type", "look_at_obj_in_light", "--json"
    )
    found = json.loads(listed.stdout)
    assert found
    assert {game["task_type"] for game in found} == {"look_at_obj_in_light"}
    everything = games("list", "--games", str(directory))
    assert len(everything.stdout.splitlines()) == COUNT


def test_check_compares_the_engines(directory: Path) -> None:
    flags = ("--episodes", "1", "--steps", "10", "--seed", "2", "--json")
    checked = games("check", "--games", str(directory), "--split", "train", *flags)
    report = json.loads(checked.stdout)
    assert checked.returncode == 0
    assert (report["games"], report["steps"], report["mismatches"]) == (1, 10, 0)
    assert report["reset_speedup"] > 0


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["list", "--games", "{tmp}"], "`agentprm games generate`"),
        (["list", "--games", "{games}", "--split", "valid_seen"], "no games of valid_seen"),
        (["list", "--games", "{games}", "--task-type", "dance"], "look_at_obj_in_light"),
        (["generate", "--count", "1", "{games}/file/x"], "give another directory"),
        (["check", "--games", "{tmp}/nowhere"], "no directory"),
        (["check", "--games", "{games}", "--split", "valid_unseen"], "agentprm games generate"),
    ],
)
def test_mistakes_are_told_in_one_line(
    flags: list[str], told: str, directory: Path, tmp_path: Path
) -> None:
    (directory / "file").touch()
    given = [flag.format(tmp=tmp_path, games=directory) for flag in flags]
    ended = CliRunner().invoke(app, given)
    assert (ended.exit_code, ended.exception.__class__) == (2, SystemExit)
    require_error(ended.stdout, ended.stderr, told)


def test_a_mistake_ends_the_command_with_its_line(tmp_path: Path) -> None:
    done = games("list", "--games", str(tmp_path / "nowhere"))
    assert done.returncode == 2
    require_error(done.stdout, done.stderr, "there is no directory")
    assert "Traceback" not in done.stderr


def require_error(stdout: str, stderr: str, told: str) -> None:
    last = stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert told in last
    assert stdout == ""


def test_help_tells_the_options() -> None:
    assert all(command in games("--help").stdout for command in ("list", "generate", "check"))
    told = games("generate", "--help").stdout
    assert all(option in told for option in ("--split", "--count", "--seed", "--json", "OUT"))


def test_a_run_without_games_gets_generated_ones_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)  # alfworld sets it when it is imported
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(chosen_games, "FRACTION", 0.002)
    console = Console(stderr=True, soft_wrap=True)
    made = Path(chosen_games.games_to_play(None, console))
    assert made.is_relative_to(tmp_path / "cache" / "agentprm" / "generated")
    splits = [path.relative_to(made).parts[1] for path in made.rglob("game.tw-pddl")]
    assert Counter(splits) == {"train": 6, "valid_seen": 1, "valid_unseen": 1}
    assert "alfworld-download" in capfd.readouterr().err
    assert list(made.parent.iterdir()) == [made]

    before = made.stat().st_mtime_ns
    assert chosen_games.games_to_play(None, console) == str(made)
    assert made.stat().st_mtime_ns == before
    assert chosen_games.games_to_play("given", console) == "given"

    downloaded = tmp_path / ".cache" / "alfworld"
    (downloaded / "json_2.1.1").mkdir(parents=True)
    assert chosen_games.games_to_play(None, console) == str(downloaded)


def test_a_run_goes_on_with_its_games(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    console = Console(stderr=True, soft_wrap=True)
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path / "elsewhere"))
    one, other, slip = (str(tmp_path / name) for name in ("one", "other", "slip"))
    assert chosen_games.games_of_run(tmp_path / "run", slip, console) == slip
    assert chosen_games.games_of_run(tmp_path / "run", one, console) == one
    (tmp_path / "run" / "records").mkdir()
    assert chosen_games.games_of_run(tmp_path / "run", None, console) == one
    assert capfd.readouterr().err == ""
    assert chosen_games.games_of_run(tmp_path / "run", other, console) == other
    assert capfd.readouterr().err.splitlines() == [
        f"{tmp_path / 'run'} has played the games of {one}: it goes on with those of {other}"
    ]
    assert chosen_games.games_of_run(tmp_path / "run", None, console) == other
    own = "examples.sorting:Sorting"
    with pytest.raises(chosen_games.GamesError, match=r"make a new run, by --run"):
        chosen_games.games_of_run(tmp_path / "run", own, console)
    assert chosen_games.games_of_run(tmp_path / "run", None, console) == other
    assert chosen_games.games_of_run(tmp_path / "own", own, console) == own
    (tmp_path / "own" / "records").mkdir()
    assert chosen_games.games_of_run(tmp_path / "own", None, console) == own


def test_games_that_are_there_stay_alone_and_a_draft_that_was_killed_is_no_game(
    tmp_path: Path,
) -> None:
    (tmp_path / ".draft-killed" / "json_2.1.1" / "train").mkdir(parents=True)
    with synced() as paths:
        provide(tmp_path, 0.001)
    require_synced(paths, ".draft-", tmp_path / "json_2.1.1")
    assert not list(tmp_path.glob(".draft-*"))
    found = sorted(tmp_path.glob("json_2.1.1/*/*/*/game.tw-pddl"))
    assert len(found) == 5
    times = [path.stat().st_mtime_ns for path in found]
    provide(tmp_path, 0.5)
    assert [path.stat().st_mtime_ns for path in found] == times


def test_who_asks_for_games_while_they_are_made_waits_for_them(tmp_path: Path) -> None:
    draft = tmp_path / ".draft-being-written"
    (draft / "json_2.1.1" / "train").mkdir(parents=True)
    other = threading.Thread(target=provide, args=(tmp_path, 0.001), daemon=True)
    with (tmp_path / LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        other.start()
        other.join(0.5)
        assert other.is_alive()
        (draft / "json_2.1.1").rename(tmp_path / "json_2.1.1")
    other.join(30)
    assert not other.is_alive()
    assert sorted(path.name for path in tmp_path.iterdir()) == [draft.name, LOCK, "json_2.1.1"]


def test_no_room_for_generated_games_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)  # alfworld sets it when it is imported
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(chosen_games.GamesError, match="no games could be generated"):
        chosen_games.games_to_play(None, Console(stderr=True))
    assert "cannot write games" in capfd.readouterr().err
