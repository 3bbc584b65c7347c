import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from agentprm.models.prefix_cache import PrefixCache
from agentprm.prompts import PromptTemplate, load_prompt
from agentprm.protocol import (
    Action,
    Choice,
    Continuations,
    Message,
    Pair,
    ScoreRequest,
    State,
    Step,
    Transcript,
)
from agentprm.registry import CheckpointError
from agentprm.service import ProblemError
from services.prm import planning
from services.prm import scorer as module
from services.prm.model import Entry
from services.prm.packing import Row
from services.prm.planning import Plan
from services.prm.scorer import Scorer, sigmoid
from services.prm.segment import Segment, Store
from tests.scorers import episode, tiny_scorer

CLOSE = 1e-5
ARCHITECTURES = ("llama", "qwen2", "mistral", "gpt2", "gpt_neox")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scorers")
    for architecture in ARCHITECTURES:
        tiny_scorer(root / architecture, seed=1, architecture=architecture)
    return root


@pytest.fixture(scope="module")
def llama(checkpoints: Path) -> Scorer:
    return Scorer(checkpoints / "llama", load_prompt("chat"), device="cpu")


def state_at(transcript: Transcript, t: int) -> State:
    history = tuple(transcript.steps[:t])
    observation = transcript.steps[t].observation
    return State(task=transcript.task, history=history, observation=observation)


