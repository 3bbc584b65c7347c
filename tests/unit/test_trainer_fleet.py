"""The trainer and several replicas of a service, over HTTP."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from rich.console import Console

from agentprm.client import PRMClient, ServiceError
from agentprm.models.serving import Serving, add_checkpoint_routes
from agentprm.protocol import Health
from agentprm.registry import Registry
from agentprm.service import create_app
from services.trainer.progress import Progress
from services.trainer.rollouts.collect import Collector, Services
from services.trainer.rollouts.fleet import Fleet
from services.trainer.rollouts.records import Records
from tests.fake_services import serving


def replica(registry: Registry, broken: bool = False) -> FastAPI:
    """A service that serves texts; a `broken` one refuses prm/1."""

    def build(path: Path) -> str:
        text = (path / "weights.txt").read_text()
        if broken and text == "prm/1":
            raise ValueError("it does not fit on this machine")
        return text

    served: Serving[str] = Serving("prm", registry, build, lambda *_: None)

    def health() -> Health:
        return Health(service="prm", status="healthy", package_version="0", version=served.version)

    app = create_app("prm", health)
    add_checkpoint_routes(app, served)
    return app


def checkpoints(root: Path) -> Registry:
    registry = Registry(root / "checkpoints")
    for version in ("prm/0", "prm/1"):
        with registry.write(version) as draft:
            (draft / "weights.txt").write_text(version)
    return registry


@contextmanager
def replicas(root: Path, broken: int | None = None) -> Iterator[Fleet[PRMClient]]:
    """Two services on one registry; number `broken` refuses prm/1."""
    registry = checkpoints(root)
    with ExitStack() as stack:
        clients = []
        for number in range(2):
            url = stack.enter_context(serving(replica(registry, number == broken)))
            clients.append(stack.enter_context(PRMClient(url, deadline=20)))
        yield Fleet(clients)


def test_all_replicas_are_told(tmp_path: Path) -> None:
    with replicas(tmp_path) as fleet:
        assert fleet.version is None
        fleet.load("prm/0")
        assert fleet.version == "prm/0"
        fleet.next.load("prm/1")
        assert fleet.version is None
        assert fleet.next.health().version == "prm/0"
        assert fleet.next.health().version == "prm/1"


@pytest.mark.parametrize("broken", [0, 1])
def test_where_one_refuses_all_serve_what_they_did_before(tmp_path: Path, broken: int) -> None:
    with replicas(tmp_path, broken) as fleet:
        fleet.load("prm/0")
        with pytest.raises(ServiceError, match="does not fit on this machine") as caught:
            fleet.load("prm/1")
        assert caught.value.status == 409
        assert fleet.version == "prm/0"


def test_another_runs_checkpoint_of_the_same_name_is_refused(tmp_path: Path) -> None:
    """As where `current`, which the services follow, still means a run before."""
    ours = checkpoints(tmp_path / "ours")
    with ours.write("prm/2") as draft:
        (draft / "weights.txt").write_text("ours")
    theirs = checkpoints(tmp_path / "theirs")
    with theirs.write("prm/2") as draft:
        (draft / "weights.txt").write_text("theirs")
    with serving(replica(theirs)) as url, PRMClient(url, deadline=20) as client:
        fleet = Fleet([client], ours)
        fleet.load("prm/0")  # the same files
        with pytest.raises(ServiceError, match="reads the checkpoints of another run") as caught:
            fleet.load("prm/2")
        assert caught.value.status == 409
        assert fleet.version == "prm/0"


def test_a_stage_that_begins_while_a_service_restarts_waits_for_it(tmp_path: Path) -> None:
    registry = checkpoints(tmp_path)
    with serving(replica(registry)) as url:
        port = httpx.URL(url).port
        fleet = Fleet([PRMClient(url, deadline=30)])
        services = Services(None, None, fleet, None)  # type: ignore[arg-type]  # not asked
        records, quiet = Records(tmp_path / "records"), Progress(Console(quiet=True))
        collector = Collector(services, records, quiet, seed=0, batch=1, max_steps=1)
        collector.serve(prm="prm/0")
    assert fleet.version is None

    back, done = threading.Event(), threading.Event()

    def restart() -> None:
        time.sleep(0.5)
        with serving(replica(registry), port or 0):
            back.set()
            done.wait(60)

    thread = threading.Thread(target=restart)
    thread.start()
    try:
        collector.serve(prm="prm/0")
        assert back.is_set()
        assert fleet.version == "prm/0"
    finally:
        done.set()
        thread.join()
