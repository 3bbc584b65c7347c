import asyncio
import errno
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentprm.models.in_place import InPlaceServing, _Gate
from agentprm.models.replicas import Replicas, ReplicasError
from agentprm.models.sglang import Generate, SGLangClient
from agentprm.registry import Registry
from agentprm.service import ProblemError
from tests.fake_services import serving
from tests.fake_sglang import FakeSGLang, Named, replicas_of

VERSIONS = ("prm/0", "prm/1", "prm/2")


@pytest.fixture
def server() -> FakeSGLang:
    return FakeSGLang()


@pytest.fixture
def url(server: FakeSGLang) -> Iterator[str]:
    with serving(server.app()) as url:
        yield url


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    registry = Registry(tmp_path)
    for version in VERSIONS:
        with registry.write(version) as draft:
            (draft / "weights.txt").write_text(version)
    return registry


def test_weights_may_take_longer_to_read_than_an_answer(
    url: str, server: FakeSGLang, tmp_path: Path
) -> None:
    patient = Replicas([url], timeout=0.3, load_timeout=20)
    threading.Timer(1.0, server.read.set).start()
    patient.put(Named(tmp_path / "policy-7"))
    assert patient.tags() == {url: "policy-7"}
    server.read.clear()
    hasty = Replicas([url], timeout=20, load_timeout=0.3)
    with pytest.raises(ReplicasError, match="ReadTimeout"):
        hasty.put(Named(tmp_path / "policy-8"))
    server.read.set()


def test_a_server_that_is_slow_and_well_is_not_set_aside(
    url: str, server: FakeSGLang, tmp_path: Path
) -> None:
    """One request for too much is refused, and others are answered."""
    replicas = Replicas([url], timeout=1.0)
    server.read.set()
    replicas.put(Named(tmp_path / "policy-7"))
    server.read.clear()
    with pytest.raises(ProblemError, match="ask for less"):
        replicas.generate([Generate([1, 2], max_tokens=1)], "policy-7", [0])
    assert replicas.tags() == {url: "policy-7"}
    [short] = replicas.generate([Generate([1], max_tokens=1)], "policy-7", [0])
    assert short.version == "policy-7"
    server.read.set()


