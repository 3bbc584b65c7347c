"""The TextWorld pool: the package's own characters, recycling, both grammars, both experts."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentprm.environment import Frame
from services.env.engine.base import EngineError
from services.env.engine.textworld import TextWorldEngine, TextWorldHost
from services.env.expert.advised import AdvisedExpert
from services.env.expert.base import Expert
from services.env.expert.search import SearchExpert
from services.env.games import GameIndex

pytestmark = pytest.mark.games

GAME = "valid_seen/pick_and_place_simple-Book-None-Sofa-229/trial_T20190907_042856_259139"


@pytest.fixture(scope="module")
def index(alfworld_data: Path, tmp_path_factory: pytest.TempPathFactory) -> GameIndex:
    """One game, and the same in the grammar of alfworld before 0.4.0."""
    root = tmp_path_factory.mktemp("games") / "json_2.1.1"
    shutil.copytree(alfworld_data / "json_2.1.1" / GAME, root / GAME)
    older = root / "valid_unseen" / "older" / "trial"
    shutil.copytree(root / GAME, older)
    game = json.loads((older / "game.tw-pddl").read_text())
    game["grammar"] = (
        game["grammar"]
        .replace("move {o} to {r}", "put {o} in/on {r}")
        .replace("You arrive at {r.name}", "You arrive at {lend.name}")
        .replace("You move the {o.name} to the {r.name}", "You put the {o.name} in/on the {r.name}")
    )
    (older / "game.tw-pddl").write_text(json.dumps(game))
    return GameIndex.open(root)


@pytest.fixture
def make_host() -> Iterator[Callable[..., TextWorldHost]]:
    hosts: list[TextWorldHost] = []

    def make(*, recycle: int = 50, handcoded: bool = False) -> TextWorldHost:
        hosts.append(TextWorldHost(1, recycle=recycle, handcoded=handcoded))
        return hosts[-1]

    yield make
    for host in hosts:
        host.close()


def play(engine: TextWorldEngine, expert: Expert, game: str, turns: int) -> list[Frame]:
    frames = [engine.reset(game)]
    expert.observe(None, frames[0])
    while len(frames) <= turns and not frames[-1].done:
        command = expert.act().command
        frames.append(engine.step(command))
        expert.observe(command, frames[-1])
    return frames


def search(index: GameIndex, game_id: str) -> SearchExpert:
    return SearchExpert(index.games[game_id].task, index.placement, seed=0)


def test_frames_are_the_package_s_own(
    index: GameIndex, make_host: Callable[..., TextWorldHost]
) -> None:
    textworld = pytest.importorskip("textworld")
    from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
    from textworld.envs.pddl import PddlEnv

    infos = textworld.EnvInfos(feedback=True, admissible_commands=True, won=True)
    package = AlfredDemangler(PddlEnv(infos), shuffle=False)
    package.load(index.source(index.games[GAME]))
    state = package.reset()
    engine = make_host().engine()
    frame = engine.reset(index.source(index.games[GAME]))
    for command in ["go to sofa 1", "look", "no such thing", "inventory", " go to drawer 1 "]:
        assert frame.observation == state.feedback
        assert list(frame.admissible) == state.admissible_commands
        frame = engine.step(command)
        state, _, _ = package.step(command)
    assert frame.observation == state.feedback
    hidden = engine.hidden_state()
    assert hidden.agent == ["drawer 1"]
    assert hidden.holding is None
    assert any(thing.startswith("book ") for thing in hidden.objects)


def test_processes_are_replaced_after_some_resets(
    index: GameIndex, make_host: Callable[..., TextWorldHost]
) -> None:
    host = make_host(recycle=2)
    pids = []
    for _ in range(3):
        engine = host.engine()
        engine.reset(index.source(index.games[GAME]))
        pids.append(engine.pid)
        engine.close()
    assert pids[0] == pids[1] != pids[2]


def test_a_dead_process_is_replaced_and_a_broken_game_reported(
    index: GameIndex, make_host: Callable[..., TextWorldHost], tmp_path: Path
) -> None:
    engine = make_host().engine()
    frames = play(engine, search(index, GAME), index.source(index.games[GAME]), 1)
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)
    assert engine.step("look").observation.startswith("You are facing")
    (tmp_path / "game.tw-pddl").write_text("{}")
    with pytest.raises(EngineError, match="KeyError"):
        engine.reset(str(tmp_path / "game.tw-pddl"))
    assert engine.reset(index.source(index.games[GAME])) == frames[0]


def test_a_fork_repeats_the_game_in_a_process_of_its_own(
    index: GameIndex, make_host: Callable[..., TextWorldHost]
) -> None:
    engine = make_host().engine()
    engine.reset(index.source(index.games[GAME]))
    for command in ("go to sofa 1", "take pillow 1 from sofa 1"):
        engine.step(command)
    fork = engine.fork()
    held = engine.step("inventory")
    assert "pillow 1" in held.observation
    assert fork.step("move pillow 1 to sofa 1").observation.startswith("You move the pillow 1")
    assert fork.pid not in (None, engine.pid)
    assert engine.step("inventory") == held


def test_the_older_grammar_is_played_too(
    index: GameIndex, make_host: Callable[..., TextWorldHost]
) -> None:
    older = "valid_unseen/older/trial"
    assert index.data_version == "json_2.1.1/move+put"
    frames = play(make_host().engine(), search(index, older), index.source(index.games[older]), 30)
    assert frames[-1].won
    assert frames[1].observation.startswith("You arrive at loc ")
    assert "You put the book" in frames[-1].observation


def test_the_handcoded_expert_wins_and_repeats_itself(
    index: GameIndex, make_host: Callable[..., TextWorldHost]
) -> None:
    host = make_host(handcoded=True)
    engine = host.engine()
    game = index.source(index.games[GAME])
    frames = play(engine, AdvisedExpert(), game, 60)
    assert frames[-1].won
    assert play(engine, AdvisedExpert(), game, 60) == frames
