"""Whether an engine computes what the trainer of its checkpoint computed."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer

from agentprm.canary import (
    ROUNDED_LOG_PROB,
    ROUNDED_MARGIN,
    Canary,
    read_canary,
    require_close,
)
from agentprm.prompts import PromptTemplate
from agentprm.registry import CheckpointError
from services.policy.engine import Draw, Engine, Prompt, Question


def check(engine: Engine, path: Path, prompt: PromptTemplate) -> None:
    """Try the engine, and compare it with the canary in `path` where there is one.

    Raises:
        CheckpointError: it computes something else.
        ValueError: what it computes makes no sense.
    """
    engine.check()
    canary = read_canary(path, "policy")
    if canary is None:
        return
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    canary.require_encoding(tokenizer, prompt)
    _compare_answers(engine, canary, prompt)
    _compare_greedy(engine, canary)


def _compare_answers(engine: Engine, canary: Canary, prompt: PromptTemplate) -> None:
    texts = [prompt.action_text(answer.action) for answer in canary.answers]
    question = Question(canary.messages, tuple(("", text) for text in texts))
    for stored, score in zip(canary.answers, engine.score([question])[0], strict=True):
        count = len(score.ids)  # the engine stops at the end-of-turn mark, training went on
        if tuple(score.ids) != stored.ids[stored.start : stored.start + count]:
            raise CheckpointError(f"the engine takes other tokens for {stored.action.command!r}")
        require_close(
            f"the log-probability of {stored.action.command!r}",
            sum(stored.values[:count]),
            score.log_prob,
            canary.tolerance(engine.dtype, ROUNDED_LOG_PROB * count),
        )


def _compare_greedy(engine: Engine, canary: Canary) -> None:
    draw = Draw(temperature=0.0, max_tokens=len(canary.greedy))
    ((sample,),) = engine.generate([Prompt(canary.messages)], draw)
    margin = canary.tolerance(engine.dtype, ROUNDED_MARGIN)
    same = [token == stored.id for stored, token in zip(canary.greedy, sample.ids, strict=False)]
    agreed = same.index(False) if False in same else len(same)
    if agreed < len(same) and canary.greedy[agreed].margin > margin:
        raise CheckpointError(
            f"greedy token {agreed} is {sample.ids[agreed]} here and was "
            f"{canary.greedy[agreed].id} when the checkpoint was written: it does not compute "
            "what was trained"
        )
    # Else a draw between two tokens, on which what follows depends. Where logits are rounded a few
    # tokens may be off by more than the tolerance; many are not, all in the same direction.
    require_close(
        f"the log-probability of the first {agreed} greedy tokens",
        sum(stored.log_prob for stored in canary.greedy[:agreed]),
        sum(sample.log_probs[:agreed]),
        max(margin, canary.tolerance(engine.dtype, ROUNDED_LOG_PROB) * agreed),
    )