def test_servers_are_put_on_a_checkpoint_to_the_end_whoever_waits_for_it(
    url: str, server: FakeSGLang, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The load is given up while a server reads: it serves what the server has in the end, and
    neither a load nor the mending begins beside it."""
    monkeypatch.setattr("agentprm.models.in_place.MEND_SECONDS", 0.05)
    one = InPlaceServing("prm", registry, Named, lambda *_: None, Replicas([url]))

    async def main() -> None:
        async with one.running():
            server.read.set()
            await one.load("prm/0")
            server.read.clear()
            server.asked.clear()
            given_up = asyncio.create_task(one.load("prm/1"))
            assert await asyncio.to_thread(server.asked.wait, 20)
            given_up.cancel()
            other = asyncio.create_task(one.load("prm/2"))
            await asyncio.sleep(0.5)
            assert not other.done()
            assert (one.version, server.version) == ("prm/0", "0")
            server.read.set()
            with pytest.raises(asyncio.CancelledError):
                await given_up
            assert (one.version, registry.serving("prm")) == ("prm/1", "prm/1")
            assert (await other).previous == "prm/1"

    asyncio.run(main())
    assert server.most == 1
    assert server.version == "2"


def test_a_canary_that_fails_puts_all_servers_back(registry: Registry) -> None:
    def canary(weights: Named, path: Path) -> None:
        if weights.tag == "1":
            raise ValueError("not what training computed")

    async def main() -> None:
        async with one.running():
            await one.load("prm/0")
            with pytest.raises(ProblemError, match="not what training computed"):
                await one.load("prm/1")

    servers = [FakeSGLang(), FakeSGLang()]
    with replicas_of(servers) as replicas:
        one = InPlaceServing("prm", registry, Named, canary, replicas)
        asyncio.run(main())
    assert (one.version, [server.version for server in servers]) == ("prm/0", ["0", "0"])
    assert [*replicas.tags().values()] == ["0", "0"]


def test_weights_that_a_server_cannot_take_touch_none(registry: Registry) -> None:
    class Choosy(Named):
        def compare(self, server: SGLangClient) -> None:
            if (self.tag, server.url) == ("1", last):
                raise ValueError("of another shape")

    async def main() -> None:
        async with one.running():
            await one.load("prm/0")
            for server in servers:
                server.asked.clear()
            with pytest.raises(ProblemError, match="of another shape"):
                await one.load("prm/1")

    servers = [FakeSGLang(), FakeSGLang()]
    with replicas_of(servers) as replicas:
        _, last = replicas.tags()
        one = InPlaceServing("prm", registry, Choosy, lambda *_: None, replicas)
        asyncio.run(main())
    assert not any(server.asked.is_set() for server in servers)


def test_servers_keep_their_weights_until_the_answers_under_way_have_ended(
    url: str, server: FakeSGLang, registry: Registry
) -> None:
    server.read.set()
    one = InPlaceServing("prm", registry, Named, lambda *_: None, Replicas([url]))

    async def main() -> None:
        async with one.running():
            await one.load("prm/0")
            server.asked.clear()
            async with one.using() as served:
                loading = asyncio.create_task(one.load("prm/1"))
                assert not await asyncio.to_thread(server.asked.wait, 0.3)
                assert (served.version, server.version) == ("prm/0", "0")
            assert (await loading).previous == "prm/0"

    asyncio.run(main())


def test_mending_goes_on_after_what_nobody_expected(
    url: str, server: FakeSGLang, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentprm.models.in_place.MEND_SECONDS", 0.01)
    server.read.set()
    replicas = Replicas([url])
    one = InPlaceServing("prm", registry, Named, lambda *_: None, replicas)
    mended = threading.Semaphore(0)

    def mend(weights: Named) -> None:
        mended.release()
        raise OSError(errno.ENOSPC, "No space left on device")

    async def main() -> None:
        async with one.running():
            await one.load("prm/0")
            for _ in range(3):
                assert await asyncio.to_thread(mended.acquire, timeout=10)

    monkeypatch.setattr(replicas, "mend", mend)
    asyncio.run(main())


def test_the_time_for_an_answer_to_a_load_is_longer_than_its_steps_may_take(
    registry: Registry,
) -> None:
    one = InPlaceServing("prm", registry, Named, lambda *_: None, Replicas([]), timeout=2000)
    [seconds] = one.limits.slower.values()
    assert seconds > 3 * 2000


def test_one_alone_waits_for_those_inside_and_keeps_later_ones_out() -> None:
    async def main() -> list[str]:
        gate = _Gate()
        seen: list[str] = []

        async def answer(name: str, seconds: float) -> None:
            async with gate.shared():
                seen.append(f"{name} in")
                await asyncio.sleep(seconds)
                seen.append(f"{name} out")

        async def swap() -> None:
            async with gate.exclusive(1.0):
                seen.append("swap in")
                await asyncio.sleep(0.02)
                seen.append("swap out")

        first = [asyncio.create_task(answer(name, 0.02)) for name in "ab"]
        await asyncio.sleep(0.001)
        alone = asyncio.create_task(swap())
        await asyncio.sleep(0.001)
        await asyncio.gather(*first, alone, answer("c", 0.0))
        return seen

    seen = asyncio.run(main())
    assert seen[:2] == ["a in", "b in"]
    assert seen[2:] == ["a out", "b out", "swap in", "swap out", "c in", "c out"]


def test_one_alone_gives_up_in_time_and_lets_the_others_in_again() -> None:
    async def main() -> None:
        gate = _Gate()
        async with gate.shared():
            with pytest.raises(TimeoutError):
                async with gate.exclusive(0.01):
                    pass
            async with gate.shared():
                pass

    asyncio.run(main())
