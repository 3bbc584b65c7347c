"""Rooms with other numbers are the same in all else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from agentprm.config import SFTSettings
from agentprm.prompts import load_prompt
from agentprm.protocol import Action, Episode
from services.trainer.fits.sft import fit_sft
from services.trainer.tiny.renumber import Numbers, renumbered
from services.trainer.tiny.tokenizer import create_tokenizer
from services.trainer.training.rows import Row, all_rows, episode_rows
from tests.unit.trainer_episodes import create_small, episode

ROOM = (
    "You are in the middle of a room. Looking quickly around you, you see a cabinet 3, "
    "a cabinet 2, a cabinet 1, a fridge 1, and a sidetable 1."
)
SEEN = [
    ROOM,
    "The cabinet 2 is open. In it, you see a mug 2, and a mug 1.",
    "You pick up the mug 2 from the cabinet 2.",
]
COMMANDS = ["go to cabinet 2", "take mug 2 from cabinet 2", "go to fridge 1"]
REASON = "put in place 2 of cabinet 2 and not of cabinet 3"
NAME = re.compile(r"\b(cabinet|fridge|sidetable|mug) (\d+)")


def demonstration() -> Episode:
    played = episode(COMMANDS, [0, 0, 1])
    turns = tuple(
        turn.model_copy(
            update={
                "observation": seen,
                "admissible": (turn.action.command, "go to cabinet 3"),
                "action": Action(reason=REASON, command=turn.action.command),
            }
        )
        for turn, seen in zip(played.turns, SEEN, strict=True)
    )
    return played.model_copy(update={"turns": turns, "final_observation": "On it is a mug 2."})


def other(played: Episode, seed: int) -> Episode:
    return Numbers.of_episode(played, 1.0, seed).episode(played)


def texts(played: Episode) -> list[str]:
    return [text for turn in played.turns for text in (turn.action.command, turn.action.reason)] + [
        turn.observation for turn in played.turns[1:]
    ]


@pytest.mark.parametrize("seed", range(20))
def test_every_name_has_one_other_name_all_along(seed: int) -> None:
    before = demonstration()
    after = other(before, seed)
    numbers_of: dict[tuple[str, str], set[str]] = {}
    for old, new in zip(texts(before), texts(after), strict=True):
        if "mug 2, and a mug 1" in old:
            continue  # those of a kind are listed from the largest on
        names, renamed = NAME.findall(old), NAME.findall(new)
        assert NAME.sub(r"\1", old) == NAME.sub(r"\1", new)
        for name, (kind, number) in zip(names, renamed, strict=True):
            assert name[0] == kind
            numbers_of.setdefault(name, set()).add(number)
    assert all(len(numbers) == 1 for numbers in numbers_of.values())
    cabinets = [numbers for (kind, _), numbers in numbers_of.items() if kind == "cabinet"]
    assert len(cabinets) == 2
    assert cabinets[0] != cabinets[1]


def test_those_of_a_kind_are_listed_from_the_largest_as_the_engine_does() -> None:
    for seed in range(20):
        after = other(demonstration(), seed)
        for turn in after.turns[:2]:
            for kind in ("cabinet", "mug"):
                numbers = [int(n) for k, n in NAME.findall(turn.observation) if k == kind]
                assert numbers == sorted(set(numbers), reverse=True)


def test_numbers_come_up_that_the_room_does_not_have() -> None:
    drawn = [other(demonstration(), seed) for seed in range(200)]
    fridges = {m[2] for e in drawn for m in NAME.finditer(e.turns[2].action.command)}
    assert fridges == {"1", "2", "3", "4", "5", "6"}  # one fridge: up to 2 x 1 + 4
    cabinets = {m[2] for e in drawn for m in NAME.finditer(e.turns[0].action.command)}
    assert cabinets == {str(n) for n in range(1, 11)}


def test_what_is_no_place_and_no_thing_stays() -> None:
    for seed in range(20):
        after = other(demonstration(), seed)
        assert all("put in place 2 of" in turn.action.reason for turn in after.turns)


def test_it_is_as_many_tokens() -> None:
    tokenizer, prompt = create_tokenizer(2048), load_prompt("chat")
    after = other(demonstration(), 3)
    [old], [new] = (
        episode_rows(tokenizer, prompt, played, 2048) for played in (demonstration(), after)
    )
    assert old.spans == new.spans
    assert old.ids != new.ids


def test_a_share_of_them_is_and_the_seed_decides_which() -> None:
    episodes = [demonstration().model_copy(update={"id": f"job/{k}"}) for k in range(400)]
    assert renumbered(episodes, 0.0, 1) == episodes
    half = renumbered(episodes, 0.5, 1)
    changed = sum(old != new for old, new in zip(episodes, half, strict=True))
    assert 150 < changed < 250
    assert renumbered(episodes, 0.5, 1) == half
    assert renumbered(episodes, 0.5, 2) != half


def test_a_state_is_as_the_episode_with_the_numbers_it_has_seen() -> None:
    played = demonstration()
    for seed in range(20):
        numbers = Numbers.of_state(played.state(2), 1.0, seed)
        after = numbers.episode(played)
        assert numbers.state(played.state(2)) == after.state(2)
        assert numbers.action(played.turns[2].action) == after.turns[2].action
        assert after.state(2) != played.state(2)


def test_the_experts_label_has_the_numbers_of_its_state() -> None:
    played = demonstration()
    turns = tuple(turn.model_copy(update={"expert": turn.action}) for turn in played.turns)
    for seed in range(20):
        after = other(played.model_copy(update={"turns": turns}), seed)
        assert all(turn.expert == turn.action for turn in after.turns)


def test_a_hint_has_the_numbers_of_its_episode() -> None:
    played = demonstration()
    for seed in range(20):
        numbers = Numbers.of_episode(played, 1.0, seed, "mug 3 is in cabinet 2")
        kind, number = NAME.findall(numbers.text("in cabinet 2"))[0]
        assert numbers.episode(played).turns[0].action.command == f"go to {kind} {number}"
        mugs = {numbers.text(f"mug {k}") for k in (1, 2, 3)}
        assert len(mugs) == 3  # also the one that is only told of


def test_only_rooms_of_alfworld_are() -> None:
    """In an environment of somebody's own the number of a drawer may say where it stands."""
    state = demonstration().state(2)
    first = state.history[0].model_copy(update={"observation": "There are 9 drawers: drawer 1 ..."})
    elsewhere = state.model_copy(update={"history": (first, *state.history[1:])})
    for seed in range(20):
        numbers = Numbers.of_state(elsewhere, 1.0, seed)
        assert numbers.state(elsewhere) is elsewhere
        assert numbers.text("open box 01 and mug 1") == "open box 01 and mug 1"


