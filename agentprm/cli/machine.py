"""AgentPRM on one machine: the processes of a training run, of an evaluation, and of serving."""

from __future__ import annotations

import itertools
import os
import shlex
import uuid
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from agentprm.cli.processes import Machine, ProcessFailed, free_port
from agentprm.config import Config, Evaluation, PolicyEngine
from agentprm.measurements import Measurement, write_plan
from agentprm.protocol import ChoiceRule
from agentprm.queue import CurrentRun, Queue, QueueError
from agentprm.redis_server import RedisServer, given_url
from agentprm.registry import CheckpointError, Registry, number, write_atomic

_ENV, _POLICY, _PRM, _WORLD, _SGLANG = "env", "policy", "prm", "world", "sglang"

SGLANG_COMMAND = (
    "python -m sglang.launch_server --model-path {model} --host 127.0.0.1 --port {port}"
)
QUEUE_NAME = "AGENTPRM_QUEUE_NAME"
"""Names the run in Redis, for what has to know its streams before it starts, such as an
autoscaler. Unset, every run has a name of its own."""

_SGLANG_START = 900.0
"""Seconds that a SGLang server has to start: it loads, compiles and captures graphs."""


@dataclass(frozen=True)
class Options:
    """What the services of a machine have in common."""

    prompt: str = "chat"
    device: str = "auto"
    engine: str = "compiled"
    expert: str = "search"
    workers: int = 2
    policy_replicas: int = 1
    batch: int = 8
    policy_engine: PolicyEngine = PolicyEngine.EMBEDDED
    sglang_urls: tuple[str, ...] = ()
    sglang_command: str = SGLANG_COMMAND
    """Starts a server where the engine is SGLang and there are no URLs."""
    chat_url: str | None = None
    """The endpoint of a chat model that plays."""
    world_registry: Path | None = None
    """Where there is a world model to serve beside the policy, in a registry of its own."""

    @classmethod
    def of(cls, config: Config) -> Options:
        """Those of a run."""
        return cls(
            prompt=config.prompt,
            device=config.device,
            engine=config.engine,
            expert=config.expert,
            workers=config.workers,
            policy_replicas=config.policy_replicas,
            batch=config.batch,
            policy_engine=config.policy_engine,
            sglang_urls=config.sglang_urls,
        )


@dataclass(frozen=True)
class Endpoints:
    """Where the services of a machine listen; of a policy with replicas a,b,... each of them."""

    env: str
    policy: str
    prm: str

    @classmethod
    def given(cls) -> Endpoints | None:
        """Those of services that run already, named by AGENTPRM_{ENV,POLICY,PRM}_URL, if any.

        Raises:
            ProcessFailed: only some of the three are named.
        """
        urls = {name: os.environ.get(f"AGENTPRM_{name}_URL") for name in ("ENV", "POLICY", "PRM")}
        missing = [f"AGENTPRM_{name}_URL" for name, url in urls.items() if not url]
        if len(missing) == len(urls):
            return None
        if missing:
            raise ProcessFailed(f"set {' and '.join(missing)} too, or none of the services' URLs")
        return cls(*(url or "" for url in urls.values()))

    def flags(self) -> list[str]:
        """The flags that tell a worker or the trainer."""
        return ["--env-url", self.env, "--policy-url", self.policy, "--prm-url", self.prm]


def train_run(run: Path, config: Config, games: Path | None, *, quiet: bool) -> None:
    """Train to the end. With `quiet` nothing goes to stdout.

    Raises:
        ProcessFailed: the trainer gave up, or a process dies again and again.
    """
    with Machine(run) as machine:
        _work(machine, "services.trainer", games, Options.of(config), [], quiet=quiet)


def measure_run(
    run: Path, config: Config, games: Path | None, measurements: Sequence[Measurement]
) -> None:
    """Measure checkpoints of a run; what was found is in `run/measured.json`.

    Raises:
        ProcessFailed: the trainer gave up, or a process dies again and again.
    """
    flags = ["--plan", str(write_plan(run, measurements))]
    with Machine(run) as machine:
        options = Options.of(config)
        _work(machine, "services.trainer.measure", games, options, flags, quiet=False)


def train_connected(run: Path, endpoints: Endpoints, *, quiet: bool) -> None:
    """Train on services and workers that run already; only the trainer is started here.

    The services serve the checkpoints of `current`, a link beside the run directory, and the
    workers follow the run that is announced in Redis: both now mean this run.

    Raises:
        ProcessFailed: the trainer gave up, or there is no Redis.
    """
    redis_url = given_url()
    if redis_url is None:
        raise ProcessFailed("set REDIS_URL to the Redis that the rollout workers use")
    _make_current(run)
    try:
        queue = _announce(run, redis_url)
    except QueueError as error:
        raise ProcessFailed(str(error)) from error
    with Machine(run) as machine:
        _train(machine, "services.trainer", queue, redis_url, endpoints, [], quiet=quiet)


