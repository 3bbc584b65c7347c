"""Actions from a real engine: admissible draws against brute force, free decoding, best of N."""

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
from agentprm.prompts import load_prompt
from agentprm.protocol import (
    Action,
    Decoding,
    Message,
    Sampling,
    State,
)
from services.policy.decoding import Decoder, Query
from services.policy.engine import Draw, Prompt, Question, Sample
from services.policy.engine.embedded import EmbeddedEngine
from tests.models import tiny_causal_lm
from tests.states import STATE

COMMANDS = ("go to cabinet 1", "go to cabinet 10", "open the fridge 1", "use desk lamp 1")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_causal_lm(tmp_path_factory.mktemp("policy"), 1, initializer_range=0.1)


@pytest.fixture(scope="module")
def phrases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_causal_lm(tmp_path_factory.mktemp("phrases"), 1, phrases=True)


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> EmbeddedEngine:
    return EmbeddedEngine.load(checkpoint, device="cpu", dtype="auto", cache_bytes=2**23)


@cache
def plain(path: Path) -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(path, dtype="float32").eval()
    return model, AutoTokenizer.from_pretrained(path)


def brute_force(path: Path, state: State, reason: str, prompt: str) -> tuple[float, list[float]]:
    """log p(REASON ... ACTION:) and log p of each whole action, a plain forward pass for each."""
    model, tokenizer = plain(path)
    template = load_prompt(prompt)
    opening_ids = tokenizer.encode(f"REASON: {reason}\nACTION: ")
    if opening_ids[-1] == tokenizer.encode(" ")[0]:  # it belongs to the command's first word
        opening_ids.pop()
    totals = []
    opening = 0.0
    for command in state.admissible:
        text = template.action_text(Action(reason=reason, command=command))
        messages = [*template.messages(state), Message(role="assistant", content=text)]
        whole = encode(tokenizer, messages)
        start, end = whole.spans[-1]
        with torch.inference_mode():
            log_probs = model(torch.tensor([whole.ids])).logits[0].log_softmax(-1)
        steps = [float(log_probs[k - 1, whole.ids[k]]) for k in range(start, end)]
        totals.append(sum(steps))
        opening = sum(steps[: len(opening_ids)])
    return opening, totals


@pytest.mark.parametrize("prompt", ["chat", "state"])
def test_log_prob_is_that_of_reason_and_of_the_command_among_the_admissible(
    checkpoint: Path, engine: EmbeddedEngine, prompt: str
) -> None:
    decoder = Decoder(load_prompt(prompt))
    (result,) = decoder.act(engine, [Query(STATE, (1, 0))], 6, Sampling(max_tokens=8))
    assert sum(c.count for c in result.candidates) == 6
    for candidate in result.candidates:
        action = candidate.action
        opening, totals = brute_force(checkpoint, STATE, action.reason, prompt)
        chosen = STATE.admissible.index(action.command)
        expected = opening + totals[chosen] - np.logaddexp.reduce(totals)
        assert candidate.log_prob == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_commands_are_drawn_by_their_whole_probability(
    engine: EmbeddedEngine, temperature: float
) -> None:
    """2,560 draws behind reasons of one word: how often each command comes, in standard errors."""
    template = load_prompt("chat")
    state = STATE.model_copy(update={"admissible": COMMANDS})
    queries = [Query(state, (5, k)) for k in range(40)]
    sampling = Sampling(temperature=temperature, max_tokens=1)
    drawn = [
        (candidate.action, candidate.count)
        for result in Decoder(template).act(engine, queries, 64, sampling)
        for candidate in result.candidates
    ]
    reasons = list({action.reason: None for action, _ in drawn})
    answers = tuple(
        (f"REASON: {reason}\nACTION:", f" {command}") for reason in reasons for command in COMMANDS
    )
    (scores,) = engine.score([Question(tuple(template.messages(state)), answers)])
    logits = np.array([score.log_prob for score in scores]).reshape(len(reasons), -1) / temperature
    p = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    seen, expected, variance = np.zeros((3, len(COMMANDS)))
    for action, count in drawn:
        probability = p[reasons.index(action.reason)]
        seen[COMMANDS.index(action.command)] += count
        expected += count * probability
        variance += count * probability * (1 - probability)
    assert seen.sum() == 2560
    assert np.all(np.abs(seen - expected) < 4 * np.sqrt(variance)), (seen, expected)
    assert np.all(expected > 5)


def test_fixed_phrases_with_their_space_may_be_tokens(phrases: Path) -> None:
    engine = EmbeddedEngine.load(phrases, device="cpu", dtype="auto", cache_bytes=2**23)
    assert engine.codec.tokens(engine.codec.opening("REASON: ")) == ["REASON: "]
    (result,) = Decoder(load_prompt("chat")).act(engine, [Query(STATE, (1, 0))], 3, Sampling())
    for candidate in result.candidates:
        opening, totals = brute_force(phrases, STATE, candidate.action.reason, "chat")
        chosen = STATE.admissible.index(candidate.action.command)
        expected = opening + totals[chosen] - np.logaddexp.reduce(totals)
        assert candidate.log_prob == pytest.approx(expected, abs=1e-3)


