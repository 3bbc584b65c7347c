"""Real SGLang servers on the CPU, where the machine has what starts them."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from agentprm.cli.ports import free_port
from agentprm.models.sglang import SGLangClient
from tests.turns import in_turn

_SCRIPT = Path(__file__).parents[2] / "shared" / "sglang" / "sglang-cpu"


def sglang_cpu() -> Path:
    """The script that starts a server; tests that need it are skipped without it."""
    if not _SCRIPT.exists():
        pytest.skip(f"no SGLang for the CPU: {_SCRIPT} is not there")
    with in_turn("sglang"):
        subprocess.run([_SCRIPT, "setup"], check=True, stdout=subprocess.DEVNULL)
    return _SCRIPT


class SGLangServer:
    """A server on a free port, which it keeps when it is started again. Takes half a minute."""

    def __init__(self, model: Path, *flags: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._argv = [str(sglang_cpu()), "serve", str(model), str(self.port), *flags]
        self._log = Path(f"{model}.{self.port}.log")
        self.start()

    def start(self) -> None:
        """Does not wait: several can start side by side."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._argv, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"}
            )

    def wait(self) -> SGLangServer:
        """Until it takes requests."""
        with SGLangClient(self.url, retry_seconds=0) as client:
            deadline = time.monotonic() + 300
            while not client.ready():
                assert self.process.poll() is None, self._log.read_text()[-4000:]
                assert time.monotonic() < deadline, self._log.read_text()[-4000:]
                time.sleep(0.5)
        return self

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)
