"""The services that a machine runs: how each is started, and where it then listens."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agentprm.cli.chosen_games import is_environment
from agentprm.cli.ports import free_port
from agentprm.cli.processes import Machine, ProcessFailed
from agentprm.config import Config, PolicyEngine
from agentprm.protocol import MAX_POOL
from agentprm.registry import Registry

ENV, POLICY, PRM, _WORLD, _SGLANG = "env", "policy", "prm", "world", "sglang"

SGLANG_COMMAND = (
    "python -m sglang.launch_server --model-path {model} --dtype bfloat16 "
    "--host 127.0.0.1 --port {port}"
)
"""Left to itself it computes in float16 what is stored in float32, as fits store it."""
_SGLANG_START = 900.0
"""Seconds that a SGLang server has to start: it loads, compiles and captures graphs."""
_STEP_SECONDS = 3600.0
"""Seconds until a game of a run is given up: look-ahead may ask a policy 16 times between two
steps, and an endpoint may have a limit of requests a minute. The games of a worker that died are
closed as another takes its job."""


@dataclass(frozen=True)
class Options:
    """What the services of a machine have in common."""

    prompt: str = "chat"
    device: str = "auto"
    policy_device: str | None = None
    prm_device: str | None = None
    """Where those models are, if not on `device`."""
    prm: bool = True
    """Whether a PRM is served beside the policy."""
    engine: str = "compiled"
    expert: str = "search"
    workers: int = 2
    policy_replicas: int = 1
    batch: int = 8
    max_steps: int = 30
    """Turns of an episode where a request does not say."""
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
            policy_device=config.policy_device,
            prm_device=config.prm_device,
            prm=config.has_prm,
            engine=config.engine,
            expert=config.expert,
            workers=config.workers,
            policy_replicas=config.policy_replicas,
            batch=config.batch,
            max_steps=config.max_steps,
            policy_engine=config.policy_engine,
            sglang_urls=config.sglang_urls,
        )

    def device_of(self, service: str) -> str:
        """Where that service computes."""
        own = {POLICY: self.policy_device, PRM: self.prm_device}
        return own.get(service) or self.device

    def devices(self) -> dict[str, str]:
        """Where fits and embedded models compute, by the names of the settings."""
        asked: dict[str, str | None] = {"device": self.device}
        if self.prm:
            asked["prm_device"] = self.prm_device
        if self.policy_engine is PolicyEngine.EMBEDDED:
            asked["policy_device"] = self.policy_device
        return {setting: device for setting, device in asked.items() if device is not None}


@dataclass(frozen=True)
class Endpoints:
    """Where the services of a machine listen; of a policy with replicas a,b,... each of them.

    Where a chat model plays there are no policy and no PRM, and where none is used no PRM: theirs
    are empty.
    """

    env: str
    policy: str = ""
    prm: str = ""

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


def start_services(machine: Machine, games: str, options: Options) -> Endpoints:
    """Environment, policies and PRM, up and running, as a run's workers and its trainer need.

    Where no PRM is used there is none; where a chat model plays, there is the environment alone.

    Raises:
        ProcessFailed: one of them does not come up, or its GPU is not there.
    """
    if options.chat_url is not None:
        env = _start_env_of_run(machine, games, options)
        machine.wait_reachable([ENV])
        return Endpoints(env)
    require_devices(options.devices())
    prm, flags = "", []
    if options.prm:
        prm = start_model(machine, PRM, free_port(), machine.run, options, [])
        flags = ["--prm-url", prm]
    policies = [POLICY, *(f"{POLICY}-{k}" for k in range(2, options.policy_replicas + 1))]
    urls = [
        start_model(machine, POLICY, free_port(), machine.run, options, flags, name=name)
        for name in policies
    ]
    env = _start_env_of_run(machine, games, options)
    machine.wait_reachable([ENV, *policies, *([PRM] if options.prm else [])])
    return Endpoints(env=env, policy=",".join(urls), prm=prm)


def require_devices(asked: Mapping[str, str]) -> None:
    """Go on only where the devices are there, each by its setting's name.

    Else it would be told when there is something to load: of a policy, after hours of fitting.

    Raises:
        ProcessFailed: one is not.
    """
    if all(device in ("auto", "cpu") for device in asked.values()):
        return
    from agentprm.models.devices import DeviceError, require_gpus  # torch takes seconds to import

    try:
        require_gpus(asked)
    except DeviceError as error:
        raise ProcessFailed(str(error)) from error


def _start_env_of_run(machine: Machine, games: str, options: Options) -> str:
    """One for all the games that the workers of a run play at a time."""
    return start_env(
        machine,
        free_port(),
        games,
        options,
        capacity=options.workers * options.batch,
        privileged=True,
        idle_seconds=_STEP_SECONDS,
    )


def start_env(
    machine: Machine,
    port: int,
    games: str,
    options: Options,
    *,
    capacity: int,
    privileged: bool,
    idle_seconds: float | None = None,
) -> str:
    """Start the environment; its URL. It need not be up yet.

    Args:
        capacity: games at a time: processes of TextWorld, or threads of the user's own environment.
        privileged: whether it tells the hidden state and what the expert would do.
        idle_seconds: until a game that nobody plays is closed; by default the service's own.

    Raises:
        ProcessFailed: another process listens at `port`.
    """
    flags = ["--engine", options.engine, "--expert", options.expert]
    flags += ["--pool", str(min(capacity, MAX_POOL)), "--max-steps", str(options.max_steps)]
    if is_environment(games):
        flags += ["--environment", games]
    else:
        flags += ["--environment", "", "--data", games]  # "": none, whatever the shell names
    flags += ["--privileged", "true"] if privileged else []
    flags += ["--idle-seconds", str(idle_seconds)] if idle_seconds is not None else []
    return machine.start(ENV, "services.env", *flags, port=port)


def start_model(
    machine: Machine,
    service: str,
    port: int,
    run: Path,
    options: Options,
    flags: list[str],
    *,
    name: str | None = None,
) -> str:
    """Start a service that holds a model; its URL. `name` tells replicas of it apart.

    Raises:
        ProcessFailed: another process listens at `port`.
    """
    registry = ["--registry", str(run / "checkpoints")]
    common = ["--prompt", options.prompt, "--device", options.device_of(service)]
    if service == POLICY:
        common += ["--engine", options.policy_engine]
        common += ["--engine-url", ",".join(options.sglang_urls)] if options.sglang_urls else []
    module = f"services.{service}"
    return machine.start(name or service, module, *registry, *common, *flags, port=port)


def start_world(machine: Machine, registry: Path, options: Options) -> str:
    """A policy service on the one checkpoint in `registry`, up and running; its URL.

    The registry is not the policy's: a service notes in its registry what it serves.

    Raises:
        ProcessFailed: it does not come up.
    """
    (version,) = Registry(registry).versions("world")
    flags = ["--registry", str(registry), "--checkpoint", version]
    flags += ["--prompt", options.prompt, "--device", options.device]
    url = machine.start(_WORLD, "services.policy", *flags, port=free_port())
    machine.wait_reachable([_WORLD])
    return url


def start_sglang(machine: Machine, model: Path, command: str) -> str:
    """A server on the checkpoint in `model`, up and running; its URL.

    `command` starts it, with `{model}` and `{port}` in it.

    Raises:
        ProcessFailed: `command` cannot be read, or there is none such, or the server does not
            come up.
    """
    port = free_port()
    values = {"model": str(model.absolute()), "port": str(port)}
    try:
        argv = [part.format(**values) for part in shlex.split(command)]
    except (ValueError, LookupError) as error:
        raise ProcessFailed(
            f"--sglang-command cannot be read ({error}): it knows {{model}} and {{port}}; other "
            "braces are written twice"
        ) from None
    url = machine.start_command(_SGLANG, argv, port=port)
    machine.wait_reachable([_SGLANG], _SGLANG_START)
    return url
