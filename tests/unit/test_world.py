"""World models: their conversation, their fit on a toy, and what counts as right."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from agentprm.config import Config
from agentprm.encoding import encode
from agentprm.protocol import Action, Episode, Turn
from agentprm.world import Outcome, asked, conversation, outcome_text, read_outcome
from services.trainer.rollouts.records import Records
from services.trainer.training.fitting import Metrics, load_tokenizer
from services.trainer.world.accuracy import Slots, accuracy, slots
from services.trainer.world.fit import fit_world, whole_episodes
from services.trainer.world.transitions import transitions, world_rows
from tests.finished_run import record
from tests.unit.trainer_episodes import FIRST, create_small, episode

GO_FRIDGE, GO_TABLE = "go to fridge 1", "go to sidetable 1"
TAKE, OPEN, PUT = "take mug 1 from sidetable 1", "open fridge 1", "move mug 1 to fridge 1"
AT_FRIDGE = "You arrive at fridge 1. The fridge 1 is closed."
OPENED = "You open the fridge 1. The fridge 1 is open. In it, you see nothing."
MOVED = "You move the mug 1 to the fridge 1."
AT_TABLE = "You arrive at sidetable 1. On the sidetable 1, you see a mug 1, and an apple 2."


def toy(game: str = "a") -> Episode:
    """Three turns, won by the last."""
    seen = [(FIRST, (GO_FRIDGE, GO_TABLE)), (AT_FRIDGE, (GO_TABLE, OPEN)), (OPENED, (PUT,))]
    played = episode([GO_FRIDGE, OPEN, PUT], [0, 0, 1], game)
    turns = [
        turn.model_copy(update={"observation": observation, "admissible": admissible})
        for turn, (observation, admissible) in zip(played.turns, seen, strict=True)
    ]
    return played.model_copy(update={"turns": tuple(turns), "final_observation": MOVED})


def test_an_outcome_tells_what_changed_and_is_read_back() -> None:
    before = [GO_FRIDGE, GO_TABLE, "look"]
    outcome = Outcome(AT_FRIDGE, False, (GO_TABLE, "look", OPEN))
    text = outcome_text(outcome, before)
    assert text == f"{AT_FRIDGE}\nNow possible: {OPEN}\nNo longer possible: {GO_FRIDGE}"
    assert read_outcome(text, before) == outcome
    same = Outcome("Nothing happens.", False, tuple(before))
    assert outcome_text(same, before) == "Nothing happens."
    assert read_outcome("Nothing happens.", before) == same
    listing = Outcome("Available commands:\n  look: look around\n", False, tuple(before))
    assert read_outcome(outcome_text(listing, before), before) == listing
    won = Outcome(MOVED, True)
    assert read_outcome(outcome_text(won, before), before) == won


@pytest.mark.parametrize(
    ("text", "admissible"),
    [
        ("Odd.\nNow possible: look; \nNo longer possible: dance", (GO_TABLE, "look")),
        ("Odd.\nNo longer possible: go to sidetable 1", ()),
        ("Odd.\nNow possible:", (GO_TABLE,)),
    ],
)
def test_odd_answers_are_read_as_far_as_they_go(text: str, admissible: tuple[str, ...]) -> None:
    assert read_outcome(text, [GO_TABLE]) == Outcome("Odd.", False, admissible)


def test_the_conversation_grows_by_what_it_is_asked() -> None:
    played = toy()
    first, second, third = transitions(played)
    for t, each in enumerate((first, second, third)):
        turn = played.turns[t]
        told = conversation(played.game.task, played.turns[:t], turn.observation, turn.admissible)
        assert each.told == told
        assert each.command == turn.action.command
    assert [m.role for m in asked(third.told, PUT)] == [
        "system",
        *["user", "assistant"] * 2,
        "user",
    ]
    assert asked(first.told, "look")[-1].content == f"{FIRST}\n\nACTION: look"
    assert asked(second.told, "look")[-1].content == "ACTION: look"
    assert third.outcome == Outcome(MOVED, True)


def test_what_followed_an_episode_that_ran_out_of_turns_is_not_known() -> None:
    lost = toy().model_copy(update={"won": False})
    assert [t.command for t in transitions(lost)] == [GO_FRIDGE, OPEN]


def config(**sft: object) -> Config:
    return Config.model_validate(
        {
            "preset": "world",
            "demonstrations": {"games": 1},
            "rollouts": {"games": 1, "per_game": 1},
            "preferences": {"pairs": 1},
            "prm": {"validation_fraction": 0.5},
            "sft": {"batch_tokens": 10_000, "precision": "fp32", "log_every": 1, **sft},
        }
    )


def test_the_loss_is_on_the_outcomes_alone(tmp_path: Path) -> None:
    small = create_small(tmp_path)
    lines: list[Metrics] = []
    fit_world(small, [toy()], tmp_path, config(epochs=1), 0, log=lines.append)
    tokenizer = load_tokenizer(small)
    model = AutoModelForCausalLM.from_pretrained(small, dtype=torch.float32).eval()
    (row,) = world_rows(tokenizer, [toy()], 2048)
    with torch.no_grad():
        log_probs = model(torch.tensor([row.ids])).logits[0].log_softmax(-1)
    wanted = [i for start, end in row.spans for i in range(start, end)]
    total = sum(-log_probs[i - 1, row.ids[i]].item() for i in wanted)
    assert lines[0]["loss"] == pytest.approx(total / len(wanted), rel=1e-4)
    texts = [tokenizer.decode(row.ids[start:end]) for start, end in row.spans]
    assert [text.partition("\n")[0] for text in texts] == [AT_FRIDGE, OPENED, MOVED]
    assert texts[-1].partition("\n")[2].startswith("The task is done.")


def test_episodes_that_were_given_turns_teach_nothing(tmp_path: Path) -> None:
    """Given turns come without the commands that were possible in them."""
    whole, later = toy("a"), toy("b").model_copy(update={"start": 1})
    record(tmp_path, "demonstrations", [whole])
    record(tmp_path, "pi_0-rollouts", [later, whole])
    record(tmp_path, "pi_1-rollouts", [whole])
    records = Records(tmp_path / "records")
    assert [e.game.id for e in whole_episodes(records, 0)] == [whole.game.id] * 2
    assert len(whole_episodes(records, 1)) == 3


def test_it_learns_the_transitions_of_a_toy(tmp_path: Path) -> None:
    """Also that what follows `open` hangs on what was done before."""
    small, out = create_small(tmp_path), tmp_path / "out"
    out.mkdir()
    other = toy("b")
    nothing = "Nothing happens."
    turns = [
        Turn(
            observation=observation,
            admissible=(GO_FRIDGE, GO_TABLE),
            action=Action(command=command),
            policy_version="policy/0",
        )
        for observation, command in [(FIRST, OPEN), (nothing, GO_TABLE), (AT_TABLE, "look")]
    ]
    other = other.model_copy(update={"turns": tuple(turns), "won": False})
    settings = config(epochs=150, learning_rate=1e-2)
    settings = settings.model_copy(
        update={"prm": settings.prm.model_copy(update={"validation_fraction": 0.0})}
    )
    fit_world(small, [toy(), other], out, settings, 0)
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    tokenizer = load_tokenizer(out)
    for played in (toy(), other):
        for each in transitions(played):
            told = encode(tokenizer, asked(each.told, each.command), generation_prompt=True).ids
            row = model.generate(torch.tensor([told]), max_new_tokens=60, do_sample=False)
            text = tokenizer.decode(row[0, len(told) :], skip_special_tokens=True)
            assert read_outcome(text, each.before) == each.outcome


@pytest.mark.parametrize(
    ("observation", "success", "place", "objects"),
    [
        ("Nothing happens.", False, None, set()),
        (AT_TABLE, True, "sidetable 1", {"mug 1", "apple 2"}),
        (AT_FRIDGE, True, "fridge 1", set()),
        (OPENED, True, "fridge 1", set()),
        (MOVED, True, "fridge 1", {"mug 1"}),
        ("You pick up the mug 1 from the sidetable 1.", True, "sidetable 1", {"mug 1"}),
        ("You put the mug 1 in/on the shelf 12.", True, "shelf 12", {"mug 1"}),
        ("You heat the egg 2 using the microwave 1.", True, "microwave 1", {"egg 2"}),
        ("You are facing the desk 1. Next to it, you see nothing.", True, "desk 1", set()),
        ("You turn on the desklamp 1.", True, None, {"desklamp 1"}),
        ("You are carrying: a mug 1.", True, None, {"mug 1"}),
    ],
)
def test_the_slots_of_an_observation(
    observation: str, success: bool, place: str | None, objects: set[str]
) -> None:
    found = slots(observation)
    assert found == Slots(success, place, frozenset(objects))


def test_accuracy_on_strings_made_by_hand() -> None:
    true = [
        Outcome(AT_TABLE, False, (GO_FRIDGE, TAKE)),
        Outcome(AT_FRIDGE, False, (GO_TABLE, OPEN)),
        Outcome("Nothing happens.", False, (GO_FRIDGE,)),
        Outcome(MOVED, True),
    ]
    predicted = [
        Outcome(AT_TABLE.replace("apple 2", "apple 1"), False, (GO_FRIDGE, TAKE, "look")),
        Outcome(AT_FRIDGE.replace("1", "2"), True),
        Outcome("Nothing happens.", False, (GO_FRIDGE,)),
        None,
    ]
    found = accuracy([[GO_FRIDGE], [GO_FRIDGE], [GO_FRIDGE], [PUT]], true, predicted)
    assert found.model_dump() == {
        "transitions": 4,
        "wins": 1,
        "answered": 3 / 4,
        "observation": 1 / 4,  # only "Nothing happens."
        "success": 3 / 4,
        "place": 1 / 3,  # the sidetable; not the other fridge, nor what was not answered
        "objects": 0.0,  # one object is another; the other place names none
        "admissible": 1 / 3,
        "added_found": 1 / 3,  # take; not go and open
        "added_true": 1 / 2,  # take; not look
        "won": 2 / 4,
        "wins_found": 0.0,
        "wins_true": 0.0,
    }
