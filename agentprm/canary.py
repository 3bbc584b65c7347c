"""The canary of a checkpoint: what its trainer got for a fixed state, for its servers to compare.

Hashes say that the files are those that were written. The canary says that they mean the same here:
`canary.json` lies beside the weights and holds a state, the conversation it was rendered as, the
tokens of that, and the numbers the model gave for them while it was still in the trainer's hands.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from agentprm.encoding import Tokenizer, encode
from agentprm.prompts import PromptTemplate
from agentprm.protocol import Action, Message, Record, State, Step
from agentprm.registry import CheckpointError, read_record

FILE = "canary.json"
FLOAT32 = "float32"

GREEDY_TOKENS = 8
"""Tokens of the greedy continuation that a policy's canary holds."""

# Both sides in float32 agree to about 1e-5, whatever the kernels. Of the faults tried on trained
# models of 0.9 M parameters most moved a number by 5e-3 to 6; 1e-3 tells the two apart. bfloat16
# moved the same policies by up to 5e-3 per token and the PRMs by up to 0.015; that noise grows
# with depth, hence the margins. They still refuse permuted embeddings and exchanged matrices, but
# let small faults pass. Tokens are compared exactly in any precision.
EXACT = 1e-3
"""Tolerance where trainer and server both compute in float32."""
ROUNDED_LOG_PROB = 0.1
"""Tolerance of a log-probability in reduced precision, per token of the answer."""
ROUNDED_MARGIN = 0.75
"""By how much a greedy token may have been likelier, in reduced precision, and yet not be the
greedy one elsewhere. The logits of the likeliest tokens are 16 to 64 in published models, and there
bfloat16 has steps of 1/8 and 1/4. Trainer and server each round both logits, to half a step: two
steps in all, 1/4 and 1/2, and what was rounded on the way to the logits comes on top."""
ROUNDED_LOGIT = 0.2
"""Tolerance of the logit of Q in reduced precision."""

STATE = State(
    task="put some mug in cabinet.",
    history=(
        Step(
            observation="You are in the middle of a room. Looking quickly around you, you see "
            "a cabinet 1, a fridge 1, and a sidetable 1.\n\n"
            "Your task is to: put some mug in cabinet.",
            action=Action(reason="find mug", command="go to sidetable 1"),
        ),
    ),
    observation="You arrive at sidetable 1. On the sidetable 1, you see a mug 1, and an apple 2.",
    admissible=("take mug 1 from sidetable 1", "go to fridge 1", "look"),
)
ACTIONS = (
    Action(reason="find mug", command="take mug 1 from sidetable 1"),
    Action(reason="find mug", command="go to fridge 1"),
    Action(reason="find apple", command="look"),
)


class Answer(Record):
    """An action in the state: its tokens, and what the model gave for them.

    `ids` are those of the conversation and the action, which begins at `start`. `values` are, of a
    policy, the natural log-probabilities of `ids[start:]`; of a PRM, the one logit of Q.
    """

    action: Action
    ids: tuple[int, ...]
    start: int
    values: tuple[float, ...] = ()


class Greedy(Record):
    """A token of the likeliest continuation, and by how much it was likelier than the next."""

    id: int
    log_prob: float
    margin: float


class Canary(Record):
    """What a checkpoint computes for `state`, in `dtype`, as its trainer saw it."""

    kind: Literal["policy", "prm"]
    dtype: str
    state: State
    messages: tuple[Message, ...]
    answers: tuple[Answer, ...]
    greedy: tuple[Greedy, ...] = ()

    def write(self, directory: Path) -> None:
        """Put it beside the weights."""
        (directory / FILE).write_text(self.model_dump_json(indent=1))

    def require_encoding(self, tokenizer: Tokenizer, prompt: PromptTemplate) -> None:
        """Compare prompt template, chat template and tokenizer with those of the training.

        Raises:
            CheckpointError: one of them makes something else of the state.
            ValueError: the chat template does not take the conversation.
        """
        actions = [answer.action for answer in self.answers]
        messages, answers = rendered(self.state, actions, tokenizer, prompt)
        if messages != self.messages:
            raise CheckpointError(
                "the checkpoint was trained with another prompt: it read\n"
                f"{_shown(self.messages)}\nwhere this server's prompt gives\n{_shown(messages)}"
            )
        for stored, found in zip(self.answers, answers, strict=True):
            _require_tokens(stored.ids, found.ids)

    def tolerance(self, dtype: str, rounded: float) -> float:
        """`EXACT` where trainer and server compute in float32, else `rounded`."""
        return EXACT if dtype == self.dtype == FLOAT32 else rounded


def read_canary(directory: Path, kind: Literal["policy", "prm"]) -> Canary | None:
    """The canary of a checkpoint, or None: checkpoints that others made have none.

    Raises:
        CheckpointError: it cannot be read, or is that of another kind of model.
    """
    canary = read_record(directory / FILE, Canary)
    if canary is not None and canary.kind != kind:
        raise CheckpointError(f"{directory} is a {canary.kind}, and this service serves a {kind}")
    return canary


def rendered(
    state: State, actions: Sequence[Action], tokenizer: Tokenizer, prompt: PromptTemplate
) -> tuple[tuple[Message, ...], list[Answer]]:
    """The conversation that ends in `state`, and the tokens of each action in it, without values.

    Raises:
        ValueError: the chat template rewrites earlier messages.
    """
    messages = tuple(prompt.messages(state))
    answers = []
    for action in actions:
        answer = Message(role="assistant", content=prompt.action_text(action))
        encoded = encode(tokenizer, [*messages, answer])
        start, end = encoded.spans[-1]
        answers.append(Answer(action=action, ids=tuple(encoded.ids[:end]), start=start))
    return messages, answers


def require_close(what: str, stored: float, found: float, tolerance: float) -> None:
    """Compare a number with the trainer's.

    Raises:
        CheckpointError: they differ by more than `tolerance`, or `found` is not a number.
    """
    if not abs(found - stored) <= tolerance:
        raise CheckpointError(
            f"{what} is {found:.6g} here and was {stored:.6g} when the checkpoint was written "
            f"(tolerance {tolerance:.3g}): it does not compute what was trained"
        )


def _require_tokens(stored: Sequence[int], found: Sequence[int]) -> None:
    if stored == found:
        return
    longest = max(len(stored), len(found))
    at = next(k for k in range(longest) if stored[k : k + 1] != found[k : k + 1])
    raise CheckpointError(
        "its tokenizer or chat template makes other tokens of a conversation than in training: "
        f"{len(found)} tokens instead of {len(stored)}, at {at} {_at(found, at)} instead of "
        f"{_at(stored, at)}"
    )


def _at(ids: Sequence[int], place: int) -> str:
    return str(ids[place]) if place < len(ids) else "the end"


def _shown(messages: Sequence[Message]) -> str:
    text = " | ".join(f"{message.role}: {message.content}" for message in messages)
    return text if len(text) <= 300 else f"{text[:150]} ... {text[-150:]}"
