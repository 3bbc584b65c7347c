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
from agentprm.models.prefix_cache import PrefixCache
from agentprm.protocol import Message
from agentprm.service import ProblemError
from services.policy.engine import Draw, Prompt, Question, Sample
from services.policy.engine.embedded import EmbeddedEngine
from services.policy.engine.forward import Batch
from services.policy.engine.kept import Entry, Row, Store, Tail
from services.policy.engine.kv import BatchKV
from services.policy.engine.sampling import draw_tokens
from services.policy.engine.segment import Segment
from tests.models import tiny_causal_lm

KINDS = ["llama", "qwen2", "mistral", "gpt2", "gpt_neox", "gemma2", "gemma3"]
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


def load(path: Path, cache_bytes: int = 2**23) -> EmbeddedEngine:
    engine = EmbeddedEngine.load(path, device="cpu", dtype="auto", cache_bytes=cache_bytes)
    engine.check()
    return engine


@pytest.fixture(scope="module", params=KINDS)
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


def test_a_token_without_probability_is_never_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]] * 2)
    tokens, _ = draw_tokens(logits, 1.0, np.array([0.0, np.nextafter(1.0, 0.0)]))
    assert tokens.tolist() == [1, 2]


def test_the_likeliest_is_drawn_at_a_temperature_near_0() -> None:
    logits = torch.tensor([[0.5, 2.0, 1.0]])
    assert draw_tokens(logits, 1e-310, np.array([0.5]))[0].tolist() == [1]


def test_an_answer_ends_at_a_stop_text_or_at_the_models_end(tmp_path: Path) -> None:
    path = tiny_causal_lm(tmp_path, 0, max_position_embeddings=64)
    engine = load(path)
    (free,) = engine.generate([Prompt(conversation(1))], Draw(temperature=0, max_tokens=500))[0]
    assert free.prompt_tokens + len(free.ids) == 64
    assert not free.finished
    stop = engine.codec.text(free.ids[3:5])
    draw = Draw(temperature=0, max_tokens=500, stop=(stop,))
    (stopped,) = engine.generate([Prompt(conversation(1))], draw)[0]
    assert stopped.finished
    assert stopped.ids == free.ids[: len(stopped.ids)]
    assert len(stopped.ids) <= 5
    assert stop not in stopped.text
    assert "".join(engine.token_texts(stopped)) == stopped.text


