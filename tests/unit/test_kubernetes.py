"""The manifests in deploy/kubernetes: against Kubernetes' schemas, compose, and one another."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import redis
import yaml
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from agentprm.config import load_config
from agentprm.protocol import JobResult, RolloutJob
from agentprm.queue import Queue
from agentprm.redis_server import RedisServer, find_redis_server

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "deploy" / "kubernetes"
OWN = {"env", "policy", "prm", "rollout", "trainer"}
WORKLOADS = ("Deployment", "StatefulSet", "Job")
BUILDERS = (["kustomize", "build"], ["kubectl", "kustomize"])

Resource = dict[str, Any]


@cache
def rendered(overlay: str) -> list[Resource]:
    builder = next((found for found in BUILDERS if shutil.which(found[0])), None)
    if builder is None:
        pytest.skip("neither kustomize nor kubectl is installed")
    done = subprocess.run(
        [*builder, str(MANIFESTS / overlay)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def of_kind(overlay: str, *kinds: str) -> dict[str, Resource]:
    return {r["metadata"]["name"]: r for r in rendered(overlay) if r["kind"] in kinds}


def pods(overlay: str) -> dict[str, Resource]:
    """Pod templates by workload."""
    return {
        name: workload["spec"]["template"]
        for name, workload in of_kind(overlay, *WORKLOADS).items()
    }


def containers(overlay: str) -> dict[str, Resource]:
    """The one container of each workload."""
    found = {}
    for name, pod in pods(overlay).items():
        [found[name]] = pod["spec"]["containers"]
    return found


def environment(overlay: str, container: Resource) -> dict[str, str | None]:
    """Its variables; None is a value from the Secret, or from the ConfigMap where it has one."""
    maps = of_kind(overlay, "ConfigMap")
    found: dict[str, str | None] = {}
    for source in container.get("envFrom", []):
        found |= maps[source["configMapRef"]["name"]]["data"]
    return found | {entry["name"]: entry.get("value") for entry in container.get("env", [])}


def compose(*names: str) -> dict[str, Resource]:
    """The services of these files, the later ones laid over the earlier."""
    services: dict[str, Resource] = {}
    for name in names:
        for service, more in yaml.safe_load((ROOT / name).read_text())["services"].items():
            before = services.get(service, {})
            variables = before.get("environment", {}) | more.get("environment", {})
            services[service] = before | more | {"environment": variables}
    return services


def default(value: str) -> str:
    """What compose puts for `${NAME:-default}` where nothing is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)


OVERLAYS = pytest.mark.parametrize("overlay", ["base", "gpu"])
COMPOSE = {"base": ("docker-compose.yml",), "gpu": ("docker-compose.yml", "docker-compose.gpu.yml")}


@OVERLAYS
def test_every_file_is_named_in_its_kustomization(overlay: str) -> None:
    listed = yaml.safe_load((MANIFESTS / overlay / "kustomization.yaml").read_text())
    named = {*listed["resources"], *(patch["path"] for patch in listed["patches"])} - {"../base"}
    there = {path.name for path in (MANIFESTS / overlay).iterdir()}
    assert named == there - {"kustomization.yaml", "secret.example.yaml"}
    for name in there:
        assert list(yaml.safe_load_all((MANIFESTS / overlay / name).read_text()))


@OVERLAYS
@pytest.mark.parametrize("version", ["1.27.0", "1.32.0", "1.37.0"])
def test_the_resources_fit_the_schemas(overlay: str, version: str) -> None:
    example = yaml.safe_load((MANIFESTS / "base" / "secret.example.yaml").read_text())
    published = [r for r in rendered(overlay) if not r["apiVersion"].startswith("keda.sh/")]
    assert len(published) >= 15
    for resource in [*published, example]:
        kubernetes_validate.validate(resource, version, strict=True)