def plain(path: Path, prompt: PromptTemplate, state: State, action: Action) -> float:
    """What transformers itself says of the conversation that ends with the action."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path)
    answer = Message(role="assistant", content=prompt.action_text(action))
    messages = [m.model_dump() for m in [*prompt.messages(state), answer]]
    ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        return float(model.eval()(input_ids=ids["input_ids"]).logits.sigmoid())


def run(scorer: Scorer, request: ScoreRequest) -> tuple[Plan, list[list[float]]]:
    plan = scorer.plan(request)
    return plan, scorer.score(plan.rows)


@pytest.mark.parametrize("prompt_name", ["chat", "state"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_shape_equals_plain_transformers(
    checkpoints: Path, architecture: str, prompt_name: str
) -> None:
    path, prompt = checkpoints / architecture, load_prompt(prompt_name)
    scorer = Scorer(path, prompt, device="cpu")
    played = episode(4)
    states = [state_at(played, t) for t in range(4)]
    actions = [step.action for step in played.steps]
    request = ScoreRequest(
        transcripts=[played],
        choices=[Choice(state=state, actions=actions) for state in states],
        pairs=[Pair(state=s, action=a) for s, a in zip(states, actions, strict=True)],
    )
    plan, scores = run(scorer, request)

    expected = [[plain(path, prompt, s, a) for a in actions] for s in states]
    of_turns = [expected[t][t] for t in range(4)]
    assert max(of_turns) - min(of_turns) > 0.01  # random weights, but they tell turns apart
    for places, values in [
        (plan.transcripts[0], of_turns),
        (plan.pairs, of_turns),
        *zip(plan.choices, expected, strict=True),
    ]:
        assert [scores[row][k] for row, k in places] == pytest.approx(values, abs=CLOSE)


def test_an_episode_is_one_row_and_a_state_with_its_actions_too(llama: Scorer) -> None:
    played = episode(5)
    state, actions = state_at(played, 3), [step.action for step in played.steps]
    plan = llama.plan(
        ScoreRequest(
            transcripts=[played],
            choices=[Choice(state=state, actions=[*actions, *actions])],
            pairs=[Pair(state=state, action=action) for action in actions],
        )
    )
    assert [len(row.ends) for row in plan.rows] == [5, 5]
    assert plan.choices[0] == [*plan.pairs, *plan.pairs]


def test_a_state_with_more_actions_than_a_row_takes_is_split(
    llama: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = state_at(episode(3), 2)
    actions = [Action(reason="find mug", command=f"go to desk {k}") for k in range(10)]
    request = ScoreRequest(choices=[Choice(state=state, actions=actions)])
    whole, together = run(llama, request)
    monkeypatch.setattr(planning, "PACKED_TOKENS", 40)
    split, apart = run(llama, request)
    assert len(whole.rows) == 1
    assert 1 < len(split.rows) < 10
    assert [apart[row][k] for row, k in split.choices[0]] == pytest.approx(together[0], abs=CLOSE)


def test_a_score_does_not_depend_on_the_rest_of_the_batch(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgetful = Scorer(checkpoints / "llama", load_prompt("chat"), device="cpu", cache_bytes=0)
    monkeypatch.setattr(forgetful.model, "forward_tokens", 4096)
    requests = [
        *(ScoreRequest(transcripts=[episode(turns, turns)]) for turns in (1, 2, 3, 5, 8)),
        *(
            ScoreRequest(
                choices=[Choice(state=state_at(episode(9), t), actions=[s.action for s in e.steps])]
            )
            for t, e in ((1, episode(3)), (2, episode(4)), (4, episode(2)))
        ),
    ]
    rows = [row for request in requests for row in forgetful.plan(request).rows]
    alone = [forgetful.score([row])[0] for row in rows]
    for mixed, single in zip(forgetful.score(rows), alone, strict=True):
        assert mixed == pytest.approx(single, abs=CLOSE)


def test_logits_of_a_bf16_model_are_not_rounded_to_bf16(checkpoints: Path) -> None:
    """Its steps of 1/64 would make actions tie; the trainer computes the last layer in float32."""
    scorer = Scorer(checkpoints / "llama", load_prompt("chat"), device="cpu", dtype="bfloat16")
    scorer.check()
    assert (scorer.dtype, scorer.model._cache.capacity) == ("bfloat16", 2**30 // (2 * 2 * 32 * 2))
    ids = list(range(20, 60))
    (found,) = scorer.model.logits([Row(ids, list(range(40)), 40)])
    assert sum(torch.tensor(found).bfloat16().float() != torch.tensor(found)) > 30
    path = checkpoints / "llama"
    model = AutoModelForSequenceClassification.from_pretrained(path, dtype="bfloat16").eval()
    with torch.inference_mode():
        hidden = model.model(torch.tensor([ids])).last_hidden_state[0, -1].float()
        expected = float(hidden @ model.score.weight[0].float())
    assert scorer.model.plain(ids) == pytest.approx(expected, abs=CLOSE)


class Watched:
    """Counts what a scorer computes: for every pass the new tokens of each row."""

    def __init__(self, scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passes: list[list[int]] = []
        compute = scorer.model._compute

        def watched(segments: Sequence[Segment]) -> None:
            self.passes.append([len(segment) for segment in segments])
            compute(segments)

        monkeypatch.setattr(scorer.model, "_compute", watched)


def test_a_pass_keeps_to_its_tokens(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = Scorer(checkpoints / "llama", load_prompt("chat"), device="cpu", cache_bytes=0)
    watched = Watched(scorer, monkeypatch)
    sizes = (3, 900, 120, 5, 1000, 800, 4, 650)
    scorer.score([Row([1] * n, [n - 1], n) for n in sizes])
    assert watched.passes == [[3, 900, 120], [5, 1000], [800, 4], [650]]
    monkeypatch.setattr(scorer.model, "held_tokens", 100)
    monkeypatch.setattr(scorer.model, "forward_tokens", 100)
    watched.passes.clear()
    scorer.score([Row([1] * n, [n - 1], n) for n in (150, 20, 80, 10)])
    assert watched.passes == [[150], [20, 80], [10]]


def in_turns(transcript: Transcript) -> Iterator[tuple[State, Action]]:
    for t, step in enumerate(transcript.steps):
        yield state_at(transcript, t), step.action


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_kept_between_turns_changes_no_score(
    checkpoints: Path, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two interleaved episodes, of each turn first other actions, then the one taken."""
    path, prompt = checkpoints / architecture, load_prompt("chat")
    scorer = Scorer(path, prompt, device="cpu")
    watched = Watched(scorer, monkeypatch)
    others = [Action(reason="find lamp", command=f"go to desk {k}") for k in range(3)]
    for turns in zip(in_turns(episode(5)), in_turns(episode(5, 3)), strict=True):
        choices = [Choice(state=state, actions=[*others, taken]) for state, taken in turns]
        pairs = [Pair(state=state, action=taken) for state, taken in turns]
        for request in (
            ScoreRequest(choices=choices[:1]),
            ScoreRequest(choices=choices, pairs=[Pair(state=turns[1][0], action=others[0])]),
            ScoreRequest(pairs=pairs),
        ):
            plan, scores = run(scorer, request)
            for choice, places in zip(request.choices, plan.choices, strict=True):
                expected = [plain(path, prompt, choice.state, one) for one in choice.actions]
                found = [scores[row][k] for row, k in places]
                assert found == pytest.approx(expected, abs=CLOSE)
            for pair, (row, k) in zip(request.pairs, plan.pairs, strict=True):
                assert scores[row][k] == pytest.approx(
                    plain(path, prompt, pair.state, pair.action), abs=CLOSE
                )
    last = scorer.plan(ScoreRequest(pairs=pairs)).rows
    assert max(map(max, watched.passes[-3:])) < max(map(len, last)) / 2  # the rest was known
    watched.passes.clear()
    again = scorer.score(last)
    assert watched.passes == []
    assert again == scorer.score(last)
    whole = ScoreRequest(transcripts=[episode(5), episode(5, 3)])
    plan, scores = run(scorer, whole)
    for played, places in zip(whole.transcripts, plan.transcripts, strict=True):
        expected = [plain(path, prompt, state, action) for state, action in in_turns(played)]
        assert [scores[row][k] for row, k in places] == pytest.approx(expected, abs=CLOSE)