def test_what_nobody_has_seen_is_not_taken_for_what_is_there() -> None:
    """There is one fridge. A policy that goes to `fridge 2` does not go to the one there is."""
    for seed in range(100):
        numbers = Numbers.of_state(demonstration().state(2), 1.0, seed)
        fridges = [numbers.text(f"fridge {k}") for k in range(1, 9)]
        assert len(set(fridges)) == 8
        assert numbers.text("fridge 0 and fridge 007") == "fridge 0 and fridge 007"
        assert numbers.text(f"fridge {'9' * 5000}") == f"fridge {'9' * 5000}"


def test_commands_are_those_of_the_state_in_the_order_of_the_engine() -> None:
    before = demonstration()
    for seed in range(20):
        numbers = Numbers.of_episode(before, 1.0, seed)
        for old, new in zip(before.turns, numbers.episode(before).turns, strict=True):
            assert list(new.admissible) == sorted(map(numbers.text, old.admissible))
            assert new.action.command in new.admissible


def test_a_state_has_the_same_numbers_at_every_attempt_of_a_run() -> None:
    state = demonstration().state(2)
    drawn = [Numbers.of_state(state, 1.0, seed).state(state) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_every_pass_of_a_fit_reads_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[list[Episode]] = []

    def spy(*given: Any) -> list[tuple[int, Row]]:
        passes.append(given[2])
        return all_rows(*given)

    monkeypatch.setattr("services.trainer.fits.sft.all_rows", spy)
    settings = SFTSettings(epochs=3, renumbered=1.0, batch_tokens=10_000, precision="fp32")
    small, prompt = create_small(tmp_path), load_prompt("chat")
    episodes = [demonstration(), episode(["look"], [1], index=1)]
    metrics = fit_sft(small, episodes, tmp_path / "out", settings, prompt, seed=0)
    plain = settings.model_copy(update={"renumbered": 0.0})
    once = fit_sft(small, episodes, tmp_path / "plain", plain, prompt, seed=0)
    assert metrics["rows"] == once["rows"] == 2
    assert metrics["steps"] == once["steps"] == 3
    assert metrics["tokens"] == once["tokens"]
    first, second, third, as_they_are = passes
    assert first != second != third != first
    assert as_they_are == episodes