class Watched:
    """Counts what an engine computes: the new tokens of each segment, by phase."""

    def __init__(self, engine: EmbeddedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passes: list[tuple[str, list[int]]] = []
        compute = engine._compute

        def watched(
            batch: Batch,
            segments: Sequence[Segment],
            phase: str,
            last: Sequence[int] | None = None,
        ) -> torch.Tensor:
            self.passes.append((phase, [len(segment) for segment in segments]))
            return compute(batch, segments, phase, last)

        monkeypatch.setattr(engine, "_compute", watched)

    def take(self) -> list[tuple[str, list[int]]]:
        """The passes since the last call."""
        taken, self.passes = self.passes, []
        return taken


def answered(
    messages: tuple[Message, ...], answer: str, observation: str = "Nothing happens."
) -> tuple[Message, ...]:
    more = Message(role="assistant", content=answer), Message(role="user", content=observation)
    return (*messages, *more)


def test_models_that_take_segments_are_computed_without_padding(checkpoint: Path) -> None:
    assert load(checkpoint)._forward.packs is (checkpoint.name[:-1] != "gemma2")


def test_padded_batches_answer_as_packed_ones_do(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU computes: samples that end at different lengths, several turns, trees."""
    packed = load(llama)
    monkeypatch.setattr("services.policy.engine.forward.takes_segments", lambda *_: False)
    padded = load(llama)
    assert (packed._forward.packs, padded._forward.packs) == (True, False)
    answers = tuple(("REASON: find mug\nACTION:", f" go to {k}") for k in range(5))
    for turns in (1, 2, 4):
        messages = [conversation(turns, k) for k in range(4)]
        prompts = [Prompt(m, (turns, k), "REASON:") for k, m in enumerate(messages)]
        for draw in (Draw(n=1, max_tokens=9), Draw(n=4, max_tokens=9, stop=("m", "\n"))):
            same(packed.generate(prompts, draw), padded.generate(prompts, draw))
        questions = [Question(m, answers[k:]) for k, m in enumerate(messages)]
        for a, b in zip(packed.score(questions), padded.score(questions), strict=True):
            assert [s.ids for s in a] == [s.ids for s in b]
            np.testing.assert_allclose([s.log_prob for s in a], [s.log_prob for s in b], atol=1e-4)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("gemma3", {}),
        ("mistral", {"sliding_window": 16}),
        ("qwen2", {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 1}),
        ("qwen2", {"sliding_window": 16, "use_sliding_window": False}),
        ("gemma2", {"sliding_window": 16}),
    ],
)
def test_conversations_may_be_longer_than_a_window(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    more: dict[str, Any],
    *,
    padded: bool,
) -> None:
    """Samples side by side and trees, behind what is kept and what is not."""
    path = tiny_causal_lm(tmp_path, 0, kind=kind, **more)
    if padded:
        monkeypatch.setattr("services.policy.engine.forward.takes_segments", lambda *_: False)
    engine = load(path)
    texts = ["REASON: find mug\nACTION: go to 3", "REASON: find mug\nACTION: look", "REASON: a"]
    for turns in (2, 3, 5):
        messages = [conversation(turns, k) for k in range(2)]
        prompts = [Prompt(m, (turns, k)) for k, m in enumerate(messages)]
        answers = engine.generate(prompts, Draw(n=3, max_tokens=24))
        for m, samples in zip(messages, answers, strict=True):
            ids = prompt_ids(path, m)
            assert len(ids) > 16
            for sample in samples:
                expected = plain_log_probs(path, ids, sample.ids)
                np.testing.assert_allclose(sample.log_probs, expected, atol=1e-4)
        asked = [Question(m, tuple(("", text) for text in texts)) for m in messages]
        for question, scores in zip(asked, engine.score(asked), strict=True):
            ids = prompt_ids(path, question.messages)
            for score in scores:
                total = sum(plain_log_probs(path, ids, score.ids))
                assert score.log_prob == pytest.approx(total, abs=1e-3)


@pytest.mark.parametrize("padded", [False, True])
def test_a_bound_on_logits_is_one_on_tokens_that_have_any(
    llama: Path, monkeypatch: pytest.MonkeyPatch, *, padded: bool
) -> None:
    """With a large vocabulary it is fewer tokens than a prompt has, whose last ones count."""
    if padded:
        monkeypatch.setattr("services.policy.engine.forward.takes_segments", lambda *_: False)
    free = load(llama)
    monkeypatch.setattr("services.policy.engine.embedded.LOGITS", 24 * free.model.config.vocab_size)
    messages = [conversation(2, k) for k in range(6)]
    answers = tuple(("REASON:", f" look {k}") for k in range(4))
    asked: list[int] = []

    def watch(engine: EmbeddedEngine) -> Watched:
        head = engine.model.get_output_embeddings()
        head.register_forward_hook(lambda _, __, out: asked.append(out.shape[:-1].numel()))
        return Watched(engine, monkeypatch)

    # Samples of each, prompts read together, most tokens that have logits.
    for n, together, most in ((4, [6], 24), (10, [2, 2, 2], 20), (30, [1] * 6, 30)):
        prompts, draw = [Prompt(m, (n, 0)) for m in messages], Draw(n=n, max_tokens=3)
        engine = load(llama)
        watched = watch(engine)
        same(engine.generate(prompts, draw), free.generate(prompts, draw))
        passes = watched.take()
        assert [len(new) for phase, new in passes if phase == "prefill"] == together
        assert max(asked) == most
        asked.clear()

    questions = [Question(m, answers) for m in messages]
    engine = load(llama)
    watched = watch(engine)
    for scores, expected in zip(engine.score(questions), free.score(questions), strict=True):
        values = [[(s.log_prob, s.opening_log_prob) for s in all_] for all_ in (scores, expected)]
        np.testing.assert_allclose(values[0], values[1], atol=1e-4)
    (_, first), *_ = watched.take()
    assert len(first) > 1
    assert min(first) > max(asked)


@pytest.mark.parametrize("chosen", [0, 1, 2])
def test_the_answer_that_was_drawn_is_not_computed_again(
    llama: Path, monkeypatch: pytest.MonkeyPatch, chosen: int
) -> None:
    engine = load(llama)
    watched = Watched(engine, monkeypatch)
    first = conversation(2)
    commands = [" go to 10", " look", " go to fridge 1"]
    answers = tuple(("REASON: find mug\nACTION:", command) for command in commands)
    engine.score([Question(first, answers)])
    answer = answers[chosen][0] + answers[chosen][1]
    prompt = Prompt(answered(first, answer), (3, 3))
    watched.take()
    found = engine.generate([prompt], Draw(n=2, max_tokens=6))
    (_, (computed,)), *_ = watched.take()
    new = len(prompt_ids(llama, prompt.messages)) - len(prompt_ids(llama, first))
    kept = len(AutoTokenizer.from_pretrained(llama).encode(answer))
    guess = len(engine.codec.guess(prompt, ()))
    assert computed == new - kept + min(guess, 5)
    same(found, load(llama).generate([prompt], Draw(n=2, max_tokens=6)))


@torch.inference_mode()
def test_a_sampled_answer_is_not_computed_again(llama: Path) -> None:
    engine = load(llama)
    first = conversation(2)
    samples = engine.generate([Prompt(first, (1, 1))], Draw(n=3, max_tokens=6))[0]
    ids = samples[0].ids
    row = engine._kept.row(0, [*prompt_ids(llama, first), *ids, 7, 8, 9], ())
    assert row.new == 4  # the last token sampled was never computed
    again = engine._forward.batch().compute([row.segment()], [1], keep=True)[0]
    expected = plain(llama)(torch.tensor([row.ids])).logits[0, -1]
    torch.testing.assert_close(again, expected, atol=1e-4, rtol=1e-4)


def test_conversations_that_share_a_beginning_do_not_disturb_each_other(llama: Path) -> None:
    """The same one several times in a batch, and different turns behind the same one."""
    engine = load(llama)
    first = conversation(2)
    draw = Draw(n=2, max_tokens=6)
    engine.generate([Prompt(first)], draw)
    prompts = [Prompt(first, (2, k)) for k in range(3)]
    prompts += [Prompt(answered(first, f"REASON: {k}", f"You see {k}."), (3, k)) for k in range(3)]
    for _ in range(2):
        same(engine.generate(prompts, draw), [load(llama).generate([p], draw)[0] for p in prompts])
        questions = [Question(p.messages, (("REASON:", " find"), ("go", " to"))) for p in prompts]
        for question, scores in zip(questions, engine.score(questions), strict=True):
            alone = load(llama).score([question])[0]
            np.testing.assert_allclose(
                [s.log_prob for s in scores], [s.log_prob for s in alone], atol=1e-4
            )


@pytest.mark.parametrize("n", [1, 4])
def test_a_guess_saves_passes_and_changes_no_sample(
    llama: Path, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    """Guesses that are right, that go wrong after two tokens, and from the first one on."""
    draw = Draw(n=n, max_tokens=8)
    prompts = [Prompt(conversation(2, k), (k, 7)) for k in range(3)]
    computed = []
    found: list[list[Sample]] = []
    for right in (False, True):
        engine = load(llama)
        guesses: dict[tuple[Message, ...], list[int]] = {p.messages: [] for p in prompts}
        if right:
            ids = [samples[-1].ids for samples in found]
            wrong = [[*ids[0], 7], [*ids[1][:2], ids[1][2] + 1, 9], [ids[2][0] + 1, *ids[2]]]
            guesses = dict(zip(guesses, wrong, strict=True))
        monkeypatch.setattr(engine.codec, "guess", lambda p, _, known=guesses: known[p.messages])
        watched = Watched(engine, monkeypatch)
        samples = engine.generate(prompts, draw)
        if right:
            same(samples, found)
        found = samples
        passes = watched.take()
        computed.append(sum(sum(new) for phase, new in passes if phase == "decode"))
    longest = len(found[0][-1].ids) - 1
    assert computed[1] == computed[0] - longest - 2 or (n > 1 and computed[1] < computed[0] - 2)


@pytest.mark.parametrize("opening", ["", "REASON:"])
def test_a_guess_is_the_answer_before_up_to_the_stop(llama: Path, opening: str) -> None:
    codec = load(llama).codec
    first = conversation(1)
    assert codec.guess(Prompt(first, opening=opening), ("\n",)) == []
    messages = answered(first, "REASON: find mug\nACTION: look")
    guess = codec.guess(Prompt(messages, opening=opening), ("\n",))
    assert codec.text([*codec.opening(opening), *guess]) == "REASON: find mug"
    assert codec.guess(Prompt(messages, opening="ACTION:"), ()) == []


def test_after_a_fault_the_next_answers_are_right(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass fails half way through the model, on the stores of conversations that go on."""
    engine = load(llama)
    draw = Draw(n=2, max_tokens=6)
    engine.generate([Prompt(conversation(2, k)) for k in range(3)], draw)
    prompts = [Prompt(conversation(3, k), (3, k)) for k in range(3)]
    with monkeypatch.context() as patch:
        patch.setattr(engine.model.model.layers[1], "forward", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.generate(prompts, draw)
    same(engine.generate(prompts, draw), load(llama).generate(prompts, draw))


def test_an_engine_without_memory_forgets_what_it_kept_and_goes_on(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that has room for nothing as long as old conversations are kept."""
    engine = load(llama)
    draw = Draw(n=2, max_tokens=6)
    engine.generate([Prompt(conversation(2, k)) for k in range(3)], draw)
    layer, failed = engine.model.model.layers[1], 0
    forward = layer.forward

    def crowded(*args: Any, **kwargs: Any) -> Any:
        nonlocal failed
        if engine._kept._cache.tokens:
            failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(*args, **kwargs)

    monkeypatch.setattr(layer, "forward", crowded)
    prompts = [Prompt(conversation(3, k), (3, k)) for k in range(3)]
    same(engine.generate(prompts, draw), load(llama).generate(prompts, draw))
    question = Question(conversation(2), (("REASON:", " find mug"),))
    assert engine.score([question]) == load(llama).score([question])
    assert failed == 2
    monkeypatch.setattr(layer, "forward", crowded_for_ever)
    with pytest.raises(torch.OutOfMemoryError):
        engine.generate(prompts, draw)


@pytest.mark.parametrize("padded", [False, True])
def test_what_is_too_much_at_once_is_computed_in_parts(
    llama: Path, monkeypatch: pytest.MonkeyPatch, *, padded: bool
) -> None:
    if padded:
        monkeypatch.setattr("services.policy.engine.forward.takes_segments", lambda *_: False)
    engine = load(llama)
    layer, most = engine.model.model.layers[1], 200
    forward = layer.forward

    def small(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if hidden.shape[:-1].numel() > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(hidden, *args, **kwargs)

    monkeypatch.setattr(layer, "forward", small)
    draw, messages = Draw(n=2, max_tokens=6), [conversation(3, k) for k in range(8)]
    prompts = [Prompt(m, (3, k)) for k, m in enumerate(messages)]
    assert sum(len(prompt_ids(llama, m)) for m in messages) > most
    same(engine.generate(prompts, draw), load(llama).generate(prompts, draw))
    engine._kept.clear()
    questions = [Question(m, (("REASON:", " find mug"),)) for m in messages]
    for found, expected in zip(engine.score(questions), load(llama).score(questions), strict=True):
        assert found[0].log_prob == pytest.approx(expected[0].log_prob, abs=1e-4)


@pytest.mark.parametrize("steps", [1, 7])
def test_storage_of_a_padded_batch_has_a_quarter_of_spare_room(steps: int) -> None:
    kv = BatchKV(1, [(Store(), 0)], room=0)
    held = torch.zeros(2, 3, 0, 4)
    for k in range(0, 100, steps):
        new = torch.full((2, 3, steps, 4), float(k))
        held = torch.cat([held, new], dim=2)
        keys, values = kv.update(new, new, 0)
        assert torch.equal(keys, held)
        assert torch.equal(values, held)
        assert kv.layers[0].keys.shape[2] <= held.shape[2] * 5 / 4 + 1


def crowded_for_ever(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory.")


@pytest.mark.parametrize("padded", [False, True])
def test_storage_is_bounded_by_its_bytes(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, *, padded: bool
) -> None:
    if padded:
        monkeypatch.setattr("services.policy.engine.forward.takes_segments", lambda *_: False)
    engine = load(checkpoint, cache_bytes=2**19)
    answers = tuple(("REASON: find mug\nACTION:", f" go to {k}") for k in range(9))
    for turns in (1, 2, 3, 4):
        messages = [conversation(turns, k) for k in range(4)]
        engine.generate([Prompt(m) for m in messages], Draw(n=40, max_tokens=8))
        engine.score([Question(m, answers) for m in messages])
        cache = engine._kept._cache
        held = [entry.store for entry in cache._entries]
        assert held
        assert len(set(held)) == len(held)
        layers = [pair for store in held for pair in store.layers.values()]
        assert sum(x.nbytes for pair in layers for x in pair) <= 2**19


def test_a_tail_is_followed_along_its_branches() -> None:
    tail = Tail(tokens=[5, 6, 7, 6, 8], parents=[-1, 0, 0, 2, 3])
    assert tail.along([5, 7, 6, 9]) == [0, 2, 3]
    assert tail.along([5, 6]) == [0, 1]
    assert tail.along([6]) == []
    assert tail.along([]) == []


def test_a_conversation_that_is_too_long_is_refused_with_both_numbers(tmp_path: Path) -> None:
    engine = load(tiny_causal_lm(tmp_path, 0, max_position_embeddings=64))
    with pytest.raises(ProblemError, match=r"at least \d+ tokens, the model takes 64") as raised:
        engine.generate([Prompt(conversation(6))], Draw())
    assert raised.value.problem.status == 422


def test_there_has_to_be_room_for_a_token_behind_a_conversation_and_its_opening(
    tmp_path: Path,
) -> None:
    prompt, draw = Prompt(conversation(1), opening="REASON:"), Draw(max_tokens=9)
    length = len(prompt_ids(tiny_causal_lm(tmp_path / "any", 0), prompt.messages)) + 1
    enough = load(tiny_causal_lm(tmp_path / "enough", 0, max_position_embeddings=length + 1))
    ((sample,),) = enough.generate([prompt], draw)
    assert len(sample.ids) == 1
    full = load(tiny_causal_lm(tmp_path / "full", 0, max_position_embeddings=length))
    with pytest.raises(ProblemError, match=f"at least {length + 1} tokens"):
        full.generate([prompt], draw)


def test_the_longest_answer_to_a_question_has_to_fit(tmp_path: Path) -> None:
    engine = load(tiny_causal_lm(tmp_path, 0, max_position_embeddings=64))
    answers = (("REASON:", " find"), ("REASON:", " find mug" * 40))
    engine.score([Question(conversation(1), answers[:1])])
    with pytest.raises(ProblemError, match="the model takes 64"):
        engine.score([Question(conversation(1), answers)])


def test_the_canary_refuses_weights_that_are_not_finite(llama: Path) -> None:
    engine = load(llama)
    with torch.no_grad():
        engine.model.model.norm.weight[0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        engine.check()


def test_the_canary_refuses_a_model_whose_conversations_cannot_be_kept(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was computed before a turn is not there for it."""

    def forgets(row: Row, guess: Sequence[int] = ()) -> Segment:
        tokens = row.ids[row.start :]
        return Segment(row.start, row.store, tokens, range(len(tokens)), row.start)

    engine = load(llama)
    monkeypatch.setattr(Row, "segment", forgets)
    with pytest.raises(ValueError, match="cannot be kept"):
        engine.check()


def test_messages_that_the_chat_template_refuses_are_a_422(tmp_path: Path) -> None:
    path = tiny_causal_lm(tmp_path, 0)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "<|{{", "{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}<|{{"
    )
    tokenizer.save_pretrained(path)
    engine = load(path)
    for role, why in (("system", "no system"), ("assistant", "a user message has to come")):
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


def test_templates_that_render_turns_by_their_place_encode_as_training_does(
    tmp_path: Path,
) -> None:
    """Numbers from the third answer on: no probe knows of it."""
    path = tiny_causal_lm(tmp_path, 0)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{{ m.content }}", "{{ m.content }}{% if loop.index == 4 %}{{ loop.index }}{% endif %}"
    )
    tokenizer.save_pretrained(path)
    codec = load(path).codec
    for turns in (1, 2, 3, 4, 5):
        messages = conversation(turns)
        assert codec.prompt(messages) == prompt_ids(path, messages)


def entry(ids: range) -> Entry:
    return Entry(tuple(ids), Store())


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
