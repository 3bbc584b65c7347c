"""The engine over SGLang servers. They hold the weights; the tokenizer and the checks are here.

Prompts go as token ids. A server reads a prompt once and branches behind it, so samples of one
prompt, and the commands of one state, pay only for what is their own.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from agentprm.encoding import eos_tokens
from agentprm.models.prefix_cache import common_length
from agentprm.models.replicas import Replicas
from agentprm.models.sglang import RESERVED, Generate, Generated, SGLangClient
from agentprm.models.sglang_weights import require_started_with, tag_of
from agentprm.models.surplus_tokens import without_surplus
from agentprm.protocol import Message
from agentprm.service import ProblemError
from services.policy.engine import (
    PROMPT_TOKENS,
    Draw,
    Engine,
    Prompt,
    Question,
    Sample,
    Score,
    require_room,
)
from services.policy.engine.codec import Codec, cut
from services.policy.engine.limits import max_length
from services.policy.engine.sampling import generator

PROBE = "REASON: find mug 1\nACTION: go to cabinet 10"
"""A text that both tokenizers have to read alike."""
TOLERANCE = 0.5
"""Of log-probabilities, in whatever precision the servers compute."""


class SGLangEngine(Engine):
    """A checkpoint on `replicas`, once they were put on it. Called from any number of threads.

    Samples follow their keys only where the servers run with deterministic inference.
    """

    def __init__(
        self, path: Path, config: Any, codec: Codec, probe: list[int], replicas: Replicas
    ) -> None:
        self.path = path
        self.tag = tag_of(path)
        self.codec = codec
        self.max_length = _room(config)
        self._config = config.to_dict()
        self._probe = probe
        self._replicas = replicas
        self._tokenizing = threading.Lock()

    @classmethod
    def load(cls, path: Path, replicas: Replicas) -> SGLangEngine:
        """What the service itself needs of the checkpoint in `path`; no server is touched.

        Raises:
            CheckpointError: the tokenizer has tokens that the model does not know.
            OSError, ValueError: transformers cannot read it, or `Codec` refuses its tokenizer.
        """
        options = {"local_files_only": True, "trust_remote_code": False}
        config = AutoConfig.from_pretrained(path, **options).get_text_config()
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
        # A token that the model does not know ends the server's process.
        tokenizer = without_surplus(path, tokenizer, config.vocab_size)
        if (path / "generation_config.json").is_file():
            generation = GenerationConfig.from_pretrained(path, local_files_only=True)
        else:
            generation = GenerationConfig.from_model_config(config)
        codec = Codec(tokenizer, eos_tokens(generation, tokenizer), _room(config))
        probe = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
        return cls(path, config, codec, probe, replicas)

    def generate(self, prompts: Sequence[Prompt], draw: Draw) -> list[list[Sample]]:
        """All samples at once; where a prompt has several, it is read once before."""
        with self._tokenizing:
            ids = [self.codec.prompt(p.messages) + self.codec.opening(p.opening) for p in prompts]
        for prompt_ids in ids:
            require_room(len(prompt_ids) + 1, self.max_length)
        homes = [_home(prompt.messages) for prompt in prompts]
        if draw.n > 1:
            self._ask([Generate(prompt_ids, 0) for prompt_ids in ids], homes)
        requests = [
            Generate(
                prompt_ids,
                min(draw.max_tokens, self.max_length - len(prompt_ids)),
                draw.temperature,
                stop=draw.stop,
                stop_ids=tuple(self.codec.ends),
                seed=seed,
            )
            for prompt, prompt_ids in zip(prompts, ids, strict=True)
            for seed in generator(prompt.key, 0).integers(2**31, size=draw.n).tolist()
        ]
        homes = [home for home in homes for _ in range(draw.n)]
        found = self._ask(requests, homes)
        log_probs = [answer.log_probs for answer in found]
        if draw.temperature not in (0.0, 1.0):  # they are those of the sampling temperature
            log_probs = self._log_probs(requests, found, homes)
        with self._tokenizing:
            samples = [
                self._sample(answer, values, draw)
                for answer, values in zip(found, log_probs, strict=True)
            ]
        return [samples[k : k + draw.n] for k in range(0, len(samples), draw.n)]

    def score(self, questions: Sequence[Question]) -> list[list[Score]]:
        """First the openings, each read once; then every answer's rest behind its opening."""
        answers: list[_Answer] = []
        with self._tokenizing:
            for number, question in enumerate(questions):
                answers += self._answers(number, question)
        homes = [_home(question.messages) for question in questions]
        openings = {a.opening: Generate(a.opening[1], 0, score_from=a.start) for a in answers}
        read = self._ask(list(openings.values()), [homes[number] for number, _ in openings])
        of_opening = {
            opening: math.fsum(found.prompt_log_probs)
            for opening, found in zip(openings, read, strict=True)
        }
        rests = self._ask(
            [Generate(a.ids, 0, score_from=len(a.opening[1])) for a in answers],
            [homes[a.opening[0]] for a in answers],
        )
        scores = iter(
            Score(
                ids=list(a.ids[a.start :]),
                log_prob=of_opening[a.opening] + math.fsum(rest.prompt_log_probs),
                opening_log_prob=of_opening[a.opening],
            )
            for a, rest in zip(answers, rests, strict=True)
        )
        return [[next(scores) for _ in question.answers] for question in questions]

    def encode(self, messages: tuple[Message, ...]) -> None:
        """Encode a conversation before its turn."""
        with self._tokenizing:
            self.codec.prompt(messages)

    def token_texts(self, sample: Sample) -> list[str]:
        """The text of each token that the sample's text is made of."""
        with self._tokenizing:
            return self.codec.shown(sample)

    def check(self) -> None:
        """Try every server that serves this checkpoint, as `try_on` does."""
        self._replicas.check(self)

    def compare(self, server: SGLangClient) -> None:
        """The server was started with this checkpoint's tokenizer and configuration.

        Raises:
            ValueError: it was not.
            SGLangError: it does not answer.
        """
        if server.tokenize(PROBE) != self._probe:
            raise ValueError(f"{server.url} was started with another tokenizer")
        require_started_with(server, self._config)

    def try_on(self, server: SGLangClient) -> None:
        """What the server samples is finite, and gets the same log-probabilities when it is read
        with nothing of it kept.

        Raises:
            ValueError: it is not so.
            SGLangError: the server does not answer.
        """
        with self._tokenizing:
            prompt = self.codec.prompt(
                (Message(role="user", content="You are in the middle of a room."),)
            )
        [sampled] = server.generate([Generate(prompt, 4, temperature=0.0)])
        [read] = server.generate([Generate(prompt + sampled.ids, 0, score_from=1)])
        pairs = zip(sampled.log_probs, read.prompt_log_probs[len(prompt) - 1 :], strict=True)
        if not all(map(math.isfinite, [*sampled.log_probs, *read.prompt_log_probs])):
            raise ValueError(f"{self.path}: its log-probabilities are not finite")
        if any(abs(a - b) > TOLERANCE for a, b in pairs):
            raise ValueError(f"{server.url} scores what it sampled otherwise than it sampled it")

    def _ask(self, requests: Sequence[Generate], homes: Sequence[int]) -> list[Generated]:
        """Continuations, each finished and with finite log-probabilities.

        Raises:
            ProblemError: 503, there is none.
        """
        found = self._replicas.generate(requests, self.tag, homes)
        for answer in found:
            values = [*answer.log_probs, *answer.prompt_log_probs]
            if answer.finish == "abort" or not all(map(math.isfinite, values)):
                raise ProblemError(503, "Engine unavailable", "an answer broke off", retry_after=1)
        cached = sum(answer.cached_tokens for answer in found)
        PROMPT_TOKENS.labels("cached").inc(cached)
        PROMPT_TOKENS.labels("computed").inc(sum(a.prompt_tokens for a in found) - cached)
        return found

    def _log_probs(
        self, requests: Sequence[Generate], found: Sequence[Generated], homes: Sequence[int]
    ) -> list[list[float]]:
        """Of what was sampled, at temperature 1."""
        reads = [
            Generate([*request.ids, *answer.ids], 0, score_from=len(request.ids))
            for request, answer in zip(requests, found, strict=True)
        ]
        return [read.prompt_log_probs for read in self._ask(reads, homes)]

    def _answers(self, number: int, question: Question) -> list[_Answer]:
        prompt = self.codec.prompt(question.messages)
        found = self.codec.answers([opening + rest for opening, rest in question.answers])
        require_room(len(prompt) + max(map(len, found)), self.max_length)
        return [
            _Answer(
                ids=(*prompt, *ids),
                start=len(prompt),
                opening=(
                    number,
                    (*prompt, *ids[: common_length(self.codec.opening(opening), ids)]),
                ),
            )
            for (opening, _), ids in zip(question.answers, found, strict=True)
        ]

    def _sample(self, answer: Generated, log_probs: list[float], draw: Draw) -> Sample:
        marked = bool(answer.ids) and answer.ids[-1] in self.codec.ends
        text = self.codec.text(answer.ids[:-1] if marked else answer.ids)
        return Sample(
            text=cut(text, draw.stop),
            ids=answer.ids,
            log_probs=log_probs,
            prompt_tokens=answer.prompt_tokens,
            finished=answer.finish == "stop",
        )


@dataclass(frozen=True)
class _Answer:
    """A prompt with an answer from token `start` on; `opening` is its question's number and the
    prompt with the answer's opening.
    """

    ids: tuple[int, ...]
    start: int
    opening: tuple[int, tuple[int, ...]]


def _room(config: Any) -> int:
    return max_length(config) - RESERVED


def _home(messages: Sequence[Message]) -> int:
    """Alike for all turns of an episode: it begins with the same messages."""
    return hash(tuple(messages[:2]))
