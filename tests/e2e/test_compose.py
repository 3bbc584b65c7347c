"""The system in containers: trained, killed service by service, resumed, asked from outside."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import orjson
import pytest
from docker.errors import DockerException
from docker.models.containers import Container

from agentprm.cli.ports import free_port
from agentprm.client import PolicyClient, PRMClient, ServiceError
from agentprm.config import load_config
from agentprm.protocol import Action, ActRequest, Choice, ScoreRequest, State

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
ENGINE_UP = ROOT.parent / "shared" / "docker" / "engine-up"
PRESET = Path(__file__).parent / "kill.toml"
TRAIN = ["agentprm", "train", "--preset", "/kill.toml", "--run", "/runs/kill"]
SERVICES = ["redis", "env", "prm", "policy", "rollout"]

STATE = State(
    task="put some mug in shelf.",
    observation="You are in the middle of a room. You see a cabinet 1, and a shelf 1.",
    admissible=("go to cabinet 1", "go to shelf 1", "look"),
)


class Stack:
    """A compose project of its own: other names, ports and volumes than a user's."""

    def __init__(self, client: docker.DockerClient) -> None:
        self.client = client
        self.project = f"agentprm-test-{secrets.token_hex(3)}"
        self.policy_port, self.prm_port = free_port(), free_port()
        self.key = secrets.token_hex(16)
        self._environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("AGENTPRM_", "ALFWORLD_"))},
            "POLICY_PORT": str(self.policy_port),
            "PRM_PORT": str(self.prm_port),
            "REDIS_PASSWORD": secrets.token_hex(8),
            "AGENTPRM_API_KEYS": f"admin:{self.key}",
            "AGENTPRM_API_KEY": self.key,
            "AGENTPRM_NO_AUTH": "false",
        }

    def compose(self, *arguments: str, timeout: float = 300) -> str:
        """Run `docker compose`; its stdout."""
        command = ["docker", "compose", "-p", self.project, *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env=self._environment, capture_output=True, timeout=timeout
        )
        assert done.returncode == 0, done.stderr.decode()[-3000:]
        return done.stdout.decode()

    def container(self, service: str) -> Container:
        """The first running container of a service."""
        labels = [f"com.docker.compose.project={self.project}"]
        labels += [f"com.docker.compose.service={service}"]
        found: list[Container] = self.client.containers.list(filters={"label": labels})
        assert found, f"no container of {service} runs"
        return found[0]

    def train(self) -> Container:
        """The trainer's container, with the preset of this test."""
        name = f"{self.project}-trainer-{secrets.token_hex(2)}"
        volume = f"{PRESET}:/kill.toml:ro"
        self.compose("run", "-d", "--no-deps", "--name", name, "-v", volume, "trainer", *TRAIN)
        return self.client.containers.get(name)

    def kill(self, service: str) -> None:
        """SIGKILL, and start the service again as a person would."""
        self.compose("kill", service)
        self.compose("up", "-d", "--no-deps", service)

    def records(self, stage: str) -> list[dict[str, Any]]:
        """The lines of a stage's records, read where the services see them."""
        path = f"/runs/kill/records/{stage}.jsonl"
        code, output = self.container("policy").exec_run(["cat", path])
        lines = output.splitlines(keepends=True) if code == 0 else []
        return [orjson.loads(line) for line in lines if line.endswith(b"\n")]


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    if not shutil.which("docker") and not ENGINE_UP.exists():
        pytest.skip("there is no Docker here")
    if ENGINE_UP.exists():
        subprocess.run([ENGINE_UP], check=True, stdout=subprocess.DEVNULL, timeout=600)
    try:
        client = docker.from_env()
        client.ping()
    except DockerException as error:
        pytest.skip(f"no Docker engine answers: {error}")
    stack = Stack(client)
    stack.compose("build", timeout=1500)
    try:
        stack.compose("up", "-d", "--scale", "rollout=2", "--scale", "env=2", *SERVICES)
        yield stack
    finally:
        for container in client.containers.list(all=True, filters={"name": stack.project}):
            container.remove(force=True, v=True)
        stack.compose("down", "-v", "--remove-orphans")


