"""A policy and a PRM of the paper's architecture, with a prompt of the authors' variables."""

from __future__ import annotations

import ast
import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
)

from agentprm.encoding import encode, encode_answers
from agentprm.models.surplus_tokens import without_surplus
from agentprm.prompts import PromptTemplate, load_prompt, parse_action
from agentprm.protocol import (
    Action,
    Choice,
    Decoding,
    Message,
    Pair,
    PRMFacts,
    Sampling,
    ScoreRequest,
    State,
    Step,
    Transcript,
)
from agentprm.registry import CheckpointError, Registry
from agentprm.rendering import render
from services.policy.decoding import Decoder, Query
from services.policy.engine import Draw, Prompt
from services.policy.engine.embedded import EmbeddedEngine
from services.prm.ensemble import load_ensemble
from services.prm.scorer import Scorer
from services.trainer.training.fitting import load_tokenizer
from services.trainer.training.prm_model import load_prm
from tests.llama import TEMPLATE, publish
from tests.models import TEMPLATE as WORDS_TEMPLATE
from tests.models import word_tokenizer

STEPS = [
    Step(
        observation="You are in the middle of a room. You see a cabinet 1.\n",
        action=Action(reason="I look for a mug.", command="go to cabinet 1"),
    ),
    Step(
        observation="You arrive at cabinet 1. You see a mug 1.",
        action=Action(reason="There it is.", command="take mug 1 from cabinet 1"),
    ),
]
STATE = State(
    task="put some mug in drawer.",
    history=tuple(STEPS[:1]),
    observation=STEPS[1].observation,
    admissible=("take mug 1 from cabinet 1", "go to drawer 2", "look"),
)
ACTIONS = [STEPS[1].action, Action(reason="No idea.", command="look")]
HISTORY = [{"observation": STEPS[0].observation, "action": "go to cabinet 1"}]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """A registry that has adopted both, and the template's file at its root."""
    home = tmp_path_factory.mktemp("published")
    registry = Registry(home / "checkpoints")
    registry.adopt(publish(home / "policy", prm=False), "policy/0")
    registry.adopt(publish(home / "prm", prm=True), "prm/0")
    (registry.root / "authors.j2").write_text(TEMPLATE)
    return registry


@pytest.fixture(scope="module")
def prompt(published: Registry) -> PromptTemplate:
    return load_prompt(str(published.root / "authors.j2"))


@pytest.fixture(scope="module")
def tokenizer(published: Registry) -> Any:
    return AutoTokenizer.from_pretrained(published.open("policy/0"))


def test_a_padding_token_that_the_model_lacks_is_plain_text(
    published: Registry, tokenizer: Any
) -> None:
    size = len(tokenizer) - 1
    assert tokenizer.encode("a [PAD]")[-1] == size
    held = without_surplus(published.root, tokenizer, size)
    assert max(held.encode("a [PAD]")) < size
    text = "<|start_header_id|>user<|end_header_id|>\n\nGo to drawer 2.<|eot_id|>"
    assert held.encode(text) == tokenizer.encode(text)
    assert held.decode(held.encode(text), skip_special_tokens=True) == "user\n\nGo to drawer 2."
    assert (held.eos_token_id, held.pad_token_id) == (tokenizer.eos_token_id, None)
    with pytest.raises(CheckpointError, match=rf"knows {size + 1} tokens, the model {size - 1}"):
        without_surplus(published.root, tokenizer, size - 1)


@pytest.mark.parametrize(
    ("token", "special", "template", "taken"),
    [
        ("<image_soft_token>", True, WORDS_TEMPLATE, True),
        ("<turn>", True, f"<turn>{WORDS_TEMPLATE}", False),
        ("cupboard", False, WORDS_TEMPLATE, False),
    ],
)
def test_a_special_token_that_no_conversation_is_made_of_is_plain_text(
    tmp_path: Path, token: str, special: bool, template: str, taken: bool
) -> None:
    """As the token for images is of Gemma 3 1B, whose padding is another one."""
    tokenizer = word_tokenizer()
    tokenizer.chat_template = template
    number = len(tokenizer)
    tokenizer.add_tokens([AddedToken(token, special=special)])
    if not taken:
        with pytest.raises(CheckpointError, match=f"knows {number + 1} tokens, the model {number}"):
            without_surplus(tmp_path, tokenizer, number)
        return
    held = without_surplus(tmp_path, tokenizer, number)
    assert max(held.encode(f"take {token}")) < number == tokenizer.encode(token)[-1]
    assert (held.pad_token, held.eos_token) == (tokenizer.pad_token, tokenizer.eos_token)
    assert held.decode(held.encode("take mug<|end|>"), skip_special_tokens=True) == "take mug"


