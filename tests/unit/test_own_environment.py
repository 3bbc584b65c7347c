"""An environment of the user's own: sessions on it, copies, the expert, and what is refused."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from agentprm.environment import Action, Environment, Frame, Game, Split
from agentprm.protocol import CreateSessions, ForkSession, Session, StepResult, StepSession
from agentprm.service import ProblemError
from services.env.app import build_app
from services.env.engine.own import OwnHost
from services.env.expert.advised import AdvisedExpert
from services.env.games import DataError
from services.env.games.own import OwnGames, load_environment
from services.env.sessions import Sessions


def game(k: int, split: Split = Split.TRAIN) -> Game:
    return Game(id=f"{split}/{k}", split=split, task_type="count", task="count to three.")


class Counting:
    """Count to three.

    The next number wins a third; any text may be tried.
    """

    made = 0

    def __init__(self) -> None:
        type(self).made += 1

    @staticmethod
    def games() -> Iterable[Game]:
        return [game(1), game(0), game(0, Split.VALID_SEEN)]

    def reset(self, game: str) -> Frame:
        self.game, self.number = game, 0
        return self.frame(0.0)

    def step(self, command: str) -> Frame:
        if command == "break":
            raise KeyError("broken")
        right = command == str(self.number + 1)
        self.number += right
        return self.frame(right / 3)

    def frame(self, reward: float) -> Frame:
        won = self.number == 3
        advice = None if self.number == 1 else Action(reason="go on", command=str(self.number + 1))
        return Frame(f"{self.game}: {self.number}", reward=reward, done=won, won=won, advice=advice)


class Fickle(Counting):
    """Every instance counts from another number."""

    begin = itertools.count()

    def reset(self, game: str) -> Frame:
        self.game, self.number = game, -next(self.begin)
        return self.frame(0.0)


class Listing(Counting):
    """Names the commands, in a list."""

    def frame(self, reward: float) -> Frame:
        return Frame("", ["1", "2"], reward, self.number == 3)  # type: ignore[arg-type]


Maker = Callable[[type[Environment]], Sessions]


@pytest.fixture
def sessions_of() -> Iterator[Maker]:
    hosts = []

    def make(environment: type[Environment]) -> Sessions:
        hosts.append(OwnHost(environment, capacity=8, pool=2))
        games = OwnGames.of(environment)
        return Sessions(hosts[-1], games, lambda _, seed: AdvisedExpert(), max_steps=5)

    yield make
    for host in hosts:
        host.close()


def create(sessions: Sessions, **options: object) -> Session:
    request = CreateSessions.model_validate({"games": ["train/0"], **options})
    return sessions.create(request)[0]


def step(sessions: Sessions, session: Session, command: str) -> StepResult:
    (result,) = sessions.step([StepSession(id=session.id, turn=session.turn, command=command)])
    return result


def play(sessions: Sessions, session: Session, *commands: str) -> Session:
    for command in commands:
        result = step(sessions, session, command)
        assert result.session is not None, result.problem
        session = result.session
    return session


def why_not(sessions: Sessions, session: Session, command: str) -> str:
    problem = step(sessions, session, command).problem
    assert problem is not None
    assert problem.status == 500
    return problem.detail


def test_an_episode_is_played_to_its_end(sessions_of: Maker) -> None:
    sessions = sessions_of(Counting)
    session = create(sessions)
    assert (session.observation, session.admissible) == ("train/0: 0", [])
    assert session.game == game(0)
    seen = []
    for command in ("1", "7", "2", "3"):
        session = play(sessions, session, command)
        seen.append((session.reward, session.done, session.won))
    assert seen == [
        (1 / 3, False, False),
        (0.0, False, False),
        (1 / 3, False, False),
        (1 / 3, True, True),
    ]


def test_a_copy_is_made_when_it_is_played_and_goes_its_own_way(sessions_of: Maker) -> None:
    sessions = sessions_of(Counting)
    session = create(sessions)
    session = play(sessions, session, "1")
    before = Counting.made
    copy, idle = sessions.fork(ForkSession(id=session.id, count=2))
    assert Counting.made == before
    copy = play(sessions, copy, "2")
    assert Counting.made == before + 1
    assert copy.observation == "train/0: 2"
    assert [sessions.get(s.id).observation[-1] for s in (session, idle)] == ["1", "1"]
    assert play(sessions, copy, "3").won


def test_a_state_is_reached_by_any_text_where_no_commands_are_listed(sessions_of: Maker) -> None:
    session = create(sessions_of(Counting), prefixes=[["1", "hello"]])
    assert (session.turn, session.observation) == (2, "train/0: 1")
    listed = create(sessions_of(Listing), prefixes=[["2"]])
    assert listed.admissible == ["1", "2"]
    with pytest.raises(ProblemError, match="not admissible"):
        create(sessions_of(Listing), prefixes=[["3"]])


def test_what_is_not_deterministic_is_told_and_not_copied(sessions_of: Maker) -> None:
    sessions = sessions_of(Fickle)
    session = create(sessions)
    (copy,) = sessions.fork(ForkSession(id=session.id))
    told = why_not(sessions, copy, "1")
    assert "Fickle is not deterministic" in told
    assert "train/0" in told


def test_an_error_of_the_class_is_told_and_the_game_goes_on(sessions_of: Maker) -> None:
    sessions = sessions_of(Counting)
    session = play(sessions, create(sessions), "1")
    told = why_not(sessions, session, "break")
    assert "Counting.step('break'): KeyError('broken')" in told
    assert play(sessions, session, "2").observation == "train/0: 2"


@pytest.mark.parametrize(
    ("frame", "told"),
    [
        (None, "it returns NoneType, not a Frame"),
        ("you see a mug", "it returns str, not a Frame"),
        (Frame("x" * 30_000), "observation: String should have at most 20000 characters"),
        (Frame("", ("go", "x" * 501)), "admissible.1: String should have at most 500 characters"),
        (Frame("", reward=2.0), "reward: Input should be less than or equal to 1"),
        (Frame("", reward=float("nan")), "reward: Input should be"),
        (Frame("", advice="open door"), "advice: Input should be"),  # type: ignore[arg-type]
        (Frame("", advice=Action(command="a\nb")), "is one line, as the policy writes it"),
        (Frame("", done=True, won=True), "its rewards add up to 0"),
        (Frame("", won=None), "won: Input should be"),  # type: ignore[arg-type]
    ],
)
def test_an_answer_that_the_services_cannot_carry_is_told(
    sessions_of: Maker, frame: object, told: str
) -> None:
    class Wrong(Counting):
        def step(self, command: str) -> Frame:
            return frame  # type: ignore[return-value]

    sessions = sessions_of(Wrong)
    assert told in why_not(sessions, create(sessions), "1")


def test_a_step_that_is_async_is_told_to_be_none(sessions_of: Maker) -> None:
    class Async(Counting):
        async def step(self, command: str) -> Frame:  # type: ignore[override]
            return Frame("")

    sessions = sessions_of(Async)  # type: ignore[arg-type]
    assert "it is `async def`; write `def`" in why_not(sessions, create(sessions), "1")


def test_commands_may_be_any_iterable(sessions_of: Maker) -> None:
    class Generating(Counting):
        def frame(self, reward: float) -> Frame:
            return Frame("", (str(k) for k in range(3)))  # type: ignore[arg-type]

    assert create(sessions_of(Generating)).admissible == ["0", "1", "2"]


def test_rewards_add_up_to_a_probability_in_copies_too(sessions_of: Maker) -> None:
    class Generous(Counting):
        def step(self, command: str) -> Frame:
            return Frame(command, reward=0.4)

    sessions = sessions_of(Generous)
    session = play(sessions, create(sessions), "a", "b")
    (copy,) = sessions.fork(ForkSession(id=session.id))
    for each in (session, copy):
        assert "add up to 1.2" in why_not(sessions, each, "c")


def test_rewards_in_single_precision_may_add_up_to_one(sessions_of: Maker) -> None:
    third = 0.3333333432674408  # as numpy.float32(1 / 3)

    class Thirds(Counting):
        def step(self, command: str) -> Frame:
            return Frame(command, reward=third)

    sessions = sessions_of(Thirds)
    assert play(sessions, create(sessions), "a", "b", "c").turn == 3


def test_a_game_that_is_over_when_it_begins_is_refused(sessions_of: Maker) -> None:
    class Over(Counting):
        def reset(self, game: str) -> Frame:
            return Frame("", done=True)

    with pytest.raises(ProblemError, match="over before its first turn"):
        create(sessions_of(Over))


@pytest.mark.parametrize(
    "error", [KeyError("no licence"), SystemExit("no licence"), KeyboardInterrupt("no licence")]
)
def test_an_instance_that_cannot_be_made_fails_its_own_step_alone(
    sessions_of: Maker, error: BaseException
) -> None:
    class Failing(Counting):
        fails = False

        def __init__(self) -> None:
            if self.fails:
                raise error

    sessions = sessions_of(Failing)
    session = create(sessions)
    (copy,) = sessions.fork(ForkSession(id=session.id))
    Failing.fails = True
    steps = [StepSession(id=s.id, turn=0, command="1") for s in (session, copy)]
    own, failed = sessions.step(steps)
    assert own.session is not None
    assert failed.problem is not None
    assert "no licence" in failed.problem.detail
    with pytest.raises(ProblemError, match="no licence"):
        create(sessions)


def test_no_more_play_at_once_than_there_are_threads(sessions_of: Maker) -> None:
    playing, most = 0, 0
    lock = threading.Lock()

    class Slow(Counting):
        def step(self, command: str) -> Frame:
            nonlocal playing, most
            with lock:
                playing += 1
                most = max(most, playing)
            time.sleep(0.05)
            with lock:
                playing -= 1
            return super().step(command)

    sessions = sessions_of(Slow)
    opened = [create(sessions) for _ in range(6)]
    with ThreadPoolExecutor(6) as clients:
        list(clients.map(lambda session: play(sessions, session, "1"), opened))
    assert most == 2


class Slow(Counting):
    """A step waits."""

    begun, go_on = threading.Event(), threading.Event()

    def step(self, command: str) -> Frame:
        self.begun.set()
        assert self.go_on.wait(60)
        return super().step(command)


def test_steps_that_wait_leave_the_other_routes_alone() -> None:
    """More of them than a thread pool takes of all calls of a service."""
    many = 60
    games = OwnGames.of(Slow)
    host = OwnHost(Slow, capacity=many, pool=1)
    sessions = Sessions(host, games, lambda _, seed: AdvisedExpert(), max_steps=5)
    app = build_app(sessions, games, host)
    names = [create(sessions).id for _ in range(many)]

    async def ask() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            bodies = [{"steps": [{"id": name, "turn": 0, "command": "1"}]} for name in names]
            steps = [asyncio.create_task(client.post("/v1/steps", json=body)) for body in bodies]
            await asyncio.sleep(1)
            try:
                listed = await asyncio.wait_for(client.get("/v1/games"), 20)
            finally:
                Slow.go_on.set()
            assert listed.json()["total"] == len(games.games)
            assert not any(step.done() for step in steps)
            answers = await asyncio.gather(*steps)
            assert {answer.json()["results"][0]["problem"] for answer in answers} == {None}

    asyncio.run(ask())
    host.close()


def test_a_session_is_deleted_whose_step_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.env.sessions.LOCK_SECONDS", 0.05)
    Slow.begun.clear()
    Slow.go_on.clear()
    games = OwnGames.of(Slow)
    host = OwnHost(Slow, capacity=1, pool=1)
    sessions = Sessions(host, games, lambda _, seed: AdvisedExpert(), max_steps=5)
    app = build_app(sessions, games, host)
    path = f"/v1/sessions/{create(sessions).id}"

    async def ask() -> list[int]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            one = {"id": path.rpartition("/")[2], "turn": 0, "command": "1"}
            step = asyncio.create_task(client.post("/v1/steps", json={"steps": [one]}))
            while not Slow.begun.is_set():
                await asyncio.sleep(0.01)
            try:
                answers = [await client.delete(path), await client.get(path)]
            finally:
                Slow.go_on.set()
            return [answer.status_code for answer in [*answers, await step]]

    assert asyncio.run(ask()) == [503, 404, 200]
    assert len(sessions) == 0
    host.close()


def test_what_is_under_way_when_the_host_ends_is_carried_to_its_end() -> None:
    """Also calls that wait for their turn: who asked for them waits for all of them."""
    host, begun, go_on = OwnHost(Counting, capacity=2, pool=1), threading.Event(), threading.Event()

    def call(k: int) -> int:
        begun.set()
        assert go_on.wait(30)
        return k

    with ThreadPoolExecutor(1) as asking:
        answer = asking.submit(host.map, call, [1, 2])
        assert begun.wait(30)
        host.close()
        go_on.set()
        assert answer.result(30) == [1, 2]


def test_the_expert_is_the_advice_in_the_frames(sessions_of: Maker) -> None:
    sessions = sessions_of(Counting)
    session = create(sessions)
    advised = sessions.get(session.id, expert=True).expert
    assert advised == Action(reason="go on", command="1")
    play(sessions, session, "1")
    with pytest.raises(ProblemError, match=r"demonstrations\.source") as none:
        sessions.get(session.id, expert=True)
    assert none.value.problem.status == 409


def test_it_tells_no_hidden_state(sessions_of: Maker) -> None:
    sessions = sessions_of(Counting)
    with pytest.raises(ProblemError, match="no hidden state") as refused:
        sessions.hidden(create(sessions).id)
    assert refused.value.problem.status == 409


def test_games_are_in_order_and_their_edition_is_what_they_say() -> None:
    games = OwnGames.of(Counting)
    assert [g.id for g in games.select()] == ["train/0", "train/1", "valid_seen/0"]
    assert [g.id for g in games.select(Split.VALID_SEEN)] == ["valid_seen/0"]
    assert (games.name, games.description) == ("Counting", "Count to three.")

    class Others(Counting):
        @staticmethod
        def games() -> Iterable[Game]:
            return [game(1), game(0)]

    assert OwnGames.of(Fickle).data_version == games.data_version
    assert OwnGames.of(Others).data_version != games.data_version
    assert OwnHost(Others, 1, 1).version == OwnHost(Counting, 1, 1).version  # of one module
    sorting = load_environment("examples.sorting:Sorting")
    assert OwnHost(sorting, 1, 1).version != OwnHost(Counting, 1, 1).version


@pytest.mark.parametrize(
    ("listed", "told"),
    [
        ([], "names no games"),
        ([game(0), game(1), game(0)], "1 games by ids of others"),
        ([{"id": "a"}], "0.split: Field required"),
        ([game(0).model_copy(update={"id": "x" * 501})], "at most 500 characters"),
        ([game(0).model_copy(update={"task": "x" * 20_001})], "at most 20000 characters"),
    ],
)
def test_what_are_no_games_is_told(listed: list[Game], told: str) -> None:
    class Wrong(Counting):
        @staticmethod
        def games() -> Iterable[Game]:
            return listed

    with pytest.raises(DataError, match=told):
        OwnGames.of(Wrong)


def test_games_that_are_no_static_method_are_told() -> None:
    class Wrong(Counting):
        def games(self) -> Iterable[Game]:  # type: ignore[override]
            return []

    with pytest.raises(DataError, match="@staticmethod"):
        OwnGames.of(Wrong)  # type: ignore[arg-type]


def test_an_error_of_games_is_not_blamed_on_how_it_is_declared() -> None:
    class Wrong(Counting):
        @staticmethod
        def games() -> Iterable[Game]:
            raise FileNotFoundError("levels.json")

    with pytest.raises(DataError, match=r"games\(\): FileNotFoundError\('levels.json'\)$"):
        OwnGames.of(Wrong)


def test_a_module_that_cannot_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torn_environment.py").write_text("class Torn(")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError, match="torn_environment:Torn cannot be imported: SyntaxError"):
        load_environment("torn_environment:Torn")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("examples/sorting.py", "named as module:Class"),
        ("examples.sortin:Sorting", "No module named 'examples.sortin'"),
        ("examples.sorting:Sort", "no attribute 'Sort'"),
        ("examples.sorting:random", "has no games, reset, step"),
        ("agentprm.environment:Frame", "has no games, reset, step"),
        (".sorting:Sorting", "named as module:Class"),
    ],
)
def test_what_is_no_environment_is_told(name: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        load_environment(name)


def test_the_example_is_an_environment_whose_advice_wins(sessions_of: Maker) -> None:
    environment = load_environment("examples.sorting:Sorting")
    sessions = sessions_of(environment)
    for name in ("train/0", "valid_seen/99"):
        session = create(sessions, games=[name])
        while not session.done:
            advice = sessions.get(session.id, expert=True).expert
            assert advice is not None
            assert advice.command in session.admissible
            session = play(sessions, session, advice.command)
        assert session.won
        assert session.turn <= 4
