"""The search expert on scripted transcripts, and the goals it reads."""

import pytest

from agentprm.environment import Frame
from agentprm.protocol import Action
from services.env.expert.base import ExpertError
from services.env.expert.goal import Goal, parse_goal
from services.env.expert.search import SearchExpert
from services.env.games import Placement

KITCHEN = Placement(
    probability={"mug": {"countertop": 0.5, "cabinet": 0.1}, "desklamp": {"desk": 0.9}},
    openable=frozenset({"cabinet", "microwave"}),
)
INTRO = (
    "-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking quickly "
    "around you, you see a cabinet 2, a cabinet 1, a countertop 1, and a microwave 1.\n\n"
    "Your task is to: {}"
)
GO = ["go to cabinet 1", "go to cabinet 2", "go to countertop 1", "go to microwave 1"]


def frame(observation: str, *admissible: str) -> Frame:
    return Frame(observation, admissible, reward=0.0, done=False, won=False)


def play(expert: SearchExpert, turns: list[tuple[Action, Frame]]) -> None:
    """Check every action, then show what it leads to."""
    for expected, after in turns:
        assert expert.act() == expected
        expert.observe(expected.command, after)


def start(task: str, seed: int = 0) -> SearchExpert:
    expert = SearchExpert(task, KITCHEN, seed)
    expert.observe(None, frame(INTRO.format(task), *GO, "look"))
    return expert


def test_search_treat_and_place_with_receptacles_that_share_a_location() -> None:
    expert = start("put a hot mug in cabinet.")
    find, heat, put = "find mug", "have mug . heat", "have mug . put in cabinet"
    play(
        expert,
        [
            (
                Action(reason=find, command="go to countertop 1"),
                # Cabinets 1 and 2 are within reach of the countertop: there is no going to them.
                frame(
                    "You arrive at countertop 1. On the countertop 1, you see a apple 1.",
                    "go to microwave 1",
                    "open cabinet 1",
                    "examine cabinet 1",
                    "examine cabinet 2",
                ),
            ),
        ],
    )
    # Cabinet 1 can be opened and cabinet 2 be looked at; neither `go to` is suggested.
    first = expert.act()
    assert first.reason == find
    assert first.command in ("open cabinet 1", "examine cabinet 2")
    expert.observe(
        "open cabinet 1",
        frame(
            "You open the cabinet 1. The cabinet 1 is open. In it, you see a bowl 1, and a mug 2.",
            "go to microwave 1",
            "take bowl 1 from cabinet 1",
            "take mug 2 from cabinet 1",
        ),
    )
    play(
        expert,
        [
            (
                Action(reason=find, command="take mug 2 from cabinet 1"),
                frame("You pick up the mug 2 from the cabinet 1.", "go to microwave 1"),
            ),
            (
                Action(reason=heat, command="go to microwave 1"),
                frame(
                    "You arrive at microwave 1. The microwave 1 is closed.",
                    "open microwave 1",
                    "heat mug 2 with microwave 1",
                    "go to cabinet 1",
                    "go to cabinet 2",
                ),
            ),
            (
                Action(reason=heat, command="heat mug 2 with microwave 1"),
                frame(
                    "You heat the mug 2 using the microwave 1.",
                    "go to cabinet 1",
                    "go to cabinet 2",
                ),
            ),
            (
                Action(reason=put, command="go to cabinet 1"),  # known to be open, unlike the other
                frame(
                    "You arrive at cabinet 1. The cabinet 1 is open. In it, you see a bowl 1.",
                    "move mug 2 to cabinet 1",
                ),
            ),
            (
                Action(reason=put, command="move mug 2 to cabinet 1"),
                frame("You move the mug 2 to the cabinet 1."),
            ),
        ],
    )


