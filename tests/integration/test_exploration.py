"""Exploration from the trainer through Redis and a worker to real games and a real policy.

The games are the test's kitchen, the policies a small model with random weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console
from transformers import AutoModelForCausalLM

from agentprm.client import PolicyClient, PRMClient
from agentprm.config import Config
from agentprm.encoding import Encoded, Tokenizer, encode
from agentprm.prompts import load_prompt
from agentprm.protocol import Episode, Message, PreferenceJob, RolloutJob, Turn
from agentprm.queue import Queue
from agentprm.redis_server import RedisServer
from agentprm.registry import Registry
from services.rollout.player import Played, Player
from services.trainer.fits.jobs import FitJob
from services.trainer.loop import Loop
from services.trainer.metrics import MetricsWriter
from services.trainer.progress import Progress
from services.trainer.rollouts.collect import Services
from services.trainer.rollouts.exploration import begin, rollout_jobs
from services.trainer.rollouts.fleet import Fleet
from services.trainer.rollouts.online import sample_states
from services.trainer.rollouts.records import Records
from services.trainer.targets.monte_carlo import monte_carlo_targets
from services.trainer.tiny.hindsight import hindsight
from services.trainer.training import rows
from tests.env_server import EnvServer, write_kitchen
from tests.servers import model_server
from tests.unit.trainer_episodes import create_small
from tests.workers import working

STRATEGY = "go to drawer, cabinet"
WHEREABOUTS = "pot 1 in stoveburner 2"
FIT = {"epochs": 1, "batch_tokens": 4000}
CONFIG = Config.model_validate(
    {
        "preset": "exploration",
        "batch": 8,
        "max_steps": 7,
        "demonstrations": {"games": 2},
        "rollouts": {
            "games": 2,
            "per_game": 4,
            "sampling": {"max_tokens": 8},
            "exploration": {
                "reset": {"fraction": 0.25},
                "steered": {"fraction": 0.25, "strategies": [STRATEGY]},
                "posterior": {"fraction": 0.25},
            },
        },
        "preferences": {"pairs": 1},
        "sft": FIT,
        "prm": {**FIT, "validation_fraction": 0},
    }
)


class Talkative(Player):
    """Plays as a player does; but an explorer gives what it was told as its reason."""

    def play(self, job: RolloutJob | PreferenceJob, run: str = "") -> Played:
        assert isinstance(job, RolloutJob)
        played = super().play(job, run)
        if not job.privileged or job.actor == "expert":
            return played
        return Played(episodes=[_talking(episode) for episode in played.episodes])


def _talking(episode: Episode) -> Episode:
    def said(turn: Turn) -> Turn:
        action = turn.action.model_copy(update={"reason": episode.provenance.hint})
        return turn.model_copy(update={"action": action})

    return episode.model_copy(update={"turns": tuple(map(said, episode.turns))})


@dataclass
class Training:
    """A run, its services, and the jobs that its worker played."""

    run: Path
    services: Services
    metrics: MetricsWriter
    player: Player
    played: list[RolloutJob]

    def loop(self, config: Config = CONFIG) -> Loop:
        """The loop as a trainer that starts now has it."""
        return Loop(
            self.run,
            config,
            self.services,
            Records(self.run / "records"),
            load_prompt("chat"),
            self.metrics,
            Progress(Console(quiet=True)),
        )


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Training]:
    run = tmp_path_factory.mktemp("exploration")
    registry = Registry(run / "checkpoints")
    directory = create_small(run)
    model = AutoModelForCausalLM.from_pretrained(directory)
    for parameter in model.parameters():
        parameter.data.mul_(4)  # small random weights would hardly notice what they read
    model.save_pretrained(directory)
    registry.adopt(directory, "policy/0")
    write_kitchen(run)
    with ExitStack() as stack:
        data = ("--data", str(run), "--index", str(run / "index"), "--engine", "compiled")
        env = EnvServer(*data, "--privileged", "true")
        stack.callback(env.stop)
        _, policy = stack.enter_context(model_server("policy", registry))
        redis = stack.enter_context(RedisServer(run / "redis"))
        services = Services(
            env.client,
            Fleet([stack.enter_context(PolicyClient(policy))]),
            Fleet([stack.enter_context(PRMClient(policy))]),
            stack.enter_context(Queue(redis.url, "run")),
        )
        player = Talkative(env.url, policy)
        played = stack.enter_context(working(redis.url, player))
        training = Training(run, services, stack.enter_context(MetricsWriter(run)), player, played)
        loop = training.loop()
        loop.demonstrate()
        loop.fit_explorer()
        loop.roll_out(0)
        yield training


def rollouts(training: Training) -> list[Episode]:
    return Records(training.run / "records").episodes("pi_0-rollouts")


def test_every_way_has_its_rollouts_and_targets_from_their_start(training: Training) -> None:
    episodes = rollouts(training)
    resets = [e for e in episodes if e.start and e.turns[0].policy_version == "expert"]
    steered = [e for e in episodes if e.provenance.hint]
    led = [e for e in episodes if e.turns[e.start].log_prob is None]
    assert (len(episodes), len(resets), len(steered), len(led)) == (8, 2, 2, 2)
    assert {episode.provenance.hint for episode in steered} == {STRATEGY}
    for episode, targets in zip(episodes, monte_carlo_targets(episodes, CONFIG.gamma), strict=True):
        assert len(episode.turns) <= CONFIG.max_steps
        played = episode.turns[episode.start :]
        assert {turn.policy_version for turn in played} == {"policy/0"}
        assert [math.isnan(q) for q in targets] == [t < episode.start for t in range(len(targets))]


def test_the_policy_goes_on_where_the_explorer_led(training: Training) -> None:
    explored = Records(training.run / "records").episodes("pi_0-explorer")
    led = [e for e in rollouts(training) if e.turns[e.start].log_prob is None]
    assert len(explored) == len(led) == 2
    for explorer, episode in zip(explored, led, strict=True):
        assert {turn.policy_version for turn in explorer.turns} == {"explorer/0"}
        assert explorer.provenance.hint == WHEREABOUTS
        first = episode.start + 1
        assert [t.action.command for t in episode.turns[:first]] == [
            t.action.command for t in explorer.turns[:first]
        ]
        assert all(t.policy_version == "explorer/0" for t in episode.turns[: episode.start])
        assert {t.action.reason for t in explorer.turns} == {WHEREABOUTS}
        assert all(WHEREABOUTS not in t.action.reason for t in episode.turns)


def test_the_policy_reads_the_hint_that_the_episode_was_played_with(training: Training) -> None:
    """Without hints the job goes otherwise, from the first turn, in the steered games alone."""
    [job] = [job for job in training.played if job.hints is not None]
    training.services.policy.load("policy/0")
    bare = training.player.play(job.model_copy(update={"hints": None})).episodes
    for with_hint, without in zip(rollouts(training), bare, strict=True):
        assert without.provenance.hint == ""
        first, other = (episode.turns[episode.start] for episode in (with_hint, without))
        assert first.observation == other.observation
        if with_hint.provenance.hint:
            assert first.log_prob != pytest.approx(other.log_prob, abs=1e-3)
        else:
            assert [t.action for t in with_hint.turns] == [t.action for t in without.turns]


def test_a_trainer_that_starts_again_asks_for_the_same(training: Training) -> None:
    before = list(training.played)
    again = training.loop()
    again.demonstrate()
    again.fit_explorer()
    again.roll_out(0)
    assert training.played == before, "what is recorded is not played again"
    plan = CONFIG.rollouts
    games = [e.game for e in again.records.episodes("demonstrations")[:1]] * 8
    begun = begin(again.collector, plan.exploration, 0, games, plan.sampling)
    jobs = rollout_jobs(again.collector, "pi_0-rollouts", begun, "policy/0", plan.sampling)
    assert jobs == [job for job in before if job.id.startswith("pi_0-rollouts")]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The messages that fits read, seen where they become token ids."""
    found: list[str] = []

    def seen(
        tokenizer: Tokenizer, messages: Sequence[Message], *, generation_prompt: bool = False
    ) -> Encoded:
        found.extend(message.content for message in messages)
        return encode(tokenizer, messages, generation_prompt=generation_prompt)

    monkeypatch.setattr(rows, "encode", seen)
    return found


