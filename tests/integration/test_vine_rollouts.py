"""Vine rollouts from the trainer through Redis and a worker to real services, and into a fit."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest
from rich.console import Console

from agentprm.client import EnvClient, PolicyClient, PRMClient
from agentprm.config import Config
from agentprm.facts import METADATA
from agentprm.prompts import load_prompt
from agentprm.protocol import Action, Episode, RolloutJob, Split, Start
from agentprm.queue import Queue
from agentprm.redis_server import RedisServer
from services.rollout.player import Player
from services.trainer.loop import Loop
from services.trainer.metrics import MetricsWriter
from services.trainer.progress import Progress
from services.trainer.rollouts.collect import Services
from services.trainer.rollouts.fleet import Fleet
from services.trainer.rollouts.records import Records
from services.trainer.rollouts.vine import sample_places, vine_jobs
from services.trainer.seeds import derive
from services.trainer.targets.monte_carlo import keys, monte_carlo_targets
from tests.env_server import KITCHEN, EnvServer, write_kitchen
from tests.fake_services import EAST, Rooms, Walker, serving
from tests.unit.trainer_episodes import create_small
from tests.workers import working

CONFIG = Config.model_validate(
    {
        "preset": "vine",
        "batch": 8,
        "max_steps": 6,
        "demonstrations": {"games": 1},
        "rollouts": {"games": 4, "per_game": 2, "vine": {"states": 3, "continuations": 3}},
        "preferences": {"pairs": 1},
        "prm": {"epochs": 1, "batch_tokens": 2000, "validation_fraction": 0.25},
    }
)


@dataclass
class Training:
    """The stages of a run, and the jobs that its worker played."""

    run: Path
    services: Services
    metrics: MetricsWriter
    played: list[RolloutJob]

    def loop(self, records: str = "records") -> Loop:
        """The loop as a trainer that starts now has it."""
        return Loop(
            self.run,
            CONFIG,
            self.services,
            Records(self.run / records),
            load_prompt("chat"),
            self.metrics,
            Progress(Console(quiet=True)),
        )


@pytest.fixture
def training(tmp_path: Path) -> Iterator[Training]:
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer(tmp_path / "redis"))
        env = stack.enter_context(serving(Rooms().app()))
        policy = stack.enter_context(serving(Walker().app()))
        services = Services(
            stack.enter_context(EnvClient(env)),
            Fleet([stack.enter_context(PolicyClient(policy))]),
            Fleet([stack.enter_context(PRMClient(policy))]),
            stack.enter_context(Queue(redis.url, "run")),
        )
        played = stack.enter_context(working(redis.url, Player(env, policy)))
        metrics = stack.enter_context(MetricsWriter(tmp_path))
        yield Training(tmp_path, services, metrics, played)


def discounted(episode: Episode) -> float:
    """The return from the branch, for a reward in the last turn."""
    return episode.outcome * CONFIG.gamma ** (len(episode.turns) - 1 - episode.start)


def test_a_split_is_read_to_its_end(training: Training) -> None:
    """Of four games the environment gives three at a time."""
    collector = training.loop().collector
    games = collector.games(Split.TRAIN, 9, "rollouts", repeat=False)
    assert sorted(game.id for game in games) == [f"train/{letter}/1" for letter in "abcd"]


def test_branches_are_played_become_targets_and_are_fitted(training: Training) -> None:
    loop = training.loop()
    loop.roll_out(0)
    loop.roll_out_vine(0)
    jobs = [job for job in training.played if job.starts is not None]
    assert [job.id for job in jobs] == [f"pi_0-vine-000{k}" for k in range(3)]
    rollouts = loop.records.episodes("pi_0-rollouts")
    vine = loop.records.episodes("pi_0-vine")
    assert all(episode.start == 0 for episode in rollouts)
    assert len(vine) == 3 * 2 * 3

    starts = [start for job in jobs for start in job.starts or []]
    for episode, start in zip(vine, starts, strict=True):
        assert episode.start == len(start.turns)
        assert episode.turns[episode.start].action == start.action
        assert 0 < len(episode.turns) <= CONFIG.max_steps
        room = 0
        for turn in episode.turns:  # from the game's beginning, as one history
            assert turn.observation == f"You are in room {room}."
            room = room + 1 if turn.action.command == EAST else max(0, room - 1)

    everything = [*rollouts, *vine]
    targets = monte_carlo_targets(everything, CONFIG.gamma)
    names = [[pair for _, pair in keys(episode)] for episode in everything]
    for i, branch in enumerate(everything):
        if branch in rollouts:
            continue
        t = branch.start
        through = [
            discounted(other.model_copy(update={"start": t}))
            for other, pairs in zip(everything, names, strict=True)
            if other.start <= t < len(pairs) and pairs[t] == names[i][t]
        ]
        assert len(through) >= 3
        assert targets[i][t] == pytest.approx(sum(through) / len(through))
        assert all(math.isnan(value) for value in targets[i][:t])
        assert not any(math.isnan(value) for value in targets[i][t:])

    with loop.registry.write("policy/0") as out:
        shutil.copytree(create_small(training.run), out, dirs_exist_ok=True)
    loop.fit_prm(0)
    facts = orjson.loads((loop.registry.open("prm/0") / METADATA).read_bytes())
    metrics = facts["metrics"]
    assert metrics["training_rows"] + metrics["validation_rows"] == len(everything)
    assert math.isfinite(metrics["loss"])
    assert math.isfinite(metrics["val_bce"])


def test_a_trainer_that_starts_again_asks_for_what_is_missing(training: Training) -> None:
    loop = training.loop()
    loop.roll_out(0)
    loop.roll_out_vine(0)
    asked = list(training.played)
    again = training.loop()
    again.roll_out(0)
    again.roll_out_vine(0)
    assert training.played == asked, "what is recorded is not played again"

    partly = training.loop("partly")  # killed when one of the jobs was recorded
    first, *_ = loop.records.results("pi_0-vine")
    partly.records.append(first)
    vine = CONFIG.rollouts.vine
    assert vine is not None
    rollouts = loop.records.episodes("pi_0-rollouts")
    places = sample_places(rollouts, vine.states, derive(CONFIG.seed, "pi_0-vine"))
    sampling = CONFIG.rollouts.sampling
    missing = vine_jobs(partly.collector, "pi_0-vine", places, vine, "policy/0", sampling)
    assert missing == [job for job in asked if job.starts and job.id != first.job_id]


def test_a_worker_reaches_any_state_of_a_real_game(tmp_path: Path) -> None:
    """The expert plays a game; again from its third turn; and from there after another command."""
    write_kitchen(tmp_path)
    server = EnvServer(
        "--data", str(tmp_path), "--index", str(tmp_path / "index"), "--privileged", "true"
    )
    try:
        player = Player(server.url, policy_url=server.url)

        def play(*starts: Start, max_steps: int = 30) -> list[Episode]:
            games = [KITCHEN] * len(starts)
            job = RolloutJob(id="job", games=games, starts=list(starts), seed=0, actor="expert")
            return player.play(job.model_copy(update={"max_steps": max_steps})).episodes

        [whole] = play(Start())
        turns = whole.turns[:2]
        look = Start(turns=turns, action=Action(command="look"))
        plain, other = play(Start(turns=turns), look)
        [short] = play(look, max_steps=4)
        [won] = play(Start(turns=whole.turns[:-1], action=whole.turns[-1].action))
    finally:
        server.stop()
    assert (whole.start, whole.won) == (0, True)
    assert (plain.start, plain.turns) == (2, whole.turns)
    assert (other.start, other.won, other.turns[:2]) == (2, True, turns)
    assert other.turns[2].action.command == "look"
    assert other.turns[2].observation == whole.turns[2].observation
    assert (len(short.turns), short.won) == (4, False), "turns count from the game's beginning"
    assert (won.turns[-1].reward, won.final_observation) == (1, whole.final_observation)
