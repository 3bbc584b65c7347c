"""The reward-hacking monitor: its estimates against exact values, its early stop on curves."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import orjson
import pytest

from agentprm.config import MonitorSettings, load_config
from agentprm.ensembles import write_ensemble
from agentprm.facts import METADATA
from agentprm.prompts import load_prompt
from agentprm.protocol import (
    Action,
    ActRequest,
    ActResponse,
    ActResult,
    Candidate,
    Decoding,
    JobResult,
    Sampling,
    ScoreRequest,
    ScoreResponse,
    Scores,
    State,
)
from agentprm.registry import Registry
from agentprm.trials import Trial, Trials, fell
from services.policy.decoding import Decoder, Query
from services.policy.engine.embedded import EmbeddedEngine
from services.trainer.loop import Loop
from services.trainer.monitor.readings import Monitor, divergence, fitted_games, held_out_games
from services.trainer.monitor.reference import Reference
from services.trainer.monitor.watch import Arena, Watch, trial_games
from services.trainer.rollouts.collect import NoGames, Services, WrongVersion
from services.trainer.rollouts.records import Records
from tests.models import tiny_causal_lm
from tests.states import STATE
from tests.unit.test_policy_decoding import brute_force
from tests.unit.trainer_collector import GAMES, Alone
from tests.unit.trainer_episodes import episode

NOW = {"a": 0.7, "b": 0.2, "c": 0.1}
BEFORE = {"a": 0.2, "b": 0.3, "c": 0.5}
EXACT = sum(p * math.log(p / BEFORE[a]) for a, p in NOW.items())


def estimate(drawn: Sequence[Sequence[str]]) -> float:
    """KL(NOW ‖ BEFORE) from what NOW drew in each state."""
    counts = [Counter(of_state) for of_state in drawn]
    now = [[math.log(NOW[a]) for a in found] for found in counts]
    before = [[math.log(BEFORE[a]) for a in found] for found in counts]
    return divergence(now, before, [list(found.values()) for found in counts])[0]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_estimated_divergence_is_exact_on_average(n: int) -> None:
    """Over everything that n draws can give, each outcome with its probability."""
    outcomes = list(itertools.product(NOW, repeat=n))
    mean = sum(math.prod(NOW[a] for a in drawn) * estimate([drawn]) for drawn in outcomes)
    assert mean == pytest.approx(EXACT)
    assert pytest.approx(0.6349, abs=1e-4) == EXACT  # the other way round it is 0.6755


def test_every_state_counts_alike_and_the_error_is_that_of_their_mean() -> None:
    one, two = estimate(["aaaa"]), estimate(["c"])
    kl, error = divergence(
        [[math.log(0.7)], [math.log(0.1)]], [[math.log(0.2)], [math.log(0.5)]], [[4], [1]]
    )
    assert kl == pytest.approx((one + two) / 2)
    assert error == pytest.approx(abs(one - two) / 2)  # s / sqrt(2), with s = |x - y| / sqrt(2)


@pytest.mark.parametrize(("prompt", "phrases"), [("chat", False), ("chat", True), ("state", False)])
def test_the_reference_gives_what_the_policy_service_gives(
    tmp_path: Path, prompt: str, phrases: bool
) -> None:
    path = tiny_causal_lm(tmp_path, 1, initializer_range=0.1, phrases=phrases)
    engine = EmbeddedEngine.load(path, device="cpu", dtype="auto", cache_bytes=0)
    template = load_prompt(prompt)
    sampling = Sampling(max_tokens=6)
    (result,) = Decoder(template).act(engine, [Query(STATE, (3, 0))], 8, sampling)
    values = Reference(path, template, Decoding.ADMISSIBLE).log_probs(STATE, result.candidates)
    assert values == pytest.approx([c.log_prob for c in result.candidates], abs=1e-4)
    assert max(values) - min(values) > 0.1


def test_of_a_free_text_the_reference_gives_the_probability_of_its_tokens(tmp_path: Path) -> None:
    path, template = tiny_causal_lm(tmp_path, 1, initializer_range=0.1), load_prompt("chat")
    texts = [
        template.action_text(Action(reason="find mug", command=command))
        for command in STATE.admissible
    ]
    candidates = [Candidate(text=text, action=Action(), log_prob=0.0, tokens=99) for text in texts]
    values = Reference(path, template, Decoding.FREE).log_probs(STATE, candidates)
    assert values == pytest.approx(brute_force(path, STATE, "find mug", "chat")[1], abs=1e-4)


class Policy:
    """Answers with fixed candidates for each state."""

    def act(self, request: ActRequest) -> ActResponse:
        assert request.sampling == Sampling(max_tokens=9)  # log-probabilities are those of that
        candidates = [
            Candidate(text=c, action=Action(command=c), log_prob=p, tokens=1, count=n)
            for c, p, n in [("look", -0.5, 3), ("go", -1.0, 1)]
        ]
        results = [ActResult(candidates=candidates, chosen=0)] * len(request.states)
        return ActResponse(results=results, policy_version="online/1.1", template_hash="0")


class PRM:
    """Q of 0.8 and 0.4, and the spread of an ensemble."""

    def score(self, request: ScoreRequest) -> ScoreResponse:
        states = len(request.choices)
        return ScoreResponse(
            choices=[[0.8, 0.4]] * states,
            spread=Scores(choices=[[0.1, 0.3]] * states),
            prm_version="prm/0",
            template_hash="0",
        )


class Fleet:
    def __init__(self, client: object) -> None:
        self.next = client


class Before:
    """π_{i-1}, which finds what the policy does less likely by 1 and by 2 nats."""

    def log_probs(self, _: State, candidates: Sequence[Candidate]) -> list[float]:
        return [c.log_prob - 1 - (c.action.command == "go") for c in candidates]


def monitor(prm: str = "prm/0") -> Monitor:
    services = Services(None, Fleet(Policy()), Fleet(PRM()), None)  # type: ignore[arg-type]
    plan, sampling = (
        MonitorSettings(samples=4),
        Sampling(temperature=0.7, reason_temperature=0.5, presence_penalty=5, max_tokens=9),
    )
    return Monitor(services, Before(), [STATE] * 3, plan, sampling, prm_version=prm, seed=1)  # type: ignore[arg-type]


def test_a_reading_is_a_mean_over_samples() -> None:
    readings = monitor().read("online/1.1")
    assert readings == {
        "kl": pytest.approx((3 * 1 + 2) / 4),
        "kl_error": 0,
        "process_reward": pytest.approx((3 * 0.8 + 0.4) / 4),
        "spread": pytest.approx((3 * 0.1 + 0.3) / 4),
    }


def test_a_reading_is_of_the_weights_that_were_asked_about() -> None:
    with pytest.raises(WrongVersion, match=r"online/1\.1, not online/1\.2"):
        monitor().read("online/1.2")
    with pytest.raises(WrongVersion, match="prm/0, not prm/1"):
        monitor("prm/1").read("online/1.1")


def test_the_held_out_games_are_those_no_member_was_fitted_on(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    for k, games in enumerate([["a", "b"], ["b", "c"], ["d"]]):
        with registry.write(f"prm/{k}") as out:
            facts = {"validation_games": games, "training_games": [f"not {k}"]}
            (out / METADATA).write_bytes(orjson.dumps(facts))
    write_ensemble(registry, "prm/7", ["prm/0", "prm/1"])
    write_ensemble(registry, "prm/8", ["prm/0", "prm/2"])
    assert held_out_games(registry, "prm/0") == {"a", "b"}
    assert held_out_games(registry, "prm/7") == {"b"}
    assert fitted_games(registry, "prm/7") == {"not 0", "not 1"}
    with pytest.raises(NoGames, match="no game was held out"):
        held_out_games(registry, "prm/8")


def test_a_monitor_needs_held_out_games() -> None:
    config = load_config("smoke").model_dump()
    config |= {"monitor": {}, "prm": config["prm"] | {"validation_fraction": 0}}
    with pytest.raises(ValueError, match="holds out no games"):
        type(load_config("smoke")).model_validate(config)


def won(count: int) -> tuple[bool, ...]:
    return tuple(k < count for k in range(20))


@pytest.mark.parametrize(
    ("lost", "gained", "worse"),
    [(6, 0, False), (7, 0, True), (10, 1, True), (9, 1, False), (0, 7, False), (9, 3, False)],
)
def test_a_fall_is_more_than_noise_by_the_exact_sign_test(
    lost: int, gained: int, worse: bool
) -> None:
    """P(X >= lost), X ~ Binomial(lost + gained, 1/2): 1/64, 1/128, 12/2048, 11/1024 and so on."""
    both = 8
    before = [True] * (both + lost) + [False] * gained
    after = [True] * both + [False] * lost + [True] * gained
    assert fell(before, after) is worse


def run(curve: Sequence[int], patience: int) -> tuple[int, int]:
    """The step of the best weights, and of the trial after which the update ends (-1: none)."""
    trials = Trials(Trial("policy/0", 0, won(curve[0])), patience)
    for step, count in enumerate(curve[1:], start=1):
        trials.add(Trial(f"online/1.{step}", step, won(count)))
        if trials.stopped:
            return trials.best.step, step
    return trials.best.step, -1


def test_the_update_ends_where_success_has_fallen_for_good() -> None:
    hacked = [8, 11, 14, 14, 12, 7, 13, 7, 6, 5]
    assert run(hacked, patience=2) == (3, 8)  # 7 is a fall from 14, but 13 is not; then 7 and 6
    assert run(hacked, patience=1) == (3, 5)
    assert run([8, 11, 14, 12, 11, 12, 15], patience=2) == (6, -1)  # noise
    assert run([14, 7, 6, 5], patience=2) == (0, 2)  # π_{i-1} is kept


def test_an_update_that_changes_nothing_is_seldom_ended() -> None:
    """Twenty looks at 40 games, 60 % of them won, half of them by chance anew at every look."""
    ended = 0
    for seed in range(300):
        rng = random.Random(seed)
        settled = [rng.random() < 0.6 for _ in range(40)]
        looks = [
            tuple(rng.random() < 0.6 if rng.random() < 0.5 else game for game in settled)
            for _ in range(20)
        ]
        trials = Trials(Trial("policy/0", 0, looks[0]), patience=2)
        for step, look in enumerate(looks[1:], start=1):
            trials.add(Trial(f"online/1.{step}", step, look))
            if trials.stopped:
                ended += 1
                break
    assert ended <= 0.1 * 300


class Readings:
    """A monitor that reads nothing of interest."""

    def read(self, _: str) -> dict[str, float]:
        return {"kl": 1.0}


class Played:
    """An arena in which each version wins as many games as it is told to."""

    def __init__(self, wins: dict[str, int]) -> None:
        self.wins = wins

    def play(self, version: str, _: int) -> tuple[bool, ...]:
        return won(self.wins[version])


def test_the_best_weights_become_the_policy(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "checkpoints")
    wins = {"policy/0": 8, "online/1.1": 14, "online/1.2": 7, "online/1.3": 6}
    lines: list[tuple[int, float]] = []
    watch = Watch(Readings(), Played(wins), 2, lambda step, v: lines.append((step, v["success"])))  # type: ignore[arg-type]
    stopped = []
    for step, version in enumerate(wins):
        with registry.write(version) as draft:
            (draft / "model.safetensors").write_text(version)
            (draft / METADATA).write_text(version)
        watch.look(version, 10 * step)
        stopped.append(watch.stopped)
    assert lines == [(0, 0.4), (10, 0.7), (20, 0.35), (30, 0.3)]
    assert stopped == [False, False, False, True]
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.safetensors").write_text("the last")
    (out / METADATA).write_text("facts of this fit")
    assert watch.keep_best(registry, out) == {"kept_step": 10, "kept_success": 0.7}
    assert (out / "model.safetensors").read_text() == "online/1.1"
    assert (out / METADATA).read_text() == "facts of this fit"
    assert not (out / "STABLE").exists()


def test_without_games_the_fit_keeps_its_last_weights(tmp_path: Path) -> None:
    watch = Watch(Readings(), None, 2, lambda *_: None)  # type: ignore[arg-type]
    watch.look("policy/0", 0)
    assert (watch.best, watch.stopped) == (None, False)
    assert watch.keep_best(Registry(tmp_path), tmp_path / "out") == {}


def test_every_trial_is_of_the_same_games_from_the_same_seeds(tmp_path: Path) -> None:
    collector = Alone(tmp_path)
    arena = Arena(collector, GAMES, Sampling(), "pi_1-monitor", seed=5, attempt="0")
    for step, version in enumerate(["policy/0", "online/1.1"]):
        assert arena.play(version, step) == (False,) * len(GAMES)
    one, two = collector.stages.values()
    assert [(job.seed, job.games) for job in one] == [(job.seed, job.games) for job in two]
    assert {job.attempt for job in (*one, *two)} == {"0"}


def test_trial_games_are_of_no_rollout_and_if_possible_of_no_demonstration(tmp_path: Path) -> None:
    order = [episode([], [], letter).game for letter in "abcdefg"]
    records = Records(tmp_path)
    for stage, letters in (
        ("demonstrations", "dg"),
        ("pi_0-rollouts", "ab"),
        ("pi_1-rollouts", "c"),
    ):
        played = [episode(["look"], [0], letter) for letter in letters]
        records.append(JobResult(job_id=f"{stage}-0", worker="t", seconds=0, episodes=played))
    fake = type("C", (), {"records": records, "games": lambda *_, **__: order})()
    assert [game.id[6] for game in trial_games(fake, 1, 5, set())] == list("fecgd")
    assert [game.id[6] for game in trial_games(fake, 2, 2, set())] == list("fe")
    of_inverse_prm = {order[6].id}  # g: a demonstration that Q was fitted on
    assert [game.id[6] for game in trial_games(fake, 1, 4, of_inverse_prm)] == list("fecd")
    with pytest.raises(NoGames, match="there are 4 train games that neither a rollout nor Q_1"):
        trial_games(fake, 2, 5, set())


@pytest.mark.parametrize(
    ("games", "more", "enough"),
    [
        (400, {}, True),
        (401, {}, False),
        (401, {"rollouts.exploration.reset": {"fraction": 0.5}}, True),  # in games played before
    ],
)
def test_trials_that_rollouts_leave_no_games_for_are_told_before_anything_is_played(
    games: int, more: dict[str, Any], enough: bool
) -> None:
    settings = {"iterations": 3, "rollouts.games": 200, "monitor.games": games}
    config = load_config("tiny", 0, {**settings, "dpo.publish_every": 4, **more})
    listed = SimpleNamespace(total=1000)
    env = SimpleNamespace(games=lambda split: listed)
    loop = SimpleNamespace(
        config=config,
        collector=SimpleNamespace(games=lambda *_: GAMES),
        services=SimpleNamespace(env=env),
    )
    told = (
        nullcontext()
        if enough
        else pytest.raises(NoGames, match=r"401, iterations × rollouts.games 600")
    )
    with told:
        Loop.try_games(cast("Any", loop))
