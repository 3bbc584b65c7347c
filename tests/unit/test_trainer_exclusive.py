"""A run directory has one trainer, whatever Redis it uses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agentprm.config import load_config
from agentprm.redis_server import RedisServer
from agentprm.registry import Registry
from services.trainer.exclusive import RunTaken, exclusive
from services.trainer.opening import open_run
from services.trainer.settings import TrainerSettings

_HOLD = """
import sys
from pathlib import Path
from services.trainer.exclusive import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_one_is_refused_and_told_of_the_first(tmp_path: Path) -> None:
    for _ in range(2):
        with exclusive(tmp_path):
            who = f"process {os.getpid()} on "
            with pytest.raises(RunTaken, match=who), exclusive(tmp_path):
                pass
            with pytest.raises(RunTaken, match="or stop it"), exclusive(tmp_path):
                pass


def test_one_that_is_killed_leaves_the_run_free(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(RunTaken, match=f"process {holder.pid} on "), exclusive(tmp_path):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with exclusive(tmp_path):
        pass


def test_who_takes_a_run_clears_away_what_killed_fits_left(tmp_path: Path) -> None:
    draft = tmp_path / "checkpoints" / "policy" / ".draft-killed"
    draft.mkdir(parents=True)
    nobody = "http://127.0.0.1:9"
    with RedisServer(tmp_path / "redis") as redis:
        settings = TrainerSettings(
            run=tmp_path, redis_url=redis.url, env_url=nobody, policy_url=nobody, prm_url=nobody
        )
        with open_run(settings):
            assert not draft.exists()


_SERVICES = [
    "--redis-url=redis://127.0.0.1:9",
    *(f"--{name}-url=http://127.0.0.1:9" for name in ("env", "policy", "prm")),
]


@pytest.mark.parametrize(
    ("module", "flags"),
    [
        ("services.trainer", _SERVICES),
        ("services.trainer.evaluate", _SERVICES),
        ("services.trainer.measure", [*_SERVICES, "--plan=plan.json"]),
        (
            "services.trainer.world.evaluate",
            ["--world=world/0", "--world-url=http://127.0.0.1:9", "--out=rows.json"],
        ),
        ("services.trainer.world.fit", ["--iteration=0"]),
    ],
)
def test_it_takes_the_run_before_it_touches_it(
    tmp_path: Path, module: str, flags: list[str]
) -> None:
    """Not even the torn line is cut off that may be half of one that the other writes."""
    (tmp_path / "config.json").write_text(load_config("smoke").model_dump_json())
    (tmp_path / "records").mkdir()
    records = tmp_path / "records" / "demonstrations.jsonl"
    records.write_text('{"job_id": "demonstr')
    argv = [sys.executable, "-m", module, "--run", str(tmp_path), *flags]
    with Registry(tmp_path / "checkpoints").write("policy/0") as directory:
        (directory / "config.json").write_text("{}")
    with exclusive(tmp_path):
        refused = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert refused.returncode == 1
    assert "two would count every result twice" in refused.stderr
    assert records.read_text() == '{"job_id": "demonstr'