def test_equal_beginnings_of_one_batch_are_computed_once(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, prompt = checkpoints / "llama", load_prompt("chat")
    scorer = Scorer(path, prompt, device="cpu")
    watched = Watched(scorer, monkeypatch)
    monkeypatch.setattr(scorer.model, "forward_tokens", 4096)
    turns = list(in_turns(episode(6)))
    pairs = [Pair(state=state, action=action) for state, action in turns]
    rows = [row for pair in pairs for row in scorer.plan(ScoreRequest(pairs=[pair])).rows]
    found = [score for [score] in scorer.score(rows)]
    expected = [plain(path, prompt, state, action) for state, action in turns]
    assert found == pytest.approx(expected, abs=CLOSE)
    assert [sum(new) for new in watched.passes] == [len(rows[-1])]

    # The longest first: the others only read from it.
    scorer = Scorer(path, prompt, device="cpu")
    found = [score for [score] in scorer.score(rows[::-1])]
    assert found[::-1] == pytest.approx(expected, abs=CLOSE)


def test_a_full_cache_forgets_and_changes_no_score(checkpoints: Path) -> None:
    path, prompt = checkpoints / "llama", load_prompt("chat")
    per_token = 2 * 2 * 32 * 4  # keys and values, layers, width, float32
    scorer = Scorer(path, prompt, device="cpu", cache_bytes=1000 * per_token)
    cache = scorer.model._cache
    assert cache.capacity == 1000
    seen: set[tuple[int, ...]] = set()
    played = [list(in_turns(episode(7, seed))) for seed in range(4)]
    for turns in zip(*played, strict=True):
        for state, action in turns:
            plan, scores = run(scorer, ScoreRequest(pairs=[Pair(state=state, action=action)]))
            assert scores[0][0] == pytest.approx(plain(path, prompt, state, action), abs=CLOSE)
            seen.add(tuple(plan.rows[0].ids))
            held = cache._entries
            assert cache.tokens == sum(entry.store.room for entry in held) <= 1000
            assert {entry.store.length for entry in held} == {len(entry.ids) for entry in held}
            assert stored_bytes(cache) <= 1000 * per_token
    assert 1 < len(cache._entries) < len(seen)


def test_actions_take_no_room_once_they_are_scored(checkpoints: Path) -> None:
    per_token = 2 * 2 * 32 * 4
    scorer = Scorer(checkpoints / "llama", load_prompt("chat"), device="cpu")
    cache = scorer.model._cache
    actions = [Action(reason="find mug", command=f"go to desk {k}") for k in range(60)]
    played = [state for state, _ in in_turns(episode(5))]
    for state in played:
        run(scorer, ScoreRequest(choices=[Choice(state=state, actions=actions)]))
        conversations = sum(len(entry.ids) for entry in cache._entries)
        assert stored_bytes(cache) == cache.tokens * per_token
        assert cache.tokens <= 2 * (conversations * 5 / 4 + 64)
    assert len(cache._entries) == 1


def stored_bytes(cache: PrefixCache[Entry]) -> int:
    """Of the keys and values themselves."""
    return sum(
        each.nbytes
        for entry in cache._entries
        for layer in entry.store.layers.values()
        for each in layer
    )


def test_after_a_fault_nothing_of_it_is_kept(checkpoints: Path) -> None:
    path, prompt = checkpoints / "llama", load_prompt("chat")
    scorer = Scorer(path, prompt, device="cpu")
    state, action = list(in_turns(episode(4)))[3]
    pair = ScoreRequest(pairs=[Pair(state=state, action=action)])
    (row,) = scorer.plan(pair).rows
    with pytest.raises(IndexError):
        scorer.score([row, Row([*row.ids[:40], 10**6], [40], 41)])
    assert scorer.score([row])[0][0] == pytest.approx(plain(path, prompt, state, action), abs=CLOSE)


def test_the_beginning_most_conversations_share_outlives_the_one_it_came_from() -> None:
    cache: PrefixCache[Entry] = PrefixCache(capacity=160)
    shared = tuple(range(32))
    first, second = (Entry((*shared, *[k] * 32), Store()) for k in (101, 102))
    cache.add(first)
    cache.add(second)
    assert cache.find(first.ids) == (first, 64)
    cache.add(Entry((7,) * 64, Store()))  # no room: the second, which was used least recently, goes
    assert cache.common(second.ids) == 32
    assert cache.find(first.ids) == (first, 64)


@pytest.mark.parametrize("architecture", ["mistral", "qwen2"])
def test_a_sliding_window_slides(tmp_path: Path, architecture: str) -> None:
    more = {"use_sliding_window": True, "max_window_layers": 1} if architecture == "qwen2" else {}
    tiny_scorer(tmp_path, 0, architecture, sliding_window=16, **more)
    scorer = Scorer(tmp_path, load_prompt("chat"), device="cpu")
    scorer.check()
    played = episode(3)
    actions = [step.action for step in played.steps]
    for t in range(3):
        state = state_at(played, t)
        plan, scores = run(scorer, ScoreRequest(choices=[Choice(state=state, actions=actions)]))
        assert len(plan.rows) == 1
        expected = [plain(tmp_path, scorer.prompt, state, action) for action in actions]
        assert [scores[row][k] for row, k in plan.choices[0]] == pytest.approx(expected, abs=CLOSE)


def test_rotations_that_depend_on_the_batch_are_computed_row_by_row(tmp_path: Path) -> None:
    rotation = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0}
    tiny_scorer(tmp_path, 0, positions=64, rope_parameters=rotation)
    scorer = Scorer(tmp_path, load_prompt("chat"), device="cpu")
    scorer.max_tokens = None
    played = episode(3)
    states, actions = zip(*in_turns(played), strict=True)
    choices = [Choice(state=state, actions=list(actions)) for state in states]
    plan, scores = run(scorer, ScoreRequest(choices=choices))
    assert [len(row.ends) for row in plan.rows] == [1] * 9
    for state, places in zip(states, plan.choices, strict=True):
        expected = [plain(tmp_path, scorer.prompt, state, action) for action in actions]
        assert [scores[row][k] for row, k in places] == pytest.approx(expected, abs=CLOSE)


