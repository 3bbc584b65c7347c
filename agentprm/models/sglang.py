"""A client of a SGLang server's native API: token ids in, token ids and log-probabilities out.

    with SGLangClient("http://127.0.0.1:30000") as server:
        [answer] = server.generate([Generate(ids, max_tokens=16)])

A client may be used from several threads. Refused or broken connections and 503 are tried again
for a short while; anything else, a timeout included, is raised at once as `SGLangError`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import httpx
import orjson
import tenacity

from agentprm.addresses import by_proxy

TIMEOUT = 120.0
"""Seconds until an answer that does not come is an error."""
RETRY_SECONDS = 5.0
"""How long a call that reaches no server is tried again."""
MAX_BATCH = 1024
"""Most sequences of one request; longer lists are sent as several."""
RESERVED = 6
"""Tokens of a model's length that a server keeps for itself."""


class SGLangError(Exception):
    """The server refused, or did not answer. `status` is None where there was no answer.

    `late`: it had taken the request and its time was up.
    """

    def __init__(self, status: int | None, message: str, *, late: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.late = late


@dataclass(frozen=True)
class Generate:
    """A prompt to continue by at most `max_tokens`; 0 only reads it.

    An answer ends at the model's end-of-sequence tokens, at one of `stop_ids`, or where one of the
    texts `stop` appears. `seed` counts where the server runs with deterministic inference. With
    `score_from` the log-probabilities of `ids[score_from:]` are returned as well; it is at least 1,
    as nothing predicts the first token.
    """

    ids: Sequence[int]
    max_tokens: int
    temperature: float = 1.0
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    seed: int | None = None
    score_from: int | None = None


@dataclass(frozen=True)
class Generated:
    """A continuation, its last token included, be it an end mark.

    `log_probs` are of `ids`, at the temperature they were sampled with unless the server runs with
    SGLANG_RETURN_ORIGINAL_LOGPROB=1. `prompt_log_probs` are of the prompt's `ids[score_from:]`, at
    temperature 1. All are natural logarithms; what the server could not compute is NaN.
    """

    ids: list[int]
    log_probs: list[float]
    prompt_log_probs: list[float]
    finish: Literal["stop", "length", "abort"]
    prompt_tokens: int
    cached_tokens: int
    version: str


@dataclass(frozen=True)
class Classified:
    """The score of a sequence by a reward model: the raw logit of its single label, or NaN."""

    score: float
    version: str


@dataclass(frozen=True)
class ModelInfo:
    """What a server serves. `version` is what it was last told, `default` after a start."""

    tokenizer_path: str
    version: str
    is_generation: bool


class SGLangClient:
    """A connection pool to one server. `key` is its --api-key, where it has one.

    Raises:
        SGLangError: of a call, the server refuses it or does not answer.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        timeout: float = TIMEOUT,
        retry_seconds: float = RETRY_SECONDS,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        headers = {"content-type": "application/json"}
        if key:
            headers["authorization"] = f"Bearer {key}"
        self.url = url.rstrip("/")
        self._http = httpx.Client(
            base_url=self.url,
            timeout=timeout,
            headers=headers,
            transport=transport,
            trust_env=by_proxy(url),
        )
        self._timeout = timeout
        self._retry_seconds = retry_seconds

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def ready(self) -> bool:
        """Whether the server takes requests now: it has started and is not paused."""
        try:
            return self._http.get("/ready", timeout=5.0).status_code == 200
        except httpx.TransportError:
            return False

    def model_info(self) -> ModelInfo:
        """What the server serves.

        Raises:
            SGLangError: it does not answer.
        """
        found = self._call("GET", "/model_info")
        return ModelInfo(
            tokenizer_path=found["tokenizer_path"],
            version=found["weight_version"],
            is_generation=found["is_generation"],
        )

    def workers(self) -> list[str] | None:
        """The servers behind a router, or None where this is a server itself.

        Raises:
            SGLangError: neither a router nor a server answers.
        """
        try:
            found = self._call("GET", "/workers")
        except SGLangError as error:
            if error.status == 404:
                return None
            raise
        return [worker["url"] for worker in found["workers"]]

    def tokenize(self, text: str) -> list[int]:
        """The ids of a text by the server's tokenizer, without special tokens added.

        Raises:
            SGLangError: it has no tokenizer.
        """
        body = {"model": "default", "prompt": text, "add_special_tokens": False}
        ids: list[int] = self._call("POST", "/tokenize", body)["tokens"]
        return ids

    def generate(self, prompts: Sequence[Generate]) -> list[Generated]:
        """A continuation of each prompt. For n samples give a prompt n times, each with its seed,
        and ask with `max_tokens=0` before: then the prompt is computed once.

        Raises:
            SGLangError: 400, a prompt is longer than the server takes.
        """
        answers = self._batches("/generate", [_generate_body(prompt) for prompt in prompts])
        return [_generated(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]

    def classify(self, sequences: Sequence[Sequence[int]]) -> list[Classified]:
        """The score of each sequence at its last token; for a server of a reward model.

        Raises:
            SGLangError: 400, a sequence is longer than the server takes.
        """
        answers = self._batches("/classify", [{"input_ids": list(ids)} for ids in sequences])
        return [
            Classified(
                score=_number(answer["embedding"][0]),
                version=answer["meta_info"]["weight_version"],
            )
            for answer in answers
        ]

    def update_weights(self, path: Path, version: str, *, timeout: float) -> None:
        """Read the weights in the directory `path`, which the server must see as well, and answer
        as `version` from now on. Waits for requests in flight. All prefixes are forgotten.

        `timeout` is in seconds: large weights take longer than an answer may.

        Raises:
            SGLangError: 400, they do not load. The server has then gone back to its old weights,
                except where only the flush of the cache failed: so load the old ones again.
        """
        body = {"model_path": str(path), "weight_version": version, "flush_cache": True}
        answer = self._call("POST", "/update_weights_from_disk", body, timeout)
        if not answer["success"]:
            raise SGLangError(400, f"{self.url} does not load {path}: {answer['message']}")

    def _batches(self, path: str, items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Post items, each the body of a single request with the same keys, as few batches."""
        answers: list[dict[str, Any]] = []
        for start in range(0, len(items), MAX_BATCH):
            batch = items[start : start + MAX_BATCH]
            if len(batch) == 1:  # the only form that a router knows
                answers.append(self._call("POST", path, batch[0]))
                continue
            body = {key: [item[key] for item in batch] for key in batch[0]}
            found = self._call("POST", path, body)
            if len(found) != len(batch):
                raise SGLangError(None, f"{self.url}{path}: {len(found)} of {len(batch)} answers")
            answers += found
        return answers

    def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> Any:
        content = None if body is None else orjson.dumps(body)

        def once() -> bytes:
            answer = self._http.request(
                method, path, content=content, timeout=timeout or self._timeout
            )
            if not answer.is_success:
                message = f"{method} {answer.request.url}: {answer.status_code} {_reason(answer)}"
                raise SGLangError(answer.status_code, message)
            return answer.content

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_again),
            wait=tenacity.wait_exponential(multiplier=0.05, max=1.0),
            stop=tenacity.stop_after_delay(self._retry_seconds),
            reraise=True,
        )
        try:
            return orjson.loads(retrying(once))
        except httpx.TransportError as error:
            message = f"{method} {self.url}{path}: {type(error).__name__} {error}"
            late = isinstance(error, httpx.ReadTimeout)
            raise SGLangError(None, message, late=late) from error


