"""Sessions on an engine that lives in the process: turns, capacity, reaping, advice."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TypeVar

import pytest

from agentprm.environment import Frame
from agentprm.protocol import (
    Action,
    CreateSessions,
    ForkSession,
    Game,
    HiddenState,
    Session,
    Split,
    StepResult,
    StepSession,
)
from agentprm.service import ProblemError
from services.env.engine.base import EngineError
from services.env.games import GameIndex, Placement
from services.env.sessions import Sessions

T = TypeVar("T")
R = TypeVar("R")


class Corridor:
    """A game of walking: `go` leads on, the third room wins, `break` breaks the engine."""

    def __init__(self, room: int = 0) -> None:
        self.room = room
        self.steps = 0
        self.closed = False

    def reset(self, game: str) -> Frame:
        if "broken" in game:
            raise EngineError("does not start")
        return self._frame()

    def step(self, command: str) -> Frame:
        if command == "break" or self.closed:
            raise EngineError("broke")
        self.steps += 1
        self.room += command == "go"
        return self._frame()

    def fork(self) -> "Corridor":
        return Corridor(self.room)

    def hidden_state(self) -> HiddenState:
        raise NotImplementedError

    def close(self) -> None:
        self.closed = True

    def _frame(self) -> Frame:
        won = self.room == 3
        return Frame(f"room {self.room}", ("go", "wait"), float(won), done=won, won=won)


class CorridorHost:
    """As many as 4, played one after another: a step costs nothing."""

    name, version, capacity, waits = "corridor", "1", 4, False

    def __init__(self) -> None:
        self.engines: list[Corridor] = []
        self.entered, self.gate = threading.Event(), threading.Event()
        self.gate.set()

    def engine(self) -> Corridor:
        self.engines.append(Corridor())
        return self.engines[-1]

    def map(self, call: Callable[[T], R], items: Sequence[T]) -> list[R]:
        self.entered.set()
        assert self.gate.wait(10)
        return [call(item) for item in items]

    def close(self) -> None: ...


class Counting:
    """An expert that says what it was told of."""

    def __init__(self, game: Game, seed: int) -> None:
        self.seen: list[str] = []
        self.seed = seed

    def observe(self, command: str | None, frame: Frame) -> None:
        self.seen.append(command or "start")

    def act(self) -> Action:
        return Action(reason=f"seed {self.seed}", command=" ".join(self.seen))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def host() -> CorridorHost:
    return CorridorHost()


class Held:
    """Tells when a step has begun, and when it may go on."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    held, plain = Held(), Corridor.step

    def step(engine: Corridor, command: str) -> Frame:
        held.begun.set()
        assert held.go_on.wait(10)
        return plain(engine, command)

    monkeypatch.setattr(Corridor, "step", step)
    return held


@pytest.fixture
def sessions(host: CorridorHost, clock: Clock) -> Sessions:
    names = [f"train/corridor-{k}/trial" for k in range(6)] + ["valid_seen/broken/trial"]
    games = {
        name: Game(id=name, split=Split(name.split("/")[0]), task_type="walk", task="walk.")
        for name in names
    }
    index = GameIndex(games, Path("games"), ("move",), Placement())
    return Sessions(host, index, Counting, max_steps=5, idle_seconds=60, clock=clock)


def one(sessions: Sessions, **options: object) -> Session:
    request = CreateSessions.model_validate({"games": ["train/corridor-0/trial"], **options})
    return sessions.create(request)[0]


def step(
    sessions: Sessions, session: Session, turn: int, command: str, *, expert: bool = False
) -> StepResult:
    request = StepSession(id=session.id, turn=turn, command=command)
    return sessions.step([request], expert=expert)[0]


def status(result: StepResult) -> int:
    assert result.session is None
    assert result.problem is not None
    return result.problem.status


def test_repeating_a_turn_returns_what_was_recorded(sessions: Sessions, host: CorridorHost) -> None:
    session = one(sessions)
    first = step(sessions, session, 0, "go")
    assert step(sessions, session, 0, "go") == first
    second = step(sessions, session, 1, "wait")
    assert step(sessions, session, 0, "go") == first
    assert step(sessions, session, 1, "wait") == second
    assert host.engines[0].steps == 2
    assert sessions.get(session.id) == second.session


def test_turns_that_do_not_fit_are_conflicts(sessions: Sessions, host: CorridorHost) -> None:
    session = one(sessions)
    assert status(step(sessions, session, 1, "go")) == 409
    step(sessions, session, 0, "go")
    assert status(step(sessions, session, 0, "wait")) == 409
    assert host.engines[0].steps == 1


