"""What ends a training that can go on later is a message."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from structlog.testing import capture_logs

from agentprm.config import load_config
from agentprm.redis_server import RedisServer
from agentprm.registry import NoCheckpointError
from services.trainer import train
from services.trainer.loop import Loop
from services.trainer.settings import TrainerSettings
from tests.processes import service
from tests.small_disk import small_disk

NOBODY = "http://127.0.0.1:9"
LARGE = 2**16
STOPPED = "training stopped; resume it when this is mended"


@pytest.mark.parametrize(
    "write",
    [
        lambda file: file.write_bytes(bytes(LARGE)),
        lambda file: save_file({"weight": torch.zeros(LARGE)}, file),
    ],
)
def test_a_full_disk_is_told_and_the_run_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], None]
) -> None:
    monkeypatch.setattr(Loop, "train", lambda loop: write(loop.run / "file"))
    with RedisServer(tmp_path / "redis") as redis:
        settings = TrainerSettings(
            run=tmp_path, redis_url=redis.url, env_url=NOBODY, policy_url=NOBODY, prm_url=NOBODY
        )
        with small_disk(LARGE // 2), capture_logs() as logs:
            assert train.train(settings, load_config("smoke")) == 1
    assert logs[-1]["event"] == STOPPED
    assert "File too large" in logs[-1]["why"]


def test_a_checkpoint_or_a_prompt_that_is_missing_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(loop: Loop) -> None:
        raise NoCheckpointError("no checkpoint policy/0")

    monkeypatch.setattr(Loop, "train", begin)
    config = load_config("smoke")
    with RedisServer(tmp_path / "redis") as redis, capture_logs() as logs:
        settings = TrainerSettings(
            run=tmp_path, redis_url=redis.url, env_url=NOBODY, policy_url=NOBODY, prm_url=NOBODY
        )
        assert train.train(settings, config) == 1
        assert train.train(settings, config.model_copy(update={"prompt": "gone.j2"})) == 1
    assert [log["event"] for log in logs if log["log_level"] == "error"] == [STOPPED] * 2
    assert "policy/0" in logs[-2]["why"]
    assert "no prompt template 'gone.j2'" in logs[-1]["why"]


def test_what_has_nothing_to_evaluate_on_is_told_before_anything_is_played(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "unmeasured.py").write_text(
        "from examples.sorting import Sorting\n\n\n"
        "class Unmeasured(Sorting):\n"
        "    @staticmethod\n"
        "    def games():\n"
        "        return [game for game in Sorting.games() if game.split == 'train']\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}")
    with (
        RedisServer(tmp_path / "redis") as redis,
        service("env", "--environment", "unmeasured:Unmeasured") as (_, url),
        capture_logs() as logs,
    ):
        settings = TrainerSettings(
            run=tmp_path, redis_url=redis.url, env_url=url, policy_url=NOBODY, prm_url=NOBODY
        )
        assert train.train(settings, load_config("smoke")) == 1
    assert "no games in the split valid_seen" in logs[-1]["why"]
    assert not (tmp_path / "records" / "demonstrations.jsonl").exists()
