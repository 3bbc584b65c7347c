from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from pydantic import ValidationError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from agentprm.config import load_config
from agentprm.encoding import encode
from agentprm.prompts import load_prompt
from services.trainer.tiny import create_tiny, vocabulary
from services.trainer.tiny.tokenizer import create_tokenizer
from tests.unit.trainer_episodes import episode

TOKENIZER = create_tokenizer(2048)

BOTH_GENERATIONS = [
    "-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking quickly "
    "around you, you see a bed 1, an armchair 2, and a sidetable 1.\n\n"
    "Your task is to: put two cd in safe.",
    "You are in the middle of a room. Looking quickly around you, you see nothing.",
    "You arrive at cabinet 1. The cabinet 1 is closed.",
    "You arrive at loc 12. On the sidetable 1, you see an apple 1, a bowl 2, and an egg 10.",
    "You open the fridge 1. The fridge 1 is open. In it, you see nothing.",
    "You close the fridge 1.",
    "You pick up the mug 3 from the coffeemachine 1.",
    "You move the mug 3 to the cabinet 13.",
    "You put the mug 3 in/on the cabinet 13.",
    "You heat the mug 3 using the microwave 1.",
    "You clean the pan 1 using the sinkbasin 1.",
    "You cool the winebottle 1 using the fridge 1.",
    "You turn on the desklamp 1.",
    "You are facing the bed 1, and sidetable 2. Next to it, you see nothing.",
    "You are carrying: an alarmclock 2.",
    "You are not carrying anything.",
    "There's nothing special about desklamp 1.",
    "This is a hot and clean plate 1.",
    "This is a cold potato 2.",
    "This is a normal box 1. In it, you see a pen 1, and a keychain 2.",
    "This desklamp 1 is on.",
    "Nothing happens.",
    "move mug 1 to cabinet 3",
    "put mug 1 in/on cabinet 3",
    "take mug 1 from shelf 60",
    "slice apple 1 with butterknife 2",
    "examine the alarmclock with the desklamp.",
    "look at bowl under the floorlamp.",
    "find two saltshaker and put them in drawer.",
    "cool some lettuce and put it in diningtable.",
    "put a hot egg in garbagecan.",
    "REASON: have mug . put in cabinet\nACTION: go to cabinet 3",
    "REASON: have mug . heat\nACTION: inventory",
    "REASON: find mug\nACTION: help",
    "REASON: one done . find saltshaker\nACTION: look",
    "REASON: one done . have saltshaker . put in drawer\nACTION: go to drawer 1",
    "REASON: have bowl . use desklamp\nACTION: use desklamp 1",
    "REASON: have mug . clean\nACTION: clean mug 1 with sinkbasin 1",
    "REASON: have mug . cool\nACTION: cool mug 1 with fridge 1",
]


@pytest.mark.parametrize("text", BOTH_GENERATIONS)
def test_the_text_of_both_data_generations_comes_back(text: str) -> None:
    assert_lossless(text)


def test_every_class_name_and_number_is_one_token() -> None:
    for name in vocabulary.NAMES:
        assert len(TOKENIZER.encode(name)) == 1
        for number in (1, 9, 10, 60):
            assert_lossless(f"{name} {number}")
            assert len(TOKENIZER.encode(f"{name} {number}")) == 2


def test_other_text_is_unknown() -> None:
    for text in ("penguin", "cabinet 61", "Hello"):
        assert TOKENIZER.unk_token_id in TOKENIZER.encode(text)


def test_an_episode_is_encoded_append_only_with_one_token_marks() -> None:
    prompt = load_prompt("chat")
    played = episode(["look", "go to cabinet 1", "inventory"], [0, 0, 1])
    whole = encode(TOKENIZER, prompt.transcript(played.game.task, played.transcript().steps))
    for t, (start, end) in enumerate(whole.spans):
        state = encode(TOKENIZER, prompt.messages(played.state(t)), generation_prompt=True)
        assert whole.ids[:start] == state.ids
        assert whole.ids[start - 1] == TOKENIZER.convert_tokens_to_ids("<|assistant|>")
        assert whole.ids[end - 1] == TOKENIZER.eos_token_id
        assert TOKENIZER.decode(whole.ids[start : end - 1]) == prompt.action_text(
            played.turns[t].action
        )
    assert TOKENIZER.decode(whole.ids[:2]).startswith("<|user|>You are in the middle")
    assert all(a < b for a, b in pairwise(sum(whole.spans, ())))


def test_the_state_prompt_is_covered() -> None:
    state = episode(["look", "inventory"], [0, 0]).state(1)
    state = state.model_copy(update={"admissible": ("look", "go to cabinet 1")})
    assert_lossless(load_prompt("state").messages(state)[0].content)


def test_the_directory_is_an_ordinary_one_and_the_seed_decides(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        create_tiny(tmp_path / name, seed)
    weights = {n: (tmp_path / n / "model.safetensors").read_bytes() for n in "abc"}
    assert weights["a"] == weights["b"] != weights["c"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a")
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert 0.85e6 < model.num_parameters() < 0.95e6
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.decode(tokenizer.encode(BOTH_GENERATIONS[0])) == BOTH_GENERATIONS[0]


def test_its_shape_is_a_setting(tmp_path: Path) -> None:
    config = load_config("smoke", overrides={"scratch.width": 32, "scratch.layers": 2})
    create_tiny(tmp_path, shape=config.scratch)
    made = AutoConfig.from_pretrained(tmp_path)
    assert (made.hidden_size, made.num_hidden_layers, made.num_attention_heads) == (32, 2, 4)
    assert made.intermediate_size == 384
    with pytest.raises(ValidationError, match="do not share a width of 30"):
        load_config("smoke", overrides={"scratch.width": 30})


@pytest.mark.games
def test_real_games_come_back(alfworld_data: Path) -> None:
    games = sorted(alfworld_data.glob("json_2.1.1/valid_seen/*/*/game.tw-pddl"))
    textworld = pytest.importorskip("textworld")
    env = pytest.importorskip("alfworld.agents.environment.alfred_tw_env")
    for game in games[:: len(games) // 2][:2]:
        infos = textworld.EnvInfos(admissible_commands=True, feedback=True)
        session = textworld.start(str(game), infos, wrappers=[env.AlfredDemangler])
        now = session.reset()
        assert_lossless(now["feedback"])
        target = json.loads((game.parent / "traj_data.json").read_text())["pddl_params"]
        wanted = target["object_target"].lower()
        for turn in range(10):
            for command in now["admissible_commands"]:
                assert_lossless(command)
            command = choose(now["admissible_commands"], wanted, turn)
            now, _, _ = session.step(command)
            assert_lossless(now["feedback"].strip())
        session.close()


def choose(admissible: list[str], wanted: str, turn: int) -> str:
    """Help and look once, then whatever opens or takes something, then another place."""
    once = {0: "help", 1: "look", 2: "inventory"}
    if turn in once:
        return once[turn]
    for pattern in (f"take {wanted} ", "open ", f"examine {wanted} "):
        for command in admissible:
            if command.startswith(pattern):
                return command
    going = [c for c in admissible if re.match(r"go to", c)]
    return going[(5 * turn) % len(going)]


def assert_lossless(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.unk_token_id not in ids, text
    assert TOKENIZER.decode(ids) == text
