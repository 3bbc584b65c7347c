"""What happened, durably: job results as JSON lines, a file a stage, each job counted once.

A line is written and synced before its stream entry is acknowledged. A result that arrives again
(its worker was thought dead, or an acknowledgement was lost) is recognised by its job id.
"""

from __future__ import annotations

import os
from pathlib import Path

import orjson
import structlog

from agentprm.files import drop_torn_line, read_lines, sync
from agentprm.protocol import Episode, JobResult
from agentprm.runs import MEND_RECORDS, read_results_of_jobs, rollouts_stage

log = structlog.get_logger()


def job_id(stage: str, k: int) -> str:
    """`pi_0-rollouts-0007`, job 7 of `pi_0-rollouts`."""
    return f"{stage}-{k:04d}"


def stage_of(job_id: str) -> str:
    """`pi_0-rollouts` of `pi_0-rollouts-0007`."""
    return job_id.rpartition("-")[0]


class Records:
    """The job results below `directory`.

    Raises:
        DamagedFile: a line of them cannot be read, now or when it is asked for.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        sync(directory.parent)
        self._known: dict[str, set[str]] = {}
        for path in directory.glob("*.jsonl"):
            drop_torn_line(path)  # its result was not acknowledged
            sync(path)  # the last one, whole, may be in memory alone
            jobs = read_lines(path, lambda line: str(orjson.loads(line)["job_id"]), MEND_RECORDS)
            self._known[path.stem] = set(jobs)

    def finished(self, stage: str) -> set[str]:
        """The ids of the jobs of `stage` that are recorded."""
        return self._known.get(stage, set())

    def append(self, result: JobResult) -> bool:
        """Record a result; False where its job is recorded already. Durable when it returns.

        So it is where its job's id is none of ours but a path: the stage in it names the file.
        """
        stage = stage_of(result.job_id)
        if not stage or Path(result.job_id).name != result.job_id:
            log.error("a result of no job passed over", job=result.job_id, worker=result.worker)
            return False
        known = self._known.setdefault(stage, set())
        if result.job_id in known:
            log.info("duplicate result passed over", job=result.job_id, worker=result.worker)
            return False
        path = self._path(stage)
        is_new = not path.exists()
        with path.open("ab") as file:
            file.write(
                orjson.dumps(result.model_dump(mode="json"), option=orjson.OPT_APPEND_NEWLINE)
            )
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            sync(self.directory)
        known.add(result.job_id)
        return True

    def results(self, stage: str) -> list[JobResult]:
        """The results of `stage`, in the order of their job ids, one a job."""
        return read_results_of_jobs(self._path(stage))

    def episodes(self, stage: str) -> list[Episode]:
        """The episodes of `stage`, in the order of their ids, whoever played them when."""
        return [episode for result in self.results(stage) for episode in result.episodes]

    def rollouts(self, *iterations: int) -> list[Episode]:
        """The episodes in which π_i played train games, for each i of `iterations`."""
        return [episode for i in iterations for episode in self.episodes(rollouts_stage(i))]

    def _path(self, stage: str) -> Path:
        return self.directory / f"{stage}.jsonl"
