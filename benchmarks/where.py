"""Where the time of a run goes: seconds of the processors by operation, over all its processes.

    python -m benchmarks.where -- agentprm train --preset smoke --games DIR

py-spy looks at every thread of every process of the command, `--rate` times a second, and counts
those that run. What they wait for is not counted: `wall x cores` less the sum is what stood idle.
Threads that could run but have to share a core are counted, so a busy machine adds to the sums.
Redis is no Python process: its seconds are those that the kernel counts.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import orjson
import psutil
import typer
from rich.console import Console
from rich.table import Table

OPERATIONS: Sequence[tuple[str, str]] = (
    ("imports", r"<frozen importlib"),
    ("SFT", r"\(services/trainer/fits/sft\.py"),
    ("PRM", r"\(services/trainer/fits/prm\.py"),
    ("DPO", r"\(services/trainer/fits/dpo\.py"),
    ("prefill", r"_prefill \(services/policy/"),
    ("decode", r"_decode \(services/policy/"),
    ("commands of a policy, scored", r"score \(services/policy/engine/"),
    ("actions by the PRM, scored", r"\(services/prm/(scorer|planning|model|batching)"),
    ("environment", r"\(services/env/"),
    ("prompts, tokens, draws", r"\((services/policy/|agentprm/(prompts|encoding|rendering))"),
    ("Redis clients and records", r"\((redis/|agentprm/queue/|services/trainer/rollouts/records)"),
    ("JSON", r"\((pydantic|agentprm/protocol|fastapi/(routing|encoders))"),
    ("HTTP", r"\((uvicorn|starlette|fastapi|httpx|httpcore|h11|anyio|asyncio|agentprm/service)"),
)
"""The first of these whose pattern is found in a stack is what the thread is doing."""

WAITS = re.compile(r"(wait|_worker) \((threading|concurrent/futures/thread)\.py:\d+\)$")
"""py-spy takes threads for running that wait for each other."""

OTHER = "anything else"
REDIS = "Redis server"

app = typer.Typer(pretty_exceptions_enable=False)


def operation(stack: str) -> str:
    """What a thread with this stack does; `stack` is a line of py-spy's, without its count."""
    return next((name for name, frame in OPERATIONS if re.search(frame, stack)), OTHER)


def seconds_by_operation(lines: Iterable[str], rate: float) -> dict[str, float]:
    """The seconds that py-spy's raw lines, `frame;frame;... count`, amount to."""
    seconds: dict[str, float] = defaultdict(float)
    for line in lines:
        stack, _, count = line.rstrip().rpartition(" ")
        if not WAITS.search(stack):
            seconds[operation(stack)] += int(count) / rate
    return seconds


def _watch_redis(root: int, done: threading.Event, found: dict[int, float]) -> None:
    """Keep the processor seconds of each redis-server below process `root`."""
    while not done.wait(1):
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(root).children(recursive=True):
                if "redis-server" in process.name():
                    times = process.cpu_times()
                    found[process.pid] = times.user + times.system


@app.command(help=__doc__)
def main(
    command: Annotated[list[str], typer.Argument(help="the command, behind --")],
    rate: Annotated[int, typer.Option(help="samples a second")] = 20,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Run `command` and print the table."""
    if not shutil.which("py-spy"):
        sys.exit("py-spy is not there: pip install py-spy")
    redis: dict[int, float] = {}
    done = threading.Event()
    with tempfile.TemporaryDirectory() as scratch:
        raw = Path(scratch) / "stacks"
        spy = ["py-spy", "record", "--subprocesses", "--rate", str(rate), "--format", "raw"]
        started = time.perf_counter()
        with subprocess.Popen([*spy, "--output", str(raw), "--", *command]) as process:
            watch = threading.Thread(target=_watch_redis, args=(process.pid, done, redis))
            watch.start()
            try:
                code = process.wait()
            finally:
                done.set()
                watch.join()
        wall = time.perf_counter() - started
        if code or not raw.is_file():
            sys.exit(f"py-spy or the command ended with {code}")
        with raw.open() as lines:
            seconds = seconds_by_operation(lines, rate)
    seconds[REDIS] = sum(redis.values())
    cores = len(os.sched_getaffinity(0))
    if as_json:
        print(orjson.dumps({"wall": wall, "cores": cores, "seconds": seconds}).decode())
        return
    total = sum(seconds.values())
    table = Table("operation", "seconds", "of the sum")
    for name, value in sorted(seconds.items(), key=lambda item: -item[1]):
        table.add_row(name, f"{value:.1f}", f"{value / total:.1%}")
    console = Console()
    console.print(table)
    console.print(f"{total:.0f} s in {wall:.0f} s of wall time on {cores} cores")


if __name__ == "__main__":
    app()
