"""The embedded engine against transformers' plain forward pass and its `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from agentprm.encoding import encode
from agentprm.prefix_cache import PrefixCache
from agentprm.protocol import Message
from agentprm.service import ProblemError
from services.policy.engine import Draw, Prompt, Question, Sample
from services.policy.engine.embedded import EmbeddedEngine
from services.policy.engine.kept import Entry, Store
from tests.models import tiny_causal_lm

OBSERVATIONS = [
    "You are in the middle of a room. You see a cabinet 1, a fridge 1.",
    "You arrive at cabinet 1. In it, you see nothing.",
    "Nothing happens.",
    "You open the fridge 1. In it, you see a mug 1, a mug 2 and an apple 3.",
]


def conversation(turns: int, first: int = 0) -> tuple[Message, ...]:
    messages = [Message(role="system", content="You act in a text world.")]
    for t in range(turns):
        text = OBSERVATIONS[(t + first) % len(OBSERVATIONS)]
        messages.append(Message(role="user", content=text))
        messages.append(Message(role="assistant", content=f"REASON: find mug\nACTION: go to {t}"))
    return tuple(messages[:-1])


def load(path: Path, cache_tokens: int = 10_000) -> EmbeddedEngine:
    engine = EmbeddedEngine.load(path, device="cpu", dtype="auto", cache_tokens=cache_tokens)
    engine.check()
    return engine


@pytest.fixture(scope="module", params=["llama", "qwen2", "gpt_neox"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_causal_lm(tmp_path_factory.mktemp(request.param), 0, kind=request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_causal_lm(tmp_path_factory.mktemp("llama"), 0)


@cache
def plain(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype="float32").eval()


def plain_log_probs(path: Path, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
    """Of each token of `answer`, by one forward pass without any cache or padding."""
    with torch.inference_mode():
        logits = plain(path)(torch.tensor([[*prompt, *answer]])).logits[0]
    log_probs = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return [float(log_probs[k, token]) for k, token in enumerate(answer)]


def prompt_ids(path: Path, messages: Sequence[Message]) -> list[int]:
    return encode(AutoTokenizer.from_pretrained(path), messages, generation_prompt=True).ids


def same(a: list[list[Sample]], b: list[list[Sample]]) -> None:
    assert [[s.ids for s in row] for row in a] == [[s.ids for s in row] for row in b]
    for x, y in zip(a, b, strict=True):
        for left, right in zip(x, y, strict=True):
            np.testing.assert_allclose(left.log_probs, right.log_probs, atol=1e-4)


def test_log_probs_equal_a_plain_forward_pass(checkpoint: Path) -> None:
    prompts = [Prompt(conversation(t), (3, t), "REASON:") for t in (1, 4, 2)]
    answers = load(checkpoint).generate(prompts, Draw(n=3, temperature=1.3, max_tokens=12))
    for prompt, samples in zip(prompts, answers, strict=True):
        opening = AutoTokenizer.from_pretrained(checkpoint).encode("REASON:")
        ids = prompt_ids(checkpoint, prompt.messages) + opening
        assert len(samples) == 3
        for sample in samples:
            expected = plain_log_probs(checkpoint, ids, sample.ids)
            np.testing.assert_allclose(sample.log_probs, expected, atol=1e-4)


def test_greedy_equals_transformers_generate(checkpoint: Path) -> None:
    prompts = [Prompt(conversation(t)) for t in (3, 1, 5)]
    answers = load(checkpoint).generate(prompts, Draw(temperature=0, max_tokens=20))
    for prompt, (sample,) in zip(prompts, answers, strict=True):
        ids = torch.tensor([prompt_ids(checkpoint, prompt.messages)])
        whole = plain(checkpoint).generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=20
        )
        assert sample.ids == whole[0, ids.shape[1] :].tolist()


def test_cached_turns_equal_uncached_ones(checkpoint: Path) -> None:
    warm = load(checkpoint)
    draw = Draw(n=2, max_tokens=8)
    for turns in (1, 2, 3, 5):
        prompts = [Prompt(conversation(turns, k), (turns, k)) for k in range(3)]
        same(warm.generate(prompts, draw), load(checkpoint).generate(prompts, draw))
    # The same turn again, and a return to an earlier one.
    for turns in (5, 2):
        prompts = [Prompt(conversation(turns, k), (turns, k)) for k in range(3)]
        same(warm.generate(prompts, draw), load(checkpoint).generate(prompts, draw))


def test_a_seed_gives_the_same_samples_in_any_batch(llama: Path) -> None:
    prompts = [Prompt(conversation(1 + k % 4, k), (7, k)) for k in range(9)]
    draw = Draw(n=2, max_tokens=24)
    together = load(llama).generate(prompts, draw)
    alone = [load(llama).generate([prompt], draw)[0] for prompt in prompts]
    same(together, alone)
    other = load(llama).generate([Prompt(prompts[0].messages, (8, 0))], draw)
    assert other[0][0].ids != together[0][0].ids


def test_scores_equal_one_plain_forward_pass_per_answer(checkpoint: Path) -> None:
    commands = [f"go to cabinet {k}" for k in (1, 10, 11, 2)] + [
        "look",
        "go to fridge 1",
        "look at",
    ]
    reasons = ["find mug", "find apple . heat"]
    answers = tuple(
        (f"REASON: {reason}\nACTION:", f" {command}") for reason in reasons for command in commands
    )
    questions = [Question(conversation(t, t), answers[t:]) for t in (1, 3)]
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    cold, warm = load(checkpoint), load(checkpoint)
    warm.generate([Prompt(question.messages) for question in questions], Draw(max_tokens=3))
    for engine in (cold, warm):
        for question, scores in zip(questions, engine.score(questions), strict=True):
            for (opening, rest), score in zip(question.answers, scores, strict=True):
                answer = Message(role="assistant", content=opening + rest)
                whole = encode(tokenizer, [*question.messages, answer])
                start, end = whole.spans[-1]
                assert score.ids == whole.ids[start:end]
                steps = plain_log_probs(checkpoint, whole.ids[:start], score.ids)
                assert score.log_prob == pytest.approx(sum(steps), abs=1e-4)
                shared = len(tokenizer.encode(opening))
                assert score.opening_log_prob == pytest.approx(sum(steps[:shared]), abs=1e-4)


def test_many_answers_are_spread_over_several_trees(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = tuple(("REASON: find mug\nACTION:", f" move mug {k} to fridge 1") for k in range(21))
    question = Question(conversation(2), answers)
    whole = load(llama).score([question])[0]
    monkeypatch.setattr("services.policy.engine.embedded.TREE_NODES", 30)
    monkeypatch.setattr("services.policy.engine.embedded.NEW_TOKENS_CPU", 100)
    parts = load(llama).score([question])[0]
    assert [s.ids for s in parts] == [s.ids for s in whole]
    np.testing.assert_allclose([s.log_prob for s in parts], [s.log_prob for s in whole], atol=1e-4)


def test_sampling_follows_the_models_distribution(llama: Path) -> None:
    """Chi-square of 4,000 first tokens: 200 prompts with their own seeds, 20 samples each."""
    engine = load(llama)
    prompts = [Prompt(conversation(1), (11, k)) for k in range(200)]
    drawn = [s.ids[0] for row in engine.generate(prompts, Draw(20, 0.7, 1)) for s in row]
    with torch.inference_mode():
        logits = plain(llama)(torch.tensor([prompt_ids(llama, conversation(1))])).logits[0, -1]
    expected = (logits / 0.7).softmax(-1).double().numpy() * len(drawn)
    seen = np.bincount(drawn, minlength=len(expected))
    often = expected >= 5
    seen = np.append(seen[often], seen[~often].sum())
    expected = np.append(expected[often], expected[~often].sum())
    statistic = float(((seen - expected) ** 2 / expected).sum())
    freedom = len(expected) - 1
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5


def test_an_answer_ends_at_a_stop_text_or_at_the_models_end(tmp_path: Path) -> None:
    path = tiny_causal_lm(tmp_path, 0, max_position_embeddings=64)
    engine = load(path)
    (free,) = engine.generate([Prompt(conversation(1))], Draw(temperature=0, max_tokens=500))[0]
    assert free.prompt_tokens + len(free.ids) <= 64
    stop = engine.codec.text(free.ids[3:5])
    draw = Draw(temperature=0, max_tokens=500, stop=(stop,))
    (stopped,) = engine.generate([Prompt(conversation(1))], draw)[0]
    assert stopped.finished
    assert stopped.ids == free.ids[: len(stopped.ids)]
    assert len(stopped.ids) <= 5
    assert stop not in stopped.text


def test_a_conversation_that_is_too_long_is_refused_with_both_numbers(tmp_path: Path) -> None:
    engine = load(tiny_causal_lm(tmp_path, 0, max_position_embeddings=64))
    with pytest.raises(ProblemError, match=r"at least \d+ tokens, the model takes 64") as raised:
        engine.generate([Prompt(conversation(6))], Draw())
    assert raised.value.problem.status == 422


def test_messages_that_the_chat_template_refuses_are_a_422(tmp_path: Path) -> None:
    path = tiny_causal_lm(tmp_path, 0)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "<|{{", "{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}<|{{"
    )
    tokenizer.save_pretrained(path)
    engine = load(path)
    for role, why in (("system", "no system"), ("assistant", "conversation")):
        with pytest.raises(ProblemError, match=why) as raised:
            engine.generate(
                [Prompt((Message.model_validate({"role": role, "content": ""}),))], Draw()
            )
        assert raised.value.problem.status == 422


def test_growing_conversations_encode_as_training_does(llama: Path) -> None:
    codec = load(llama).codec
    for turns in (1, 2, 3, 4):
        messages = conversation(turns)
        assert codec.prompt(messages) == prompt_ids(llama, messages)


def entry(ids: range) -> Entry:
    return Entry(tuple(ids), Store(), len(ids))


def test_prefix_cache_finds_the_longest_beginning_and_keeps_its_bound() -> None:
    cache: PrefixCache[Entry] = PrefixCache(capacity=100)
    first = entry(range(40))
    cache.add(first)
    assert cache.find([*range(35), 99]) == (first, 35)
    assert cache.find([7, *range(30)]) == (None, 0)
    longer = entry(range(60))
    cache.add(longer, replaces=first)
    assert cache.tokens == 60
    assert cache.find(list(range(40))) == (longer, 40)
    cache.add(entry(range(100, 150)))
    assert cache.tokens == 50
    assert cache.find(list(range(40))) == (None, 0)
    cache.add(entry(range(1000)))
    assert cache.tokens == 50
