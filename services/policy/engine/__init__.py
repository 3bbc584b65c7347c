"""What the policy service asks of an engine, whatever runs the model.

An engine holds one checkpoint. It samples answers to conversations, and scores answers that are
given. How actions are made of answers is `services.policy.decoding`'s business.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from prometheus_client import Counter

from agentprm.protocol import CONTEXT_TOO_LONG, Message
from agentprm.service import ProblemError

PROMPT_TOKENS = Counter(
    "agentprm_policy_prompt_tokens_total", "Prompt tokens by source", ["source"]
)


@dataclass(frozen=True)
class Prompt:
    """A conversation that the agent answers next.

    `key` is (seed, index): samples depend on it and the conversation alone. `opening` is how the
    answer has to begin.
    """

    messages: tuple[Message, ...]
    key: tuple[int, int] = (0, 0)
    opening: str = ""


@dataclass(frozen=True)
class Draw:
    """How to sample. An answer ends at the end-of-turn mark, at a `stop` text, or at the limit."""

    n: int = 1
    temperature: float = 1.0
    max_tokens: int = 128
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sample:
    """A sampled answer after its opening.

    `text` leaves out the end-of-turn mark and the stop text. `log_probs[k]` is the natural
    log-probability of `ids[k]` at temperature 1; both include the token that ended the answer.
    `finished` is False where the limit cut it.
    """

    text: str
    ids: list[int]
    log_probs: list[float]
    prompt_tokens: int
    finished: bool


@dataclass(frozen=True)
class Question:
    """Whole answers to score after one conversation; each is an opening and its rest."""

    messages: tuple[Message, ...]
    answers: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Score:
    """The log-probability of a whole answer and of its opening, the end-of-turn mark included.

    `ids` are the answer's tokens as training encodes them.
    """

    ids: list[int]
    log_prob: float
    opening_log_prob: float


class Engine(ABC):
    """One checkpoint of a policy, ready to answer. Called from one thread at a time, unless it
    or a method says otherwise.
    """

    dtype: str = "unknown"
    """What it computes in, such as `float32`."""

    @abstractmethod
    def generate(self, prompts: Sequence[Prompt], draw: Draw) -> list[list[Sample]]:
        """`draw.n` samples for each prompt.

        Raises:
            ProblemError: 422, a conversation is longer than the model takes, or its chat template
                refuses it; 503, no server computes it.
        """

    @abstractmethod
    def score(self, questions: Sequence[Question]) -> list[list[Score]]:
        """A score for each answer of each question.

        Raises:
            ProblemError: 422, a conversation with an answer is longer than the model takes, or its
                chat template refuses it; 503, no server computes it.
        """

    @abstractmethod
    def encode(self, messages: tuple[Message, ...]) -> None:
        """Encode a conversation before its turn. Any thread may call it, at any time.

        Raises:
            ProblemError: 422, it is longer than the model takes, or its chat template refuses it.
        """

    @abstractmethod
    def token_texts(self, sample: Sample) -> list[str]:
        """The text of each token that the sample's text is made of: of its first `ids`, without
        the end-of-turn mark and the stop text.
        """

    @abstractmethod
    def check(self) -> None:
        """Try the model on a short conversation.

        Raises:
            ValueError: the model does not compute what it should.
            SGLangError: a server of the checkpoint does not answer.
        """


def require_room(tokens: int, max_length: int) -> None:
    """Refuse what is longer than the model takes.

    Raises:
        ProblemError: 422, with both numbers.
    """
    if tokens > max_length:
        raise ProblemError(
            422,
            CONTEXT_TOO_LONG,
            f"the conversation and its answer take at least {tokens} tokens, "
            f"the model takes {max_length}",
        )
