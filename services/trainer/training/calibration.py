"""How good a PRM's Q is: against the targets, and against the outcomes of the episodes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agentprm.protocol import ReliabilityBin

BINS = 10
"""Bins of Q in [0, 1]."""


@dataclass(frozen=True)
class Scored:
    """Turn by turn: the model's Q, the target Q̂, and the outcome of the episode it is from."""

    q: list[float]
    targets: list[float]
    outcomes: list[float]


def calibration(scored: Scored) -> dict[str, float]:
    """Measures over all turns, of which there is at least one.

    `bce`: soft cross-entropy (nats), whose least possible value on these targets is `entropy`.
    `ece`: expected calibration error, |mean Q − mean Q̂| over `BINS` bins of equal width, weighted
    by their turns. `q_mean`, `target_mean`: the means of Q and of Q̂. `explained_variance`:
    1 − Var(Q̂ − Q) / Var(Q̂). `auc`: how often a turn of a won episode has a higher Q than a turn of
    a lost one. A measure that the data does not define, such as the AUC without a lost episode, is
    left out.
    """
    q, target = torch.tensor(scored.q), torch.tensor(scored.targets)
    won = torch.tensor(scored.outcomes) > 0.5
    measures = {
        "bce": _cross_entropy(q, target),
        "entropy": _cross_entropy(target, target),
        "ece": expected_calibration_error(q, target),
        "q_mean": q.mean().item(),
        "target_mean": target.mean().item(),
    }
    if target.var(unbiased=False) > 0:
        rest = (target - q).var(unbiased=False) / target.var(unbiased=False)
        measures["explained_variance"] = 1 - rest.item()
    if won.any() and not won.all():
        measures["auc"] = area_under_curve(q[won], q[~won])
    return measures


def expected_calibration_error(q: Tensor, target: Tensor) -> float:
    """Σ_b |Σ_{i∈b} (q_i − t_i)| / n over `BINS` bins of q."""
    gaps = torch.zeros(BINS).index_add_(0, _bins(q), q - target)
    return gaps.abs().sum().item() / len(q)


def reliability(scored: Scored) -> list[ReliabilityBin]:
    """The turns by their Q in `BINS` bins of equal width, those without turns left out."""
    q, target = (torch.tensor(x, dtype=torch.float64) for x in (scored.q, scored.targets))
    won = (torch.tensor(scored.outcomes) > 0.5).double()
    bins = _bins(q)
    return [
        ReliabilityBin(
            low=k / BINS,
            high=(k + 1) / BINS,
            turns=int(inside.sum()),
            mean_q=q[inside].mean().item(),
            mean_target=target[inside].mean().item(),
            won=won[inside].mean().item(),
        )
        for k in range(BINS)
        if (inside := bins == k).any()
    ]


def area_under_curve(positive: Tensor, negative: Tensor) -> float:
    """P(a positive ranks above a negative), ties counted half (Mann–Whitney)."""
    ordered = negative.sort().values
    below = torch.searchsorted(ordered, positive, right=False)
    not_above = torch.searchsorted(ordered, positive, right=True)
    return ((below + not_above).double().mean() / (2 * len(negative))).item()


def _bins(q: Tensor) -> Tensor:
    return (q * BINS).long().clamp(max=BINS - 1)


def _cross_entropy(q: Tensor, target: Tensor) -> float:
    return torch.nn.functional.binary_cross_entropy(q, target).item()
