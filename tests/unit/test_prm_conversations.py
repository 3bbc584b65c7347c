"""Chats and rendered texts as the PRM takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from agentprm.encoding import closed
from agentprm.prompts import load_prompt
from agentprm.protocol import MAX_MESSAGES, ScoreRequest
from agentprm.service import ProblemError
from services.prm.scorer import Scorer
from tests.scorers import episode, tiny_scorer

CHAT: list[dict[str, Any]] = [
    {"role": "developer", "content": "you are in a room ."},
    {
        "role": "user",
        "content": [{"type": "text", "text": "find "}, {"type": "text", "text": "it"}],
    },
    {"role": "assistant", "content": "go to shelf 1", "refusal": None, "tool_calls": None},
    {"role": "user", "content": "nothing happens ."},
    {"role": "assistant", "content": "take mug 2", "name": "agent"},
    {"role": "user", "content": "you have it ."},
]
PLAIN = [
    {"role": "system", "content": "you are in a room ."},
    {"role": "user", "content": "find it"},
    {"role": "assistant", "content": "go to shelf 1"},
    {"role": "user", "content": "nothing happens ."},
    {"role": "assistant", "content": "take mug 2"},
]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scorer")
    tiny_scorer(root, seed=1)
    return root


@pytest.fixture(scope="module", params=["chat", "state"])
def scorer(path: Path, request: pytest.FixtureRequest) -> Scorer:
    return Scorer(path, load_prompt(request.param), device="cpu")


def q(scorer: Scorer, request: ScoreRequest) -> tuple[list[list[float]], list[float]]:
    plan = scorer.plan(request)
    scores = scorer.score(plan.rows)
    chats = [[scores[row][k] for row, k in turns] for turns in plan.conversations]
    return chats, [scores[row][k] for row, k in plan.texts]


def plain(path: Path, messages: list[dict[str, Any]]) -> float:
    """What transformers itself says of the conversation that ends with the answer."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path)
    ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        return float(model.eval()(input_ids=ids["input_ids"]).logits.sigmoid())


def test_every_assistant_turn_of_a_chat_gets_what_transformers_says(
    path: Path, scorer: Scorer
) -> None:
    request = ScoreRequest.model_validate({"conversations": [{"messages": CHAT}]})
    plan = scorer.plan(request)
    assert len(plan.rows) == 1
    expected = [plain(path, PLAIN[:3]), plain(path, PLAIN)]
    assert abs(expected[0] - expected[1]) > 1e-3
    assert q(scorer, request)[0] == [pytest.approx(expected, abs=1e-5)]
    assert ScoreRequest.model_validate({"messages": CHAT}) == request


def test_an_episode_as_a_chat_scores_as_the_episode(path: Path) -> None:
    scorer, played = Scorer(path, load_prompt("chat"), device="cpu"), episode(4)
    messages = [m.model_dump() for m in scorer.prompt.transcript(played.task, played.steps)]
    request = ScoreRequest.model_validate({"messages": messages, "transcripts": [played]})
    plan = scorer.plan(request)
    assert [row.ids for row in plan.rows[:1]] == [row.ids for row in plan.rows[1:]]
    assert [row.ends for row in plan.rows[:1]] == [row.ends for row in plan.rows[1:]]


def test_a_rendered_text_scores_as_its_conversation(path: Path, scorer: Scorer) -> None:
    rendered = AutoTokenizer.from_pretrained(path).apply_chat_template(PLAIN, tokenize=False)
    bare = rendered.removesuffix("<|end|>")
    texts = [rendered, bare, f"{rendered}<|pad|><|pad|>", f"<|pad|><|pad|>{rendered}"]
    assert q(scorer, ScoreRequest(texts=texts))[1] == pytest.approx(
        [plain(path, PLAIN)] * 4, abs=1e-5
    )
    with pytest.raises(ProblemError, match=r"texts\.1 holds nothing") as caught:
        scorer.plan(ScoreRequest(texts=[rendered, "<|pad|><|end|>"]))
    assert caught.value.problem.status == 422
    asked = AutoTokenizer.from_pretrained(path).apply_chat_template(PLAIN[:2], tokenize=False)
    for text in ("x", asked):
        with pytest.raises(ProblemError, match=r"texts\.1 holds no answer.*'<\|assistant\|>'"):
            scorer.plan(ScoreRequest(texts=[rendered, text]))


def test_a_text_ends_with_the_template_s_mark(path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.eos_token = "</s>"
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}<|end|>\n{% endfor %}"
    )
    for given in ("a b", "a b</s>", "a b<|end|>", "a b<|end|>\n", "a b<|end|>\n</s><|pad|>"):
        assert closed(tokenizer, given) == "a b<|end|>"
    assert closed(tokenizer, "a \n") == "a \n<|end|>"
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    assert closed(tokenizer, "user: a\nassistant: b") == "user: a\nassistant: b\n"


LONG_PARTS = [{"type": "text", "text": "x" * 150_000}] * 2


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"messages": CHAT[:2]}, "no assistant message"),
        ({"messages": []}, "at least 1 item"),
        ({"messages": CHAT * (MAX_MESSAGES // len(CHAT) + 1)}, "at most 500"),
        ({"messages": CHAT, "conversations": [{"messages": CHAT}]}, "give either"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]}, "tool calls"),
        (
            {"messages": [{"role": "assistant", "content": "", "function_call": {"name": "f"}}]},
            "tool",
        ),
        ({"messages": [{"role": "function", "name": "f", "content": "1"}]}, "tool calls"),
        ({"messages": [{"role": "tool", "content": "42"}]}, "tool calls"),
        ({"messages": [{"role": "assistant", "content": [{"type": "image_url"}]}]}, "nothing else"),
        ({"messages": [{"role": "assistant", "content": None}]}, "nothing else is read"),
        (
            {"messages": [{"role": "assistant", "content": LONG_PARTS}]},
            "200,000 characters at most",
        ),
        ({"messages": [{"role": "robot", "content": "x"}]}, "assistant"),
        ({"texts": [""]}, "at least 1 character"),
        ({"messages": "hello"}, "list"),
        ({}, "`conversations`"),
    ],
)
def test_what_is_no_chat_is_refused(body: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        ScoreRequest.model_validate(body)


def test_a_chat_that_the_template_refuses_is_named(tmp_path: Path) -> None:
    tiny_scorer(tmp_path, 0)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.chat_template = (
        "{% if messages|length > 3 %}{{ raise_exception('too many') }}{% endif %}"
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    tokenizer.save_pretrained(tmp_path)
    scorer = Scorer(tmp_path, load_prompt("chat"), device="cpu")
    body = {"conversations": [{"messages": CHAT[:3]}, {"messages": CHAT}]}
    with pytest.raises(ProblemError, match=r"conversations\.1: too many") as caught:
        scorer.plan(ScoreRequest.model_validate(body))
    assert caught.value.problem.status == 422