def evaluate_run(
    run: Path,
    plan: Evaluation,
    games: Path | None,
    *,
    steered: bool,
    choice: ChoiceRule = ChoiceRule.PRM,
    max_steps: int,
    seed: int,
    options: Options,
    quiet: bool,
) -> None:
    """Evaluate `policy/0`, by `prm/0` where `steered`, or as one of N samples by another `choice`.

    The row goes to `run/results.json`.
    """
    flags = ["--choice", choice]
    if steered:
        flags += ["--steered", "true"]
    _evaluate(run, plan, games, flags, max_steps, seed, options, quiet=quiet)


def evaluate_chat_model(
    run: Path,
    plan: Evaluation,
    games: Path | None,
    *,
    model: str,
    max_steps: int,
    seed: int,
    options: Options,
    quiet: bool,
) -> None:
    """The same for a model behind `options.chat_url`."""
    flags = ["--chat-model", model]
    _evaluate(run, plan, games, flags, max_steps, seed, options, quiet=quiet)


def _evaluate(
    run: Path,
    plan: Evaluation,
    games: Path | None,
    flags: list[str],
    max_steps: int,
    seed: int,
    options: Options,
    *,
    quiet: bool,
) -> None:
    common = ["--plan", plan.model_dump_json(), "--seed", str(seed), "--max-steps", str(max_steps)]
    common += ["--batch", str(options.batch)]
    with Machine(run) as machine:
        module = "services.trainer.evaluate"
        _work(machine, module, games, options, [*common, *flags], quiet=quiet)


def plan_run(
    run: Path, games: Path | None, options: Options, flags: list[str], *, quiet: bool
) -> None:
    """Play with look-ahead, as `flags` say; the row goes to `run/results.json`."""
    flags = [*flags, "--batch", str(options.batch)]
    with Machine(run) as machine:
        _work(machine, "services.trainer.plan", games, options, flags, quiet=quiet)


def serve_run(
    run: Path,
    games: Path | None,
    options: Options,
    *,
    host: str,
    first_port: int,
    privileged: bool,
) -> None:
    """Serve the newest checkpoints of `run` on `host` until interrupted."""
    registry = Registry(run / "checkpoints")
    policies, prms = registry.versions("policy"), registry.versions("prm")
    prms = [version for version in prms if number(version)[1] == 0] or prms  # not a member alone
    if not policies and not prms:
        raise CheckpointError(f"{run} holds no finished checkpoint")
    with Machine(run, host=host) as machine:
        names = []
        if games is not None:
            names.append(_ENV)
            _start_env(machine, first_port, games, options, capacity=64, privileged=privileged)
        if prms:
            names.append(_PRM)
            flags = ["--checkpoint", prms[-1]]
            _start_model(machine, _PRM, first_port + 2, run, options, flags)
        if policies:
            names.append(_POLICY)
            flags = ["--checkpoint", policies[-1]]
            flags += ["--prm-url", machine.url_at(first_port + 2)] if prms else []
            if options.policy_engine is PolicyEngine.SGLANG and not options.sglang_urls:
                url = _start_sglang(machine, registry.open(policies[-1]), options.sglang_command)
                options = replace(options, sglang_urls=(url,))
            _start_model(machine, _POLICY, first_port + 1, run, options, flags)
        machine.wait_reachable(names)
        for name in names:
            Console().print(f"{name:<8} {machine.url(name)}/docs")
        machine.watch_all()


def _work(
    machine: Machine,
    module: str,
    games: Path | None,
    options: Options,
    flags: list[str],
    *,
    quiet: bool,
) -> None:
    """Start everything, run `module` as the trainer, and stop everything when it has ended."""
    redis_url = given_url() or machine.start_redis(RedisServer(machine.run / "redis"))
    queue = _queue_name(machine.run)
    endpoints = _start_services(machine, games, options)
    policies = itertools.cycle(endpoints.policy.split(","))
    world = []
    if options.world_registry is not None:
        world = ["--world-url", start_world(machine, options.world_registry, options)]
    for k in range(1, options.workers + 1):
        name = f"rollout-{k}"
        worker = ["--run", queue, "--name", name, "--redis-url", redis_url]
        worker += replace(endpoints, policy=next(policies)).flags()
        if options.chat_url is not None:
            worker += ["--chat-url", options.chat_url, "--prompt", options.prompt]
        machine.start(name, "services.rollout", *worker, *world)
    _train(machine, module, queue, redis_url, endpoints, flags, quiet=quiet)


