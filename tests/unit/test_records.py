from collections.abc import Sequence
from pathlib import Path

import pytest

from agentprm import runs
from agentprm.files import DamagedFile
from agentprm.protocol import Episode, JobResult
from services.trainer.metrics import MetricsWriter
from services.trainer.rollouts import demonstrations
from services.trainer.rollouts import records as records_module
from services.trainer.rollouts.records import Records, job_id, stage_of
from tests.unit.trainer_episodes import episode


def result(job_id: str, worker: str = "w", played: Sequence[Episode] = ()) -> JobResult:
    return JobResult(job_id=job_id, worker=worker, seconds=1.0, episodes=list(played))


def test_stage_of_a_job() -> None:
    assert job_id("pi_0-rollouts", 7) == "pi_0-rollouts-0007"
    assert stage_of("pi_0-rollouts-0007") == "pi_0-rollouts"
    assert stage_of(job_id("pi_0-rollouts", 12345)) == "pi_0-rollouts"


@pytest.mark.parametrize("name", ["../evil-0000", "/evil-0000", "a/b-0000", ""])
def test_a_result_names_no_file_elsewhere(tmp_path: Path, name: str) -> None:
    """Whoever reaches Redis can say what job a result is of."""
    records = Records(tmp_path / "records")
    assert not records.append(result(name.replace("/evil", f"{tmp_path}/evil", 1)))
    assert list(tmp_path.rglob("*.jsonl")) == []


def test_a_job_is_counted_once_also_after_a_restart(tmp_path: Path) -> None:
    records = Records(tmp_path)
    assert records.append(result("demos-0001"))
    assert records.append(result("demos-0000"))
    assert not records.append(result("demos-0001", worker="thought dead"))
    again = Records(tmp_path)
    assert again.finished("demos") == {"demos-0000", "demos-0001"}
    assert not again.append(result("demos-0000"))
    assert [r.job_id for r in again.results("demos")] == ["demos-0000", "demos-0001"]


def test_what_two_trainers_recorded_twice_counts_once(tmp_path: Path) -> None:
    """The file is as they leave it who both were given the same unacknowledged results."""
    records = tmp_path / "records"
    for trainer in (Records(records), Records(records)):
        for k in (1, 0):
            trainer.append(result(f"demos-000{k}", played=[episode(["look"], [0.0], index=k)]))
    assert len((records / "demos.jsonl").read_bytes().splitlines()) == 4
    again = Records(records)
    assert [r.job_id for r in again.results("demos")] == ["demos-0000", "demos-0001"]
    assert len(again.episodes("demos")) == 2
    assert runs.read_episodes(tmp_path, "demos") == again.episodes("demos")
    assert len(demonstrations.read_episodes(records / "demos.jsonl")) == 2


def test_what_is_counted_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of a new file too, and a line that a killed process had not synced yet."""
    synced: list[str] = []
    monkeypatch.setattr(records_module, "sync", lambda path: synced.append(path.name))
    records = Records(tmp_path / "records")
    assert synced == [tmp_path.name]
    records.append(result("demos-0000"))
    records.append(result("demos-0001"))
    assert synced[1:] == ["records"]
    Records(tmp_path / "records")
    assert synced[2:] == [tmp_path.name, "demos.jsonl"]


def test_a_torn_last_line_is_dropped_and_its_job_missing(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.append(result("demos-0000"))
    records.append(result("demos-0001"))
    file = tmp_path / "demos.jsonl"
    file.write_bytes(file.read_bytes()[:-7])
    again = Records(tmp_path)
    assert again.finished("demos") == {"demos-0000"}
    assert again.append(result("demos-0001"))
    assert len(again.results("demos")) == 2


@pytest.mark.parametrize("damage", [b"\0" * 20, b"{}", b'{"job_id": "demos-0000"}'])
def test_a_damaged_line_is_told_with_its_file_and_number(tmp_path: Path, damage: bytes) -> None:
    directory = tmp_path / "records"
    records = Records(directory)
    file = directory / "demos.jsonl"
    records.append(result("demos-0001"))
    with file.open("ab") as appending:
        appending.write(damage + b"\n")
    for read in (
        lambda: Records(directory).results("demos"),
        lambda: runs.read_episodes(tmp_path, "demos"),
    ):
        with pytest.raises(DamagedFile, match=rf"{file}: line 2 cannot be read.*played again"):
            read()


def test_measurements_go_on_behind_a_torn_line(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as metrics:
        metrics.log("pi_0", 0, {"a": 1.0})
    file = tmp_path / "metrics.jsonl"
    with file.open("ab") as torn:
        torn.write(b'{"time": 17')
    assert [line["a"] for line in runs.read_metrics(tmp_path)] == [1.0]
    with MetricsWriter(tmp_path) as metrics:
        metrics.log("pi_0", 1, {"a": 2.0})
    assert [line["a"] for line in runs.read_metrics(tmp_path)] == [1.0, 2.0]


def test_stages_are_apart(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.append(result("a-0000"))
    records.append(result("b-0000"))
    assert records.finished("a") == {"a-0000"}
    assert records.results("c") == []
