"""Fits that two processes share: they train what one process trains.

The queue and the policy service are real; the test plays the rollout worker.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import orjson
import psutil
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from agentprm.canary import read_canary
from agentprm.config import Config, DPOSettings, PolicyUpdate
from agentprm.prompts import load_prompt
from agentprm.protocol import Action, JobResult, NextAction, Preference, PreferenceJob, Sampling
from agentprm.queue import Queue
from agentprm.redis_server import RedisServer
from services.trainer.fits.jobs import FitJob, Fits
from services.trainer.fits.launch import FitFailed, Launcher
from services.trainer.metrics import MetricsWriter
from services.trainer.opening import connect
from services.trainer.progress import Progress
from services.trainer.rollouts.records import Records
from services.trainer.settings import TrainerSettings
from tests.processes import service
from tests.unit.trainer_episodes import create_small, episode, group

Kind = Literal["sft", "prm", "inverse-prm", "policy"]

# Rows of different lengths, and steps of one, two and three batches: some batches have to be cut.
COMMON = {"precision": "fp32", "learning_rate": 3e-3, "log_every": 1}
CONFIG = Config.model_validate(
    {
        "preset": "processes",
        "demonstrations": {"games": 1},
        "rollouts": {"games": 4, "per_game": 2},
        "preferences": {"pairs": 24, "states_per_job": 6, "ahead": 1, "max_age": 99},
        "sft": COMMON
        | {"epochs": 4, "batch_tokens": 300, "accumulation": 3}
        | {"optimizer": "muon", "muon_learning_rate": 3e-3},
        "prm": COMMON
        | {"epochs": 10, "batch_tokens": 500, "validation_fraction": 0.25, "accumulation": 2},
        "dpo": COMMON
        | {"max_steps": 6, "batch_pairs": 4, "accumulation": 2, "publish_every": 3}
        | {"chosen_weight": 1.0},
        "grpo": COMMON
        | {"max_steps": 6, "batch_groups": 4, "accumulation": 2, "publish_every": 99},
    }
)
RELATIVE = CONFIG.prm.model_copy(
    update={"objective": "relative", "epochs": 4, "batch_tokens": 160, "learning_rate": 1e-2}
    | {"accumulation": 1}
)
"""Batches of three pairs, which two processes share."""
EPISODES = [
    episode(["look", "go to fridge 1", "inventory"][: 1 + k % 3] * (1 + k % 2), rewards, game, k)
    for k, game in enumerate("abcdefgh")
    for rewards in [[0.0] * ((1 + k % 3) * (1 + k % 2) - 1) + [float(k % 2)]]
] + [episode(["help"], [0.5], game, 8 + k) for k, game in enumerate("abcdefgh")]
CHOSEN = [Action(reason="find mug", command=c) for c in ("look", "go to cabinet 1 with mug 1")]
NEXT = [
    NextAction(
        episode_id=each.id,
        turn=t,
        action=CHOSEN[t % 2],
        log_prob=-1.0,
        seed=0,
        sampling=Sampling(),
        policy_version="policy/0",
        template_hash="0",
    )
    for each in EPISODES
    for t in range(1, len(each.turns))
]
REJECTED = Action(reason="find mug", command="go to fridge 1")


@dataclass(frozen=True)
class Run:
    """A run directory at the fit of one checkpoint."""

    settings: TrainerSettings
    base: Path

    def job(self, kind: Kind, name: str) -> FitJob:
        out = self.settings.run / name
        out.mkdir()
        return FitJob(kind=kind, iteration=int(kind == "policy"), base=self.base, out=out)

    def fit_here(self, job: FitJob, config: Config) -> None:
        """As the trainer does it without processes of their own."""
        run, quiet = self.settings.run, Progress(Console(quiet=True))
        with connect(self.settings) as services, MetricsWriter(run) as metrics:
            records, prompt = Records(run / "records"), load_prompt("chat")
            Fits(run, config, records, prompt, metrics.log, quiet, services).perform(job)

    def fit_sharded(self, job: FitJob) -> None:
        """By two processes under FSDP, on the CPU."""
        launcher = Launcher(self.settings, 2, "fsdp")
        launcher.argv[launcher.argv.index("services.trainer.fits.process")] = "tests.fsdp_on_cpu"
        launcher.perform(job)

    def curves(self) -> list[dict[str, float]]:
        """The measurements of the fits since the last call, line by line."""
        file = self.settings.run / "metrics.jsonl"
        lines = [orjson.loads(line) for line in file.read_bytes().splitlines()]
        file.write_bytes(b"")
        return [line for line in lines if "loss" in line]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """A run with demonstrations, rollouts and a queue."""
    (tmp_path / "run").mkdir()
    directory = tmp_path / "run"
    (directory / "config.json").write_text(CONFIG.model_dump_json())
    records = Records(directory / "records")
    for stage in ("demonstrations", "pi_0-rollouts"):
        episodes = EPISODES if stage != "demonstrations" else [e for e in EPISODES if e.won] * 3
        result = JobResult(job_id=f"{stage}-0000", worker="t", seconds=0, episodes=episodes)
        records.append(result)
    records.append(
        JobResult(job_id="pi_0-next-actions-0000", worker="t", seconds=0, next_actions=NEXT)
    )
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer(tmp_path / "redis"))
        nobody = "http://127.0.0.1:9"
        settings = TrainerSettings(
            run=directory, redis_url=redis.url, env_url=nobody, policy_url=nobody, prm_url=nobody
        )
        yield Run(settings, create_small(tmp_path))


@contextmanager
def preferring(run: Run) -> Iterator[None]:
    """A worker that answers by preferences."""
    stopped = threading.Event()

    def work() -> None:
        with Queue(run.settings.redis_url, "run", name="test", stopped=stopped) as queue:
            while not stopped.is_set():
                if (entry := queue.take(timeout=0.2)) is not None:
                    assert isinstance(entry.record, PreferenceJob)
                    answer = groups if entry.record.groups else preferences
                    queue.finish(entry, answer(entry.record))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def preferences(job: PreferenceJob) -> JobResult:
    found = [
        Preference(
            id=f"{job.id}/{k}",
            job_id=job.id,
            attempt=job.attempt,
            state=state,
            chosen=CHOSEN[k % 2],
            rejected=REJECTED,
            chosen_q=0.9,
            rejected_q=0.1,
            policy_version="policy/0",
            prm_version=job.prm_version,
            template_hash="0",
        )
        for k, state in enumerate(job.states)
    ]
    return JobResult(job_id=job.id, worker="test", seconds=0, preferences=found)


def groups(job: PreferenceJob) -> JobResult:
    found = [
        group(state, [(CHOSEN[k % 2], 0.9, 1 + k % 3), (REJECTED, 0.1, 1)], str(k))
        for k, state in enumerate(job.states)
    ]
    return JobResult(job_id=job.id, worker="test", seconds=0, groups=found)


def require_same(run: Run, one: Path, two: Path, curve: list[dict[str, float]]) -> None:
    """In float32 losses agree to 1e-4, gradient norms, weights and canaries to 1e-3."""
    shared = run.curves()
    assert [line["step"] for line in curve] == [line["step"] for line in shared]
    assert len(curve) >= 5
    losses = [line["loss"] for line in curve]
    assert max(losses) - min(losses) > 0.01 * abs(min(losses))
    for a, b in zip(curve, shared, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4, abs=1e-5)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-3)
    weights, others = (load_file(directory / "model.safetensors") for directory in (one, two))
    torch.testing.assert_close(weights, others, rtol=1e-3, atol=1e-4)
    base = load_file(run.base / "model.safetensors")
    moved = max((weights[name] - base[name]).abs().max().item() for name in base.keys() & weights)
    assert moved > 0.01
    assert (one / "config.json").read_bytes() == (two / "config.json").read_bytes()
    kind: Literal["prm", "policy"] = "prm" if "score.weight" in weights else "policy"
    mine, theirs = (read_canary(directory, kind) for directory in (one, two))
    assert mine is not None
    assert theirs is not None
    for own, other in zip(mine.answers, theirs.answers, strict=True):
        assert own.ids == other.ids
        assert other.values == pytest.approx(own.values, abs=1e-3)
    assert [token.id for token in mine.greedy] == [token.id for token in theirs.greedy]


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("sft", CONFIG),
        ("prm", CONFIG),
        ("prm", CONFIG.model_copy(update={"prm": RELATIVE})),
        ("inverse-prm", CONFIG),
    ],
)
def test_two_processes_fit_as_one_does(run: Run, kind: Kind, config: Config) -> None:
    """Under DDP, and with sharded weights, of which InversePRM's fit knows no more than a PRM's."""
    (run.settings.run / "config.json").write_text(config.model_dump_json())
    one, two = run.job(kind, "one"), run.job(kind, "two")
    run.fit_here(one, config)
    curve = run.curves()
    Launcher(run.settings, 2, "ddp").perform(two)
    require_same(run, one.out, two.out, curve)
    if config is CONFIG and kind != "inverse-prm":
        sharded = run.job(kind, "sharded")
        run.fit_sharded(sharded)
        require_same(run, one.out, sharded.out, curve)


def test_two_processes_prefer_as_one_does_and_their_weights_are_served(
    run: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = ["--registry", run.settings.run / "checkpoints", "--device", "cpu"]
    with preferring(run), service("policy", *flags) as (_, url):
        serving = Run(run.settings.model_copy(update={"policy_url": url}), run.base)
        one, two = serving.job("policy", "one"), serving.job("policy", "two")
        serving.fit_here(one, CONFIG)
        curve = run.curves()
        Launcher(serving.settings, 2, "ddp").perform(two)
        # Of preferences that end before `max_steps`, and TRL's old names: nothing for a user.
        printed = capfd.readouterr().err
        assert "epoch_iterator" not in printed
        assert "deprecated" not in printed
        require_same(run, one.out, two.out, curve)
        again = serving.job("policy", "again")
        serving.fit_sharded(again)
        require_same(run, one.out, again.out, curve)


def test_two_processes_follow_the_gradient_as_one_does(run: Run) -> None:
    """GRPO; no weights are handed out, so no policy service is there. Shards are as for DPO."""
    config = CONFIG.model_copy(update={"update": PolicyUpdate.GRPO})
    (run.settings.run / "config.json").write_text(config.model_dump_json())
    one, two = run.job("policy", "one"), run.job("policy", "two")
    with preferring(run):
        run.fit_here(one, config)
        curve = run.curves()
        Launcher(run.settings, 2, "ddp").perform(two)
    require_same(run, one.out, two.out, curve)


def test_without_preferences_the_policy_stays_as_it_is(run: Run) -> None:
    """None is short enough; both processes end."""
    config = CONFIG.model_copy(update={"dpo": DPOSettings(max_tokens=16)})
    (run.settings.run / "config.json").write_text(config.model_dump_json())
    job = run.job("policy", "same")
    with preferring(run):
        Launcher(run.settings, 2, "ddp").perform(job)
    weights = [d / "model.safetensors" for d in (run.base, job.out)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_fit_that_fails_says_so(run: Run) -> None:
    job = run.job("sft", "none").model_copy(update={"base": run.settings.run / "missing"})
    with pytest.raises(FitFailed, match="ended with code 1"):
        Launcher(run.settings, 2, "ddp").perform(job)
    with pytest.raises(FitFailed, match="no accelerate settings 'dpp'"):
        Launcher(run.settings, 2, "dpp")


def test_its_processes_end_with_a_trainer_that_is_killed(run: Run) -> None:
    """They wait for preferences, which nobody sends."""
    job = run.job("policy", "never")
    code = (
        "import sys; from services.trainer.settings import TrainerSettings as S;"
        "from services.trainer.fits.jobs import FitJob;"
        "from services.trainer.fits.launch import Launcher;"
        "Launcher(S.model_validate_json(sys.argv[1]), 2, 'ddp')"
        ".perform(FitJob.model_validate_json(sys.argv[2]))"
    )
    argv = [sys.executable, "-c", code, run.settings.model_dump_json(), job.model_dump_json()]
    trainer = subprocess.Popen(argv)
    with Queue(run.settings.redis_url, "run", name="test") as queue:
        assert queue.take(timeout=90) is not None  # the main process has asked for preferences
    family = psutil.Process(trainer.pid).children(recursive=True)
    assert len(family) >= 3  # accelerate, and what it started
    trainer.send_signal(signal.SIGKILL)
    trainer.wait()
    assert psutil.wait_procs(family, timeout=60)[1] == []


def test_its_processes_end_with_a_launcher_that_is_killed_while_they_start(run: Run) -> None:
    """Importing what they need takes them seconds."""
    launcher = Launcher(run.settings, 2, "ddp")
    job = run.job("sft", "never")
    family: list[psutil.Process] = []
    with ThreadPoolExecutor(1) as trainer:
        fit = trainer.submit(launcher.perform, job)
        while len([process for process in family if loads_torch(process)]) < 3:
            time.sleep(0.05)
            family = psutil.Process().children(recursive=True)  # accelerate, and what it started
            family = [process for process in family if "--job" in process.cmdline()]
        [accelerate] = [process for process in family if "--num_processes" in process.cmdline()]
        accelerate.kill()
        with pytest.raises(FitFailed, match="ended with code -9"):
            fit.result()
    assert psutil.wait_procs(family, timeout=30)[1] == []


def loads_torch(process: psutil.Process) -> bool:
    return any("libtorch" in file.path for file in process.memory_maps())
