"""The trainer and several replicas of a service, over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from agentprm.client import PRMClient, ServiceError
from agentprm.protocol import Health
from agentprm.registry import Registry
from agentprm.service import create_app
from agentprm.serving import Serving, add_checkpoint_routes
from services.trainer.fleet import Fleet
from tests.fake_services import serving


@contextmanager
def replicas(root: Path, broken: int | None = None) -> Iterator[Fleet[PRMClient]]:
    """Two services on one registry; number `broken` refuses prm/1."""
    registry = Registry(root / "checkpoints")
    for version in ("prm/0", "prm/1"):
        with registry.write(version) as draft:
            (draft / "weights.txt").write_text(version)

    with ExitStack() as stack:
        clients = []
        for number in range(2):

            def build(path: Path, number: int = number) -> str:
                text = (path / "weights.txt").read_text()
                if number == broken and text == "prm/1":
                    raise ValueError("it does not fit on this machine")
                return text

            served: Serving[str] = Serving("prm", registry, build, lambda *_: None)

            def health(served: Serving[str] = served) -> Health:
                return Health(
                    service="prm", status="healthy", package_version="0", version=served.version
                )

            app = create_app("prm", health)
            add_checkpoint_routes(app, served)
            url = stack.enter_context(serving(app))
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