def test_temperature_0_takes_the_likeliest(checkpoint: Path, engine: EmbeddedEngine) -> None:
    decoder = Decoder(load_prompt("chat"))
    sampling = Sampling(temperature=0, max_tokens=5)
    (result,) = decoder.act(engine, [Query(STATE, (1, 0))], 3, sampling)
    (candidate,) = result.candidates
    assert candidate.count == 3
    _, totals = brute_force(checkpoint, STATE, candidate.action.reason, "chat")
    assert candidate.action.command == STATE.admissible[int(np.argmax(totals))]


def test_reasons_may_have_a_temperature_of_their_own(engine: EmbeddedEngine) -> None:
    decoder = Decoder(load_prompt("chat"))
    state = STATE.model_copy(update={"admissible": COMMANDS})

    def drawn(**temperatures: float) -> tuple[int, int]:
        """Distinct reasons, and distinct commands, of 64 draws."""
        sampling = Sampling(max_tokens=5, **temperatures)
        (result,) = decoder.act(engine, [Query(state, (1, 0))], 64, sampling)
        actions = [candidate.action for candidate in result.candidates]
        return len({a.reason for a in actions}), len({a.command for a in actions})

    assert drawn(temperature=3.0, reason_temperature=0.0) == (1, len(COMMANDS))
    reasons, commands = drawn(temperature=0.0, reason_temperature=3.0)
    assert reasons > 32
    assert commands <= reasons
    with pytest.raises(ValueError, match="free decoding"):
        Sampling(decoding=Decoding.FREE, reason_temperature=0.5)


@pytest.mark.parametrize("penalty", [0.0, 3.0, 20.0])
def test_a_presence_penalty_is_taken_from_what_was_done_for_the_same_reason(
    checkpoint: Path, engine: EmbeddedEngine, monkeypatch: pytest.MonkeyPatch, penalty: float
) -> None:
    """STATE has "find mug", "go to cabinet 1" behind it. Another reason may go there again."""
    temperature, n = 8.0, 8000
    reasons = ("find mug", "mug one")

    def generate(prompts: Sequence[Prompt], draw: Draw) -> list[list[Sample]]:
        return [[Sample(reasons[k % 2], [], [], 0, True) for k in range(draw.n)] for _ in prompts]

    monkeypatch.setattr(engine, "generate", generate)
    sampling = Sampling(temperature=temperature, presence_penalty=penalty, max_tokens=5)
    (result,) = Decoder(load_prompt("chat")).act(engine, [Query(STATE, (1, 0))], n, sampling)
    for reason in reasons:
        opening, totals = brute_force(checkpoint, STATE, reason, "chat")
        logits = np.array(totals) / temperature
        if reason == "find mug":
            logits[STATE.admissible.index("go to cabinet 1")] -= penalty / temperature
        candidates = [c for c in result.candidates if c.action.reason == reason]
        shares = {c.action.command: 2 * c.count / n for c in candidates}
        assert [shares.get(command, 0.0) for command in STATE.admissible] == pytest.approx(
            np.exp(logits - np.logaddexp.reduce(logits)), abs=0.03
        )
        for candidate in candidates:  # the policy's own, whatever it was drawn by
            own = totals[STATE.admissible.index(candidate.action.command)]
            expected = opening + own - np.logaddexp.reduce(totals)
            assert candidate.log_prob == pytest.approx(expected, abs=1e-3)
    with pytest.raises(ValueError, match="free decoding"):
        Sampling(decoding=Decoding.FREE, presence_penalty=1.0)
    assert ("penalty" in sampling.in_words()) is (penalty > 0)


def test_a_state_is_sampled_from_its_seed_alone(engine: EmbeddedEngine) -> None:
    decoder = Decoder(load_prompt("chat"))
    other = STATE.model_copy(update={"history": (), "admissible": ("look", "inventory")})
    unlisted = STATE.model_copy(update={"admissible": ()})
    queries = [
        Query(state, (9, k)) for k, state in enumerate([STATE, other, unlisted, STATE, other])
    ]
    together = decoder.act(engine, queries, 4, Sampling(max_tokens=12))
    for query, result in zip(queries, together, strict=True):
        (alone,) = decoder.act(engine, [query], 4, Sampling(max_tokens=12))
        assert [(c.action, c.count) for c in alone.candidates] == [
            (c.action, c.count) for c in result.candidates
        ]
    assert together[0] != together[3]


def test_free_text_without_both_lines_is_not_well_formed(engine: EmbeddedEngine) -> None:
    decoder = Decoder(load_prompt("chat"))
    sampling = Sampling(decoding=Decoding.FREE, max_tokens=4)
    (result,) = decoder.act(engine, [Query(STATE, (1, 0))], 2, sampling)
    for candidate in result.candidates:
        assert not candidate.well_formed
        assert candidate.action.command == ""
        assert 1 <= candidate.tokens <= 4