@OVERLAYS
def test_compose_and_kubernetes_run_the_same(overlay: str) -> None:
    services, found = compose(*COMPOSE[overlay]), containers(overlay)
    assert services.keys() == found.keys()
    for name, service in services.items():
        container = found[name]
        assert container["image"].split(":")[0] == service["image"].split(":")[0], name
        if ":" in service["image"]:
            assert container["image"] == service["image"]
        if name in OWN:
            exposed = re.findall(
                r"^EXPOSE (\d+)", (ROOT / f"services/{name}/Dockerfile").read_text(), re.M
            )
            ports = [str(port["containerPort"]) for port in container.get("ports", [])]
            assert ports == exposed, name


def test_a_start_may_take_as_long_as_in_compose() -> None:
    sglang = compose(*COMPOSE["gpu"])["sglang"]["healthcheck"]["start_period"]
    periods = {"sglang": 60 * int(sglang.removesuffix("m"))}
    for name in ("env", "policy", "prm"):
        text = (ROOT / f"services/{name}/Dockerfile").read_text()
        [period] = re.findall(r"^HEALTHCHECK .*--start-period=(\d+)s", text, re.M)
        periods[name] = int(period)
    for name, period in periods.items():
        probe = containers("gpu")[name]["startupProbe"]
        assert probe["periodSeconds"] * probe["failureThreshold"] == period, name


@OVERLAYS
def test_the_variables_are_those_of_compose(overlay: str) -> None:
    found = containers(overlay)
    for name, service in compose(*COMPOSE[overlay]).items():
        ours = environment(overlay, found[name])
        for variable, value in service["environment"].items():
            # In a cluster there are always keys, and every pod has a log of its own.
            if variable in ("AGENTPRM_NO_AUTH", "AGENTPRM_LOG_REQUESTS"):
                assert variable not in ours
                continue
            if value is None:  # handed on where it is set, by its name or with all the others
                assert variable in ours or "envFrom" in found[name], (name, variable)
                continue
            assert variable in ours, (name, variable)
            if variable != "REDIS_URL" and not variable.endswith("_URL") and default(value):
                assert ours[variable] == default(value), (name, variable)


def test_redis_is_run_as_compose_runs_it() -> None:
    given = [default(part) for part in compose("docker-compose.yml")["redis"]["command"]]
    ours = containers("base")["redis"]["args"]
    pairs = {tuple(pair) for pair in zip(ours[::2], ours[1::2], strict=True)}
    theirs = set(zip(given[::2], given[1::2], strict=True))
    # In a cluster there always is a password, and without one it has to be as it is.
    assert theirs - {("--protected-mode", "no")} <= pairs


def start_of_redis(source: str) -> list[str]:
    """The arguments that start it there, without the directory of its data."""
    if source == "compose":
        service = compose("docker-compose.yml")["redis"]
        parts = [*service["entrypoint"], *service["command"]]
        return [default(part).replace("$$", "$") for part in parts]
    container = containers("base")["redis"]
    assert container["args"][:2] == ["--dir", "/data"]
    return [*container["command"], *container["args"][2:]]


@pytest.mark.parametrize("source", ["compose", "kubernetes"])
@pytest.mark.parametrize("password", ["", "s3cretOfATest"])
def test_redis_takes_its_password_from_the_environment(
    source: str, password: str, tmp_path: Path
) -> None:
    arguments = [*start_of_redis(source), "--port", "0", "--unixsocket", "redis.sock"]
    path = f"{find_redis_server().parent}:{os.environ['PATH']}"
    process = subprocess.Popen(
        arguments,
        cwd=tmp_path,
        env=os.environ | {"PATH": path, "REDISCLI_AUTH": password},
        stdout=subprocess.DEVNULL,
    )
    try:
        url = f"unix://{tmp_path}/redis.sock"
        patient = Retry(ConstantBackoff(0.05), 1000)  # until it listens
        with redis.Redis.from_url(
            url, password=password or None, protocol=2, retry=patient
        ) as client:
            assert client.config_get("maxmemory") == {"maxmemory": str(700 * 2**20)}
            assert client.config_get("save") == {"save": ""}
        if password:
            with (
                redis.Redis.from_url(url, protocol=2) as stranger,
                pytest.raises(redis.AuthenticationError),
            ):
                stranger.ping()
    finally:
        process.terminate()
        process.wait(timeout=30)