def fit(training: Training, kind: str, config: Config = CONFIG) -> None:
    """A fit of the run, of a random model and beside its checkpoints."""
    job = {"kind": kind, "iteration": 0, "base": training.run / "small"}
    job["out"] = training.run / f"{kind}-of-{config.preset}"
    training.loop(config)._fit(FitJob.model_validate(job))


def test_no_hint_reaches_a_prompt_that_the_trainee_is_trained_on(
    training: Training, read: list[str]
) -> None:
    fit(training, "explorer")
    assert any(WHEREABOUTS in content for content in read), "the explorer is trained to read it"
    for kind in ("sft", "prm"):
        read.clear()
        fit(training, kind)
        assert read
        assert not any(WHEREABOUTS in content or STRATEGY in content for content in read)
    states = sample_states(rollouts(training), 100, per_game=100, seed=0)
    assert len(states) > 8
    asked = [m.content for state in states for m in load_prompt("chat").messages(state)]
    assert not any(WHEREABOUTS in content or STRATEGY in content for content in asked)


def test_with_hindsight_pi_0_learns_to_read_strategies(training: Training, read: list[str]) -> None:
    given = CONFIG.model_dump()
    given["rollouts"]["exploration"]["steered"]["hindsight"] = 1.0
    fit(training, "sft", Config.model_validate(given | {"preset": "hindsight"}))
    hints = {hindsight(e) for e in training.loop().records.episodes("demonstrations")}
    assert all(hint.startswith("go to ") for hint in hints)
    assert {content.rpartition("\n\n")[2] for content in read if "Your task" in content} == hints
