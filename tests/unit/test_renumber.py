"""Rooms with other numbers are the same in all else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agentprm.config import SFTSettings
from agentprm.prompts import load_prompt
from agentprm.protocol import Action, Episode
from services.trainer.fits.sft import fit_sft
from services.trainer.tiny.renumber import Numbers, pass_seeds, renumbered
from services.trainer.tiny.tokenizer import create_tokenizer
from services.trainer.training.rows import episode_rows
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
NAME = re.compile(r"\b(cabinet|fridge|sidetable|mug) (\d+)")


def demonstration() -> Episode:
    played = episode(COMMANDS, [0, 0, 1])
    turns = tuple(
        turn.model_copy(
            update={
                "observation": seen,
                "admissible": (turn.action.command, "go to cabinet 3"),
                "action": Action(reason="put in place 2 of cabinet 2", command=turn.action.command),
            }
        )
        for turn, seen in zip(played.turns, SEEN, strict=True)
    )
    return played.model_copy(update={"turns": turns, "final_observation": "On it is a mug 2."})


def other(played: Episode, seed: int) -> Episode:
    return Numbers.of_episode(played, 1.0, seed).episode(played)


def texts(played: Episode) -> list[str]:
    return [
        text
        for turn in played.turns
        for text in (turn.action.command, turn.action.reason, *turn.admissible)
    ] + [turn.observation for turn in played.turns[1:]]


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
    assert all(
        Numbers.of_state(elsewhere, 1.0, seed).state(elsewhere) is elsewhere for seed in range(20)
    )


def test_every_pass_of_a_fit_reads_others(tmp_path: Path) -> None:
    settings = SFTSettings(epochs=3, renumbered=1.0, batch_tokens=10_000, precision="fp32")
    small, prompt = create_small(tmp_path), load_prompt("chat")
    episodes = [demonstration(), episode(["look"], [1], index=1)]
    metrics = fit_sft(small, episodes, tmp_path / "out", settings, prompt, seed=0)
    plain = settings.model_copy(update={"renumbered": 0.0})
    once = fit_sft(small, episodes, tmp_path / "plain", plain, prompt, seed=0)
    assert (metrics["rows"], once["rows"]) == (6, 2)
    assert metrics["tokens"] == once["tokens"]
    seeds = pass_seeds(1.0, 3, seed=0)
    read = [renumbered(episodes, 1.0, each) for each in seeds]
    assert len(seeds) == 3
    assert read[0] != read[1] != read[2] != read[0]
