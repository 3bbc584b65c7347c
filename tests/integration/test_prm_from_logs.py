"""A PRM from a log alone: fitted, measured, served, gone on with. All of it is real."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest

from agentprm.cli.ports import free_port
from agentprm.client import PRMClient
from agentprm.facts import METADATA
from agentprm.registry import Registry
from agentprm.runs import read_metrics
from tests.processes import wait_until_up

ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "ALFWORLD_DATA"} | {
    "OMP_NUM_THREADS": "1"
}
SETTINGS = ("--preset", "smoke", "--set", "prm.epochs=8", "--set", "prm.batch_tokens=800")


def room(n: int, opened: str) -> list[dict[str, str]]:
    doors = "a red door and a blue one" if n % 2 else "a blue door and a red one"
    return [
        {"role": "user", "content": f"You are in room {n}. You see {doors}."},
        {"role": "assistant", "content": "look around"},
        {"role": "user", "content": "Nothing happens."},
        {"role": "assistant", "content": f"open the {opened} door"},
        {"role": "user", "content": "The door is open."},
    ]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In each of sixty rooms four doors are opened; behind the red one is the prize."""
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("log") / "chats.jsonl"
    with path.open("w") as file:
        for k in range(240):
            opened = rng.choice(["red", "blue"])
            chat = {"messages": room(k // 4, opened), "reward": float(opened == "red")}
            file.write(json.dumps(chat) + "\n")
    return path


def fit(log: Path, run: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "agentprm.cli", "prm", "fit", str(log), "--run", str(run)]
    command += ["--model", "tiny", *flags]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def run(log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run") / "run"
    done = fit(log, run, *SETTINGS)
    assert done.returncode == 0, done.stderr
    assert "240 chats of 60 tasks" in done.stderr
    assert f"agentprm up --run {run}" in done.stderr
    assert "held-out tasks" in done.stdout
    return run


@contextmanager
def served(run: Path) -> Iterator[str]:
    """The address of the PRM of `agentprm up --run RUN`."""
    port = free_port()
    command = [sys.executable, "-m", "agentprm.cli", "up", "--run", str(run), "--port", str(port)]
    process = subprocess.Popen(command, env=ENVIRONMENT)
    url = f"http://127.0.0.1:{port + 2}"
    try:
        wait_until_up(process, url)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def test_what_it_learned_is_measured_on_tasks_it_has_not_seen(run: Path) -> None:
    written = orjson.loads((run / "checkpoints" / "prm" / "0" / METADATA).read_bytes())
    metrics, data = written["metrics"], written["data"]
    # Of the turns before the doors nobody can tell.
    assert metrics["val_auc"] > 0.8
    assert metrics["val_explained_variance"] > 0.4
    assert written["template_hash"] is None
    assert (written["gamma"], written["objective"]) == (0.95, "absolute")
    assert data["splits"] == []
    assert data["training"]["games"] + data["validation"]["games"] == 60
    assert data["training"]["episodes"] + data["validation"]["episodes"] == 240
    assert not set(written["training_games"]) & set(written["validation_games"])
    assert written["calibration"]["games"] == data["validation"]["games"]
    assert any(line["stage"] == "q_0" and "loss" in line for line in read_metrics(run))


def test_served_it_tells_good_actions_from_bad_ones(run: Path) -> None:
    with served(run) as url, PRMClient(url) as prm:
        rooms = range(100, 120)  # none of them is in the log
        scored = [
            [prm.score_messages(room(n, opened))[-1] for n in rooms] for opened in ("red", "blue")
        ]
        assert min(scored[0]) > max(scored[1])
        card = prm.model()
    assert card.version == "prm/0"
    assert card.checkpoints[0].data is not None
    assert card.checkpoints[0].calibration is not None


def test_a_finished_fit_is_not_done_again(log: Path, run: Path, tmp_path: Path) -> None:
    mark = run / "checkpoints" / "prm" / "0" / "STABLE"
    written = mark.stat().st_mtime_ns
    moved = tmp_path / "elsewhere.jsonl"
    moved.write_bytes(log.read_bytes())
    done = fit(moved, run, *SETTINGS)
    assert done.returncode == 0, done.stderr
    assert "done before" in done.stderr
    assert mark.stat().st_mtime_ns == written


def test_an_interrupted_fit_of_two_processes_begins_anew_and_finished_members_stay(
    log: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    settings = ["--preset", "smoke"]
    for setting in ("prm.members=2", "prm.epochs=2", "num_processes=2"):
        settings += ["--set", setting]
    command = [sys.executable, "-m", "agentprm.cli", "prm", "fit", str(log), "--run", str(run)]
    registry = Registry(run / "checkpoints")
    with subprocess.Popen([*command, "--model", "tiny", *settings], env=ENVIRONMENT) as process:
        deadline = time.monotonic() + 240
        while not registry.exists("prm/0.1") and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)  # what runs in the background may ignore SIGINT
    assert process.returncode == 130
    assert registry.versions("prm") == ["prm/0.1"]
    done = fit(log, run, *settings)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("done before") == 1
    assert registry.versions("prm") == ["prm/0", "prm/0.1", "prm/0.2"]
    assert registry.newest("prm") == "prm/0"
    assert not list(registry.root.glob("prm/.draft-*"))
    assert {"prm/0.1", "prm/0.2"} <= set(done.stdout.split())
    assert done.stderr.count("few steps teach little") == 1  # of the member that was fitted now
