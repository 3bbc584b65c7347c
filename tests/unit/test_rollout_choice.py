from __future__ import annotations

from collections import Counter

from agentprm.protocol import Action, Candidate
from services.rollout.choice import by_chance, majority


def candidate(reason: str, command: str, count: int = 1, log_prob: float = -1.0) -> Candidate:
    action = Action(reason=reason, command=command)
    return Candidate(text="", action=action, log_prob=log_prob, tokens=1, count=count)


def test_the_majority_is_of_commands_whatever_their_reasons() -> None:
    look = candidate("see", "look", count=3)
    take, again = candidate("have", "take mug", count=2), candidate("hold", "take mug", count=2)
    assert majority([look, take]) is look  # 3 to 2
    assert majority([look, take, again]) is take  # 3 to 4, though no answer came as often as `look`


def test_of_as_many_votes_the_one_drawn_more_often_then_the_likelier_then_the_earlier() -> None:
    whole, half = candidate("a", "look", count=2), candidate("b", "take mug")
    other = candidate("c", "take mug", log_prob=-0.1)
    assert majority([half, other, whole]) is whole  # 2 to 2 votes; drawn twice, as no other
    assert majority([half, other]) is other  # the likelier reason of one command
    likely = candidate("a", "look", log_prob=-0.5)
    assert majority([half, likely]) is likely
    assert majority([half, candidate("z", "look")]) is half


def test_an_answer_without_a_command_is_no_vote() -> None:
    unread, look = candidate("blah", "", count=9), candidate("a", "look")
    assert majority([unread, look]) is look
    assert majority([unread]) is unread


def test_chance_takes_each_distinct_action_as_often_however_often_it_was_drawn() -> None:
    candidates = [candidate("a", "look", count=13), candidate("b", "take mug"), candidate("c", "x")]
    taken = Counter(by_chance(candidates, f"7/{k}").action.command for k in range(3000))
    assert all(abs(count - 1000) < 110 for count in taken.values())  # four standard deviations
    assert by_chance(candidates, "7/1") is by_chance(candidates, "7/1")