def test_two_objects_end_beside_each_other_and_games_may_say_put() -> None:
    expert = start("put two mug in cabinet.")
    at_counter = "You arrive at loc 3. On the countertop 1, you see a mug 3, and a mug 1."
    takes = ("take mug 1 from countertop 1", "take mug 3 from countertop 1")
    away = [command for command in GO if command != "go to countertop 1"]
    expert.observe("go to countertop 1", frame(at_counter, *takes, *away))
    assert expert.act() == Action(reason="find mug", command="take mug 3 from countertop 1")
    expert.observe(takes[1], frame("You pick up the mug 3 from the countertop 1.", *away))
    assert expert.act().reason == "have mug . put in cabinet"
    arrived = frame(
        "You arrive at loc 5. The cabinet 2 is closed.", "open cabinet 2", "go to cabinet 1"
    )
    expert.observe("go to cabinet 2", arrived)
    opened = frame(
        "You open the cabinet 2. The cabinet 2 is open. In it, you see nothing.",
        "put mug 3 in/on cabinet 2",
        "go to cabinet 1",
        "go to countertop 1",
    )
    put = "have mug . put in cabinet"
    play(
        expert,
        [
            (Action(reason=put, command="open cabinet 2"), opened),
            (
                Action(reason=put, command="put mug 3 in/on cabinet 2"),
                frame("You put the mug 3 in/on the cabinet 2.", "go to countertop 1"),
            ),
            (
                Action(reason="one done . cabinet 2 . find mug", command="go to countertop 1"),
                frame(at_counter.replace(" a mug 3, and", ""), takes[0], "go to cabinet 2"),
            ),
            (
                Action(reason="one done . cabinet 2 . find mug", command=takes[0]),
                frame("You pick up the mug 1 from the countertop 1.", *away),
            ),
            (
                Action(
                    reason="one done . cabinet 2 . have mug . put in cabinet 2",
                    command="go to cabinet 2",
                ),
                frame("You arrive at loc 5. The cabinet 2 is open. In it, you see a mug 3."),
            ),
        ],
    )


def test_reasons_name_where_the_first_of_two_things_is() -> None:
    expert = start("put two mug in cabinet.")
    assert expert.act().reason == "find mug"
    expert.observe(
        "take mug 3 from countertop 1", frame("You pick up the mug 3 from the countertop 1.")
    )
    assert expert.act().reason == "have mug . put in cabinet"
    put = frame("You move the mug 3 to the cabinet 2.", "take mug 3 from cabinet 2", *GO)
    expert.observe("move mug 3 to cabinet 2", put)
    assert expert.act().reason == "one done . cabinet 2 . find mug"
    expert.observe(
        "take mug 1 from countertop 1", frame("You pick up the mug 1 from the countertop 1.", *GO)
    )
    assert expert.act() == Action(
        reason="one done . cabinet 2 . have mug . put in cabinet 2", command="go to cabinet 2"
    )


def test_a_lamp_is_looked_for_once_the_object_is_held() -> None:
    expert = start("examine the mug with the desklamp.")
    expert.observe(
        "go to countertop 1",
        frame(
            "You arrive at countertop 1. On the countertop 1, you see a mug 1.",
            "take mug 1 from countertop 1",
            "go to cabinet 1",
        ),
    )
    expert.observe(
        "take mug 1 from countertop 1",
        frame("You pick up the mug 1 from the countertop 1.", "go to cabinet 1", "use desklamp 1"),
    )
    assert expert.act() == Action(reason="have mug . use desklamp", command="use desklamp 1")


def test_wrong_things_are_put_down_and_refused_commands_change_nothing() -> None:
    expert = start("put a mug in cabinet.")
    expert.observe("take mug 9 from cabinet 1", frame("Nothing happens.", *GO))
    assert expert.act().reason == "find mug"
    took = frame("You pick up the apple 1 from the countertop 1.", "move apple 1 to countertop 1")
    expert.observe("take apple 1 from countertop 1", took)
    assert expert.act() == Action(reason="find mug", command="move apple 1 to countertop 1")


def test_advice_repeats_and_varies_with_the_seed() -> None:
    expert = start("put a apple in cabinet.")
    assert expert.act() == expert.act()
    assert len({start("put a apple in cabinet.", seed).act().command for seed in range(20)}) > 1


@pytest.mark.parametrize(
    ("task", "goal"),
    [
        ("look at cd under the desklamp.", Goal("cd", lamp="desklamp")),
        ("examine the cd with the desklamp.", Goal("cd", lamp="desklamp")),
        ("put a cd in safe.", Goal("cd", "safe")),
        ("put some towel on towelholder.", Goal("towel", "towelholder")),
        ("put a clean mug in shelf.", Goal("mug", "shelf", treatment="clean")),
        ("clean some mug and put it in shelf.", Goal("mug", "shelf", treatment="clean")),
        ("put a hot mug in shelf.", Goal("mug", "shelf", treatment="heat")),
        ("heat some mug and put it in shelf.", Goal("mug", "shelf", treatment="heat")),
        ("put a cool mug in shelf.", Goal("mug", "shelf", treatment="cool")),
        ("cool some mug and put it in shelf.", Goal("mug", "shelf", treatment="cool")),
        ("put two mug in shelf.", Goal("mug", "shelf", count=2)),
        ("find two mug and put them in shelf.", Goal("mug", "shelf", count=2)),
    ],
)
def test_every_template_is_read(task: str, goal: Goal) -> None:
    assert parse_goal(task) == goal


def test_a_goal_in_other_words_is_refused() -> None:
    with pytest.raises(ExpertError, match="no template"):
        SearchExpert("Put the mug away, please.", KITCHEN, 0)
