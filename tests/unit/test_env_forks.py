"""Forks and prefixes through the session layer, on the compiled engine and a tiny kitchen."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentprm.protocol import (
    Command,
    CreateSessions,
    ForkSession,
    Game,
    Session,
    StepSession,
)
from agentprm.service import ProblemError
from services.env.engine.inprocess import CompiledHost
from services.env.expert.search import SearchExpert
from services.env.games import GameIndex
from services.env.sessions import Sessions
from tests.env_server import KITCHEN, WINNING, write_kitchen

CHOICES = st.lists(st.integers(0, 10**6), max_size=6)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> GameIndex:
    data = tmp_path_factory.mktemp("games")
    write_kitchen(data)
    return GameIndex.open(data)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sessions(index: GameIndex, clock: Clock) -> Sessions:
    return open_sessions(index, clock)


def open_sessions(index: GameIndex, clock: Clock) -> Sessions:
    def expert(game: Game, seed: int) -> SearchExpert:
        return SearchExpert(game.task, index.placement, seed)

    return Sessions(CompiledHost(8), index, expert, max_steps=30, idle_seconds=60, clock=clock)


def create(sessions: Sessions, *prefixes: list[Command], **options: object) -> list[Session]:
    request = {"games": [KITCHEN] * len(prefixes), "prefixes": prefixes, **options}
    return sessions.create(CreateSessions.model_validate(request))


def play(sessions: Sessions, session: Session, *commands: str) -> Session:
    for command in commands:
        step = StepSession(id=session.id, turn=session.turn, command=command)
        (result,) = sessions.step([step])
        assert result.session is not None, result.problem
        session = result.session
    return session


def play_numbers(sessions: Sessions, session: Session, numbers: Sequence[int]) -> Session:
    for number in numbers:
        if not session.done:
            command = session.admissible[number % len(session.admissible)]
            session = play(sessions, session, command)
    return session


def test_a_fork_repeats_what_was_answered_and_has_its_own_expert(sessions: Sessions) -> None:
    (parent,) = create(sessions, [], seed=3)
    first = play(sessions, parent, WINNING[0])
    now = play(sessions, first, WINNING[1])
    forks = sessions.fork(ForkSession(id=parent.id, count=3))
    assert [fork.model_copy(update={"id": now.id}) for fork in forks] == [now] * 3
    assert len({now.id, *(fork.id for fork in forks)}) == 4
    (again,) = sessions.step([StepSession(id=forks[0].id, turn=0, command=WINNING[0])])
    assert again.session == first.model_copy(update={"id": forks[0].id})
    won = play(sessions, forks[0], *WINNING[2:])
    assert won.won
    assert sessions.get(parent.id) == now
    advice = sessions.get(parent.id, expert=True).expert
    assert advice == sessions.get(forks[1].id, expert=True).expert
    assert advice is not None


@settings(max_examples=60, deadline=None)
@given(before=CHOICES, ours=CHOICES, theirs=CHOICES)
def test_what_a_fork_does_leaves_its_parent_unchanged(
    index: GameIndex, before: list[int], ours: list[int], theirs: list[int]
) -> None:
    sessions = open_sessions(index, Clock())
    parent, undisturbed = create(sessions, [], [])
    at_fork = play_numbers(sessions, parent, before)
    if at_fork.done:
        return
    hidden = sessions.hidden(parent.id)
    (fork,) = sessions.fork(ForkSession(id=parent.id))
    theirs_end = play_numbers(sessions, fork, theirs)
    assert sessions.get(parent.id) == at_fork
    assert sessions.hidden(parent.id) == hidden
    ours_end = play_numbers(sessions, at_fork, ours)
    assert sessions.get(fork.id) == theirs_end
    alone = play_numbers(sessions, play_numbers(sessions, undisturbed, before), ours)
    assert alone.model_copy(update={"id": parent.id}) == ours_end


def test_forks_that_cannot_be_are_refused_and_take_no_room(sessions: Sessions) -> None:
    (session,) = create(sessions, WINNING[:4])
    for request, status in [
        (ForkSession(id="unknown"), 404),
        (ForkSession(id=session.id, count=9), 422),
        (ForkSession(id=session.id, count=8), 429),
    ]:
        with pytest.raises(ProblemError) as refused:
            sessions.fork(request)
        assert refused.value.problem.status == status
    play(sessions, session, WINNING[4])
    with pytest.raises(ProblemError) as over:
        sessions.fork(ForkSession(id=session.id))
    assert over.value.problem.status == 409
    assert len(sessions) == 1


def test_forks_end_with_the_key_of_their_original(sessions: Sessions) -> None:
    (session,) = create(sessions, [], key="job 7")
    forks = sessions.fork(ForkSession(id=session.id, count=3))
    (again,) = create(sessions, [], key="job 7")
    assert len(sessions) == 1
    assert sessions.close([session.id, *(fork.id for fork in forks), again.id]) == [again.id]


def test_idle_sessions_make_room(sessions: Sessions, clock: Clock) -> None:
    create(sessions, *[[]] * 7)
    clock.now = 61
    (session,) = create(sessions, [])
    assert len(sessions.fork(ForkSession(id=session.id, count=7))) == 7
    assert len(sessions) == 8


def test_a_prefix_leads_to_the_state_reached_before(sessions: Sessions) -> None:
    (played,) = create(sessions, [])
    turns = [played]
    for command in WINNING[:4]:
        turns.append(play(sessions, turns[-1], command))
    made = create(sessions, *[WINNING[:turn] for turn in range(5)])
    assert [s.model_copy(update={"id": played.id}) for s in made] == turns
    (again,) = sessions.step([StepSession(id=made[4].id, turn=1, command=WINNING[1])])
    assert again.session == turns[2].model_copy(update={"id": made[4].id})
    assert play(sessions, made[4], WINNING[4]).won


@pytest.mark.parametrize(
    ("prefix", "detail"),
    [
        (["look", "open fridge 1"], "prefixes.1.1: 'open fridge 1' is not admissible"),
        (WINNING, "prefixes.1.4: 'move pot 1 to cabinet 1' ends the game"),
        (["look"] * 3, "prefixes.1.2: 'look' is over the limit of 2 turns"),
    ],
)
def test_a_prefix_that_cannot_be_played_is_refused(
    sessions: Sessions, prefix: list[str], detail: str
) -> None:
    with pytest.raises(ProblemError) as refused:
        create(sessions, [], prefix, max_steps=2 if "limit" in detail else None)
    assert (refused.value.problem.status, refused.value.problem.detail) == (422, detail)
    assert len(sessions) == 0


def test_a_prefix_may_be_as_long_as_the_limit(sessions: Sessions) -> None:
    (session,) = create(sessions, ["look"] * 2, max_steps=2)
    assert (session.turn, session.truncated) == (2, True)


@pytest.mark.parametrize(
    "body",
    [
        {"games": [KITCHEN], "prefixes": []},
        {"games": [KITCHEN], "prefixes": [["look"], ["look"]]},
        {"games": [KITCHEN], "prefixes": [["look"] * 201]},
        {"split": "train", "prefixes": [["look"]]},
    ],
)
def test_there_is_a_prefix_for_each_game(body: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="prefix"):
        CreateSessions.model_validate(body)
