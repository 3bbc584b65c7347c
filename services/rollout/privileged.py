"""Privileged hints: what the environment knows and the agent does not, in words."""

from __future__ import annotations

import re

from agentprm.protocol import HiddenState


def whereabouts(task: str, hidden: HiddenState) -> str:
    """Where the things lie that the task names: `mug 1 in cabinet 3, mug 2 in fridge 1`.

    The engine never prints this: what it says of places begins with `In it` or `On the`. Empty
    where none of the things lies anywhere.
    """
    named = set(re.findall(r"[a-z]+", task.lower()))
    lying = hidden.objects.items()
    return ", ".join(f"{thing} in {at}" for thing, at in lying if thing.split()[0] in named)
