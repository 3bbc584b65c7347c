"""What ends a training that can go on later is a message."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from structlog.testing import capture_logs

from agentprm.config import load_config
from agentprm.redis_server import RedisServer
from services.trainer import train
from services.trainer.loop import Loop
from services.trainer.settings import TrainerSettings

NOBODY = "http://127.0.0.1:9"
LARGE = 2**16


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
    """A limit on the size of a file stands for it."""
    monkeypatch.setattr(Loop, "train", lambda loop: write(loop.run / "file"))
    with RedisServer(tmp_path / "redis") as redis:
        settings = TrainerSettings(
            run=tmp_path, redis_url=redis.url, env_url=NOBODY, policy_url=NOBODY, prm_url=NOBODY
        )
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (LARGE // 2, before[1]))
        try:
            with capture_logs() as logs:
                assert train.train(settings, load_config("smoke")) == 1
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert logs[-1]["event"] == "training stopped; resume it when this is mended"
    assert "File too large" in logs[-1]["why"]
