"""Clients for the services: `EnvClient`, `PolicyClient` and `PRMClient`, and their async twins.

    with PRMClient("http://127.0.0.1:8003") as prm:
        answer = prm.score(ScoreRequest(transcripts=[episode.transcript()]))

Every call has a deadline. 429, 502, 503, 504 and connection errors are tried again until then;
anything else is raised at once as `ServiceError`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import orjson
import tenacity
from pydantic import BaseModel

from agentprm import protocol as p

RETRIED = frozenset({429, 502, 503, 504})
DEADLINE = 120.0
"""Seconds that a call may take in all, its retries included."""

T = TypeVar("T", bound=BaseModel)


class ServiceError(Exception):
    """A service answered with a problem, or did not answer before the deadline."""

    def __init__(self, status: int | None, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


def _wait(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after if isinstance(error, ServiceError) else None
    return asked if asked is not None else min(2.0, 0.05 * 2**state.attempt_number)


def _again(error: BaseException) -> bool:
    if isinstance(error, ServiceError):
        return error.status in RETRIED
    return isinstance(error, httpx.TransportError)


def _retrying(deadline: float, unreachable: float | None = None) -> dict[str, Any]:
    def stop(state: tenacity.RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome else None
        if unreachable is not None and isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return tenacity.stop_before_delay(unreachable)(state)
        return tenacity.stop_before_delay(deadline)(state)

    return {
        "retry": tenacity.retry_if_exception(_again),
        "wait": _wait,
        "stop": stop,
        "reraise": True,
    }


def _parse(answer: httpx.Response, kind: type[T]) -> T:
    if answer.is_success:
        return kind.model_validate_json(answer.content)
    after = answer.headers.get("retry-after", "")
    raise ServiceError(
        answer.status_code,
        f"{answer.request.method} {answer.request.url}: {answer.status_code} {_detail(answer)}",
        float(after) if after.isdigit() else None,
    )


def _unreachable(error: httpx.TransportError) -> ServiceError:
    return ServiceError(None, f"no answer before the deadline: {type(error).__name__} {error}")


def _detail(answer: httpx.Response) -> str:
    try:
        problem = p.Problem.model_validate_json(answer.content)
    except ValueError:
        return answer.text[:200]
    return f"{problem.title}. {problem.detail}".strip()


def _content(body: BaseModel | None) -> bytes | None:
    return None if body is None else orjson.dumps(body.model_dump(mode="json"))


_HEADERS = {"content-type": "application/json"}


class _Client:
    """A connection pool to one service."""

    def __init__(self, url: str, *, deadline: float = DEADLINE) -> None:
        self._http = httpx.Client(base_url=url, timeout=deadline, headers=_HEADERS)
        self._deadline = deadline

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def health(self) -> p.Health:
        """What runs there. Answers while it is loading, too."""
        answer = self._http.get("/health")
        return p.Health.model_validate_json(answer.content)

    def _call(
        self,
        kind: type[T],
        method: str,
        path: str,
        body: BaseModel | None = None,
        params: Mapping[str, str | int] | None = None,
    ) -> T:
        def once() -> T:
            content = _content(body)
            return _parse(self._http.request(method, path, content=content, params=params), kind)

        try:
            return tenacity.Retrying(**_retrying(self._deadline))(once)
        except httpx.TransportError as error:
            raise _unreachable(error) from error


class _AsyncClient:
    """A connection pool to one service, for asyncio.

    `unreachable` is the number of seconds, `deadline` by default, after which a service that
    takes no connection is given up.
    """

    def __init__(
        self, url: str, *, deadline: float = DEADLINE, unreachable: float | None = None
    ) -> None:
        timeout = httpx.Timeout(deadline, connect=unreachable or deadline)
        self._http = httpx.AsyncClient(base_url=url, timeout=timeout, headers=_HEADERS)
        self._deadline = deadline
        self._unreachable = unreachable

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _call(
        self, kind: type[T], method: str, path: str, body: BaseModel | None = None
    ) -> T:
        async def once() -> T:
            return _parse(await self._http.request(method, path, content=_content(body)), kind)

        try:
            retrying = _retrying(self._deadline, self._unreachable)
            return await tenacity.AsyncRetrying(**retrying)(once)
        except httpx.TransportError as error:
            raise _unreachable(error) from error


class EnvClient(_Client):
    """The environment service."""

    def games(self, split: p.Split | None = None, limit: int = 10_000) -> p.GameList:
        """Games of the index, by split."""
        params: dict[str, str | int] = {"limit": limit} | ({"split": split} if split else {})
        return self._call(p.GameList, "GET", "/v1/games", params=params)

    def create(self, request: p.CreateSessions) -> list[p.Session]:
        """New sessions, at turn 0 or after their prefixes."""
        return self._call(p.SessionList, "POST", "/v1/sessions", request).sessions

    def fork(self, session_id: str, count: int = 1) -> list[p.Session]:
        """Copies of a session at its present turn. Asked again after a lost answer, it makes more;
        those lost are closed with the key of their original, or when they have been idle.
        """
        request = p.ForkSession(id=session_id, count=count)
        return self._call(p.SessionList, "POST", "/v1/sessions/fork", request).sessions

    def step(self, request: p.StepSessions) -> list[p.StepResult]:
        """Step a batch of sessions; safe to repeat."""
        return self._call(p.StepResults, "POST", "/v1/steps", request).results

    def experts(self, ids: Sequence[str]) -> list[p.Session]:
        """The sessions with the expert's next action (privileged servers only)."""
        request = p.SessionIds(ids=list(ids))
        return self._call(p.SessionList, "POST", "/v1/sessions/expert", request).sessions

    def close_sessions(self, ids: Sequence[str]) -> None:
        """Give sessions back. Unknown ones are passed over."""
        self._call(p.SessionIds, "POST", "/v1/sessions/close", p.SessionIds(ids=list(ids)))


class PolicyClient(_Client):
    """The policy service."""

    def act(self, request: p.ActRequest) -> p.ActResponse:
        """Actions for states."""
        return self._call(p.ActResponse, "POST", "/v1/act", request)

    def load(self, version: str) -> p.Loaded:
        """Swap in the checkpoint `version` of the registry."""
        request = p.LoadCheckpoint(version=version)
        return self._call(p.Loaded, "POST", "/v1/checkpoints/load", request)


class PRMClient(_Client):
    """The PRM service."""

    def score(self, request: p.ScoreRequest) -> p.ScoreResponse:
        """Q for pairs, choices and transcripts."""
        return self._call(p.ScoreResponse, "POST", "/v1/score", request)

    def load(self, version: str) -> p.Loaded:
        """Swap in the checkpoint `version` of the registry."""
        request = p.LoadCheckpoint(version=version)
        return self._call(p.Loaded, "POST", "/v1/checkpoints/load", request)


class AsyncPolicyClient(_AsyncClient):
    """The policy service, for asyncio."""

    async def act(self, request: p.ActRequest) -> p.ActResponse:
        """Actions for states."""
        return await self._call(p.ActResponse, "POST", "/v1/act", request)


class AsyncPRMClient(_AsyncClient):
    """The PRM service, for asyncio."""

    async def score(self, request: p.ScoreRequest) -> p.ScoreResponse:
        """Q for pairs, choices and transcripts."""
        return await self._call(p.ScoreResponse, "POST", "/v1/score", request)
