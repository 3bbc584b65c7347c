"""What stays of stages 2 and 3 beside π_i and Q_i, and what a study measures of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agentprm.client import EnvClient, PolicyClient, PRMClient
from agentprm.config import Evaluation, load_config
from agentprm.ensembles import read_members
from agentprm.prompts import load_prompt
from agentprm.protocol import Action, ActResult, Candidate
from agentprm.registry import Registry
from agentprm.runs import read_stage_seconds
from services.trainer.fits.jobs import FitJob, Fits, _member
from services.trainer.loop import Loop
from services.trainer.metrics import MetricsWriter
from services.trainer.progress import Progress
from services.trainer.rollouts.collect import Collector, Services, WrongVersion
from services.trainer.rollouts.fleet import Fleet
from services.trainer.rollouts.process_reward import mean_q, process_reward, validation_states
from services.trainer.rollouts.records import Records
from services.trainer.updates.online import OnlineUpdate, _Online
from tests.fake_services import Walker, serving
from tests.finished_run import finished_run


def _online(registry: Registry, i: int, keep_every: int) -> _Online:
    anything: Any = SimpleNamespace(
        **{"load": lambda _: None, "updated": lambda _: None},
        **{"used": 0, "stale": 0, "indifferent": 0, "anchors": 0, "wait_seconds": 0.0},
    )
    services = cast("Services", SimpleNamespace(policy=anything))
    return _Online(services, registry, i, [], anything, keep_every, None)


def _publish(online: _Online, *steps: int) -> None:
    def save(directory: Path, *, rounded: bool = False) -> None:
        assert rounded  # nothing of it becomes π_i
        (directory / "weights").touch()

    for step in steps:
        online.publish(save, step)


def test_weights_along_stage_3_stay_where_they_are_asked_for(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    online = _online(registry, 1, keep_every=20)
    _publish(online, 10, 20, 30, 40, 50)
    names = ["online/1.20", "online/1.30", "online/1.40", "online/1.50"]
    assert registry.versions("online") == names
    online.finish(tmp_path, 50)
    assert registry.versions("online") == ["online/1.20", "online/1.40"]

    _publish(_online(registry, 2, keep_every=0), 10, 20, 30)  # and is killed
    kept = ["online/1.20", "online/1.40"]
    assert registry.versions("online") == [*kept, "online/2.20", "online/2.30"]
    again = _online(registry, 2, keep_every=0)
    again.drop_killed()
    assert registry.versions("online") == kept
    again.finish(tmp_path, 0)


@pytest.mark.parametrize(("algorithm", "margin"), [("agent-prm", 0.05), ("inverse-prm", 0.02)])
def test_pairs_differ_by_the_margin_of_the_algorithm(
    tmp_path: Path, algorithm: str, margin: float
) -> None:
    finished_run(tmp_path)
    settings = {"preferences.margin": 0.05, "preferences.inverse_margin": 0.02}
    config = load_config("tiny", overrides={"algorithm": algorithm, **settings})
    services = cast("Services", SimpleNamespace(queue=SimpleNamespace(purge=lambda **_: 0)))
    records, prompt = Records(tmp_path / "records"), load_prompt()
    fits = Fits(tmp_path, config, records, prompt, lambda *_: None, Progress(), services)
    assert isinstance(fits.update, OnlineUpdate)
    jobs = fits.update._online(services, 1, tmp_path).source._waiting
    assert {job.margin for job in jobs} == {margin}


@pytest.mark.parametrize(("update", "kept"), [("online-dpo", 20), ("grpo", 30)])
def test_each_update_keeps_weights_by_its_own_settings(
    tmp_path: Path, update: str, kept: int
) -> None:
    finished_run(tmp_path)
    settings = {"dpo.keep_every": 20, "grpo.keep_every": 30}
    config = load_config("tiny", overrides={"update": update, **settings})
    services = cast("Services", SimpleNamespace(queue=SimpleNamespace(purge=lambda **_: 0)))
    records, prompt = Records(tmp_path / "records"), load_prompt()
    fits = Fits(tmp_path, config, records, prompt, lambda *_: None, Progress(), services)
    assert isinstance(fits.update, OnlineUpdate)
    assert fits.update._online(services, 1, tmp_path).keep_every == kept


def test_several_prms_are_fitted_from_different_seeds_and_serve_as_one(tmp_path: Path) -> None:
    config = load_config("smoke", overrides={"prm.members": 2})
    registry = Registry(tmp_path / "checkpoints")
    with registry.write("policy/0") as out:
        (out / "weights").touch()
    jobs: list[FitJob] = []

    def fit(job: FitJob) -> None:
        jobs.append(job)
        (job.out / "weights").write_text(str(job.member))

    services = cast("Services", SimpleNamespace(queue=None))
    with MetricsWriter(tmp_path) as metrics:
        records, prompt = Records(tmp_path / "records"), load_prompt()
        loop = Loop(tmp_path, config, services, records, prompt, metrics, Progress(), fit)
        loop.fit_prm(0)
        loop.fit_prm(0)
    assert [(job.kind, job.iteration, job.member) for job in jobs] == [("prm", 0, 1), ("prm", 0, 2)]
    assert read_members(registry.open("prm/0")) == ["prm/0.1", "prm/0.2"]


def test_the_process_reward_counts_a_candidate_as_often_as_it_was_drawn() -> None:
    drawn = [("a", 6, 0.5), ("b", 2, 0.1)]
    candidates = [
        Candidate(text=t, action=Action(command=t), log_prob=0.0, tokens=1, count=n, q=q)
        for t, n, q in drawn
    ]
    assert mean_q(ActResult(candidates=candidates, chosen=0)) == pytest.approx(3.2 / 8)


def test_the_process_reward_is_the_mean_q_of_the_policys_own_actions(tmp_path: Path) -> None:
    """The policy of the rooms goes east with 0.7, where Q is 0.9, else west, where it is 0.1."""
    finished_run(tmp_path)
    records = Records(tmp_path / "records")
    states = validation_states(records, 64, seed=3)
    assert states == validation_states(records, 64, seed=3)
    assert len(states) == 64
    walker = Walker()
    with serving(walker.app()) as url, PolicyClient(url) as policy, PRMClient(url) as prm:
        services = Services(
            env=cast("EnvClient", None),
            policy=Fleet([policy]),
            prm=Fleet([prm]),
            queue=cast("Any", None),
        )
        collector = Collector(services, records, Progress(), seed=3, batch=8, max_steps=30)
        walker.prm_version = "policy/1"  # one service is both here
        found = process_reward(collector, "policy/1", "policy/1", states, Evaluation())
        walker.prm_version = "prm/9"
        with pytest.raises(WrongVersion, match="PRM answered with prm/9, not policy/1"):
            process_reward(collector, "policy/1", "policy/1", states, Evaluation())
    assert found.states == 64
    assert found.mean == pytest.approx(0.7 * 0.9 + 0.3 * 0.1, abs=3 * found.error / 1.96)
    assert 0 < found.error < 0.06


def test_the_seconds_of_a_stage_are_measured(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as metrics:
        progress = Progress(log=metrics.log)
        for stage in ("pi_0", "q_0"):
            progress.start(stage, "something")
            progress.end({"loss": 1.0})
    seconds = read_stage_seconds(tmp_path)
    assert list(seconds) == ["pi_0", "q_0"]
    assert all(0 <= value < 5 for value in seconds.values())


def test_members_and_iterations_differ_in_their_seed_and_hold_out_the_same_games(
    tmp_path: Path,
) -> None:
    config, prompt = load_config("smoke", seed=3), load_prompt()
    records = Records(tmp_path / "records")
    fits = Fits(tmp_path, config, records, prompt, lambda *_: None, Progress(), None)
    jobs = (
        FitJob(kind="prm", iteration=i, member=k, base=tmp_path, out=tmp_path)
        for i, k in [(0, 1), (0, 2), (1, 1)]
    )
    found = [fits._conditions(_member(job)) for job in jobs]
    assert len({each["seed"] for each in found}) == 3
    assert len({each["split_seed"] for each in found}) == 1
