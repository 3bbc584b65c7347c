"""Processes end with who started them, and do not begin after it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agentprm.cli.ports import free_port
from agentprm.cli.processes import Machine, ProcessFailed
from agentprm.lineage import bound
from tests.unit.test_redis_server import gone


def test_a_bound_process_is_the_program_itself() -> None:
    code = "import os, sys; print(os.getpid(), *sys.argv[1:])"
    argv = bound([sys.executable, "-c", code, "-a", "b c"])
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.communicate(timeout=20)[0].split() == [str(process.pid), "-a", "b", "c"]


def test_where_the_parent_is_gone_the_program_is_not_run(tmp_path: Path) -> None:
    """Started by another than the process it is bound to, as where that one has ended."""
    argv = bound(["touch", str(tmp_path / "file")])
    other = "import subprocess, sys; sys.exit(subprocess.run(sys.argv[1:]).returncode)"
    answer = subprocess.run(
        [sys.executable, "-c", other, *argv], capture_output=True, timeout=20, text=True
    )
    assert (answer.returncode, answer.stderr) == (1, "the parent is gone\n")
    assert not (tmp_path / "file").exists()


def test_an_unknown_program_is_told_before_anything_is_started(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        bound(["no-such-program"])
    with Machine(tmp_path) as machine, pytest.raises(ProcessFailed, match="no-such-program"):
        machine.start_command("sglang", ["no-such-program"], port=free_port())


def test_the_processes_of_a_machine_end_with_it(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from agentprm.cli.ports import free_port\n"
        "from agentprm.cli.processes import Machine\n"
        "machine = Machine(Path(sys.argv[1]))\n"
        "machine.start_command('sleeper', ['sleep', '60'], port=free_port())\n"
        "print('pid', machine._processes['sleeper'].handle.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    with parent, parent.stdout as lines:
        pid = next(int(line.split()[1]) for line in lines if line.startswith("pid "))
        os.kill(parent.pid, signal.SIGKILL)
    assert gone(pid)
