"""The compiled engine on a hand-made game: texts of both generations, and what must always hold."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.env.engine.compiled import CompiledGame, CompiledState
from services.env.engine.compiled.solver import next_command
from tests.tiny_games import GOALS, Generation, tiny_game

GAME = CompiledGame.parse(json.dumps(tiny_game()))
COMMANDS = st.lists(st.integers(0, 10_000), max_size=60)


def play(state: CompiledState, *commands: str) -> list[str]:
    observations = []
    for command in commands:
        state.step(command)
        observations.append(state.observation)
    return observations


def play_numbers(state: CompiledState, numbers: list[int]) -> None:
    """Every number stands for an admissible command, multiples of 7 for nonsense."""
    for number in numbers:
        admissible = state.admissible
        state.step("open sesame" if number % 7 == 0 else admissible[number % len(admissible)])


def shown(state: CompiledState) -> tuple[object, ...]:
    return state.hidden_state(), state.observation, state.admissible, state.reward, state.done


def test_first_observation_lists_receptacles_and_task() -> None:
    state = GAME.reset()
    assert state.observation == (
        "-= Welcome to TextWorld, ALFRED! =-\n\n"
        "You are in the middle of a room. Looking quickly around you, you see a cabinet 2, "
        "a cabinet 1, a countertop 1, a drawer 1, a fridge 1, a microwave 1, a sinkbasin 1, "
        "a stoveburner 2, and a stoveburner 1.\n\n"
        "Your task is to: put a pot in cabinet."
    )
    assert GAME.task == "put a pot in cabinet."
    assert play(state, "look") == [
        "You are in the middle of a room. Looking quickly around you, you see nothing."
    ]


def test_older_generation_speaks_its_own_words() -> None:
    state = CompiledGame.parse(json.dumps(tiny_game(generation="older"))).reset()
    assert play(
        state,
        "go to countertop 1",
        "take mug 1 from countertop 1",
        "move mug 1 to sinkbasin 1",
        "put mug 1 in/on sinkbasin 1",
        "help",
    ) == [
        "You arrive at loc 6. On the countertop 1, you see a apple 2, and a mug 1.",
        "You pick up the mug 1 from the countertop 1.",
        "Nothing happens.",
        "You put the mug 1 in/on the sinkbasin 1.",
        "Nothing happens.",
    ]
    assert play(state, "look") == [
        "You are facing the countertop 1, and sinkbasin 1. Next to it, you see a mug 1."
    ]


def test_doors_hide_and_appliances_work_closed() -> None:
    state = GAME.reset()
    assert play(
        state,
        "go to countertop 1",
        "take apple 2 from countertop 1",
        "go to microwave 1",
        "move apple 2 to microwave 1",
        "heat apple 2 with microwave 1",
        "examine apple 2",
        "go to fridge 1",
        "cool apple 2 with fridge 1",
        "examine apple 2",
        "open fridge 1",
        "  inventory ",
        "close fridge 1",
    )[2:] == [
        "You arrive at microwave 1. The microwave 1 is closed.",
        "Nothing happens.",
        "You heat the apple 2 using the microwave 1.",
        "This is a hot apple 2.",
        "You arrive at fridge 1. The fridge 1 is closed.",
        "You cool the apple 2 using the fridge 1.",
        "This is a cold apple 2.",
        "You open the fridge 1. The fridge 1 is open. In it, you see a apple 1.",
        "You are carrying: a apple 2.",
        "You close the fridge 1.",
    ]


def test_play_goes_on_after_the_game_is_won() -> None:
    state = GAME.reset()
    play(
        state,
        "go to stoveburner 1",
        "take pot 1 from stoveburner 1",
        "go to cabinet 1",
        "open cabinet 1",
    )
    assert not state.won
    play(state, "move pot 1 to cabinet 1")
    assert (state.won, state.done, state.reward) == (True, True, 1.0)
    play(state, "take pot 1 from cabinet 1")
    assert (state.won, state.done, state.reward) == (False, False, 0.0)


def test_hidden_state_tells_where_things_are() -> None:
    state = GAME.reset()
    play(
        state, "go to countertop 1", "take mug 1 from countertop 1", "clean mug 1 with sinkbasin 1"
    )
    assert state.hidden_state() == {
        "agent": ["countertop 1", "sinkbasin 1"],
        "holding": "mug 1",
        "objects": {
            "apple 1": "fridge 1",
            "apple 2": "countertop 1",
            "box 1": "cabinet 1",
            "desklamp 1": "drawer 1",
            "knife 1": "sinkbasin 1",
            "mug 2": "cabinet 2",
            "pot 1": "stoveburner 2",
        },
        "open": [],
        "hot": [],
        "cool": [],
        "clean": ["mug 1"],
        "on": [],
    }


@pytest.mark.parametrize("generation", ["current", "patched", "older"])
@pytest.mark.parametrize("task_type", GOALS)
def test_solver_wins_every_task_type(task_type: str, generation: Generation) -> None:
    game = CompiledGame.parse(json.dumps(tiny_game(task_type, generation)))
    assert game.goal.task_type == task_type
    state = game.reset()
    for _ in range(15):
        if (command := next_command(state)) is None:
            break
        assert command in state.admissible
        state.step(command)
    assert state.won


@settings(max_examples=200, deadline=None)
@given(COMMANDS)
def test_objects_are_in_one_place_and_one_at_most_in_hand(numbers: list[int]) -> None:
    state = GAME.reset()
    play_numbers(state, numbers)
    places = [GAME.names[x] for things in state.contents for x in things]
    places += [GAME.names[state.held]] if state.held is not None else []
    # The pot begins on two burners, as ALFRED has it.
    assert 1 <= places.count("pot 1") <= 2
    movable = ["apple 1", "apple 2", "box 1", "desklamp 1", "knife 1", "mug 1", "mug 2"]
    assert sorted(x for x in places if x != "pot 1") == movable
    assert state.admissible == sorted(set(state.admissible))


@settings(max_examples=100, deadline=None)
@given(COMMANDS, COMMANDS, COMMANDS)
def test_a_fork_and_its_parent_go_their_own_ways(
    before: list[int], ours: list[int], theirs: list[int]
) -> None:
    parent = GAME.reset()
    play_numbers(parent, before)
    fork = parent.fork()
    at_fork = shown(parent)
    assert shown(fork) == at_fork
    play_numbers(fork, ours)
    assert shown(parent) == at_fork
    play_numbers(parent, theirs)
    replayed = GAME.reset()
    play_numbers(replayed, before + ours)
    assert shown(fork) == shown(replayed)
