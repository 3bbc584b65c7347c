import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from agentprm.registry import Registry
from agentprm.serving import Serving
from services.policy.batching import Batcher, running


@pytest.mark.parametrize("concurrency", [1, 2])
def test_as_many_batches_are_computed_side_by_side_as_told(
    tmp_path: Path, concurrency: int
) -> None:
    registry = Registry(tmp_path)
    with registry.write("policy/0") as draft:
        (draft / "weights.txt").write_text("x")
    inside = most = 0
    lock = threading.Lock()

    def work(_: Any, items: Sequence[int]) -> list[int]:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        threading.Event().wait(0.05)
        with lock:
            inside -= 1
        return [2 * item for item in items]

    async def main() -> list[tuple[str, Sequence[Any]]]:
        serving = Serving("policy", registry, lambda path: path, lambda *_: None)
        await serving.load("policy/0")
        batcher = Batcher(serving, max_waiting=100, concurrency=concurrency)
        async with running(batcher):
            # Kinds differ, so that none are merged.
            return await asyncio.gather(*(batcher.submit(k, work, [k], 1) for k in range(4)))

    assert asyncio.run(main()) == [("policy/0", [2 * k]) for k in range(4)]
    assert most == concurrency
