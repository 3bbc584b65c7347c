"""Process reward shaping (section 4.2): what a reference policy μ says of the learner's actions.

V^μ, fitted on rollouts of μ (see `reference`), gives on the learner's own rollouts the advantage
that each action would have if μ went on from there; eq. 13 mixes it into the PRM's targets.
"""

from __future__ import annotations

from collections.abc import Sequence

from agentprm.protocol import Episode
from services.trainer.targets.monte_carlo import averaged


def advantages(
    episodes: Sequence[Episode], values: Sequence[Sequence[float]], gamma: float
) -> list[list[float]]:
    """A^μ(s, a): the mean over all visits of (s, a) of r + γ V^μ(s') − V^μ(s).

    `values[i][t]` is V^μ(s_t). The last turn of an episode ends the game or the horizon, so that
    V^μ(s') is 0 there. Rewards that come at the end keep A^μ in [−1, 1].
    """
    steps = []
    for episode, known in zip(episodes, values, strict=True):
        following = [*known[1:], 0.0][: len(known)]  # none, where a game was given up at once
        steps.append(
            [
                turn.reward + gamma * after - before
                for turn, before, after in zip(episode.turns, known, following, strict=True)
            ]
        )
    return averaged(episodes, steps)


def shaped(
    q: Sequence[Sequence[float]], advantage: Sequence[Sequence[float]], alpha: float
) -> list[list[float]]:
    """The targets of eq. 13, (1 − α) Q^π + α A^μ, brought to [0, 1] for soft cross-entropy.

    Q^π is in [0, 1] and A^μ in [−1, 1], so their mixture y is in [−α, 1]; the target is
    (y + α) / (1 + α). That keeps every order of eq. 13, is Q^π itself at α = 0, to the last bit,
    and (A^μ + 1) / 2 at α = 1. An A^μ above 1, as V^μ errs where rewards come on the way, counts
    as 1.
    """
    return [
        [
            ((1 - alpha) * x + alpha * min(a, 1.0) + alpha) / (1 + alpha)
            for x, a in zip(*pair, strict=True)
        ]
        for pair in zip(q, advantage, strict=True)
    ]