def test_a_session_ends_once_won_or_at_the_step_limit(sessions: Sessions) -> None:
    won, slow = one(sessions), one(sessions, max_steps=2)
    for turn in range(3):
        last = step(sessions, won, turn, "go").session
    assert last is not None
    assert (last.done, last.won, last.truncated, last.reward) == (True, True, False, 1.0)
    assert status(step(sessions, won, 3, "go")) == 409
    assert step(sessions, won, 2, "go").session == last
    step(sessions, slow, 0, "wait")
    last = step(sessions, slow, 1, "wait").session
    assert last is not None
    assert (last.done, last.won, last.truncated, last.max_steps) == (True, False, True, 2)
    assert status(step(sessions, slow, 2, "wait")) == 409


def test_two_simultaneous_retries_step_once(sessions: Sessions, host: CorridorHost) -> None:
    session = one(sessions)
    barrier = threading.Barrier(8)
    results: list[StepResult] = []

    def retry() -> None:
        barrier.wait(10)
        results.append(step(sessions, session, 0, "go"))

    threads = [threading.Thread(target=retry) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(results) == 8
    assert all(result == results[0] for result in results)
    assert host.engines[0].steps == 1


def test_each_of_a_batch_has_its_own_answer(sessions: Sessions) -> None:
    good, bad = one(sessions), one(sessions)
    requests = [
        StepSession(id=good.id, turn=0, command="go"),
        StepSession(id="unknown", turn=0, command="go"),
        StepSession(id=bad.id, turn=0, command="break"),
    ]
    results = sessions.step(requests)
    assert [result.id for result in results] == [good.id, "unknown", bad.id]
    assert results[0].session is not None
    assert [status(result) for result in results[1:]] == [404, 500]
    assert results[1].problem is not None
    assert results[1].problem.detail == "there is no session 'unknown', or it is closed"
    with pytest.raises(ProblemError, match="at most once"):
        sessions.step([requests[0], requests[0]])


def test_creation_is_all_or_nothing(sessions: Sessions, host: CorridorHost) -> None:
    three = CreateSessions(split=Split.TRAIN, count=3, seed=1)
    made = sessions.create(three)
    with pytest.raises(ProblemError) as full:
        sessions.create(CreateSessions(split=Split.TRAIN, count=2))
    assert (full.value.problem.status, full.value.retry_after) == (429, 2.0)
    assert len(sessions) == 3
    with pytest.raises(ProblemError) as never:
        sessions.create(CreateSessions(split=Split.TRAIN, count=5))
    assert never.value.problem.status == 422

    sessions.close([session.id for session in made])
    broken = CreateSessions(games=["train/corridor-0/trial", "valid_seen/broken/trial"])
    with pytest.raises(ProblemError) as failed:
        sessions.create(broken)
    assert failed.value.problem.status == 500
    assert len(sessions) == 0
    assert all(engine.closed for engine in host.engines)


def test_a_seed_names_the_games(sessions: Sessions) -> None:
    def games(seed: int) -> list[str]:
        made = sessions.create(CreateSessions(split=Split.TRAIN, count=2, seed=seed))
        sessions.close([session.id for session in made])
        return [session.game.id for session in made]

    assert games(3) == games(3)
    assert len({tuple(games(seed)) for seed in (3, 4, 5)}) > 1


def test_the_same_key_takes_over(sessions: Sessions) -> None:
    request = CreateSessions(split=Split.TRAIN, count=3, seed=1, key="job 7")
    before, after = sessions.create(request), sessions.create(request)
    assert len(sessions) == 3
    assert {s.id for s in before}.isdisjoint(s.id for s in after)
    with pytest.raises(ProblemError, match=before[0].id):
        sessions.get(before[0].id)


def test_a_creation_that_was_overtaken_leaves_nothing(
    sessions: Sessions, host: CorridorHost
) -> None:
    request = CreateSessions(split=Split.TRAIN, count=2, key="job 7")
    host.gate.clear()
    with ThreadPoolExecutor(2) as threads:
        slow = threads.submit(sessions.create, request)
        assert host.entered.wait(10)
        host.entered.clear()
        retry = threads.submit(sessions.create, request)
        assert host.entered.wait(10)
        host.gate.set()
        with pytest.raises(ProblemError, match="same key"):
            slow.result(10)
        made = retry.result(10)
    assert len(sessions) == 2
    assert [sessions.get(session.id) for session in made] == made


def test_idle_sessions_are_closed(sessions: Sessions, clock: Clock, host: CorridorHost) -> None:
    old, used = one(sessions), one(sessions)
    clock.now = 59
    sessions.get(used.id)
    clock.now = 61
    assert sessions.reap() == [old.id]
    assert host.engines[0].closed
    assert status(step(sessions, old, 0, "go")) == 404
    assert sessions.close([old.id, used.id]) == [used.id]


def test_advice_follows_the_turn(sessions: Sessions) -> None:
    first, second = sessions.create(
        CreateSessions(games=["train/corridor-0/trial", "train/corridor-1/trial"], seed=5)
    )
    assert sessions.get(second.id, expert=True).expert == Action(reason="seed 6", command="start")
    step(sessions, first, 0, "go")
    at_two = step(sessions, first, 1, "wait", expert=True)
    assert at_two.session is not None
    assert at_two.session.expert == Action(reason="seed 5", command="start go wait")
    again = step(sessions, first, 0, "go", expert=True).session
    assert again is not None
    assert again.expert == Action(reason="seed 5", command="start go")
    assert step(sessions, first, 1, "wait", expert=True) == at_two


def test_a_fork_has_an_expert_of_its_own(sessions: Sessions) -> None:
    parent = one(sessions)
    sessions.get(parent.id, expert=True)
    (fork,) = sessions.fork(ForkSession(id=parent.id))
    for session, command in ((fork, "go"), (parent, "wait")):
        after = step(sessions, session, 0, command, expert=True).session
        assert after is not None
        assert after.expert == Action(reason="seed 0", command=f"start {command}")


def test_a_session_is_not_idle_while_its_step_is_under_way_nor_right_after(
    sessions: Sessions, clock: Clock, held: Held
) -> None:
    session = one(sessions)
    with ThreadPoolExecutor(2) as threads:
        under_way = threads.submit(step, sessions, session, 0, "go")
        assert held.begun.wait(10)
        clock.now = 61
        reaped = threads.submit(sessions.reap)
        wait([reaped], 0.5)
        held.go_on.set()
        assert reaped.result(10) == []
        assert under_way.result(10).session is not None
    assert sessions.reap() == []
    clock.now = 122
    assert sessions.reap() == [session.id]


def test_a_step_under_way_ends_before_its_engine_is_closed(
    sessions: Sessions, host: CorridorHost, held: Held
) -> None:
    session = one(sessions)
    with ThreadPoolExecutor(2) as threads:
        under_way = threads.submit(step, sessions, session, 0, "go")
        assert held.begun.wait(10)
        closing = threads.submit(sessions.close, [session.id])
        wait([closing], 0.2)
        held.go_on.set()
        assert under_way.result(10).session is not None
        assert closing.result(10) == [session.id]
    assert host.engines[0].closed


def test_a_step_that_waits_too_long_for_another_is_told_to_come_again(
    sessions: Sessions, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.env.sessions.LOCK_SECONDS", 0.05)
    session = one(sessions)
    with ThreadPoolExecutor(2) as threads:
        under_way = threads.submit(step, sessions, session, 0, "go")
        assert held.begun.wait(10)
        second = threads.submit(step, sessions, session, 0, "go")
        wait([second], 5)
        held.go_on.set()
        assert status(second.result(10)) == 503
        assert under_way.result(10).session is not None


def test_a_step_whose_session_was_closed_while_it_waited_is_a_404(
    sessions: Sessions, host: CorridorHost
) -> None:
    session = one(sessions)
    live = sessions._sessions[session.id]
    with ThreadPoolExecutor(1) as threads:
        with live.lock:
            waiting = threads.submit(step, sessions, session, 0, "go")
            live.closed = True
        assert status(waiting.result(10)) == 404
    assert host.engines[0].steps == 0


def test_forks_of_a_session_that_is_closed_meanwhile_leave_nothing(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = one(sessions)
    copy = Corridor()
    with ThreadPoolExecutor(1) as threads:

        def fork(_: Corridor) -> Corridor:
            threads.submit(sessions.close, [parent.id])
            while parent.id in sessions._sessions:
                time.sleep(0.001)
            return copy

        monkeypatch.setattr(Corridor, "fork", fork)
        with pytest.raises(ProblemError) as gone:
            sessions.fork(ForkSession(id=parent.id))
    assert gone.value.problem.status == 404
    assert len(sessions) == 0
    assert copy.closed


def test_a_step_that_does_not_end_holds_up_no_other_session(sessions: Sessions, held: Held) -> None:
    """Given back with others, its room is free when it ends; theirs is at once."""
    games = [f"train/corridor-{k}/trial" for k in range(4)]
    made = sessions.create(CreateSessions(games=games))
    with ThreadPoolExecutor() as pool:
        step = pool.submit(sessions.step, [StepSession(id=made[0].id, turn=0, command="go")])
        assert held.begun.wait(10)
        closing = pool.submit(sessions.close, [session.id for session in made])
        assert len(closing.result(timeout=10)) == 4
        assert len(sessions) == 1
        held.go_on.set()
        step.result(timeout=10)
        assert len(sessions) == 0