def until(condition: Callable[[], bool], trainer: Container, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        trainer.reload()
        log = trainer.logs(tail=40).decode()
        assert trainer.status != "exited", f"the trainer ended before its time:\n{log}"
        assert time.monotonic() < deadline, f"it did not come true:\n{log}"
        time.sleep(0.5)


@pytest.fixture(scope="module")
def trained(stack: Stack) -> Container:
    """A finished run, during which every service was killed once."""
    trainer = stack.train()
    until(lambda: len(stack.records("demonstrations")) >= 1, trainer, 180)
    stack.kill("rollout")
    stack.kill("env")
    until(lambda: len(stack.records("pi_0-rollouts")) >= 1, trainer, 300)
    stack.kill("policy")
    trainer.kill()
    trainer = stack.train()
    until(lambda: len(stack.records("eval-pi_0-q_0")) >= 1, trainer, 300)
    stack.kill("prm")
    stack.kill("redis")
    stack.compose("restart", "redis")
    code = trainer.wait(timeout=600)["StatusCode"]
    assert code == 0, trainer.logs(tail=60).decode()
    return trainer


def test_a_run_outlasts_the_death_of_every_service(stack: Stack, trained: Container) -> None:
    config = load_config(str(PRESET))
    expected = {
        "demonstrations": config.demonstrations.games,
        "pi_0-rollouts": config.rollouts.games * config.rollouts.per_game,
        "eval-pi_1-q_0": config.evaluation.games,
    }
    for stage, count in expected.items():
        ids = Counter(e["id"] for result in stack.records(stage) for e in result["episodes"])
        assert len(ids) == count, f"{stage}: episodes lost"
        assert set(ids.values()) == {1}, f"{stage}: episodes counted twice"
    table = trained.logs().decode()
    assert "pi_1" in table
    assert "success" in table


def test_best_of_n_and_the_prm_answer_from_outside(
    stack: Stack, trained: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"http://127.0.0.1:{stack.policy_port}"
    with PolicyClient(url) as policy, pytest.raises(ServiceError, match="401"):
        policy.act(ActRequest(states=[STATE]))
    monkeypatch.setenv("AGENTPRM_API_KEY", stack.key)
    with PolicyClient(url) as policy:
        answer = policy.act(ActRequest(states=[STATE], n=8, prm=True, seed=0))
    assert (answer.policy_version, answer.prm_version) == ("policy/1", "prm/0")
    best = answer.results[0].best
    assert best.q == max(c.q for c in answer.results[0].candidates if c.q is not None)
    with PRMClient(f"http://127.0.0.1:{stack.prm_port}") as prm:
        choice = Choice(state=STATE, actions=[best.action, Action(command="look")])
        scores = prm.score(ScoreRequest(choices=[choice]))
    assert scores.choices[0][0] == pytest.approx(best.q, abs=1e-5)


def test_containers_have_no_more_than_they_need(stack: Stack, trained: Container) -> None:
    for service in ("env", "prm", "policy", "rollout"):
        container = stack.container(service)
        code, user = container.exec_run(["id", "-u"])
        assert (code, user.strip()) == (0, b"10001")
        assert container.attrs["HostConfig"]["ReadonlyRootfs"]
        assert container.exec_run(["touch", "/opt/agentprm/file"])[0] != 0
        for ports in (container.attrs["NetworkSettings"]["Ports"] or {}).values():
            assert all(port["HostIp"] == "127.0.0.1" for port in ports or [])


def test_a_worker_gives_its_job_back_when_it_is_stopped(stack: Stack, trained: Container) -> None:
    worker = stack.container("rollout")
    worker.stop(timeout=20)
    worker.reload()
    assert worker.attrs["State"]["ExitCode"] == 0
    assert b"worker ends" in worker.logs(tail=5)
    worker.start()


def test_down_and_up_go_on_where_the_run_was(stack: Stack, trained: Container) -> None:
    trained.remove()
    stack.compose("down")
    stack.compose("up", "-d", *SERVICES)
    again = stack.train()
    assert again.wait(timeout=300)["StatusCode"] == 0, again.logs(tail=60).decode()
    log = again.logs().decode()
    assert "done before" in log
    assert "done in" not in log