def whole_ids(tokenizer: Any, messages: list[Message], *, answer: bool = False) -> list[int]:
    """As the authors' scripts do it: transformers tokenises the rendered conversation at once."""
    raw = [message.model_dump() for message in messages]
    ids: list[int] = tokenizer.apply_chat_template(
        raw, add_generation_prompt=answer, date_string="26 Jul 2024", return_dict=True
    )["input_ids"]
    return ids


def conversation(prompt: PromptTemplate, action: Action) -> list[Message]:
    answer = Message(role="assistant", content=prompt.action_text(action))
    return [*prompt.messages(STATE), answer]


def test_a_template_gets_the_variables_as_the_authors_give_them(prompt: PromptTemplate) -> None:
    (message,) = prompt.messages(STATE)
    lines = message.content.splitlines()
    assert lines[0] == "You play a text game, in which you"
    assert lines[1] == STATE.task
    assert ast.literal_eval(lines[4]) == HISTORY
    assert lines[4] == str(HISTORY)  # in this order, without the reason
    assert lines[8].strip() == f'"candidate_actions": {list(STATE.admissible)}'
    assert message.content == message.content.strip()
    assert prompt.action_text(ACTIONS[1]) == "REASON:\nNo idea.\nACTION:\nlook"
    assert not prompt.append_only


@pytest.mark.parametrize("text", ["REASON:\n why\nACTION:\n look \n", "REASON: why\nACTION: look"])
def test_an_answer_is_read_on_the_line_of_its_mark_or_on_the_next(text: str) -> None:
    assert parse_action(text) == (Action(reason="why", command="look"), True)
    assert parse_action(text.partition("look")[0]) == (
        Action(reason=text.partition("look")[0].strip()),
        False,
    )


def test_a_conversation_is_the_same_every_day(tokenizer: Any, prompt: PromptTemplate) -> None:
    raw = [message.model_dump() for message in prompt.messages(STATE)]
    today = datetime.date.today().strftime("%d %b %Y")
    assert today in tokenizer.apply_chat_template(raw, tokenize=False)  # unless it is told another
    text = render(tokenizer, raw)
    assert today not in text
    assert "Today Date: 26 Jul 2024\n" in text


@pytest.mark.parametrize("kind", ["authors", "chat"])
def test_segments_are_tokenised_as_the_whole_with_one_begin_of_text(
    tokenizer: Any, prompt: PromptTemplate, kind: str
) -> None:
    template = prompt if kind == "authors" else load_prompt("chat")
    answer = Message(role="assistant", content=template.action_text(ACTIONS[0]))
    messages = [*template.messages(STATE), answer]
    encoded = encode(tokenizer, messages)
    assert encoded.ids == whole_ids(tokenizer, messages)
    assert encoded.ids.count(tokenizer.bos_token_id) == 1
    assert encoded.ids[0] == tokenizer.bos_token_id
    eot = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    start, end = encoded.spans[-1]
    assert end == len(encoded.ids)
    assert encoded.ids[end - 1] == eot
    assert tokenizer.decode(encoded.ids[start : end - 1]) == answer.content
    before, (answered,) = encode_answers(tokenizer, messages[:-1], [answer.content])
    assert before + answered == encoded.ids
    assert before == whole_ids(tokenizer, messages[:-1], answer=True)


@pytest.mark.parametrize("kind", ["authors", "chat"])
def test_the_prm_gives_what_transformers_gives(
    published: Registry, prompt: PromptTemplate, kind: str
) -> None:
    template = prompt if kind == "authors" else load_prompt("chat")
    path = published.open("prm/0")
    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()
    scorer = Scorer(path, template, device="cpu", dtype="float32")
    scorer.check()
    request = ScoreRequest(
        choices=[Choice(state=STATE, actions=ACTIONS)],
        pairs=[Pair(state=STATE, action=action) for action in ACTIONS],
        transcripts=[
            Transcript(task=STATE.task, steps=STEPS, admissible=[("look",), STATE.admissible])
        ],
    )
    plan = scorer.plan(request)
    scores = scorer.score(plan.rows)
    expected = []
    for action in ACTIONS:
        answer = Message(role="assistant", content=template.action_text(action))
        ids = whole_ids(AutoTokenizer.from_pretrained(path), [*template.messages(STATE), answer])
        with torch.no_grad():
            expected.append(model(torch.tensor([ids])).logits.sigmoid().item())
    assert abs(expected[0] - expected[1]) > 0.01
    for places in (plan.choices[0], plan.pairs):
        assert [scores[row][k] for row, k in places] == pytest.approx(expected, abs=1e-5)
    row, k = plan.transcripts[0][1]
    assert scores[row][k] == pytest.approx(expected[0], abs=1e-5)


