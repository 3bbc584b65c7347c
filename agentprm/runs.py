"""What a run directory tells without any service: its episodes, and what was measured."""

from __future__ import annotations

import fcntl
import re
from pathlib import Path
from typing import Any

import orjson

from agentprm.files import read_lines
from agentprm.protocol import Episode, JobResult

LOCK = "trainer.lock"
"""The file in a run directory that is locked by who works on the run; it says who that is."""

QUEUE_NAME_FILE = "queue-name"
"""The file in a run directory with its name in Redis, and the inode of the directory."""

STAGE_SECONDS = "stage_seconds"
"""The name of a stage's duration in `metrics.jsonl`."""

DEMONSTRATIONS = "demonstrations"
"""The stage in which the expert plays."""

MEND_RECORDS = "Take the line out: the command that wrote it has that job played again."

STAGE = re.compile(r"(?P<eval>eval-)?pi_(?P<pi>\d+)(-q_(?P<q>\d+))?(-(?P<what>[a-z]+))?")
"""What the name of a stage says that is of one π: see the functions below."""


def is_worked_on(run: Path) -> bool:
    """Whether a process trains or measures in `run` now."""
    if not (run / LOCK).exists():
        return False
    with (run / LOCK).open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def is_begun(run: Path) -> bool:
    """Whether anything has been, or is being, made with the settings of the run in `run`."""
    made = [run / "base", *(run / "records").glob("*"), *(run / "checkpoints").glob("*")]
    has_settings = (run / "config.json").exists()
    return has_settings and (any(path.exists() for path in made) or is_worked_on(run))


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`: `time`, `stage`, `step`, and numbers by name."""
    mend = "Take the line out: what was measured then is lost, nothing else."
    return list(read_lines(run / "metrics.jsonl", orjson.loads, mend))


def read_stage_seconds(run: Path) -> dict[str, float]:
    """Seconds by stage. Of one that was interrupted they are those since it was taken up again."""
    lines = (line for line in read_metrics(run) if STAGE_SECONDS in line)
    return {line["stage"]: line[STAGE_SECONDS] for line in lines}


def short_name(version: str) -> str:
    """A checkpoint as stages and tables name it: `pi_1` is `policy/1`, `q_0` is `prm/0`."""
    return version.replace("policy/", "pi_").replace("prm/", "q_")


def checkpoint_name(directory: Path) -> str:
    """The short name of a checkpoint by its directory; one in no registry goes by its own name."""
    *_, kind, name = ("", *directory.resolve().parts)
    registered = kind in ("policy", "prm") and re.fullmatch(r"\d+(\.\d+)?", name)
    return short_name(f"{kind}/{name}") if registered else name


def rollouts_stage(i: int) -> str:
    """The stage in which π_i plays train games: `pi_1-rollouts`."""
    return f"pi_{i}-rollouts"


def evaluation_stage(policy: str, chooser: str | None = None) -> str:
    """The stage in which `pi_1` is evaluated: alone, or by what chooses among its samples."""
    return f"eval-{policy}" if chooser is None else f"eval-{policy}-{chooser}"


def read_episodes(run: Path, stage: str) -> list[Episode]:
    """The episodes recorded of a stage, such as `eval-pi_1`, in the order of their jobs."""
    results = read_results_of_jobs(run / "records" / f"{stage}.jsonl")
    return [episode for result in results for episode in result.episodes]


def read_results_of_jobs(path: Path) -> list[JobResult]:
    """The results that the file of a stage's records holds, in the order of their jobs.

    Of a job that is there twice the first counts: two trainers at once may have written the file.
    """
    results: dict[str, JobResult] = {}
    for result in read_lines(path, JobResult.model_validate_json, MEND_RECORDS):
        results.setdefault(result.job_id, result)
    return [results[job_id] for job_id in sorted(results, key=lambda name: (len(name), name))]
