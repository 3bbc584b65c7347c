"""Clients for the services: `EnvClient`, `PolicyClient` and `PRMClient`, and their async twins.

    with PRMClient("http://127.0.0.1:8003") as prm:
        print(prm.score_messages(messages))  # Q of every assistant message of an OpenAI chat

Every call has a deadline. 429, 502, 503, 504 and connection errors are tried again until then;
anything else is raised at once as `ServiceError`. What no service could read, such as a chat
without an assistant message to score, is a `ValueError` before it is sent. Calls carry the key in
`AGENTPRM_API_KEY`, and the id of the request or job that they are made for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel

from agentprm import protocol as p
from agentprm.calls import AsyncClient, Call, Client, ServiceError, endpoint, get, post

__all__ = [
    "AsyncEnvClient",
    "AsyncPRMClient",
    "AsyncPolicyClient",
    "EnvClient",
    "Messages",
    "PRMClient",
    "PolicyClient",
    "ServiceError",
]

T = TypeVar("T")


class _Env:
    @endpoint
    def games(
        self, split: p.Split | None = None, limit: int = 10_000, offset: int = 0
    ) -> Call[p.GameList]:
        """A page of the index, by split: at most `limit` games after `offset`, and how many there
        are in all."""
        params: dict[str, str | int] = {"limit": limit, "offset": offset}
        if split:
            params["split"] = split
        return get("/v1/games", p.GameList, params)

    @endpoint
    def create(self, request: p.CreateSessions) -> Call[list[p.Session]]:
        """New sessions, at turn 0 or after their prefixes."""
        return post("/v1/sessions", request, p.SessionList).then(lambda a: a.sessions)

    @endpoint
    def fork(self, session_id: str, count: int = 1) -> Call[list[p.Session]]:
        """Copies of a session at its present turn. Asked again after a lost answer, it makes more;
        those lost are closed with the key of their original, or when they have been idle.
        """
        request = p.ForkSession(id=session_id, count=count)
        return post("/v1/sessions/fork", request, p.SessionList).then(lambda a: a.sessions)

    @endpoint
    def step(self, request: p.StepSessions) -> Call[list[p.StepResult]]:
        """Step a batch of sessions; safe to repeat."""
        return post("/v1/steps", request, p.StepResults).then(lambda a: a.results)

    @endpoint
    def experts(self, ids: Sequence[str]) -> Call[list[p.Session]]:
        """The sessions with the expert's next action (privileged servers only)."""
        request = p.SessionIds(ids=list(ids))
        return post("/v1/sessions/expert", request, p.SessionList).then(lambda a: a.sessions)

    @endpoint
    def hidden(self, session_id: str) -> Call[p.HiddenState]:
        """Where everything is (privileged servers only)."""
        return get(f"/v1/sessions/{session_id}/hidden", p.HiddenState)

    @endpoint
    def close_sessions(self, ids: Sequence[str]) -> Call[None]:
        """Give sessions back. Unknown ones are passed over."""
        request = p.SessionIds(ids=list(ids))
        return post("/v1/sessions/close", request, p.ClosedSessions).then(lambda _: None)


class _Model:
    @endpoint
    def load(self, version: str, mark: str | None = None) -> Call[p.Loaded]:
        """Swap in the checkpoint `version` of the registry; with its `mark` no other of that name.

        The mark is that of `agentprm.registry.Registry.mark`.
        """
        request = p.LoadCheckpoint(version=version, mark=mark)
        return post("/v1/checkpoints/load", request, p.Loaded)


class _Policy(_Model):
    @endpoint
    def act(self, request: p.ActRequest) -> Call[p.ActResponse]:
        """Actions for states."""
        return post("/v1/act", request, p.ActResponse)

    @endpoint
    def complete(self, request: p.CompletionRequest) -> Call[p.Completion]:
        """An answer to a conversation; any OpenAI-compatible server gives one."""
        return post("/v1/chat/completions", request, p.Completion)


Messages = Sequence[Mapping[str, Any] | BaseModel]
"""An OpenAI chat: dictionaries, or the message objects that OpenAI's client returns."""


class _PRM(_Model):
    @endpoint
    def score(self, request: p.ScoreRequest) -> Call[p.ScoreResponse]:
        """Q for any mix of what the service scores, with the version that answered."""
        return post("/v1/score", request, p.ScoreResponse)

    @endpoint
    def model(self) -> Call[p.ModelCard]:
        """What serves, what it was fitted on, and how well it is calibrated."""
        return get("/v1/model", p.ModelCard)

    @endpoint
    def score_messages(self, messages: Messages) -> Call[list[float]]:
        """Q of every assistant message of an OpenAI chat, in order."""
        return _scores([messages]).then(lambda a: a.conversations[0])

    @endpoint
    def score_conversations(self, conversations: Sequence[Messages]) -> Call[list[list[float]]]:
        """Q of every assistant message of several OpenAI chats."""
        return _scores(conversations).then(lambda a: a.conversations)

    @endpoint
    def score_answers(self, messages: Messages, answers: Sequence[str]) -> Call[list[float]]:
        """Q of each of several answers to one conversation."""
        asked = {"messages": _plain(messages), "answers": _several(answers)}
        request = p.ScoreRequest.model_validate({"continuations": [asked]})
        return post("/v1/score", request, p.ScoreResponse).then(lambda a: a.continuations[0])

    @endpoint
    def score_actions(self, state: p.State, actions: Sequence[str | p.Action]) -> Call[list[float]]:
        """Q of each action in one state. A string is a command without a reason."""
        several = _several(actions)
        chosen = [p.Action(command=a) if isinstance(a, str) else a for a in several]
        request = p.ScoreRequest(choices=[p.Choice(state=state, actions=chosen)])
        return post("/v1/score", request, p.ScoreResponse).then(lambda a: a.choices[0])

    @endpoint
    def score_episodes(self, episodes: Sequence[p.Episode]) -> Call[list[list[float]]]:
        """Q of every turn of recorded episodes."""
        request = p.ScoreRequest(transcripts=[episode.transcript() for episode in episodes])
        return post("/v1/score", request, p.ScoreResponse).then(lambda a: a.transcripts)


def _plain(messages: Messages) -> list[Any]:
    plain = [m.model_dump() if isinstance(m, BaseModel) else m for m in messages]
    for given, message in zip(messages, plain, strict=True):
        if isinstance(given, BaseModel) and "role" not in message:
            raise ValueError(
                f"{type(given).__name__} has no role: give OpenAI messages; of LangChain's, "
                "convert_to_openai_messages(messages)"
            )
    return plain


def _several(given: Sequence[T]) -> list[T]:
    if isinstance(given, str):  # a sequence too, of its letters
        raise ValueError(f"give a list, as [{given!r}], not the text alone")
    return list(given)


def _scores(conversations: Sequence[Messages]) -> Call[p.ScoreResponse]:
    chats = [{"messages": _plain(messages)} for messages in conversations]
    request = p.ScoreRequest.model_validate({"conversations": chats})
    return post("/v1/score", request, p.ScoreResponse)


class EnvClient(_Env, Client):
    """The environment service."""


class AsyncEnvClient(_Env, AsyncClient):
    """The environment service, for asyncio."""


class PolicyClient(_Policy, Client):
    """The policy service."""


class AsyncPolicyClient(_Policy, AsyncClient):
    """The policy service, for asyncio."""


class PRMClient(_PRM, Client):
    """The PRM service."""


class AsyncPRMClient(_PRM, AsyncClient):
    """The PRM service, for asyncio."""
