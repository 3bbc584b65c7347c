"""The canaries of what is trained here: what the model gives while it is in the trainer's hands.

With several processes all of them compute it, in step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from agentprm.canary import ACTIONS, GREEDY_TOKENS, STATE, Answer, Canary, Greedy, rendered
from agentprm.encoding import Tokenizer
from agentprm.prompts import PromptTemplate

MakeCanary = Callable[[nn.Module, Tokenizer, str], Canary]
"""Takes the canary of a model that computes in the dtype of that name."""


def policy_canary(prompt: PromptTemplate) -> MakeCanary:
    """Log-probabilities of some answers, and the greedy continuation."""

    def make(model: nn.Module, tokenizer: Tokenizer, dtype: str) -> Canary:
        messages, answers = rendered(STATE, ACTIONS, tokenizer, prompt)
        with _evaluating(model):
            scored = [_with_log_probs(model, answer) for answer in answers]
            greedy = _greedy(model, answers[0].ids[: answers[0].start])
        return Canary(
            kind="policy",
            dtype=dtype,
            state=STATE,
            messages=messages,
            answers=tuple(scored),
            greedy=tuple(greedy),
        )

    return make


def prm_canary(prompt: PromptTemplate) -> MakeCanary:
    """The logit of Q of some actions; the model is one of `load_prm`."""

    def make(model: nn.Module, tokenizer: Tokenizer, dtype: str) -> Canary:
        messages, answers = rendered(STATE, ACTIONS, tokenizer, prompt)
        with _evaluating(model):
            scored = [_with_logit(model, answer) for answer in answers]
        return Canary(
            kind="prm", dtype=dtype, state=STATE, messages=messages, answers=tuple(scored)
        )

    return make


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def _with_log_probs(model: nn.Module, answer: Answer) -> Answer:
    log_probs = _log_probs(model, answer.ids[:-1])[answer.start - 1 :]
    wanted = torch.tensor(answer.ids[answer.start :])
    values = log_probs.gather(-1, wanted[:, None])[:, 0]
    return answer.model_copy(update={"values": tuple(values.tolist())})


def _greedy(model: nn.Module, ids: tuple[int, ...]) -> list[Greedy]:
    found: list[Greedy] = []
    for _ in range(GREEDY_TOKENS):
        (first, second), (token, _) = _log_probs(model, ids)[-1].topk(2)
        found.append(Greedy(id=int(token), log_prob=first.item(), margin=(first - second).item()))
        ids = (*ids, int(token))
    return found


def _log_probs(model: nn.Module, ids: tuple[int, ...]) -> Tensor:
    """Of every next token after each of `ids`, on the CPU: [tokens, vocabulary]."""
    row, mask = _inputs(model, ids)
    logits: Tensor = model(input_ids=row, attention_mask=mask, use_cache=False).logits
    return logits[0].float().log_softmax(-1).cpu()


def _with_logit(model: nn.Module, answer: Answer) -> Answer:
    row, mask = _inputs(model, answer.ids)
    last = torch.full_like(row[:, :1], len(answer.ids) - 1)
    logit = model(row, mask, last).item()
    return answer.model_copy(update={"values": (logit,)})


def _inputs(model: Any, ids: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    row = torch.tensor([ids], device=next(model.parameters()).device)
    return row, torch.ones_like(row)