def _again(error: BaseException) -> bool:
    if isinstance(error, SGLangError):
        return error.status == 503
    return isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError)


def _reason(answer: httpx.Response) -> str:
    """Of `{"error": {"message": ...}}`, `{"error": ...}`, `{"message": ...}`, or the text."""
    try:
        body = orjson.loads(answer.content)
    except ValueError:
        return answer.text[:300]
    found = body.get("error", body) if isinstance(body, dict) else body
    return str(found.get("message", found) if isinstance(found, dict) else found)[:300]


def _generate_body(prompt: Generate) -> dict[str, Any]:
    sampling: dict[str, Any] = {
        "max_new_tokens": prompt.max_tokens,
        "temperature": prompt.temperature,
    }
    if prompt.stop:
        sampling |= {"stop": list(prompt.stop), "no_stop_trim": True}
    if prompt.stop_ids:
        sampling["stop_token_ids"] = list(prompt.stop_ids)
    if prompt.seed is not None:
        sampling["sampling_seed"] = prompt.seed
    return {
        "input_ids": list(prompt.ids),
        "sampling_params": sampling,
        "return_logprob": True,
        # The token at the start gets no value, so it starts one earlier; -1 is none of the prompt.
        "logprob_start_len": -1 if prompt.score_from is None else prompt.score_from - 1,
    }


def _generated(prompt: Generate, answer: Mapping[str, Any]) -> Generated:
    meta = answer["meta_info"]
    sampled = meta["output_token_logprobs"][: prompt.max_tokens]  # a mixed batch draws one at 0
    scored = meta["input_token_logprobs"][1:] if prompt.score_from is not None else []
    return Generated(
        ids=[token for _, token, _ in sampled],
        log_probs=[_number(value) for value, _, _ in sampled],
        prompt_log_probs=[_number(value) for value, _, _ in scored],
        finish=meta["finish_reason"]["type"],
        prompt_tokens=meta["prompt_tokens"],
        cached_tokens=meta.get("cached_tokens", 0),
        version=meta["weight_version"],
    )


def _number(value: float | None) -> float:
    """JSON has no NaN: the server writes null for it."""
    return math.nan if value is None else float(value)
