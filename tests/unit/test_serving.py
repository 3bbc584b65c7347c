import asyncio
import threading
from pathlib import Path

import pytest

from agentprm.registry import STABLE, Registry
from agentprm.service import ProblemError
from agentprm.serving import Serving


def build(path: Path) -> str:
    text = (path / "weights.txt").read_text()
    if text == "unreadable":
        raise RuntimeError("the header is broken")
    return text


def canary(weights: str, _: Path) -> None:
    if weights == "bad":
        raise ValueError("not finite")


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    registry = Registry(tmp_path)
    for k, text in enumerate(["first", "second", "bad", "unreadable"]):
        with registry.write(f"prm/{k}") as draft:
            (draft / "weights.txt").write_text(text)
    return registry


def serving(registry: Registry) -> Serving[str]:
    return Serving("prm", registry, build, canary)


def problem(serving: Serving[str], version: str) -> tuple[int, str]:
    with pytest.raises(ProblemError) as caught:
        asyncio.run(serving.load(version))
    return caught.value.problem.status, caught.value.problem.detail


def test_nothing_serves_before_the_first_load(registry: Registry) -> None:
    with pytest.raises(ProblemError) as caught:
        serving(registry).current()
    assert caught.value.problem.status == 503
    assert caught.value.retry_after is not None


def test_a_load_swaps_and_is_remembered(registry: Registry) -> None:
    one = serving(registry)
    assert asyncio.run(one.load("prm/0")).previous is None
    taken = one.current()
    loaded = asyncio.run(one.load("prm/1"))
    assert (loaded.version, loaded.previous) == ("prm/1", "prm/0")
    assert (taken.version, taken.weights) == ("prm/0", "first")
    assert (one.current().version, one.current().weights) == ("prm/1", "second")

    again = serving(registry)
    asyncio.run(again.resume())
    assert again.version == "prm/1"
    asyncio.run(again.resume("prm/0"))
    assert again.version == "prm/0"


def test_a_refused_load_changes_nothing_and_says_why(registry: Registry) -> None:
    one = serving(registry)
    asyncio.run(one.load("prm/0"))
    (registry.path("prm/1") / "weights.txt").write_text("sec0nd")
    with registry.write("prm/4") as draft:
        (draft / "weights.txt").write_text("fine")
    (registry.path("prm/4") / STABLE).unlink()
    (registry.path("policy/0")).mkdir(parents=True)

    for version, status, reason in [
        ("prm/1", 409, "weights.txt differs"),
        ("prm/2", 409, "not finite"),
        ("prm/3", 409, "the header is broken"),
        ("prm/4", 409, "no STABLE mark"),
        ("policy/0", 409, "no STABLE mark"),
        ("prm/9", 404, "no checkpoint prm/9"),
        ("other/1", 404, "not a checkpoint version"),
        ("../../etc", 404, "not a checkpoint version"),
    ]:
        got, detail = problem(one, version)
        assert got == status, version
        assert reason in detail
        assert one.current().weights == "first"
        assert registry.serving("prm") == "prm/0"


def test_loads_at_once_run_one_after_the_other(registry: Registry) -> None:
    inside = 0
    most = 0
    lock = threading.Lock()

    def slow(path: Path) -> str:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        weights = build(path)
        threading.Event().wait(0.01)
        with lock:
            inside -= 1
        return weights

    one: Serving[str] = Serving("prm", registry, slow, canary)

    async def main() -> None:
        versions = ["prm/0", "prm/1", "prm/2", "prm/0", "prm/1"]
        results = await asyncio.gather(*map(one.load, versions), return_exceptions=True)
        assert [isinstance(r, ProblemError) for r in results] == [False, False, True, False, False]

    asyncio.run(main())
    assert most == 1
    assert one.version == "prm/1"
    assert registry.serving("prm") == "prm/1"


def test_a_start_without_what_served_last_waits_for_a_load(registry: Registry) -> None:
    registry.set_serving("prm", "prm/0")
    (registry.path("prm/0") / "weights.txt").unlink()
    one = serving(registry)
    asyncio.run(one.resume())
    assert one.version is None
    with pytest.raises(ProblemError):
        asyncio.run(one.resume("prm/0"))