def test_a_prm_of_others_is_served_and_its_card_says_nothing(
    published: Registry, prompt: PromptTemplate
) -> None:
    path = published.open("prm/0")
    assert {file.name for file in path.iterdir()} >= {"README.md", "model.safetensors", "STABLE"}
    assert not (path / "training_args.bin").exists()
    assert not (path / ".gitattributes").exists()
    loaded = load_ensemble(
        published, path, prompt, lambda p: Scorer(p, prompt, device="cpu", dtype="float32")
    )
    loaded.check()  # no canary to compare with
    (card,) = loaded.card("prm/0").checkpoints
    assert PRMFacts(**card.model_dump(exclude={"version"})) == PRMFacts()


def test_pickled_weights_are_not_adopted(tmp_path: Path) -> None:
    source = publish(tmp_path / "source", prm=True)
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"model\.bin is a pickle"):
        Registry(tmp_path / "registry").adopt(source, "prm/0")


@pytest.mark.parametrize("kind", ["authors", "chat"])
def test_the_engine_continues_as_transformers_does(
    published: Registry, prompt: PromptTemplate, tokenizer: Any, kind: str
) -> None:
    template = prompt if kind == "authors" else load_prompt("chat")
    path = published.open("policy/0")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    engine = EmbeddedEngine.load(path, device="cpu", dtype="auto", cache_bytes=2**20)
    engine.check()
    assert engine.codec.ends == {1, 4}
    messages = template.messages(STATE)
    ids = whole_ids(tokenizer, messages, answer=True)
    settings = GenerationConfig(max_new_tokens=24, do_sample=False, eos_token_id=[1, 4])
    out = model.generate(torch.tensor([ids]), generation_config=settings)[0, len(ids) :].tolist()
    [[sample]] = engine.generate([Prompt(tuple(messages))], Draw(temperature=0.0, max_tokens=24))
    assert sample.ids == out
    assert sample.text == tokenizer.decode(out, skip_special_tokens=True)


def test_the_rotation_is_the_scaled_one(published: Registry) -> None:
    """Else the parity above would hold of a model that is not the published one."""
    model = AutoModelForCausalLM.from_pretrained(published.open("policy/0"))
    frequencies = model.model.rotary_emb.inv_freq
    plain = 500_000.0 ** -(torch.arange(0, 8, 2) / 8)
    assert frequencies[-1].item() == pytest.approx(plain[-1].item() / 32)
    assert frequencies[0].item() == pytest.approx(1.0)


@pytest.mark.parametrize("decoding", [each for each in Decoding if each is not Decoding.FREE])
def test_actions_in_the_authors_format(
    published: Registry, prompt: PromptTemplate, decoding: Decoding
) -> None:
    """Drawn commands are scored as the tokens that training reads, the trimmed ones."""
    path = published.open("policy/0")
    engine = EmbeddedEngine.load(path, device="cpu", dtype="auto", cache_bytes=2**20)
    sampling = Sampling(decoding=decoding, max_tokens=6)
    (result,) = Decoder(prompt).act(engine, [Query(STATE, (1, 0))], 4, sampling)
    for candidate in result.candidates:
        assert candidate.action.command in STATE.admissible
        assert candidate.text == prompt.action_text(candidate.action)
        encoded = encode(load_tokenizer(path), conversation(prompt, candidate.action))
        start, end = encoded.spans[-1]
        assert engine.codec.answers([candidate.text]) == [encoded.ids[start:end]]


def test_a_prm_that_is_trained_on_reads_the_end_of_the_answer(published: Registry) -> None:
    """Its padding is not the end-of-turn mark, which transformers would pass over."""
    path = published.open("policy/0")
    tokenizer = load_tokenizer(path)
    assert tokenizer.pad_token == "<|finetune_right_pad_id|>"
    model = load_prm(path, tokenizer.pad_token_id, seed=0)
    ids = encode(tokenizer, conversation(load_prompt("chat"), ACTIONS[0])).ids
    row = torch.tensor([ids])
    with torch.no_grad():
        ours = model(row, torch.ones_like(row), torch.tensor([[len(ids) - 1]]))
        theirs = type(model).forward(model, row).logits
    assert theirs.item() == pytest.approx(ours.item(), abs=1e-5)
