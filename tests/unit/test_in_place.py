import asyncio

import pytest

from agentprm.in_place import _Gate


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
