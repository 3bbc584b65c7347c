"""Which GPUs a process sees. CUDA reads it once, so it is settled before torch is imported."""

from __future__ import annotations

import os
import re

VARIABLE = "CUDA_VISIBLE_DEVICES"
_CUDA = re.compile(r"auto|cuda(?::(?P<index>[0-9]+))?")


def visible_to_fits(device: str, processes: int) -> dict[str, str]:
    """What to add to the environment so that fits compute on `device`, and on nothing else.

    A fit in one process takes one GPU: transformers would spread it over all that it sees, by a way
    that TRL refuses. `cuda:1` is the second of those that are visible now, `auto` and `cuda` the
    first. Several processes take a GPU each. On `cpu` none is visible.

    Raises:
        ValueError: fewer GPUs are visible than `device` asks for.
    """
    if device == "cpu":
        return {VARIABLE: ""}
    if processes > 1 or (match := _CUDA.fullmatch(device)) is None:
        return {}
    k = int(match["index"] or 0)
    visible = os.environ.get(VARIABLE)
    if visible is None:
        return {VARIABLE: str(k)}
    names = visible.split(",")
    if k >= len(names):
        raise ValueError(f"device = {device!r}: {VARIABLE} = {visible!r} shows fewer GPUs")
    return {VARIABLE: names[k].strip()}
