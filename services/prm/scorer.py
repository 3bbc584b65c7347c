"""Q(s, a) from a one-label sequence classifier.

Q(s, a) = sigmoid(logit), the logit being the score head at the last token of the action: what
transformers computes for the conversation that ends with it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoTokenizer

from agentprm.models.surplus_tokens import without_surplus
from agentprm.prompts import PromptTemplate
from agentprm.protocol import (
    Action,
    Choice,
    Pair,
    ScoreRequest,
    State,
    Step,
    Transcript,
)
from agentprm.registry import CheckpointError
from agentprm.service import ProblemError
from services.prm.model import Classifier
from services.prm.packing import Row
from services.prm.planning import Plan, Planner

_SEEN = Step(
    observation="You are in the middle of a room.",
    action=Action(reason="find mug", command="look"),
)
_NEXT = Action(reason="find mug", command="go to shelf 1")
PROBE = ScoreRequest(
    transcripts=[
        Transcript(
            task="put a mug in cabinet",
            steps=[_SEEN, Step(observation="You see nothing.", action=_NEXT)],
        )
    ],
    choices=[
        Choice(
            state=State(
                task="put a mug in cabinet", history=(_SEEN,), observation="You see nothing."
            ),
            actions=[_SEEN.action, _NEXT],
        )
    ],
)
"""An episode, and two actions in its last state; the second is the one it took."""
PROBE_TOLERANCE = 0.05
"""Largest difference between the ways to score that action; reduced precision needs some."""


class BaseScorer(Planner, ABC):
    """A checkpoint that plans rows and scores them, wherever it is computed."""

    device: torch.device | str
    dtype: str
    parameters: int
    forward_tokens: int
    """Most tokens that are worth computing at once."""

    @abstractmethod
    def cost(self, row: Row) -> int:
        """Tokens of `row` that are to be computed, at most. Any thread may ask."""

    @abstractmethod
    def score(self, rows: Sequence[Row]) -> list[list[float]]:
        """Q at the ends of each row. Independent of what else is in the batch.

        Raises:
            ProblemError: 422, a server refuses a row; 503, no server computes it.
        """

    @abstractmethod
    def check(self) -> None:
        """Try the checkpoint on `PROBE`.

        Raises:
            CheckpointError, ValueError: the checkpoint does not compute what it should.
            SGLangError: a server of the checkpoint does not answer.
        """

    def probe(self) -> Plan:
        """The rows of `PROBE`.

        Raises:
            CheckpointError: the tokenizer's chat template does not take its conversation.
        """
        try:
            return self.plan(PROBE)
        except ProblemError as error:  # which would be the request's fault, and this is none
            raise CheckpointError(str(error)) from error


class Scorer(BaseScorer):
    """A PRM checkpoint on a device of this process."""

    def __init__(
        self,
        path: Path,
        prompt: PromptTemplate,
        *,
        device: str = "auto",
        dtype: str = "auto",
        cache_bytes: int = 2**30,
    ) -> None:
        """Load the Hugging Face directory `path`. Keys and values take up to `cache_bytes`.

        Raises:
            CheckpointError: it is not a complete one-label classifier on a causal model.
            OSError, ValueError: transformers cannot read it.
        """
        model = Classifier(path, device=device, dtype=dtype, cache_bytes=cache_bytes)
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        tokenizer = without_surplus(path, tokenizer, model.vocabulary)
        super().__init__(prompt, tokenizer, model.max_tokens, packs=model.packs)
        self.model = model
        self.device = model.device
        self.dtype = model.dtype
        self.parameters = model.parameters
        self.forward_tokens = model.forward_tokens

    def cost(self, row: Row) -> int:
        """Tokens of `row` that are not known from before."""
        return self.model.cost(row)

    def score(self, rows: Sequence[Row]) -> list[list[float]]:
        """Q at the ends of each row. Independent of what else is in the batch."""
        return [[sigmoid(logit) for logit in row] for row in self.model.logits(rows)]

    def check(self) -> None:
        """Try the weights on `PROBE`.

        Raises:
            CheckpointError: a score is not finite, or an action scores otherwise when packed; or
                as `probe`.
        """
        plan = self.probe()
        scores = self.score(plan.rows)
        if not all(0.0 <= q <= 1.0 for row in scores for q in row):
            raise CheckpointError(f"the scores of a short episode are not finite: {scores}")
        pair = Pair(state=PROBE.choices[0].state, action=PROBE.choices[0].actions[1])
        (alone,) = self.plan(ScoreRequest(pairs=[pair])).rows
        plain = sigmoid(self.model.plain(alone.ids))
        for place in (plan.transcripts[0][1], plan.choices[0][1]):
            score = scores[place[0]][place[1]]
            if abs(score - plain) > PROBE_TOLERANCE:
                raise CheckpointError(
                    f"the model scores an action {plain} by itself and {score} beside others: "
                    "it does not keep to the attention and the positions it is given"
                )


def sigmoid(logit: float) -> float:
    """The probability of a logit."""
    if logit < 0:
        return math.exp(logit) / (1.0 + math.exp(logit))
    return 1.0 / (1.0 + math.exp(-logit))
