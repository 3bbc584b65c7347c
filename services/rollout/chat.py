"""The model behind an OpenAI-compatible endpoint, prompted for actions as a policy is (ReAct)."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
from openai import (
    APIStatusError,
    BadRequestError,
    DefaultHttpxClient,
    OpenAI,
    OpenAIError,
    omit,
)

from agentprm.addresses import by_proxy
from agentprm.client import ServiceError
from agentprm.prompts import PromptTemplate, parse_action
from agentprm.protocol import Action, Sampling, State
from agentprm.side_by_side import side_by_side

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion

KEY = "OPENAI_API_KEY"
_RETRIES = 6
"""Tries after the first, further and further apart, where the endpoint is busy or not reached."""
_UNSUPPORTED = {
    ("unsupported_parameter", "max_tokens"),
    ("unsupported_parameter", "temperature"),
    ("unsupported_value", "temperature"),
}
"""Codes and options in which OpenAI's reasoning models say what they do not take: they have
`max_completion_tokens`, and a temperature of their own."""

_log = structlog.get_logger()


@dataclass(frozen=True)
class ChatAnswer:
    """An action, and the model that chose it by the name that its endpoint gives."""

    action: Action
    model: str


class ChatModel:
    """Chooses actions by `POST {url}/chat/completions`, with the key of `OPENAI_API_KEY` if any."""

    def __init__(self, url: str, prompt: PromptTemplate) -> None:
        key = os.environ.get(KEY) or "none"
        http = DefaultHttpxClient(trust_env=by_proxy(url))
        self._client = OpenAI(base_url=url, api_key=key, max_retries=_RETRIES, http_client=http)
        self._prompt = prompt
        self._unsupported: defaultdict[str, set[str]] = defaultdict(set)
        """By model the options that it has refused."""

    @property
    def template_hash(self) -> str:
        """Of the prompt."""
        return self._prompt.hash

    def act(
        self, model: str, states: Sequence[State], sampling: Sampling, seed: int
    ) -> list[ChatAnswer | None]:
        """One action in each state, asked for side by side; state k with `seed + k`.

        None in a state that the endpoint says is too long for the model. What
        `agentprm.prompts.parse_action` cannot read becomes an action without a command.

        Raises:
            ServiceError: the endpoint refuses, or gives no answer after several tries.
        """

        def ask(k: int) -> ChatAnswer | None:
            try:
                answer = self._complete(model, states[k], sampling, (seed + k) % 2**31)
            except APIStatusError as error:
                if _too_long(error):
                    return None
                raise
            action, _ = parse_action(answer.choices[0].message.content or "")
            return ChatAnswer(action, answer.model or model)

        try:
            return side_by_side(ask, range(len(states)))
        except OpenAIError as error:
            raise ServiceError(getattr(error, "status_code", None), str(error)) from error

    def _complete(self, model: str, state: State, sampling: Sampling, seed: int) -> ChatCompletion:
        """What the model answers; asked again without an option that it says it does not take."""
        messages = [message.model_dump() for message in self._prompt.messages(state)]
        while True:
            without = frozenset(self._unsupported[model])
            tokens, renamed = sampling.max_tokens, "max_tokens" in without
            try:
                return self._client.chat.completions.create(
                    model=model,
                    messages=messages,  # type: ignore[arg-type]  # roles are checked by `Message`
                    temperature=omit if "temperature" in without else sampling.temperature,
                    max_tokens=omit if renamed else tokens,
                    max_completion_tokens=tokens if renamed else omit,
                    seed=seed,
                )
            except BadRequestError as error:
                option = error.param or ""
                if (error.code, option) not in _UNSUPPORTED or option in without:
                    raise
                _log.warning("the model does not take an option", model=model, option=option)
                self._unsupported[model].add(option)


def _too_long(error: APIStatusError) -> bool:
    """OpenAI and we say so by the code, vLLM and SGLang in words alone."""
    if error.code == "context_length_exceeded":
        return True
    return error.status_code == 400 and "context length" in str(error).lower()