def test_redis_refuses_before_the_kernel_kills_it() -> None:
    limits = {"1g": 2**30, "1Gi": 2**30}
    service, container = compose("docker-compose.yml")["redis"], containers("base")["redis"]
    for limit, arguments in (
        (default(service["mem_limit"]), [default(part) for part in service["command"]]),
        (container["resources"]["limits"]["memory"], container["args"]),
    ):
        most = arguments[arguments.index("--maxmemory") + 1]
        assert 0.6 < int(most.removesuffix("mb")) * 2**20 / limits[limit] < 0.75


@OVERLAYS
def test_what_runs_has_no_rights_it_does_not_need(overlay: str) -> None:
    for name, container in containers(overlay).items():
        rights = container["securityContext"]
        assert rights["capabilities"] == {"drop": ["ALL"]}, name
        assert rights["allowPrivilegeEscalation"] is False
        pod = pods(overlay)[name]["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        assert "memory" in container["resources"]["limits"]
        if name == "sglang":  # its image is made for root
            continue
        assert rights["readOnlyRootFilesystem"] is True, name
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == (999 if name == "redis" else 10001)
        if name in OWN:
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            volumes = {volume["name"]: volume for volume in pod["volumes"]}
            assert "emptyDir" in volumes[mounts["/tmp"]]


@OVERLAYS
def test_what_is_referred_to_is_there(overlay: str) -> None:
    claims = of_kind(overlay, "PersistentVolumeClaim")
    example = yaml.safe_load((MANIFESTS / "base" / "secret.example.yaml").read_text())
    assert not of_kind(overlay, "Secret")
    for name, container in containers(overlay).items():
        pod = pods(overlay)[name]["spec"]
        for volume in pod.get("volumes", []):
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims
        templates = of_kind(overlay, *WORKLOADS)[name]["spec"].get("volumeClaimTemplates", [])
        there = {v["name"] for v in pod.get("volumes", [])}
        there |= {template["metadata"]["name"] for template in templates}
        assert {mount["name"] for mount in container["volumeMounts"]} == there
        for entry in container.get("env", []):
            if "valueFrom" in entry:
                [(kind, source)] = entry["valueFrom"].items()
                if kind == "configMapKeyRef":
                    assert source["name"] in of_kind(overlay, "ConfigMap")
                    assert (source["key"], source["optional"]) == (entry["name"], True)
                    continue
                assert kind == "secretKeyRef"
                assert source["name"] == example["metadata"]["name"]
                assert source["key"] in example["stringData"]
        ports = {port["name"] for port in container.get("ports", [])}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            if ports:
                action = container[probe].get("httpGet") or container[probe].get("tcpSocket") or {}
                assert action.get("port", *ports) in ports


def urls(overlay: str) -> Iterator[tuple[str, str]]:
    """Every address that a container is given: (variable, URL)."""
    for container in containers(overlay).values():
        for variable, value in environment(overlay, container).items():
            if variable.endswith("_URL") and value:
                yield from ((variable, url) for url in value.split(","))


@OVERLAYS
def test_every_address_is_a_service_of_that_port(overlay: str) -> None:
    services, workloads = of_kind(overlay, "Service"), of_kind(overlay, *WORKLOADS)
    seen = set()
    for _, url in urls(overlay):
        parts = urlsplit(url)
        pod, _, service = (parts.hostname or "").rpartition(".")
        seen.add(service)
        spec = services[service]["spec"]
        assert [port["port"] for port in spec["ports"]] == [parts.port]
        [workload] = [
            name
            for name, template in pods(overlay).items()
            if spec["selector"].items() <= template["metadata"]["labels"].items()
        ]
        [port] = containers(overlay)[workload]["ports"]
        assert port["containerPort"] == parts.port
        if pod:
            assert workloads[workload]["spec"]["serviceName"] == service
    assert seen == services.keys()


@OVERLAYS
@pytest.mark.parametrize(
    ("variable", "workload"),
    [
        ("AGENTPRM_POLICY_URL", "policy"),
        ("AGENTPRM_PRM_URL", "prm"),
        ("AGENTPRM_ENGINE_URL", "sglang"),
    ],
)
def test_every_replica_that_takes_checkpoints_is_named(
    overlay: str, variable: str, workload: str
) -> None:
    if (overlay, workload) == ("base", "sglang"):
        assert workload not in pods(overlay)
        return
    replicas = of_kind(overlay, "StatefulSet")[workload]["spec"]["replicas"]
    teller = containers(overlay)["policy" if workload == "sglang" else "trainer"]
    named = environment(overlay, teller)[variable] or ""
    hosts = [urlsplit(url).hostname for url in named.split(",")]
    assert hosts == [f"{workload}-{k}.{workload}" for k in range(replicas)]


@OVERLAYS
def test_sessions_stay_with_their_replica_of_the_environment(overlay: str) -> None:
    """Workers draw one of the name's addresses; behind one virtual address they could not."""
    assert of_kind(overlay, "Service")["env"]["spec"]["clusterIP"] == "None"


@OVERLAYS
def test_only_those_that_use_redis_reach_it(overlay: str) -> None:
    users = {
        name for name, c in containers(overlay).items() if "REDIS_URL" in environment(overlay, c)
    }
    policy = of_kind(overlay, "NetworkPolicy")["redis"]["spec"]
    labels = pods(overlay)["redis"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    [rule] = policy["ingress"]
    own, keda = rule["from"]
    [selected] = own["podSelector"]["matchExpressions"]
    assert set(selected["values"]) == users
    assert keda == {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "keda"}}}


