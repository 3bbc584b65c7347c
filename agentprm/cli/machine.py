"""AgentPRM on one machine: the processes of a training run, of an evaluation, and of serving."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from agentprm.cli.announce import announced, queue_name
from agentprm.cli.processes import Machine, ProcessFailed
from agentprm.cli.services import (
    ENV,
    POLICY,
    PRM,
    Endpoints,
    Options,
    start_env,
    start_model,
    start_services,
    start_sglang,
    start_world,
)
from agentprm.config import Config, PolicyEngine
from agentprm.measurements import Measurement, write_plan
from agentprm.queue import QueueError
from agentprm.redis_server import RedisServer, given_url
from agentprm.registry import CheckpointError, Registry
from agentprm.runs import is_worked_on


def train_run(run: Path, config: Config, games: str, *, quiet: bool) -> None:
    """Train to the end. With `quiet` nothing goes to stdout.

    Raises:
        ProcessFailed: the trainer gave up, or a process dies again and again.
        RedisServerError: no Redis is named, and one of its own cannot be started.
    """
    with Machine(run) as machine:
        _work(machine, "services.trainer", games, Options.of(config), [], quiet=quiet)


def measure_run(run: Path, config: Config, games: str, measurements: Sequence[Measurement]) -> None:
    """Measure checkpoints of a run; what was found is in `run/measured.json`.

    Raises:
        ProcessFailed: the trainer gave up, or a process dies again and again.
        RedisServerError: no Redis is named, and one of its own cannot be started.
    """
    flags = ["--plan", str(write_plan(run, measurements))]
    asks_prm = any(measurement.prm is not None for measurement in measurements)
    options = replace(Options.of(config), prm=asks_prm)
    with Machine(run) as machine:
        _work(machine, "services.trainer.measure", games, options, flags, quiet=False)


def train_connected(run: Path, endpoints: Endpoints, *, quiet: bool) -> None:
    """Train on services and workers that run already; only the trainer is started here.

    They are told that this is the run.

    Raises:
        ProcessFailed: the trainer gave up, there is no Redis, or another run has the name in it; or
            another process works on the run.
    """
    redis_url = given_url()
    if redis_url is None:
        raise ProcessFailed("set REDIS_URL to the Redis that the rollout workers use")
    if is_worked_on(run):  # before its services and workers are told anything
        raise ProcessFailed(f"{run} is being trained or measured already: wait, or end that")
    try:
        with announced(run, redis_url) as queue, Machine(run) as machine:
            machine.use_redis(redis_url)
            name, module = queue.run, "services.trainer"
            _train(machine, module, name, endpoints, [], quiet=quiet, unless=lambda: queue.lost)
    except QueueError as error:
        raise ProcessFailed(str(error)) from error


def play_run(
    run: Path, module: str, games: str, options: Options, flags: list[str], *, quiet: bool
) -> None:
    """Have `module` play outside of a training, as `flags` say; the row goes to `run/results.json`.

    Args:
        run: a directory for this alone, with the checkpoints that play, if any do.
        module: what plays in the trainer's place, such as `services.trainer.plan`.
        games: what is played.
        options: of the services; `module` is told of their `batch`.
        flags: the others of `module`.
        quiet: nothing goes to stdout.

    Raises:
        ProcessFailed: the trainer gave up, or a process dies again and again.
        RedisServerError: no Redis is named, and one of its own cannot be started.
    """
    flags = [*flags, "--batch", str(options.batch)]
    with Machine(run) as machine:
        _work(machine, module, games, options, flags, quiet=quiet)


def serve_run(
    run: Path,
    games: str | None,
    options: Options,
    *,
    host: str,
    first_port: int,
    privileged: bool,
) -> None:
    """Serve the newest checkpoints of `run` on `host` until interrupted.

    Without games there is no environment. A service that dies serves again what it served last,
    which may be another that it was told of.

    Raises:
        CheckpointError: the run has no finished checkpoint, or a policy that is damaged where a
            SGLang server is to be started on it.
        ProcessFailed: a service does not come up, does not serve its checkpoint, or dies again and
            again.
    """
    registry = Registry(run / "checkpoints")
    policies, prms = registry.versions("policy"), registry.versions("prm")
    if not policies and not prms:
        raise CheckpointError(f"{run} holds no finished checkpoint")
    with Machine(run, host=host) as machine:
        names, versions = [], {}
        if games is not None:
            names.append(ENV)
            start_env(machine, first_port, games, options, capacity=64, privileged=privileged)
        if prms:
            names.append(PRM)
            versions[PRM] = registry.newest(PRM)
            registry.set_serving(PRM, versions[PRM])
            start_model(machine, PRM, first_port + 2, run, options, [])
        if policies:
            versions[POLICY] = policy = registry.newest(POLICY)
            names.append(POLICY)
            registry.set_serving(POLICY, policy)
            flags = ["--prm-url", machine.url_at(first_port + 2)] if prms else []
            if options.policy_engine is PolicyEngine.SGLANG and not options.sglang_urls:
                url = start_sglang(machine, registry.open(policy), options.sglang_command)
                options = replace(options, sglang_urls=(url,))
            start_model(machine, POLICY, first_port + 1, run, options, flags)
        machine.wait_reachable(names)
        for name, version in versions.items():
            machine.require_serving(name, version)
        for name in names:
            Console(markup=False, emoji=False).print(f"{name:<8} {machine.url(name)}/docs")
        machine.watch_all()


def _work(
    machine: Machine,
    module: str,
    games: str,
    options: Options,
    flags: list[str],
    *,
    quiet: bool,
) -> None:
    """Start everything, and run `module` as the trainer until it ends.

    What else was started goes on until the caller leaves `machine`.

    Raises:
        ProcessFailed: the trainer gave up, or a process does not come up, or dies again and again.
    """
    machine.use_redis(given_url() or machine.start_redis(RedisServer(machine.run / "redis")))
    queue = queue_name(machine.run)
    endpoints = start_services(machine, games, options)
    policies = itertools.cycle(endpoints.policy.split(","))
    world = []
    if options.world_registry is not None:
        world = ["--world-url", start_world(machine, options.world_registry, options)]
    for k in range(1, options.workers + 1):
        name = f"rollout-{k}"
        worker = ["--run", queue, "--name", name]
        worker += replace(endpoints, policy=next(policies)).flags()
        if options.chat_url is not None:
            worker += ["--chat-url", options.chat_url, "--prompt", options.prompt]
        machine.start(name, "services.rollout", *worker, *world)
    _train(machine, module, queue, endpoints, flags, quiet=quiet)


def _train(
    machine: Machine,
    module: str,
    queue: str,
    endpoints: Endpoints,
    flags: list[str],
    *,
    quiet: bool,
    unless: Callable[[], bool] = lambda: False,
) -> None:
    """Run `module` as the trainer until it ends, unless another run takes the name `queue`."""
    trainer = ["--run", str(machine.run), "--queue", queue, *endpoints.flags(), *flags]
    machine.start("trainer", module, *trainer, in_terminal=True, quiet=quiet)
    if not machine.finish("trainer", unless=unless):
        raise ProcessFailed(
            f"another run has taken the name {queue!r} in Redis, as happens where this machine "
            "slept. Once it has ended, the same command goes on"
        )
