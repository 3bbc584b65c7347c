"""The examples, run as a reader would, against real services on tiny random checkpoints."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from agentprm.client import PRMClient
from agentprm.protocol import JobResult, Sampling, Turn
from agentprm.registry import Registry
from tests.env_server import KITCHEN, WINNING, EnvServer, write_kitchen
from tests.models import tiny_causal_lm
from tests.scorers import tiny_scorer
from tests.servers import model_server, prm_server

EXAMPLES = Path(__file__).parents[2] / "examples"
CHAT = [
    {"role": "user", "content": "you are in the middle of a room ."},
    {"role": "assistant", "content": "REASON: find mug\nACTION: go to shelf 1"},
    {"role": "user", "content": "nothing happens ."},
    {"role": "assistant", "content": "REASON: find mug\nACTION: take mug 2"},
]


@dataclass(frozen=True)
class Stack:
    env: str
    llm: str
    prm: str


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    root = tmp_path_factory.mktemp("examples")
    registry = Registry(root / "checkpoints")
    registry.adopt(tiny_causal_lm(root / "policy", seed=0), "policy/0")
    with registry.write("prm/0") as draft:
        tiny_scorer(draft, seed=0, positions=4096)
    write_kitchen(root / "data")
    with ExitStack() as stack:
        _, llm = stack.enter_context(model_server("policy", registry, "--checkpoint", "policy/0"))
        _, prm = stack.enter_context(prm_server(registry, "--checkpoint", "prm/0"))
        env = EnvServer("--data", str(root / "data"))
        stack.callback(env.stop)
        yield Stack(env.url, f"{llm}/v1", prm)


def run(name: str, *arguments: str) -> str:
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent)},
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout


def test_the_react_agent_takes_the_answer_of_highest_q(stack: Stack) -> None:
    addresses = ["--env", stack.env, "--llm", stack.llm, "--prm", stack.prm]
    out = run(
        "react_agent.py", *addresses, "--split", "train", "--n", "4", "--max-steps", "3"
    ).splitlines()
    assert out[0] == "put a pot in cabinet."
    assert out[-1] == "lost after 3 turns"
    assert len(out) == 5
    several = 0
    for line in out[1:-1]:
        chosen, *others = (float(x) for x in re.findall(r"\d\.\d{3}", line))
        assert chosen == max(others)
        several += len(set(others)) > 1
    assert several  # the samples differed, so there was something to choose


def test_a_transcript_is_scored_turn_by_turn(stack: Stack, tmp_path: Path) -> None:
    turns = [
        Turn(observation=f"you see a mug {k} .", action={"command": command}, policy_version="x")
        for k, command in enumerate(WINNING)
    ]
    record = JobResult.model_validate(
        {
            "job_id": "x-0",
            "worker": "w",
            "seconds": 1.0,
            "episodes": [
                {
                    "id": "x-0/0",
                    "job_id": "x-0",
                    "game": {"id": KITCHEN, "split": "train", "task_type": "pick", "task": "t"},
                    "seed": 0,
                    "turns": turns,
                    "final_observation": "",
                    "won": True,
                    "provenance": {
                        "engine": "e",
                        "package_version": "p",
                        "data_version": "d",
                        "template_hash": "h",
                        "sampling": Sampling(),
                    },
                }
            ],
        }
    )
    file = tmp_path / "episodes.jsonl"
    told = [{"role": "user", "content": "a line\u2028and\x85more"}, *CHAT[1:]]
    odd = json.dumps({"messages": told}, ensure_ascii=False)
    other = tmp_path / "odd.jsonl"
    other.write_text(f"{odd}\n", encoding="utf-8")
    assert "chat" in run("score_transcript.py", str(other), "--prm", stack.prm)
    file.write_text(f"{json.dumps({'messages': CHAT})}\n{record.model_dump_json()}\n")
    out = run("score_transcript.py", str(file), "--prm", stack.prm).splitlines()
    with PRMClient(stack.prm) as prm:
        [episode] = prm.score_episodes(record.episodes)
        q = [*prm.score_messages(CHAT), *episode]
    assert [float(line.split()[0]) for line in out if line.startswith("  ")] == [
        pytest.approx(value, abs=2e-3) for value in q
    ]
    assert [line for line in out if not line.startswith("  ")] == ["chat", "t (won)"]
    assert "move pot 1 to cabinet 1" in out[-1]


def test_lines_without_turns_are_passed_over_and_a_wrong_one_is_named(
    stack: Stack, tmp_path: Path
) -> None:
    file = tmp_path / "lines.jsonl"
    preferences = JobResult(job_id="pi_1-preferences-0", worker="w", seconds=1.0)
    silent = json.dumps({"messages": CHAT[:1]})
    file.write_text(f"{preferences.model_dump_json()}\n\n{silent}\n")
    assert run("score_transcript.py", str(file), "--prm", stack.prm) == ""
    file.write_text("\n{}\n")
    for path, reason in ((file, f"{file}:2: "), (tmp_path / "none", "No such file")):
        with pytest.raises(subprocess.CalledProcessError) as failed:
            run("score_transcript.py", str(path), "--prm", stack.prm)
        assert reason in failed.value.stderr
        assert "Traceback" not in failed.value.stderr


def test_trl_trains_against_the_prm(stack: Stack, tmp_path: Path) -> None:
    model = tiny_causal_lm(tmp_path / "policy", seed=0)
    out = run(
        "trl_reward.py",
        *("--prm", stack.prm, "--model", str(model), "--steps", "2"),
        *("--output", str(tmp_path / "out")),
    )
    rewards = json.loads(out.splitlines()[-1].partition(": ")[2])
    assert len(rewards) == 2
    assert all(0 < reward < 1 for reward in rewards)
