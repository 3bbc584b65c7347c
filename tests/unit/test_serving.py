import asyncio
import gc
import threading
import time
from pathlib import Path

import httpx
import pytest

from agentprm.models.serving import LOAD_ROUTE, MAX_LOADS, Serving, add_checkpoint_routes
from agentprm.protocol import Health
from agentprm.registry import STABLE, Registry
from agentprm.service import Limits, ProblemError, create_app
from tests.fake_services import serving as serving_at


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
        assert one.refused == detail
        assert one.current().weights == "first"
        assert registry.serving("prm") == "prm/0"
    asyncio.run(one.load("prm/0"))
    assert one.refused is None


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


def test_what_a_failed_request_holds_by_itself_alone_is_let_go(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its traceback has a frame that has it: a cycle, for which nobody may look for long."""
    monkeypatch.setattr("agentprm.models.serving.COLLECT_SECONDS", 0.1)
    one = serving(registry)

    async def fail() -> None:
        kept: list[Exception] = []
        async with one.using() as served:
            assert served.version == "prm/0"
            try:
                raise ValueError("too long")
            except ValueError as error:
                kept.append(error)

    async def main() -> None:
        await one.load("prm/0")
        await fail()
        for version in ("prm/1", "prm/0", "prm/1"):
            async with asyncio.timeout(20):
                await one.load(version)

    gc.collect()
    gc.disable()
    try:
        asyncio.run(main())
    finally:
        gc.enable()


def test_a_start_without_what_served_last_waits_for_a_load(registry: Registry) -> None:
    registry.set_serving("prm", "prm/0")
    (registry.path("prm/0") / "weights.txt").unlink()
    one = serving(registry)
    asyncio.run(one.resume())
    assert one.version is None
    assert "weights.txt is missing" in (one.refused or "")
    with pytest.raises(ProblemError):
        asyncio.run(one.resume("prm/0"))


def test_a_start_without_memory_for_what_served_last_ends(registry: Registry) -> None:
    """So that it is started again: what was killed may have held a GPU's memory a little longer."""

    def out_of_memory(_: Path) -> str:
        raise MemoryError("CUDA out of memory")

    registry.set_serving("prm", "prm/0")
    with pytest.raises(ProblemError) as caught:
        asyncio.run(Serving("prm", registry, out_of_memory, canary).resume())
    assert caught.value.problem.status == 507


def test_what_vanishes_while_it_is_read_is_refused(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once while its files are hashed, once while it is built."""

    def build_too_late(path: Path) -> str:
        registry.remove("prm/1")
        return build(path)

    one: Serving[str] = Serving("prm", registry, build_too_late, canary)
    status, detail = problem(one, "prm/1")
    assert (status, one.version) == (409, None)
    assert "No such file" in detail

    def digest_too_late(file: Path) -> list[int | str]:
        registry.remove("prm/0")
        return [file.stat().st_size]

    one = serving(registry)
    monkeypatch.setattr("agentprm.registry._digest", digest_too_late)
    status, detail = problem(one, "prm/0")
    assert (status, one.version) == (409, None)
    assert "No such file" in detail


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MemoryError("Cannot allocate memory (os error 12)"), 507),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."), 507),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 507),
        (RuntimeError("the shapes do not match"), 409),
    ],
)
def test_no_memory_is_told_apart_from_a_bad_checkpoint(
    registry: Registry, error: Exception, status: int
) -> None:
    def fail(path: Path) -> str:
        if path.name == "1":
            raise error
        return build(path)

    one: Serving[str] = Serving("prm", registry, fail, canary)
    asyncio.run(one.load("prm/0"))
    got, detail = problem(one, "prm/1")
    assert got == status
    assert str(error) in detail
    assert one.version == "prm/0"


def test_a_load_that_is_late_is_given_up_and_its_weights_are_never_used(
    registry: Registry,
) -> None:
    go_on = threading.Event()

    def stuck(path: Path) -> str:
        if path.name == "1":
            assert go_on.wait(20)
        return build(path)

    one: Serving[str] = Serving("prm", registry, stuck, canary, timeout=0.2)

    async def main() -> None:
        await one.load("prm/0")
        for why in ("not loaded within 0.2 s", "still under way"):
            with pytest.raises(ProblemError, match=why) as caught:
                await one.load("prm/1")
            assert caught.value.problem.status == 503
            assert caught.value.retry_after is not None
        go_on.set()
        deadline = time.monotonic() + 20
        while any(thread.name == "load" for thread in threading.enumerate()):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        assert one.version == "prm/0"
        assert registry.serving("prm") == "prm/0"
        assert (await one.load("prm/1")).previous == "prm/0"

    asyncio.run(main())


def test_a_load_whose_request_is_given_up_counts_as_late(registry: Registry) -> None:
    """It goes on in its thread, so that another beside it would be one more in memory."""
    begun, go_on = threading.Event(), threading.Event()

    def stuck(path: Path) -> str:
        if path.name == "1":
            begun.set()
            assert go_on.wait(20)
        return build(path)

    one: Serving[str] = Serving("prm", registry, stuck, canary)
    health = Health(service="prm", status="healthy", package_version="0", version=None)
    app = create_app("prm", lambda: health, limits=Limits(slower={LOAD_ROUTE: 0.5}))
    add_checkpoint_routes(app, one)
    with serving_at(app) as url:

        def load(version: str) -> httpx.Response:
            return httpx.post(f"{url}{LOAD_ROUTE}", json={"version": version}, timeout=20)

        assert load("prm/0").status_code == 200
        answer = load("prm/1")
        assert (answer.status_code, "no answer after 0.5 s" in answer.text) == (503, True)
        assert begun.is_set()
        answer = load("prm/0")
        assert (answer.status_code, "still under way" in answer.text) == (503, True)
        go_on.set()
        deadline = time.monotonic() + 20
        while load("prm/1").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert one.version == "prm/1"


@pytest.mark.parametrize("timeout", [600.0, 3000.0])
def test_the_time_for_an_answer_to_a_load_is_longer_than_its_timeout(
    registry: Registry, timeout: float
) -> None:
    one = Serving("prm", registry, build, canary, timeout=timeout)
    assert one.limits.slower[LOAD_ROUTE] == timeout + 300


def test_too_many_loads_at_once_are_refused(registry: Registry) -> None:
    one = serving(registry)

    async def main() -> None:
        asked = [one.load("prm/0") for _ in range(MAX_LOADS + 2)]
        results = await asyncio.gather(*asked, return_exceptions=True)
        refused = [r.problem.status for r in results if isinstance(r, ProblemError)]
        assert refused == [429, 429]

    asyncio.run(main())


def test_a_load_cut_short_by_the_shutdown_changes_nothing(registry: Registry) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(path: Path) -> str:
        if path.name == "1":
            begun.set()
            assert go_on.wait(20)
        return build(path)

    one: Serving[str] = Serving("prm", registry, slow, canary)

    async def main() -> None:
        await one.load("prm/0")
        task = asyncio.create_task(one.load("prm/1"))
        assert await asyncio.to_thread(begun.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())  # which does not wait for the thread
    go_on.set()
    assert one.version == "prm/0"
    assert registry.serving("prm") == "prm/0"


def test_a_load_waits_until_no_request_uses_what_was_replaced_before(registry: Registry) -> None:
    """Else weights would pile up where swaps follow each other faster than requests end."""
    one = serving(registry)

    async def main() -> None:
        await one.load("prm/0")
        in_flight = [one.current()]
        await one.load("prm/1")
        third = asyncio.create_task(one.load("prm/0"))
        await asyncio.sleep(0.1)
        assert not third.done()
        assert one.version == "prm/1"
        in_flight.clear()
        await asyncio.wait_for(third, 20)

    asyncio.run(main())
    assert one.version == "prm/0"
