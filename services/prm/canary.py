"""Whether a scorer computes what the trainer of its checkpoint computed."""

from __future__ import annotations

import math
from pathlib import Path

from agentprm.canary import ROUNDED_LOGIT, read_canary, require_close
from agentprm.protocol import Choice, ScoreRequest
from services.prm.scorer import BaseScorer


def check(scorer: BaseScorer, path: Path) -> None:
    """Try the scorer, and compare it with the canary in `path` where there is one.

    Compared are logits, not Q: where wins are rare every Q is near 0, whatever the weights.

    Raises:
        CheckpointError: it computes something else.
        ValueError: what it computes makes no sense.
    """
    scorer.check()
    canary = read_canary(path, "prm")
    if canary is None:
        return
    canary.require_encoding(scorer.tokenizer, scorer.prompt)
    actions = [answer.action for answer in canary.answers]
    plan = scorer.plan(ScoreRequest(choices=[Choice(state=canary.state, actions=actions)]))
    scores = scorer.score(plan.rows)
    for answer, (row, place) in zip(canary.answers, plan.choices[0], strict=True):
        require_close(
            f"the logit of Q of {answer.action.command!r}",
            _within(answer.values[0]),
            _within(_logit(scores[row][place])),
            canary.tolerance(scorer.dtype, ROUNDED_LOGIT),
        )


def _within(logit: float) -> float:
    """Near 1 a float32 Q does not tell the logit to the tolerance: from there on all are one."""
    return min(max(logit, -30.0), 9.0)


def _logit(q: float) -> float:
    if q in (0, 1):
        return math.copysign(math.inf, q - 0.5)
    return math.log(q / (1 - q))