@OVERLAYS
def test_the_autoscaler_watches_the_jobs(overlay: str, tmp_path: Path) -> None:
    scaled = of_kind(overlay, "ScaledObject")["rollout"]["spec"]
    assert scaled["scaleTargetRef"]["name"] in of_kind(overlay, "Deployment")
    assert 1 <= scaled["minReplicaCount"] < scaled["maxReplicaCount"]
    [trigger] = scaled["triggers"]
    assert trigger["type"] == "redis-streams"
    facts = trigger["metadata"]
    assert all(isinstance(value, str) for value in facts.values())
    assert int(facts["streamLength"]) >= 1
    service, namespace, *_ = facts["address"].split(".")
    assert namespace == of_kind(overlay, "Service")[service]["metadata"]["namespace"]
    secret = of_kind(overlay, "TriggerAuthentication")[trigger["authenticationRef"]["name"]]
    [password] = secret["spec"]["secretTargetRef"]
    assert password == {"parameter": "password", "name": "agentprm", "key": "redis-password"}

    # What it reads: XLEN of the stream that the workers take from.
    name = environment(overlay, containers(overlay)["trainer"])["AGENTPRM_QUEUE_NAME"]
    assert name is not None
    with RedisServer(tmp_path) as server, Queue(server.url, name) as queue:

        def length() -> int:
            return int(queue._redis.xlen(facts["stream"]))

        queue.publish(RolloutJob(id="a-0", games=["train/a/b"], seed=0))
        assert length() == 1
        entry = queue.take(timeout=10)
        assert entry is not None
        assert length() == 1  # a job being played holds its worker
        queue.give_back(entry)
        assert length() == 1
        entry = queue.take(timeout=10)
        assert entry is not None
        queue.finish(entry, JobResult(job_id="a-0", worker="w", seconds=0))
        assert length() == 0


@OVERLAYS
def test_the_job_trains_a_preset_that_there_is(overlay: str) -> None:
    command = containers(overlay)["trainer"]["command"]
    assert command[:3] == ["agentprm", "train", "--preset"]
    preset = load_config(command[3], 0)
    assert command[5] == f"/runs/{preset.preset}"
    assert preset.preset == ("llama-3b" if overlay == "gpu" else "tiny")
