"""Fits that two processes share: they train what one process trains.

The queue and the policy service are real; the test plays the rollout worker.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
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
from agentprm.facts import read_fit
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
Curve = list[dict[str, float]]
"""What a fit measured, line by line."""

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
        | {"epochs": 10, "batch_tokens": 500, "validation_fraction": 0.25, "accumulation": 2}
        | {"log_every": 3},  # of the last steps each process knows its own part alone
        "dpo": COMMON
        | {"max_steps": 6, "batch_pairs": 4, "accumulation": 2, "publish_every": 3}
        | {"chosen_weight": 1.0},
        "grpo": COMMON
        | {"max_steps": 6, "batch_groups": 4, "accumulation": 2, "publish_every": 99},
    }
)
RELATIVE = CONFIG.prm.model_copy(
    update={"objective": "relative", "epochs": 4, "batch_tokens": 160, "learning_rate": 1e-2}
    | {"accumulation": 1, "log_every": 1}
)
"""Batches of three pairs, which two processes share."""
FITS: dict[str, tuple[Kind, Config]] = {
    "sft": ("sft", CONFIG),
    "prm": ("prm", CONFIG),
    "relative-prm": ("prm", CONFIG.model_copy(update={"prm": RELATIVE})),
    "inverse-prm": ("inverse-prm", CONFIG),
    "grpo": ("policy", CONFIG.model_copy(update={"update": PolicyUpdate.GRPO})),
    "too-long": ("policy", CONFIG.model_copy(update={"dpo": DPOSettings(max_tokens=16)})),
}
"""What two processes do as one does. GRPO hands out no weights, so no policy service is there."""
SHARDED = ("sft", "prm")
"""Those of `FITS` that are done with sharded weights as well: InversePRM's fit knows no more of
shards than a PRM's, and GRPO's no more than DPO's."""
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

    def curves(self) -> Curve:
        """The measurements of the fits since the last call."""
        file = self.settings.run / "metrics.jsonl"
        lines = [orjson.loads(line) for line in file.read_bytes().splitlines()]
        file.write_bytes(b"")
        return [line for line in lines if "loss" in line]


def perform(
    fits: Sequence[tuple[Run, FitJob]],
    accelerate: str,
    module: str = "tests.fits_in_a_row",
) -> None:
    """Have the fits of these runs done by two processes, which are started once."""
    for run, job in fits:
        (run.settings.run / "fit.json").write_text(job.model_dump_json())
    run, job = fits[0]
    launcher = Launcher(run.settings, 2, accelerate)
    place = launcher.argv.index("services.trainer.fits.process")
    launcher.argv[place:] = [module, *(str(run.settings.run) for run, _ in fits)]
    launcher.perform(job)


def begin(directory: Path, config: Config, redis_url: str, base: Path) -> Run:
    """A run with demonstrations and rollouts."""
    directory.mkdir()
    (directory / "config.json").write_text(config.model_dump_json())
    records = Records(directory / "records")
    for stage in ("demonstrations", "pi_0-rollouts"):
        episodes = EPISODES if stage != "demonstrations" else [e for e in EPISODES if e.won] * 3
        result = JobResult(job_id=f"{stage}-0000", worker="t", seconds=0, episodes=episodes)
        records.append(result)
    records.append(
        JobResult(job_id="pi_0-next-actions-0000", worker="t", seconds=0, next_actions=NEXT)
    )
    nobody = "http://127.0.0.1:9"
    settings = TrainerSettings(
        run=directory, redis_url=redis_url, env_url=nobody, policy_url=nobody, prm_url=nobody
    )
    return Run(settings, base)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """A run with a queue."""
    with RedisServer(tmp_path / "redis") as redis:
        yield begin(tmp_path / "run", CONFIG, redis.url, create_small(tmp_path))


