"""A call to a service, described once, and carried out at once or as a coroutine.

    class Things:
        @endpoint
        def count(self, kind: str) -> Call[Count]:
            return get("/count", Count, {"kind": kind})

    class ThingClient(Things, Client): ...
    class AsyncThingClient(Things, AsyncClient): ...

The method `count` of the first returns a `Count`, that of the second is awaited for one.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Coroutine, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

import httpx
import orjson
import tenacity
from pydantic import BaseModel

from agentprm import protocol as p
from agentprm import request_id
from agentprm.addresses import by_proxy, service_url
from agentprm.keys import sent_key

RETRIED = frozenset({429, 502, 503, 504})
DEADLINE = 120.0
"""Seconds that a call may take in all, its retries included."""
HEALTH_SECONDS = 10.0
"""Seconds until a service that does not say how it is counts as one that cannot be reached."""
_SHORTEST = 0.05
"""Least seconds that an attempt gets, however near the deadline."""
_TRICKLE = "it comes too slowly"

P = ParamSpec("P")
T = TypeVar("T")
U = TypeVar("U")
M = TypeVar("M", bound=BaseModel)


class ServiceError(Exception):
    """A service answered with a problem, with what cannot be read, or not before the deadline.

    `status` is that of the problem, None where no answer came or none that can be read; `title` is
    the problem's own, `detail` all that it says; `retry_after` are the seconds after which the
    service asks to be tried again.
    """

    def __init__(
        self,
        status: int | None,
        message: str,
        retry_after: float | None = None,
        title: str | None = None,
        detail: str = "",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.title = title
        self.detail = detail
        self.retry_after = retry_after


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request, and how its answer is read."""

    method: str
    path: str
    read: Callable[[bytes], T]
    content: bytes | None = None
    params: Mapping[str, str | int] | None = None

    def then(self, pick: Callable[[T], U]) -> Call[U]:
        """This request, with the part of its answer that `pick` takes."""
        return Call(self.method, self.path, lambda c: pick(self.read(c)), self.content, self.params)


def get(path: str, kind: type[M], params: Mapping[str, str | int] | None = None) -> Call[M]:
    """A GET that is answered with a `kind`."""
    return Call("GET", path, kind.model_validate_json, params=params)


def post(path: str, body: BaseModel, kind: type[M]) -> Call[M]:
    """A POST of `body` that is answered with a `kind`."""
    content = orjson.dumps(body.model_dump(mode="json"))
    return Call("POST", path, kind.model_validate_json, content)


_HEALTH = get("/health", p.Health)


class endpoint(Generic[P, T]):
    """Makes a method that carries out what the decorated function describes."""

    def __init__(self, describe: Callable[Concatenate[Any, P], Call[T]]) -> None:
        self._describe = describe
        self.__doc__ = describe.__doc__

    @overload
    def __get__(self, client: Client, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: AsyncClient, owner: type) -> Callable[P, Coroutine[Any, Any, T]]: ...
    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    def __get__(self, client: Client | AsyncClient | None, owner: type) -> Any:
        if client is None:
            return self

        @functools.wraps(self._describe)
        def bound(*args: P.args, **kwargs: P.kwargs) -> Any:
            return client._do(self._describe(client, *args, **kwargs))

        return bound


