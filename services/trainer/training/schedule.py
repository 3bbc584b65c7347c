"""The learning rate over a fit: up, level, and down (as in Trainer's `warmup_stable_decay`)."""

from __future__ import annotations


def rate(step: int, *, steps: int, warmup: int, decay: int) -> float:
    """The learning rate of `step`, counted from 0, as a part of the peak; never 0 within `steps`.

    It rises over the first `warmup` steps and falls over the last `decay`, both in equal parts.
    The schedule of transformers begins its warm-up at 0: the first step would train nothing, and
    a fit of one step not at all.
    """
    return max(0.0, min((step + 1) / (warmup + 1), (steps - step) / max(decay, 1), 1.0))
