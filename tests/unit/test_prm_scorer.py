from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from agentprm.prompts import Prompt, load_prompt
from agentprm.protocol import (
    Action,
    Choice,
    Continuations,
    Message,
    Pair,
    ScoreRequest,
    State,
    Transcript,
)
from agentprm.registry import CheckpointError
from agentprm.service import ProblemError
from services.prm import scorer as module
from services.prm.packing import Row, additive, batches
from services.prm.scorer import Plan, Scorer
from tests.scorers import episode, tiny_scorer

CLOSE = 1e-5


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scorers")
    for architecture in ("llama", "qwen2", "mistral", "gpt2"):
        tiny_scorer(root / architecture, seed=1, architecture=architecture)
    return root


@pytest.fixture(scope="module")
def llama(checkpoints: Path) -> Scorer:
    return Scorer(checkpoints / "llama", load_prompt("chat"), device="cpu")


def state_at(transcript: Transcript, t: int) -> State:
    history = tuple(transcript.steps[:t])
    observation = transcript.steps[t].observation
    return State(task=transcript.task, history=history, observation=observation)


def plain(path: Path, prompt: Prompt, state: State, action: Action) -> float:
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
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "mistral", "gpt2"])
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
    monkeypatch.setattr(module, "PACKED_TOKENS", 40)
    split, apart = run(llama, request)
    assert len(whole.rows) == 1
    assert 1 < len(split.rows) < 10
    assert [apart[row][k] for row, k in split.choices[0]] == pytest.approx(together[0], abs=CLOSE)


def test_a_score_does_not_depend_on_the_rest_of_the_batch(
    llama: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama, "forward_tokens", 4096)
    requests = [
        *(ScoreRequest(transcripts=[episode(turns, turns)]) for turns in (1, 2, 3, 5, 8)),
        *(
            ScoreRequest(
                choices=[Choice(state=state_at(episode(9), t), actions=[s.action for s in e.steps])]
            )
            for t, e in ((1, episode(3)), (2, episode(4)), (4, episode(2)))
        ),
    ]
    rows = [row for request in requests for row in llama.plan(request).rows]
    assert len(list(batches(rows, llama.forward_tokens))) < len(rows)
    alone = [llama.score([row])[0] for row in rows]
    for mixed, single in zip(llama.score(rows), alone, strict=True):
        assert mixed == pytest.approx(single, abs=CLOSE)


def test_a_forward_pass_keeps_to_its_tokens(llama: Scorer) -> None:
    rows = [Row([1] * n, [n - 1], n) for n in (3, 900, 700, 5, 1000, 800, 4, 650)]
    found = list(batches(rows, llama.forward_tokens))
    assert sorted(k for batch in found for k in batch) == list(range(len(rows)))
    for batch in found:
        assert len(batch) * max(len(rows[k]) for k in batch) <= llama.forward_tokens


def test_a_sliding_window_is_scored_row_by_row(tmp_path: Path) -> None:
    tiny_scorer(tmp_path, 0, "mistral", sliding_window=16)
    scorer = Scorer(tmp_path, load_prompt("chat"), device="cpu")
    played = episode(3)
    state, actions = state_at(played, 2), [step.action for step in played.steps]
    plan, scores = run(scorer, ScoreRequest(choices=[Choice(state=state, actions=actions)]))
    assert len(plan.rows) == 3
    expected = [plain(tmp_path, scorer.prompt, state, action) for action in actions]
    assert [scores[row][k] for row, k in plan.choices[0]] == pytest.approx(expected, abs=CLOSE)


def test_too_long_names_both_numbers(tmp_path: Path) -> None:
    tiny_scorer(tmp_path, 0, positions=128)
    scorer = Scorer(tmp_path, load_prompt("chat"), device="cpu")
    played = episode(20)
    choice = Choice(state=state_at(played, 19), actions=[Action(command="look")])
    for request in (ScoreRequest(transcripts=[played]), ScoreRequest(choices=[choice])):
        with pytest.raises(ProblemError, match=r"is \d{3} tokens, the model reads 128") as caught:
            scorer.plan(request)
        assert caught.value.problem.status == 422


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
    with pytest.raises(ValueError, match="rewrites earlier messages"):
        Scorer(tmp_path, load_prompt("chat")).check()


def test_the_canary_refuses_a_model_whose_packed_actions_see_each_other(
    llama: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    llama.check()
    monkeypatch.setattr(module, "CANARY_TOLERANCE", 1e-5)
    llama.check()
    causal = torch.ones(1, 1, dtype=torch.bool)
    monkeypatch.setattr(
        module, "additive", lambda mask, dtype: additive(mask | causal.expand_as(mask), dtype)
    )
    with pytest.raises(CheckpointError, match="does not keep to the attention mask"):
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
