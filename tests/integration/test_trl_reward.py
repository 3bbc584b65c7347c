"""The PRM as TRL's reward: two steps of a real GRPOTrainer against a real service."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from agentprm.client import PRMClient, ServiceError
from agentprm.integrations.trl import PRMReward
from agentprm.registry import Registry
from tests.models import tiny_causal_lm
from tests.scorers import tiny_scorer
from tests.servers import prm_server

STATE = "you are in the middle of a room. "


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    registry = Registry(tmp_path_factory.mktemp("run") / "checkpoints")
    with registry.write("prm/0") as draft:
        tiny_scorer(draft, seed=0)
    with prm_server(registry, "--checkpoint", "prm/0") as (_, url):
        yield url


def test_plain_and_conversational_completions_get_the_q_of_their_last_turn(url: str) -> None:
    chat = [{"role": "user", "content": STATE}]
    answers = [f"take mug {k % 40}" for k in range(300)]  # more than one request takes
    replies = [[{"role": "assistant", "content": answer}] for answer in answers]
    reward = PRMReward(url)
    plain = reward([STATE] * 300, answers, completion_ids=[], trainer_state=None)
    spoken = reward(prompts=[chat] * 300, completions=replies)
    longer = [*replies[0], {"role": "user", "content": "on it"}, *replies[1]]
    [last] = pickle.loads(pickle.dumps(reward))([chat], [longer])
    with PRMClient(url) as prm:
        expected = [prm.score_messages([*chat, *reply])[0] for reply in replies[:40]]
        assert last == pytest.approx(prm.score_messages([*chat, *longer])[1], abs=1e-5)
    assert len({round(q, 4) for q in expected}) > 10
    assert plain[:40] == pytest.approx(expected, abs=1e-5)
    assert spoken == pytest.approx(plain, abs=1e-5)
    assert spoken[40:80] == pytest.approx(expected, abs=1e-5)


def test_two_steps_of_grpo(url: str, tmp_path: Path) -> None:
    """On plain prompts: on conversations the example trains."""
    model = tiny_causal_lm(tmp_path / "policy", seed=0)
    trainer = GRPOTrainer(
        model=str(model),
        reward_funcs=PRMReward(url),
        args=GRPOConfig(
            output_dir=str(tmp_path / "out"),
            max_steps=2,
            per_device_train_batch_size=4,
            num_generations=4,
            max_completion_length=8,
            logging_steps=1,
            learning_rate=1e-2,
            report_to="none",
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
            save_strategy="no",
        ),
        train_dataset=Dataset.from_list([{"prompt": STATE}] * 2),
    )
    before = trainer.model.lm_head.weight.detach().clone()
    trainer.train()
    rewards = [row["rewards/prm/mean"] for row in trainer.state.log_history if "reward" in row]
    assert len(rewards) == 2
    assert all(0 < reward < 1 for reward in rewards)
    assert not before.equal(trainer.model.lm_head.weight)


def test_a_missing_score_ends_the_training(url: str) -> None:
    with pytest.raises(ServiceError):
        PRMReward("http://127.0.0.1:9", deadline=0.3)([STATE], ["look"])
    with pytest.raises(ServiceError, match="422"):
        PRMReward(url)([STATE * 2000], ["look"])


def test_a_completion_without_an_assistant_message_is_refused() -> None:
    """Not scored as the last answer of its prompt."""
    prompt = [{"role": "user", "content": STATE}, {"role": "assistant", "content": "look"}]
    reward = PRMReward("http://127.0.0.1:9", deadline=0.3)
    for completion in ([], [{"role": "user", "content": "Nothing happens."}]):
        with pytest.raises(ValueError, match="holds no assistant message"):
            reward([prompt], [completion])


def test_what_is_too_large_for_one_request_is_asked_for_in_several(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    plain: Any = PRMClient(url).score_conversations

    def bounded(_: PRMClient, chats: Sequence[Any]) -> list[list[float]]:
        """As a service whose body limit is three chats; a real one's takes 16 MiB of them."""
        asked.append(len(chats))
        if len(chats) > 3:
            raise ServiceError(413, "too large")
        scored: list[list[float]] = plain(chats)
        return scored

    completions = ["look", "inventory", "go to shelf 1", "look", "open fridge 1"]
    whole = PRMReward(url)([STATE] * 5, completions)
    monkeypatch.setattr(PRMClient, "score_conversations", bounded)
    assert PRMReward(url)([STATE] * 5, completions) == pytest.approx(whole, abs=1e-6)
    assert asked == [5, 2, 3]


def test_the_integration_imports_neither_torch_nor_trl() -> None:
    code = (
        "import agentprm.integrations.trl, sys; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'trl', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
