"""What a swap of the PRM costs the clients of a service that is busy.

    python -m benchmarks.swap [--swaps 50] [--clients 8] [--json]

Two 0.9 M Llamas with random weights take turns. Latency is what a client sees for scoring a short
episode; "beside" is that of requests while a checkpoint is loaded, "alone" that of the rest.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

import httpx
import orjson
from rich.console import Console
from rich.table import Table

from agentprm.protocol import Loaded, ScoreRequest
from agentprm.registry import Registry
from benchmarks.conditions import conditions_now
from benchmarks.serving import served
from tests.scorers import episode, tiny_scorer

PAUSE_BETWEEN = 0.5
"""Seconds between two swaps, in which latency without one is measured."""


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Milliseconds."""
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {
        "p50": 1000 * cuts[49],
        "p95": 1000 * cuts[94],
        "p99": 1000 * cuts[98],
        "max": 1000 * max(seconds),
    }


async def measure(url: str, swaps: int, clients: int) -> dict[str, dict[str, float]]:
    """Swap `swaps` times while `clients` clients ask one thing after the other."""
    body = ScoreRequest(transcripts=[episode(4)]).model_dump_json().encode()
    alone: list[float] = []
    beside: list[float] = []
    loads: list[Loaded] = []
    loading = stopped = False

    async def client(http: httpx.AsyncClient) -> None:
        while not stopped:
            began, started = loading, time.perf_counter()
            answer = await http.post(f"{url}/v1/score", content=body)
            answer.raise_for_status()
            (beside if began or loading else alone).append(time.perf_counter() - started)

    headers = {"content-type": "application/json"}
    async with httpx.AsyncClient(timeout=60, headers=headers) as http:
        await http.post(f"{url}/v1/checkpoints/load", json={"version": "prm/1"})
        tasks = [asyncio.create_task(client(http)) for _ in range(clients)]
        for k in range(swaps):
            await asyncio.sleep(PAUSE_BETWEEN)
            loading = True
            other = {"version": f"prm/{k % 2}"}
            answer = await http.post(f"{url}/v1/checkpoints/load", json=other)
            loads.append(Loaded.model_validate_json(answer.raise_for_status().content))
            loading = False
        stopped = True
        await asyncio.gather(*tasks)
    return {
        "pause": percentiles([load.pause_seconds for load in loads]),
        "load": percentiles([load.load_seconds for load in loads]),
        "latency alone": percentiles(alone),
        "latency beside": percentiles(beside),
    }


def main() -> None:
    """Print conditions and figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--swaps", type=int, default=50)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    options = parser.parse_args()
    known: dict[str, object] = {
        "model": "Llama, 0.9 M parameters, float32, random weights",
        "swaps": options.swaps,
        "clients": options.clients,
        **conditions_now(),
    }
    with tempfile.TemporaryDirectory() as folder:
        registry = Registry(Path(folder))
        for k in range(2):
            with registry.write(f"prm/{k}") as draft:
                tiny_scorer(draft, k, width=128, layers=4, heads=4, feedforward=384)
        with served("prm", "--registry", registry.root, "--device", "cpu") as url:
            figures = asyncio.run(measure(url, options.swaps, options.clients))
    if options.json:
        result = {"conditions": known, "figures": figures}
        sys.stdout.write(orjson.dumps(result).decode() + "\n")
        return
    table = Table("ms", "p50", "p95", "p99", "max", title="Swapping the PRM")
    for name, cuts in figures.items():
        table.add_row(name, *(f"{cuts[cut]:,.3f}" for cut in ("p50", "p95", "p99", "max")))
    console = Console(width=100)
    for name, value in known.items():
        console.print(f"{name}: {value}", highlight=False)
    console.print(table)


if __name__ == "__main__":
    main()