def test_too_long_names_both_numbers(tmp_path: Path) -> None:
    tiny_scorer(tmp_path, 0, positions=128)
    scorer = Scorer(tmp_path, load_prompt("chat"), device="cpu")
    played = episode(20)
    look, long = Action(command="look"), Action(reason="find mug " * 60, command="look")
    short = ScoreRequest(choices=[Choice(state=state_at(played, 0), actions=[look])])
    scorer.plan(short)
    for request in (
        ScoreRequest(transcripts=[played]),
        ScoreRequest(choices=[Choice(state=state_at(played, 19), actions=[look])]),
        ScoreRequest(choices=[Choice(state=state_at(played, 0), actions=[look, long])]),
        ScoreRequest(texts=["<|user|>look<|end|><|assistant|>" + "mug " * 200]),
    ):
        with pytest.raises(ProblemError, match=r"is \d{3} tokens, the model reads 128") as caught:
            scorer.plan(request)
        assert caught.value.problem.status == 422


def test_what_is_as_long_as_the_model_reads_is_scored(tmp_path: Path) -> None:
    request = ScoreRequest(transcripts=[episode(2)])
    tiny_scorer(tmp_path, 0)
    scorer = Scorer(tmp_path, load_prompt("chat"), device="cpu")
    (row,) = scorer.plan(request).rows
    scorer.max_tokens = len(row)
    scorer.plan(request)
    scorer.max_tokens -= 1
    with pytest.raises(ProblemError, match=f"the model reads {len(row) - 1}"):
        scorer.plan(request)


def test_a_logit_of_any_size_has_a_probability() -> None:
    assert [sigmoid(logit) for logit in (-1e4, 0.0, 1e4)] == [0.0, 0.5, 1.0]
    assert sigmoid(-2.0) == pytest.approx(1 / (1 + math.exp(2)))