@dataclass(frozen=True)
class Shared:
    """A run whose fit two processes have done, under each of `curves`."""

    run: Run
    curves: dict[str, Curve]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Shared]]:
    """A run for each of `FITS`; two processes are started for all of them, and two that shard."""
    home = tmp_path_factory.mktemp("fits")
    base = create_small(home)
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer(home / "redis"))
        shared: dict[str, Shared] = {}
        for name, (kind, config) in FITS.items():
            run = begin(home / name, config, redis.url, base)
            if kind == "policy":
                stack.enter_context(preferring(run))
            shared[name] = Shared(run, {})
        for accelerate, names, module in (
            ("ddp", tuple(FITS), "tests.fits_in_a_row"),
            ("fsdp", SHARDED, "tests.fsdp_on_cpu"),
        ):
            runs = {name: shared[name].run for name in names}
            jobs = [(run, run.job(FITS[name][0], accelerate)) for name, run in runs.items()]
            perform(jobs, accelerate, module)
            for name, run in runs.items():
                shared[name].curves[accelerate] = run.curves()
        yield shared


@contextmanager
def preferring(run: Run) -> Iterator[None]:
    """A worker that answers by preferences."""
    settings, stopped = run.settings, threading.Event()

    def work() -> None:
        with Queue(settings.redis_url, settings.run.name, name="test", stopped=stopped) as queue:
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


def require_same(run: Run, one: Path, two: Path, curve: Curve, shared: Curve) -> None:
    """In float32 losses agree to 1e-4, gradient norms, weights and canaries to 1e-3."""
    assert [line["step"] for line in curve] == [line["step"] for line in shared]
    assert curve[-1]["step"] >= 5
    losses = [line["loss"] for line in curve]
    assert max(losses) - min(losses) > 0.01 * abs(min(losses))
    for a, b in zip(curve, shared, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4, abs=1e-5)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-3)
    ours, theirs = (read_fit(directory, "metrics")["metrics"]["loss"] for directory in (one, two))
    assert theirs == pytest.approx(ours, rel=1e-4)
    weights, others = (load_file(directory / "model.safetensors") for directory in (one, two))
    torch.testing.assert_close(weights, others, rtol=1e-3, atol=1e-4)
    base = load_file(run.base / "model.safetensors")
    moved = max((weights[name] - base[name]).abs().max().item() for name in base.keys() & weights)
    assert moved > 0.01
    assert (one / "config.json").read_bytes() == (two / "config.json").read_bytes()
    kind: Literal["prm", "policy"] = "prm" if "score.weight" in weights else "policy"
    mine, other_canary = (read_canary(directory, kind) for directory in (one, two))
    assert mine is not None
    assert other_canary is not None
    for own, other in zip(mine.answers, other_canary.answers, strict=True):
        assert own.ids == other.ids
        assert other.values == pytest.approx(own.values, abs=1e-3)
    assert [token.id for token in mine.greedy] == [token.id for token in other_canary.greedy]


@pytest.mark.parametrize("name", [name for name in FITS if name != "too-long"])
def test_two_processes_fit_as_one_does(fitted: dict[str, Shared], name: str) -> None:
    """Under DDP, and with sharded weights."""
    run, (kind, config) = fitted[name].run, FITS[name]
    one = run.job(kind, "one")
    run.fit_here(one, config)
    curve = run.curves()
    for accelerate, shared in fitted[name].curves.items():
        require_same(run, one.out, run.settings.run / accelerate, curve, shared)


def test_without_preferences_the_policy_stays_as_it_is(fitted: dict[str, Shared]) -> None:
    """None is short enough; both processes go on."""
    run = fitted["too-long"].run
    weights = [d / "model.safetensors" for d in (run.base, run.settings.run / "ddp")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


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
        require_same(run, one.out, two.out, curve, run.curves())
        again = serving.job("policy", "again")
        perform([(serving, again)], "fsdp", "tests.fsdp_on_cpu")
        require_same(run, one.out, again.out, curve, run.curves())


def test_a_fit_that_fails_says_so(run: Run) -> None:
    with pytest.raises(FitFailed, match="ended with code 1"):
        perform([(run, run.job("sft", "none"))], "ddp", "tests.no_such_module")
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
