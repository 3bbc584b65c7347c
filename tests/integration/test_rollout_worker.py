"""Rollout workers against real HTTP services and a real Redis, worker processes included."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from agentprm.cli.ports import free_port
from agentprm.protocol import (
    Action,
    Decoding,
    Episode,
    PreferenceJob,
    RolloutJob,
    Sampling,
    State,
    Step,
)
from agentprm.queue import CurrentRun, Queue, QueueSettings
from agentprm.redis_server import RedisServer
from services.rollout.game import PlayError
from services.rollout.player import Player
from tests.fake_services import EAST, WEST, Rooms, Walker, serving

GAMES = ["train/a/1", "train/b/1", "train/a/1"]


@dataclass
class World:
    rooms: Rooms
    walker: Walker
    env_url: str
    policy_url: str

    def player(self, patience: float = 10.0) -> Player:
        return Player(self.env_url, self.policy_url, patience=patience)


@pytest.fixture
def world() -> Iterator[World]:
    rooms, walker = Rooms(), Walker()
    with serving(rooms.app()) as env_url, serving(walker.app()) as policy_url:
        yield World(rooms, walker, env_url, policy_url)


def rollout(**fields: object) -> RolloutJob:
    given = {"id": "r/0", "games": GAMES, "seed": 5, "policy_version": "policy/0"} | fields
    return RolloutJob.model_validate(given)


def played(world: World, job: RolloutJob) -> list[Episode]:
    """The episodes of a job, one a game."""
    episodes = world.player().play(job).episodes
    assert len(episodes) == job.size
    return episodes


def commands(episode: Episode) -> list[str]:
    return [turn.action.command for turn in episode.turns]


def test_episodes_tell_what_happened_and_where_they_come_from(world: World) -> None:
    job = rollout(sampling=Sampling(decoding=Decoding.ADMISSIBLE, temperature=0.7))
    episodes = played(world, job)
    assert [episode.id for episode in episodes] == ["r/0/0", "r/0/1", "r/0/2"]
    assert [episode.seed for episode in episodes] == [5, 6, 7]
    assert [episode.game.id for episode in episodes] == GAMES
    for episode in episodes:
        room = 0
        for turn in episode.turns:
            assert turn.observation == f"You are in room {room}."
            assert (turn.admissible, turn.log_prob) == ((EAST, WEST), -0.5)
            assert (turn.policy_version, turn.prm_version, turn.q) == ("policy/0", None, None)
            room = room + 1 if turn.action.command == EAST else max(0, room - 1)
        assert episode.final_observation == f"You are in room {room}."
        assert (episode.won, episode.outcome) == (True, 1.0)
        provenance = episode.provenance
        assert (provenance.engine, provenance.data_version) == ("rooms 3", "none")
        assert (provenance.template_hash, provenance.sampling) == ("00000000", job.sampling)
    assert world.rooms.steps == max(len(episode.turns) for episode in episodes)
    assert not world.rooms.sessions, "sessions are given back"
    assert played(world, job) == episodes, "a repeated job repeats its episodes"
    assert played(world, rollout(seed=6)) != episodes


def test_the_step_limit_ends_an_episode(world: World) -> None:
    for episode in played(world, rollout(max_steps=1)):
        assert (len(episode.turns), episode.won, episode.outcome) == (1, False, 0.0)


def test_a_game_too_long_for_the_model_is_lost_and_no_other(world: World) -> None:
    """Games that go west have a longer way; those that go straight are won in two turns."""
    plain = played(world, rollout(games=GAMES * 3))
    world.walker.longest = 1
    episodes = played(world, rollout(games=GAMES * 3))
    assert {commands(e)[:2] == [EAST, EAST] for e in plain} == {True, False}
    for before, episode in zip(plain, episodes, strict=True):
        assert commands(episode) == commands(before)[:2]
        straight = commands(before) == [EAST, EAST]
        assert (episode.won, episode.outcome) == (straight, float(straight))
    assert not world.rooms.sessions


def test_best_of_n_takes_the_prms_choice(world: World) -> None:
    job = rollout(best_of=16, beta=0.1, prm_version="prm/0")
    for episode in played(world, job):
        assert commands(episode) == [EAST, EAST]
        assert {(turn.q, turn.prm_version) for turn in episode.turns} == {(0.9, "prm/0")}
        assert (episode.provenance.best_of, episode.provenance.beta) == (16, 0.1)
        assert world.walker.beta == 0.1
        for turn in episode.turns:
            assert sum(candidate.count for candidate in turn.considered) == 16
            assert {c.action.command: c.q for c in turn.considered} == {EAST: 0.9, WEST: 0.1}


def test_the_expert_plays_without_a_policy(world: World) -> None:
    player = Player(world.env_url, "")
    for episode in player.play(rollout(actor="expert")).episodes:
        assert commands(episode) == [EAST, EAST]
        assert episode.turns[0].action.reason == "east it is"
        assert {turn.policy_version for turn in episode.turns} == {"expert"}
        assert episode.provenance.sampling is None
    with pytest.raises(PlayError, match="an empty --policy-url"):
        player.play(rollout())
    assert not world.rooms.sessions


def test_preferences_set_best_against_worst_and_count_what_is_dropped(world: World) -> None:
    both = State(task="t", observation="room", admissible=(EAST, WEST))
    alike = State(task="t", observation="room", admissible=(EAST,))
    fog = State(task="t", observation="fog", admissible=(EAST, WEST))
    job = PreferenceJob(
        id="p/0", attempt="1", states=[alike, both, fog], seed=1, n=16, prm_version="prm/0"
    )
    played = world.player().play(job)
    [preference] = played.preferences
    assert (preference.id, preference.attempt, preference.state) == ("p/0/1", "1", both)
    assert (preference.chosen.command, preference.rejected.command) == (EAST, WEST)
    assert (preference.chosen_q, preference.rejected_q) == (0.9, 0.1)
    assert (preference.policy_version, preference.prm_version) == ("policy/0", "prm/0")
    assert played.dropped == 2


def test_a_group_has_every_candidate_with_its_count_and_q(world: World) -> None:
    both = State(task="t", observation="room", admissible=(EAST, WEST))
    alike = State(task="t", observation="room", admissible=(EAST,))
    fog = State(task="t", observation="fog", admissible=(EAST, WEST))
    job = PreferenceJob(
        id="p/0",
        attempt="1",
        states=[alike, both, fog],
        seed=1,
        n=16,
        policy_version="policy/0",
        prm_version="prm/0",
        groups=True,
    )
    played = world.player().play(job)
    assert (played.preferences, played.dropped) == ([], 0)
    one, two, three = played.groups
    assert [(c.action.command, c.count, c.q) for c in one.candidates] == [(EAST, 16, 0.9)]
    assert {c.action.command: c.q for c in two.candidates} == {EAST: 0.9, WEST: 0.1}
    assert sum(c.count for c in two.candidates) == 16
    assert two.best.action.command == EAST
    assert (one.gap, three.gap) == (0, 0)
    assert (two.id, two.attempt, two.state) == ("p/0/1", "1", both)
    assert (two.policy_version, two.prm_version) == ("policy/0", "prm/0")
    [preference] = world.player().play(job.model_copy(update={"groups": False})).preferences
    assert (preference.chosen, preference.chosen_q) == (two.best.action, two.best.q)
    with pytest.raises(PlayError, match="serves policy/0, not policy/1"):
        world.player(patience=0.1).play(job.model_copy(update={"policy_version": "policy/1"}))


@pytest.mark.parametrize("grouped", [False, True])
def test_a_state_too_long_for_a_model_is_dropped_and_no_other(world: World, grouped: bool) -> None:
    world.walker.longest = 0
    both = State(task="t", observation="room", admissible=(EAST, WEST))
    before = Step(observation="room", action=Action(command=WEST))
    long = both.model_copy(update={"history": (before,)})
    job = PreferenceJob(
        id="p/0",
        attempt="1",
        states=[both, long, both, both],
        seed=1,
        n=16,
        prm_version="prm/0",
        groups=grouped,
    )
    played = world.player().play(job)
    found = played.groups if grouped else played.preferences
    assert [each.id for each in found] == ["p/0/0", "p/0/2", "p/0/3"]
    assert {each.state for each in found} == {both}
    assert {(each.policy_version, each.prm_version) for each in found} == {("policy/0", "prm/0")}
    assert played.dropped == 1
    all_long = world.player().play(job.model_copy(update={"states": [long]}))
    assert (all_long.groups, all_long.preferences, all_long.dropped) == ([], [], 1)


def test_a_tie_gives_the_first_sample_as_both(world: World) -> None:
    both = State(task="t", observation="room", admissible=(EAST, WEST))
    alike = State(task="t", observation="room", admissible=(EAST,))
    job = PreferenceJob(
        id="p/0",
        attempt="1",
        states=[alike, both],
        seed=1,
        n=16,
        prm_version="prm/0",
        ties=True,
        margin=0.79,
    )
    tie, pair = world.player().play(job).preferences
    assert tie.chosen == tie.rejected
    assert (pair.chosen.command, pair.rejected.command) == (EAST, WEST)
    wider = job.model_copy(update={"states": [both], "margin": 0.81})
    (tie,) = world.player().play(wider).preferences
    assert tie.chosen == tie.rejected
    assert tie.chosen_q == tie.rejected_q


def test_another_version_than_the_jobs_is_refused(world: World) -> None:
    with pytest.raises(PlayError, match="policy is healthy and serves policy/0, not policy/1"):
        world.player(patience=0.1).play(rollout(policy_version="policy/1"))
    with pytest.raises(PlayError, match="prm answered with prm/0, not prm/1"):
        world.player().play(rollout(best_of=2, prm_version="prm/1"))
    assert not world.rooms.sessions


def test_a_policy_that_loads_is_waited_for(world: World) -> None:
    world.walker.loading = True
    timer = threading.Timer(0.5, setattr, (world.walker, "loading", False))
    timer.start()
    assert len(played(world, rollout())) == 3
    timer.join()


@pytest.mark.parametrize(
    "job",
    [
        rollout(best_of=2, prm_version="prm/1"),
        PreferenceJob(
            id="p/0",
            attempt="1",
            states=[State(task="t", observation="room", admissible=(EAST, WEST))],
            seed=1,
            n=16,
            prm_version="prm/1",
        ),
    ],
)
def test_a_prm_that_serves_another_version_is_waited_for(
    world: World, job: RolloutJob | PreferenceJob
) -> None:
    """Unless the job is of the policy alone."""
    prm = Walker(version="prm/0")
    with serving(prm.app()) as prm_url:
        player = Player(world.env_url, world.policy_url, prm_url, patience=0.1)
        assert len(player.play(rollout()).episodes) == 3
        world.walker.prm_version = "prm/1"  # were the policy asked, its answer would be taken
        with pytest.raises(PlayError, match="prm is healthy and serves prm/0, not prm/1"):
            player.play(job)
        prm.version = "prm/1"
        played = player.play(job)
    assert played.episodes or played.preferences


def test_runs_that_share_an_environment_leave_each_others_games_alone(world: World) -> None:
    """Both have a job `r/0`; played again in one run, it closes its own sessions alone."""
    for run in ("one", "another", "one"):
        world.player().play(rollout(), run)
    assert len(world.rooms.keys) == 2


def test_a_refused_step_fails_the_job_and_gives_the_sessions_back(world: World) -> None:
    world.rooms.broken = {"train/b/1"}
    with pytest.raises(PlayError, match="train/b/1: No such turn"):
        world.player().play(rollout())
    assert not world.rooms.sessions


# --- worker processes ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@contextlib.contextmanager
def worker(
    server: RedisServer, world: World, run: str, name: str, claim_after: float, *flags: str
) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "services.rollout", "--redis-url", server.url, "--run", run]
    command += ["--env-url", world.env_url, "--policy-url", world.policy_url]
    command += ["--name", name, "--claim-after", str(claim_after), *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=20)


def test_a_job_is_followed_by_its_id_and_counted(redis_server: RedisServer, world: World) -> None:
    port = free_port()
    with (
        Queue(redis_server.url, "followed") as queue,
        worker(redis_server, world, "followed", "w", 9.0, "--metrics-port", str(port)) as process,
    ):
        queue.publish(rollout(id="rollout-2-0007"))
        assert queue.results("episodes", count=1, timeout=60)
        done, metrics = 'agentprm_rollout_jobs_total{result="done"} 1.0', ""
        deadline = time.monotonic() + 30
        while done not in metrics and time.monotonic() < deadline:
            metrics = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        assert done in metrics
        assert "agentprm_rollout_episodes_total 3.0" in metrics
        process.terminate()
        assert process.stderr is not None
        lines = [json.loads(line) for line in process.stderr]
    assert world.rooms.request_ids == {"rollout-2-0007"}
    (line,) = [line for line in lines if line["event"] == "job done"]
    assert line["request_id"] == line["job"] == "rollout-2-0007"


def test_a_worker_leaves_a_run_whose_results_nobody_takes_for_the_next(
    redis_server: RedisServer, world: World
) -> None:
    """It waits for room in the first run, whose trainer is gone, when the second is announced."""
    command = [sys.executable, "-m", "services.rollout", "--redis-url", redis_server.url]
    command += ["--env-url", world.env_url, "--policy-url", world.policy_url]
    command += ["--max-episodes", "1"]
    with (
        Queue(redis_server.url, "left") as left,
        Queue(redis_server.url, "next") as following,
        contextlib.closing(CurrentRun(redis_server.url)) as current,
    ):
        current.announce("left")
        for name in ("a", "b"):
            left.publish(rollout(id=name))
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            assert process.stderr is not None
            assert any("stream full" in line for line in process.stderr)
            current.announce("next")
            following.publish(rollout(id="c"))
            (played,) = following.results("episodes", count=1, timeout=30)
            assert played.record.job_id == "c"
            assert left.lengths() == {"jobs": 1, "episodes": 1, "preferences": 0, "dead": 0}
        finally:
            process.kill()
            process.communicate(timeout=20)


def test_a_killed_workers_job_is_played_by_another_and_counts_once(
    redis_server: RedisServer, world: World
) -> None:
    settings = QueueSettings(claim_after=1.0)
    world.rooms.step_seconds = 60.0
    with Queue(redis_server.url, "killed", settings=settings) as queue:
        queue.publish(rollout())
        with worker(redis_server, world, "killed", "first", 1.0) as first:
            assert world.rooms.stepping.wait(timeout=30)
            first.kill()
        world.rooms.step_seconds = 0.0
        with worker(redis_server, world, "killed", "second", 1.0):
            [entry] = queue.results("episodes", count=8, timeout=30)
        assert entry.record.worker.startswith("second-")
        assert [episode.id for episode in entry.record.episodes] == ["r/0/0", "r/0/1", "r/0/2"]
        assert queue.lengths() == {"jobs": 0, "episodes": 1, "preferences": 0, "dead": 0}
    assert not world.rooms.sessions, "those of the killed worker are closed, too"


def test_a_worker_told_to_end_gives_its_job_back_at_once(
    redis_server: RedisServer, world: World
) -> None:
    settings = QueueSettings(claim_after=600.0)
    world.rooms.step_seconds = 30.0
    with Queue(redis_server.url, "told", settings=settings) as queue:
        queue.publish(rollout())
        with worker(redis_server, world, "told", "first", 600.0) as process:
            assert world.rooms.stepping.wait(timeout=30)
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=20) == 0
        entry = queue.take(timeout=10)
        assert entry is not None
        assert (entry.record.id, entry.deliveries) == ("r/0", 1)
        assert queue.lengths()["episodes"] == 0


def test_a_worker_outlasts_a_redis_that_is_killed(tmp_path: Path, world: World) -> None:
    world.rooms.step_seconds = 0.5
    with RedisServer(tmp_path) as server, Queue(server.url, "gone") as queue:
        queue.publish(rollout())
        with worker(server, world, "gone", "w", 15.0):
            assert world.rooms.stepping.wait(timeout=30)
            assert server.pid is not None
            os.kill(server.pid, signal.SIGKILL)
            deadline = time.monotonic() + 60
            while world.rooms.sessions and time.monotonic() < deadline:
                time.sleep(0.05)
            assert not world.rooms.sessions, "the job is played while Redis is away"
            server.start()
            [entry] = queue.results("episodes", count=8, timeout=30)
        assert entry.record.job_id == "r/0"
        assert queue.lengths() == {"jobs": 0, "episodes": 1, "preferences": 0, "dead": 0}


def test_a_job_that_cannot_be_played_ends_in_the_dead_letters(
    redis_server: RedisServer, world: World
) -> None:
    settings = QueueSettings(claim_after=0.3)
    world.rooms.broken = {"train/b/1"}
    with Queue(redis_server.url, "broken", settings=settings) as queue:
        queue.publish(rollout(id="bad"))
        queue.publish(rollout(id="good", games=["train/a/1"]))
        with worker(redis_server, world, "broken", "w", 0.3):
            [entry] = queue.results("episodes", count=8, timeout=30)
            assert entry.record.job_id == "good"
            deadline = time.monotonic() + 60
            while not (dead := queue.dead()) and time.monotonic() < deadline:
                time.sleep(0.1)
        assert [(letter.job_id, letter.reason) for letter in dead] == [
            ("bad", "train/b/1: No such turn.")
        ]


def test_bad_flags_are_told_without_a_traceback() -> None:
    command = [sys.executable, "-m", "services.rollout", "--run", "r"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert answer.returncode != 0
    assert answer.stderr.splitlines() == ["env_url: Field required", "policy_url: Field required"]
