"""`benchmarks.where`: what a thread is doing, told from its stack."""

import subprocess
import sys

import pytest

from benchmarks.where import OTHER, operation, seconds_by_operation
from services.policy.engine.embedded import EmbeddedEngine

STACKS = {
    "imports": "<module> (services/trainer/fits/sft.py:3);"
    "_find_and_load (<frozen importlib._bootstrap>:1176)",
    "SFT": "fit_rows (services/trainer/fits/sft.py:92);train (transformers/trainer.py:2325)",
    "prefill": "_decode (services/policy/engine/embedded.py:219);"
    "_prefill (services/policy/engine/embedded.py:239);forward (torch/nn/linear.py:1)",
    "decode": "_decode (services/policy/engine/embedded.py:230);forward (torch/nn/linear.py:1)",
    "actions by the PRM, scored": "run (uvicorn/server.py:1);score (services/prm/scorer.py:247)",
    "environment": "run (uvicorn/server.py:1);step (services/env/session.py:9)",
    "JSON": "run (uvicorn/server.py:1);serialize_response (fastapi/routing.py:300)",
    "HTTP": "run (uvicorn/server.py:1);data_received (uvicorn/protocols/http/httptools_impl.py:2)",
    OTHER: "main (somewhere/else.py:1)",
}


@pytest.mark.parametrize("name", STACKS)
def test_the_first_operation_found_in_a_stack_counts(name: str) -> None:
    assert operation(STACKS[name]) == name


def test_samples_become_seconds_and_waits_do_not() -> None:
    lines = [f"{STACKS['SFT']} 30\n", f"{STACKS['HTTP']} 5\n", f"{STACKS['SFT']} 10\n"]
    lines += [f"{STACKS['HTTP']};Condition.wait (threading.py:331) 7\n"]
    lines += ["_bootstrap (threading.py:1002);_worker (concurrent/futures/thread.py:81) 9\n"]
    assert seconds_by_operation(lines, rate=20) == {"SFT": 2.0, "HTTP": 0.25}


def test_the_functions_that_it_looks_for_are_there() -> None:
    assert {"_prefill", "_decode", "score"} <= set(vars(EmbeddedEngine))


def test_a_command_that_fails_gives_no_table() -> None:
    command = [sys.executable, "-m", "benchmarks.where", "--", "false"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode
    assert "py-spy" in ended.stderr
    assert not ended.stdout
