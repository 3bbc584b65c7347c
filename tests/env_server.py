"""The environment service as a process, and a data directory of tiny kitchens for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from agentprm.cli.ports import free_port
from agentprm.client import EnvClient
from tests.processes import wait_until_up
from tests.tiny_games import tiny_game

KITCHEN = "train/kitchen/trial"
WINNING = [
    "go to stoveburner 1",
    "take pot 1 from stoveburner 1",
    "go to cabinet 1",
    "open cabinet 1",
    "move pot 1 to cabinet 1",
]
"""What wins the kitchen's game."""


def write_kitchen(data: Path) -> None:
    """A data directory with one game, `KITCHEN`."""
    trial = data / "json_2.1.1" / KITCHEN
    trial.mkdir(parents=True)
    (trial / "game.tw-pddl").write_text(json.dumps(tiny_game()))
    (trial / "traj_data.json").write_text('{"task_type": "pick_and_place_simple"}')


class EnvServer:
    """`python -m services.env` on a free port."""

    def __init__(self, *flags: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "services.env", "--port", str(port), *flags],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        wait_until_up(self.process, self.url)
        self.client = EnvClient(self.url, deadline=60)

    def stop(self) -> int:
        self.client.close()
        self.process.terminate()
        return self.process.wait(30)

    def workers(self) -> list[int]:
        """The processes that play: children of the fork server, which is a child of the server."""
        return [w for child in _children(self.process.pid) for w in _children(child)]


def _children(pid: int) -> list[int]:
    threads = Path(f"/proc/{pid}/task").iterdir()
    return [int(c) for t in threads for c in (t / "children").read_text().split()]
