"""What a load that fails leaves behind: the old weights serve on, and the answer says why."""

from __future__ import annotations

import re
import resource
import signal
import threading
import time
from contextlib import suppress

import httpx
import psutil
import pytest

from agentprm.client import PRMClient, ServiceError
from agentprm.protocol import ScoreRequest
from agentprm.registry import Registry
from tests.processes import service
from tests.scorers import episode, tiny_scorer

REQUEST = ScoreRequest(transcripts=[episode(3)])
PADDING = 3 * 2**30
"""Bytes without meaning, on no disk, whose hash takes seconds."""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """prm/0 and prm/1 are small, prm/2 takes 200 MB, prm/3 is slow to verify."""
    registry = Registry(tmp_path_factory.mktemp("run") / "checkpoints")
    for k in range(4):
        width = 1024 if k == 2 else 32
        with registry.write(f"prm/{k}") as draft:
            tiny_scorer(draft, k, width=width, feedforward=4 * width, layers=3)
            if k == 3:
                with (draft / "padding").open("wb") as file:
                    file.truncate(PADDING)
    return registry


def test_without_memory_for_it_the_old_weights_serve_on(registry: Registry) -> None:
    flags = ["--registry", registry.root, "--device", "cpu", "--checkpoint", "prm/0"]
    with service("prm", *flags) as (process, url), PRMClient(url, deadline=60) as prm:
        before = prm.score(REQUEST)
        room = psutil.Process(process.pid).memory_info().vms + 150 * 2**20
        _, hard = resource.prlimit(process.pid, resource.RLIMIT_AS)
        resource.prlimit(process.pid, resource.RLIMIT_AS, (room, hard))
        with pytest.raises(ServiceError, match="does not fit beside what serves") as caught:
            prm.load("prm/2")
        assert caught.value.status == 507
        assert prm.health().version == "prm/0"
        assert prm.score(REQUEST) == before
        resource.prlimit(process.pid, resource.RLIMIT_AS, (hard, hard))
        assert prm.load("prm/2").previous == "prm/0"


def test_a_load_that_takes_too_long_is_given_up(registry: Registry) -> None:
    (registry.root / "serving-prm").unlink(missing_ok=True)  # a start that is late would end it
    flags = ["--registry", registry.root, "--device", "cpu", "--load-timeout", "1"]
    with service("prm", *flags) as (_, url):
        first = {"version": "prm/1"}
        deadline = time.monotonic() + 60  # the first may be late: it imports what it needs
        while httpx.post(f"{url}/v1/checkpoints/load", json=first, timeout=60).is_error:
            assert time.monotonic() < deadline
            time.sleep(0.5)
        answer = httpx.post(f"{url}/v1/checkpoints/load", json={"version": "prm/3"}, timeout=60)
        assert answer.status_code == 503
        assert "not loaded within 1 s" in answer.json()["detail"]
        assert answer.headers["retry-after"]
        again = httpx.post(f"{url}/v1/checkpoints/load", json={"version": "prm/0"}, timeout=60)
        assert (again.status_code, "still under way" in again.json()["detail"]) == (503, True)
        with PRMClient(url, deadline=60) as prm:
            assert prm.score(REQUEST).prm_version == "prm/1"
            metrics = httpx.get(f"{url}/metrics").text
            [serving] = re.findall(r"agentprm_serving_info{.*} 1.0", metrics)
            assert 'version="prm/1"' in serving


def test_a_service_told_to_end_while_it_loads_ends_and_comes_back_with_what_it_answered(
    registry: Registry,
) -> None:
    flags = ["--registry", registry.root, "--device", "cpu"]
    answers: list[httpx.Response] = []
    with service("prm", *flags, "--checkpoint", "prm/0") as (process, url):

        def load() -> None:
            body = {"version": "prm/3"}
            with suppress(httpx.TransportError):
                answers.append(httpx.post(f"{url}/v1/checkpoints/load", json=body, timeout=60))

        thread = threading.Thread(target=load)
        thread.start()
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        thread.join(30)
    swapped = bool(answers) and answers[0].status_code == 200
    with service("prm", *flags) as (_, url):
        version = httpx.get(f"{url}/health").json()["version"]
    assert version == ("prm/3" if swapped else "prm/0")