def test_what_is_not_a_prm_is_refused(tmp_path: Path) -> None:
    prompt = load_prompt("chat")
    tiny_scorer(tmp_path / "two", 0, labels=2)
    with pytest.raises(CheckpointError, match="has 2 labels"):
        Scorer(tmp_path / "two", prompt)

    tiny_scorer(tmp_path / "headless", 0)
    headless = AutoModelForSequenceClassification.from_pretrained(tmp_path / "headless")
    AutoModelForCausalLM.from_config(headless.config).save_pretrained(tmp_path / "headless")
    with pytest.raises(CheckpointError, match=r"lacks the weights .*score\.weight"):
        Scorer(tmp_path / "headless", prompt)

    tiny_scorer(tmp_path / "few", 0, vocabulary=20)
    with pytest.raises(CheckpointError, match="the tokenizer knows"):
        Scorer(tmp_path / "few", prompt)


def test_the_canary_refuses_weights_that_are_not_finite(tmp_path: Path) -> None:
    tiny_scorer(tmp_path, 0)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        model.score.weight.fill_(float("nan"))
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="not finite"):
        Scorer(tmp_path, load_prompt("chat")).check()


def test_the_canary_refuses_a_template_that_rewrites_earlier_turns(tmp_path: Path) -> None:
    tiny_scorer(tmp_path, 0)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.chat_template = (
        "{% for message in messages %}<|{{ message.role }}|>"
        "{% if loop.last or message.role != 'assistant' %}{{ message.content }}{% endif %}<|end|>"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="rewrites earlier messages"):
        Scorer(tmp_path, load_prompt("chat")).check()


def test_the_canary_refuses_a_model_whose_packed_actions_see_each_other(
    llama: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    llama.check()
    monkeypatch.setattr(module, "PROBE_TOLERANCE", 1e-5)
    llama.check()
    monkeypatch.setattr(Segment, "mask", lambda *_: None)
    with pytest.raises(CheckpointError, match="does not keep to the attention"):
        llama.check()


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize(
    ("change", "why"),
    [(lambda q: (q + 0.5) % 1, "does not keep to"), (lambda q: math.nan, "not finite")],
)
def test_the_canary_looks_at_the_episode_and_at_the_packed_actions(
    llama: Scorer,
    monkeypatch: pytest.MonkeyPatch,
    row: int,
    change: Callable[[float], float],
    why: str,
) -> None:
    right = llama.score

    def wrong(rows: Sequence[Row]) -> list[list[float]]:
        found = right(rows)
        found[row][1] = change(found[row][1])
        return found

    monkeypatch.setattr(llama, "score", wrong)
    with pytest.raises(CheckpointError, match=why):
        llama.check()


def test_answers_behind_messages_read_as_the_same_state_and_actions(llama: Scorer) -> None:
    state, actions = state_at(episode(4), 3), [step.action for step in episode(4, 7).steps]
    conversation = llama.prompt.messages(state)
    texts = [llama.prompt.action_text(action) for action in actions]
    native = ScoreRequest(choices=[Choice(state=state, actions=actions)])
    rendered = ScoreRequest(continuations=[Continuations(messages=conversation, answers=texts)])
    assert llama.plan(rendered).rows == llama.plan(native).rows
    other = Continuations(messages=[Message(role="user", content="look")], answers=["a", "b", "a"])
    plan, scores = run(llama, ScoreRequest(choices=native.choices, continuations=[other]))
    assert len(plan.rows) == 2  # each conversation is read once
    first, second, again = [scores[row][k] for row, k in plan.continuations[0]]
    assert first == again != second


def test_a_conversation_that_the_chat_template_refuses_is_a_422(tmp_path: Path) -> None:
    tiny_scorer(tmp_path, 0)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.chat_template = (
        "{% for m in messages %}"
        "{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "<|{{ m.role }}|>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    tokenizer.save_pretrained(tmp_path)
    scorer = Scorer(tmp_path, load_prompt("chat"))
    system, user = (Message(role=role, content="look") for role in ("system", "user"))
    for messages, answers, why in (
        ([system, user], ["look"], "no system role"),
        ([user], ["look", ""], "renders no answer"),  # nor an end mark that could be read
    ):
        asked = Continuations(messages=messages, answers=answers)
        with pytest.raises(ProblemError, match=why) as caught:
            scorer.plan(ScoreRequest(continuations=[asked]))
        assert caught.value.problem.status == 422
    played = Transcript(task="t", steps=[Step(observation="o", action=Action(command="look"))])
    with pytest.raises(ProblemError, match=r"transcripts\.0: no system role"):
        scorer.plan(ScoreRequest(transcripts=[played]))
