"""The reference engine: the `alfworld` package on TextWorld, in a pool of worker processes.

TextWorld is not safe to use from several threads and leaks memory, so every engine has a process
while it plays. A process serves one game after another and is replaced after some resets. When one
dies or hangs, its engine takes another and replays its commands there: games are deterministic.
"""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any

import orjson
import structlog

from agentprm.environment import Frame
from agentprm.protocol import Action, HiddenState
from services.env.engine.base import EngineError, R, T, in_threads

REPLY_SECONDS = 60.0
"""A process that has not answered by then counts as hung. A slow reset takes a few seconds."""
ATTEMPTS = 3
"""Processes that an engine wears out on one call before it gives up."""

_WORKER = "services.env.engine.worker"
_log = structlog.get_logger()


class TextWorldHost:
    """A pool of at most `pool` processes, each replaced after `recycle` resets."""

    name = "textworld"
    waits = True

    def __init__(self, pool: int, *, recycle: int = 50, handcoded: bool = False) -> None:
        self.capacity = pool
        self.version = f"alfworld {version('alfworld')}, textworld {version('textworld')}"
        self._recycle = recycle
        self._handcoded = handcoded
        self._idle: list[_Worker] = []
        self._closed = False
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(pool, thread_name_prefix="textworld")
        # A fork server that has imported TextWorld forks a worker in milliseconds; forking this
        # process itself, with its threads, would not be safe.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([_WORKER, __name__])

    def engine(self) -> TextWorldEngine:
        """A new engine; its process is taken at its first reset."""
        return TextWorldEngine(self)

    def map(self, call: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """`call` on all items at the same time, a thread each, for they wait for processes."""
        if len(items) == 1:
            return [call(items[0])]
        return in_threads(self._threads, call, items)

    def close(self) -> None:
        """End the idle processes; those in play end with their engines."""
        self._threads.shutdown()
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.stop()

    def take(self) -> _Worker:
        """A process without a game."""
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return _Worker(self._context, self._handcoded)

    def give(self, worker: _Worker) -> None:
        """A process that is no longer needed."""
        with self._lock:
            keep = worker.resets < self._recycle and not self._closed
            if keep:
                self._idle.append(worker)
        if not keep:
            worker.stop()


class TextWorldEngine:
    """A game in one of the host's processes."""

    def __init__(self, host: TextWorldHost) -> None:
        self._host = host
        self._worker: _Worker | None = None
        self._played: list[dict[str, str]] = []
        """What brought the game to where it is, to be repeated in another process."""

    def reset(self, game: str) -> Frame:
        """Start the game in a file; 0.4 to 1 s of a core.

        Raises:
            EngineError: TextWorld fails, or process after process dies or hangs.
        """
        self._played = []
        return self._play({"op": "reset", "game": game})

    def step(self, command: str) -> Frame:
        """Play a command; 26 ms of a core.

        Raises:
            EngineError: TextWorld fails, or process after process dies or hangs.
        """
        return self._play({"op": "step", "command": command})

    def fork(self) -> TextWorldEngine:
        """A copy; at its first step another process repeats what was played."""
        copy = TextWorldEngine(self._host)
        copy._played = list(self._played)
        return copy

    def hidden_state(self) -> HiddenState:
        """Where everything is, from the facts of the planner's state.

        Raises:
            EngineError: TextWorld fails, or process after process dies or hangs.
        """
        return HiddenState.model_validate(self._ask({"op": "hidden"}))

    def close(self) -> None:
        """Give the process back to the pool."""
        if self._worker is not None:
            self._host.give(self._worker)
            self._worker = None

    @property
    def pid(self) -> int | None:
        """The process that plays now."""
        return self._worker.pid if self._worker else None

    def _play(self, request: dict[str, str]) -> Frame:
        answer = self._ask(request)
        self._played.append(request)
        advice = answer["advice"] and Action(command=answer["advice"])
        return Frame(**answer | {"admissible": tuple(answer["admissible"]), "advice": advice})

    def _ask(self, request: dict[str, str]) -> dict[str, Any]:
        for attempt in range(ATTEMPTS):
            try:
                if self._worker is None:
                    self._worker = self._host.take()
                    for played in self._played:
                        self._worker.ask(played)
                return self._worker.ask(request)
            except EngineError:
                self._drop()  # its game may be half way through the step
                raise
            except _DeadError as error:
                _log.warning("worker lost", attempt=attempt + 1, reason=str(error))
                self._drop()
        raise EngineError(f"{ATTEMPTS} processes in a row died or hung on this game")

    def _drop(self) -> None:
        if self._worker is not None:
            self._worker.stop()
            self._worker = None


class _DeadError(Exception):
    """The process died or hung."""


class _Worker:
    """A process and the pipe to it."""

    def __init__(self, context: multiprocessing.context.ForkServerContext, handcoded: bool) -> None:
        self.resets = 0
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(theirs, handcoded), daemon=True)
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def ask(self, request: dict[str, str]) -> dict[str, Any]:
        """One request, one answer.

        Raises:
            _DeadError: no answer, and none will come.
            EngineError: TextWorld itself failed.
        """
        self.resets += request["op"] == "reset"
        try:
            self._pipe.send_bytes(orjson.dumps(request))
            if not self._pipe.poll(REPLY_SECONDS):
                raise _DeadError(f"no answer after {REPLY_SECONDS} s")
            answer: dict[str, Any] = orjson.loads(self._pipe.recv_bytes())
        except (EOFError, OSError) as error:
            raise _DeadError(f"{type(error).__name__}: {error}") from error
        if "error" in answer:
            raise EngineError(answer["error"])
        return answer

    def stop(self) -> None:
        self._pipe.close()
        self._process.kill()
        self._process.join(5)


def _run(connection: Any, handcoded: bool) -> None:
    from services.env.engine.worker import main  # TextWorld is imported in the worker alone

    main(connection, handcoded)