class _Attempts:
    """Tells tenacity when to try again, and an attempt how many seconds it has."""

    def __init__(self, deadline: float, unreachable: float | None) -> None:
        self._ends = time.monotonic() + deadline
        self._unreachable = unreachable
        self._expected = time.monotonic()  # since when a connection is waited for
        self._stop = tenacity.stop_before_delay(deadline)
        self.policy: dict[str, Any] = {
            "retry": tenacity.retry_if_exception(_again),
            "wait": _wait,
            "stop": self._over,
            "reraise": True,
        }

    @property
    def timeout(self) -> httpx.Timeout:
        left = max(self._ends - time.monotonic(), _SHORTEST)
        return httpx.Timeout(left, connect=min(left, self._unreachable or left))

    def _over(self, state: tenacity.RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome else None
        again = time.monotonic() + state.upcoming_sleep
        if not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            self._expected = again
        elif self._unreachable is not None and again - self._expected >= self._unreachable:
            return True
        return self._stop(state)


def _wait(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after if isinstance(error, ServiceError) else None
    growing: float = min(2.0, 0.05 * 2**state.attempt_number)
    return max(asked or 0.0, growing)  # some ask for 0 seconds


def _again(error: BaseException) -> bool:
    if isinstance(error, ServiceError):
        return error.status in RETRIED
    return isinstance(error, httpx.TransportError)


def _checked(answer: httpx.Response) -> bytes:
    if answer.is_success:
        return answer.content
    after = answer.headers.get("retry-after", "")
    problem = _problem(answer)
    detail = f"{problem.title}. {problem.detail}".strip() if problem else answer.text[:200]
    raise ServiceError(
        answer.status_code,
        f"{answer.request.method} {answer.request.url}: {answer.status_code} {detail}",
        float(after) if after.isdigit() else None,
        problem.title if problem else None,
        detail,
    )


@contextmanager
def _as_service_errors(url: httpx.URL) -> Iterator[None]:
    """What can go wrong with an answer of the service at `url` is a `ServiceError`."""
    try:
        yield
    except httpx.TransportError as error:
        refused = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
        what = "cannot be reached" if refused else "no answer before the deadline"
        raise ServiceError(None, f"{url}: {what}: {type(error).__name__} {error}") from error
    except (httpx.HTTPError, ValueError) as error:
        raise ServiceError(None, f"{url}: its answer cannot be read: {error}") from error


def _problem(answer: httpx.Response) -> p.Problem | None:
    try:
        return p.Problem.model_validate_json(answer.content)
    except ValueError:
        return None


_HEADERS = {"content-type": "application/json"}


class _Caller(httpx.Auth):
    """Says who calls, and for what."""

    def __init__(self) -> None:
        self._key = sent_key()

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        if self._key is not None:
            request.headers["Authorization"] = f"Bearer {self._key.get_secret_value()}"
        if name := request_id.current():
            request.headers[request_id.HEADER] = name
        yield request


def _connection(url: str, deadline: float) -> dict[str, Any]:
    """How httpx connects to the service at `url`.

    Raises:
        ValueError: as `Client`.
    """
    return {
        "base_url": service_url(url),
        "timeout": deadline,
        "headers": _HEADERS,
        "auth": _Caller(),
        "trust_env": by_proxy(url),
    }


class _Patience:
    """How long a client waits, in seconds."""

    def __init__(self, deadline: float, unreachable: float | None) -> None:
        self._deadline = deadline
        self._unreachable = unreachable

    def _attempts(self) -> _Attempts:
        return _Attempts(self._deadline, self._unreachable)

    def _for_health(self) -> httpx.Timeout:
        return httpx.Timeout(min(self._deadline, HEALTH_SECONDS))


class Client(_Patience):
    """A connection pool to one service.

    A call may take `deadline` seconds, its retries included; a service that takes no connection is
    given up after `unreachable` seconds, by default also at the deadline.

    Raises:
        ValueError: `url` is not that of a service, or the key in the environment cannot be one.
        ServiceError: of a call, the service answers with a problem, with what cannot be read, or
            not before the deadline.
    """

    def __init__(
        self, url: str, *, deadline: float = DEADLINE, unreachable: float | None = None
    ) -> None:
        super().__init__(deadline, unreachable)
        self._http = httpx.Client(**_connection(url, deadline))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def health(self) -> p.Health:
        """What runs there. Asked once, for at most ten seconds; answers while it loads, too.

        Raises:
            ServiceError: it does not answer, or not with what it is.
        """
        with _as_service_errors(self._http.base_url):
            return _HEALTH.read(_checked(self._answer(_HEALTH, self._for_health())))

    def _do(self, call: Call[T]) -> T:
        attempts = self._attempts()

        def once() -> bytes:
            return _checked(self._answer(call, attempts.timeout))

        with _as_service_errors(self._http.base_url):
            return call.read(tenacity.Retrying(**attempts.policy)(once))

    def _answer(self, call: Call[Any], timeout: httpx.Timeout) -> httpx.Response:
        """The answer, which is given up where it comes little by little: httpx times each read."""
        ends = time.monotonic() + (timeout.read or 0.0)
        parts = []
        with self._http.stream(
            call.method, call.path, content=call.content, params=call.params, timeout=timeout
        ) as answer:
            for part in answer.iter_raw():
                parts.append(part)
                if time.monotonic() > ends:
                    raise httpx.ReadTimeout(_TRICKLE, request=answer.request)
        return httpx.Response(
            answer.status_code,
            headers=answer.headers,
            content=b"".join(parts),
            request=answer.request,
        )


class AsyncClient(_Patience):
    """`Client` for asyncio; it raises the same."""

    def __init__(
        self, url: str, *, deadline: float = DEADLINE, unreachable: float | None = None
    ) -> None:
        super().__init__(deadline, unreachable)
        self._http = httpx.AsyncClient(**_connection(url, deadline))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def health(self) -> p.Health:
        """What runs there. Asked once, for at most ten seconds; answers while it loads, too.

        Raises:
            ServiceError: it does not answer, or not with what it is.
        """
        with _as_service_errors(self._http.base_url):
            answer = await self._answer(_HEALTH, self._for_health())
            return _HEALTH.read(_checked(answer))

    async def _do(self, call: Call[T]) -> T:
        attempts = self._attempts()

        async def once() -> bytes:
            return _checked(await self._answer(call, attempts.timeout))

        with _as_service_errors(self._http.base_url):
            return call.read(await tenacity.AsyncRetrying(**attempts.policy)(once))

    async def _answer(self, call: Call[Any], timeout: httpx.Timeout) -> httpx.Response:
        try:
            # A little longer: what httpx times itself it can name.
            async with asyncio.timeout((timeout.read or 0.0) + _SHORTEST):
                return await self._http.request(
                    call.method,
                    call.path,
                    content=call.content,
                    params=call.params,
                    timeout=timeout,
                )
        except TimeoutError as error:
            raise httpx.ReadTimeout(_TRICKLE) from error