def _train(
    machine: Machine,
    module: str,
    queue: str,
    redis_url: str,
    endpoints: Endpoints,
    flags: list[str],
    *,
    quiet: bool,
) -> None:
    """Run `module` as the trainer until it ends."""
    trainer = ["--run", str(machine.run), "--queue", queue, "--redis-url", redis_url]
    trainer += [*endpoints.flags(), *flags]
    machine.start("trainer", module, *trainer, in_terminal=True, quiet=quiet)
    code = machine.watch("trainer")
    if code != 0:
        raise ProcessFailed(f"the trainer ended with code {code}; logs are in {machine.logs}")


def _make_current(run: Path) -> None:
    """Point the link `current` beside the run directory to it, whatever it pointed to before."""
    draft = run.parent / f".current-{uuid.uuid4().hex}"
    draft.symlink_to(run.name)
    draft.replace(run.parent / "current")


def _announce(run: Path, redis_url: str) -> str:
    """Tell the workers of the run; its name in Redis, which `QUEUE_NAME` may fix beforehand."""
    own = _queue_name(run)
    name = os.environ.get(QUEUE_NAME) or own
    with Queue(redis_url, name) as queue:
        queue.adopt(own)
    with closing(CurrentRun(redis_url)) as current:
        current.announce(name)
    return name


def _queue_name(run: Path) -> str:
    """The run's name in Redis. It is the run's own, also where many share one Redis."""
    file = run / "queue-name"
    if not file.exists():
        write_atomic(file, f"{run.resolve().name}-{uuid.uuid4().hex[:8]}".encode())
    return file.read_text()


def _start_services(machine: Machine, games: Path | None, options: Options) -> Endpoints:
    prm = _start_model(machine, _PRM, free_port(), machine.run, options, [])
    policies = [_POLICY, *(f"{_POLICY}-{k}" for k in range(2, options.policy_replicas + 1))]
    urls = [
        _start_model(
            machine, _POLICY, free_port(), machine.run, options, ["--prm-url", prm], name=name
        )
        for name in policies
    ]
    capacity = options.workers * options.batch
    env = _start_env(machine, free_port(), games, options, capacity=capacity, privileged=True)
    machine.wait_reachable([_ENV, *policies, _PRM])
    return Endpoints(env=env, policy=",".join(urls), prm=prm)


def _start_env(
    machine: Machine,
    port: int,
    games: Path | None,
    options: Options,
    *,
    capacity: int,
    privileged: bool,
) -> str:
    flags = ["--engine", options.engine, "--expert", options.expert, "--pool", str(capacity)]
    flags += ["--data", str(games)] if games else []
    flags += ["--privileged", "true"] if privileged else []
    return machine.start(_ENV, "services.env", *flags, port=port)


def _start_model(
    machine: Machine,
    service: str,
    port: int,
    run: Path,
    options: Options,
    flags: list[str],
    *,
    name: str | None = None,
) -> str:
    """A service that holds a model; `name` tells replicas of it apart."""
    registry = ["--registry", str(run / "checkpoints")]
    common = ["--prompt", options.prompt, "--device", options.device]
    if service == _POLICY:
        common += ["--engine", options.policy_engine]
        common += ["--engine-url", ",".join(options.sglang_urls)] if options.sglang_urls else []
    module = f"services.{service}"
    return machine.start(name or service, module, *registry, *common, *flags, port=port)


def start_world(machine: Machine, registry: Path, options: Options) -> str:
    """A policy service on the one checkpoint in `registry`, up and running; its URL.

    The registry is not the policy's: a service notes in its registry what it serves.
    """
    (version,) = Registry(registry).versions("world")
    flags = ["--registry", str(registry), "--checkpoint", version]
    flags += ["--prompt", options.prompt, "--device", options.device]
    url = machine.start(_WORLD, "services.policy", *flags, port=free_port())
    machine.wait_reachable([_WORLD])
    return url


def _start_sglang(machine: Machine, model: Path, command: str) -> str:
    """A server on the checkpoint in `model`, up and running."""
    port = free_port()
    values = {"model": str(model.absolute()), "port": str(port)}
    argv = [part.format(**values) for part in shlex.split(command)]
    url = machine.start_command(_SGLANG, argv, port=port)
    machine.wait_reachable([_SGLANG], _SGLANG_START)
    return url
