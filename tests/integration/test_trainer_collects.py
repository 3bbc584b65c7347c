"""The trainer's end of the queue, over a real Redis; the test plays the rollout worker."""

from __future__ import annotations

import io
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import redis
from rich.console import Console

from agentprm.client import EnvClient, PRMClient
from agentprm.config import Preferences
from agentprm.protocol import (
    Action,
    Episode,
    Game,
    JobResult,
    Preference,
    PreferenceJob,
    Provenance,
    RolloutJob,
    Split,
    State,
    Turn,
)
from agentprm.queue import Queue, QueueSettings
from agentprm.redis_server import RedisServer
from services.trainer.progress import Progress
from services.trainer.rollouts import inbox as inboxes
from services.trainer.rollouts.collect import Collector, Services
from services.trainer.rollouts.fleet import Fleet
from services.trainer.rollouts.inbox import Inbox, JobsFailed
from services.trainer.rollouts.online import (
    GroupSource,
    OnlineSource,
    PreferenceSource,
    candidate_jobs,
    sample_states,
)
from services.trainer.rollouts.records import Records
from tests.unit.trainer_collector import Served
from tests.unit.trainer_episodes import episode, group

Job = RolloutJob | PreferenceJob


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    with RedisServer(tmp_path / "redis") as server:
        yield server.url


_ONCE = QueueSettings(max_deliveries=1)


@contextmanager
def worker(
    url: str,
    play: Callable[[Job], JobResult | None],
    settings: QueueSettings = _ONCE,
) -> Iterator[None]:
    """Answers jobs until the block ends; None fails the job."""
    stopped = threading.Event()

    def work() -> None:
        with Queue(url, "run", name="test", settings=settings, stopped=stopped) as queue:
            while not stopped.is_set():
                entry = queue.take(timeout=1.0)
                if entry is None:
                    continue
                result = play(entry.record)
                if result is None:
                    queue.fail(entry, "it cannot be played")
                else:
                    queue.finish(entry, result)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def preference(job: PreferenceJob, k: int, version: str) -> Preference:
    return Preference(
        id=f"{job.id}/{k}",
        job_id=job.id,
        attempt=job.attempt,
        state=job.states[k],
        chosen=Action(command="good"),
        rejected=Action(command="bad"),
        chosen_q=0.9,
        rejected_q=0.1,
        policy_version=version,
        prm_version=job.prm_version,
        template_hash="0",
    )


def all_preferred(job: Job) -> JobResult:
    """A preference of π_0 in each state of the job."""
    assert isinstance(job, PreferenceJob)
    pairs = [preference(job, k, "policy/0") for k in range(len(job.states))]
    return JobResult(job_id=job.id, worker="test", seconds=0, preferences=pairs)


def source(
    queue: Queue,
    records: Records,
    attempt: str,
    max_age: int,
    margin: float = 0.05,
    kind: type[OnlineSource[Any]] = PreferenceSource,
    *,
    states_per_job: int = 2,
    ahead: int = 1,
    anchors: float = 0.0,
) -> OnlineSource[Any]:
    plan = Preferences(
        pairs=8,
        states_per_job=states_per_job,
        ahead=ahead,
        max_age=max_age,
        margin=margin,
        anchors=anchors,
    )
    return kind(
        queue,
        Inbox(queue, records),
        plan,
        [State(task="t", observation=str(k)) for k in range(8)],
        stage="pi_1-preferences",
        attempt=attempt,
        policy_version="policy/0",
        prm_version="prm/0",
        seed=0,
    )


def test_preferences_too_old_are_dropped_and_counted(redis_url: str, tmp_path: Path) -> None:
    """The worker goes on sampling from π_0 while the policy moves on after each job."""

    with Queue(redis_url, "run") as queue, worker(redis_url, all_preferred):
        preferences = source(queue, Records(tmp_path / "records"), "a", max_age=1)
        seen = []
        for k, found in enumerate(preferences):
            seen.append(found.state.observation)
            if k % 2:
                preferences.updated(f"online/1.{k}")
    assert seen == ["0", "1", "2", "3"]  # ages 0 and 1; those of ages 2 and 3 are too old
    assert (preferences.used, preferences.stale) == (4, 4)


def test_workers_play_while_the_trainer_trains(redis_url: str, tmp_path: Path) -> None:
    """Beside the job whose preferences are used, as many are under way as may be."""
    asked: list[str] = []

    def play(job: Job) -> JobResult:
        asked.append(job.id)
        return all_preferred(job)

    with Queue(redis_url, "run") as queue, worker(redis_url, play):
        preferences = source(queue, Records(tmp_path / "records"), "a", max_age=9)
        for k, _ in enumerate(preferences):
            begun, patience = k // 2 + 1, time.monotonic() + 20
            while len(asked) < min(begun + 1, 4) and time.monotonic() < patience:
                time.sleep(0.02)
            assert len(asked) == min(begun + 1, 4)


def test_samples_come_in_the_order_of_their_jobs_whoever_answers_first(
    redis_url: str, tmp_path: Path
) -> None:
    """Else the same settings would give another fit each time."""
    later = threading.Event()

    def play(job: Job) -> JobResult:
        if job.id.endswith("0000"):
            assert later.wait(20)
        return all_preferred(job)

    def play_later(job: Job) -> JobResult:
        later.set()
        return all_preferred(job)

    with Queue(redis_url, "run") as queue:
        records = Records(tmp_path / "records")
        preferences = source(queue, records, "a", max_age=9, ahead=4)
        with worker(redis_url, play):
            asked = iter(preferences)
            with ThreadPoolExecutor(1) as pool:
                first = pool.submit(lambda: next(asked))
                while queue.held(60) == 0:
                    time.sleep(0.02)
                with worker(redis_url, play_later):
                    seen = [first.result(timeout=30), *asked]
    assert [found.state.observation for found in seen] == [str(k) for k in range(8)]


def test_more_jobs_ahead_than_the_streams_hold_do_not_stop_it(
    redis_url: str, tmp_path: Path
) -> None:
    """A worker cannot give its result while there are others, which the trainer alone takes."""

    small = QueueSettings(max_jobs=1, max_preferences=1, patience=20)
    with Queue(redis_url, "run", settings=small) as queue, worker(redis_url, all_preferred, small):
        records = Records(tmp_path / "records")
        preferences = source(queue, records, "a", max_age=9, states_per_job=1, ahead=8)
        assert len(list(preferences)) == 8


def test_the_time_of_training_is_no_silence_of_the_workers(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step takes longer than may be waited, and the next result is not there yet after it."""
    monkeypatch.setattr(Queue, "held", lambda *_: 0)  # else it would wait in any case
    monkeypatch.setattr("services.trainer.rollouts.inbox._STALLED", 2.0)
    monkeypatch.setattr("services.trainer.rollouts.inbox._WAIT", 0.1)
    trained = threading.Event()

    def play(job: Job) -> JobResult:
        if not job.id.endswith("0000"):
            trained.wait(20)
            time.sleep(0.3)
        return all_preferred(job)

    with Queue(redis_url, "run") as queue, worker(redis_url, play):
        records = Records(tmp_path / "records")
        preferences = iter(source(queue, records, "a", max_age=9, states_per_job=4))
        seen = [next(preferences) for _ in range(4)]
        time.sleep(2.1)
        trained.set()
        seen += preferences
    assert len(seen) == 8


def test_differences_below_the_margin_are_dropped_and_counted(
    redis_url: str, tmp_path: Path
) -> None:
    """Every pair of the test's worker differs by 0.8."""

    with Queue(redis_url, "run") as queue, worker(redis_url, all_preferred):
        records = Records(tmp_path / "records")
        strict = source(queue, records, "a", max_age=9, margin=0.81)
        assert list(strict) == []
        assert (strict.used, strict.indifferent) == (0, 8)
        assert len(list(source(queue, records, "b", max_age=9, margin=0.79))) == 8


def test_groups_come_as_preferences_do_and_those_all_alike_are_dropped(
    redis_url: str, tmp_path: Path
) -> None:
    """State k is given candidates that differ by k / 10 in Q."""

    def play(job: Job) -> JobResult:
        assert isinstance(job, PreferenceJob)
        assert job.groups
        groups = [
            group(state, [(Action(command="a"), 0.1, 1), (Action(command="b"), q, 3)])
            for state in job.states
            for q in [0.1 + int(state.observation) / 10]
        ]
        return JobResult(job_id=job.id, worker="test", seconds=0, groups=groups)

    with Queue(redis_url, "run") as queue, worker(redis_url, play):
        records = Records(tmp_path / "records")
        for attempt, margin, kept in (("a", 0.0, "1234567"), ("b", 0.25, "34567")):
            groups = source(queue, records, attempt, 9, margin, GroupSource)
            assert "".join(found.state.observation for found in groups) == kept
            assert (groups.used, groups.indifferent) == (len(kept), 8 - len(kept))


def test_candidates_are_collected_once_whatever_stops_the_trainer(
    redis_url: str, tmp_path: Path
) -> None:
    """Beforehand, as rejection sampling has it: two of four jobs are recorded already."""
    asked: list[str] = []

    def play(job: Job) -> JobResult:
        assert isinstance(job, PreferenceJob)
        asked.append(job.id)
        groups = [group(state, [(Action(command="a"), 0.5, 4)]) for state in job.states]
        return JobResult(job_id=job.id, worker="test", seconds=0, groups=groups)

    states = [State(task="t", observation=str(k)) for k in range(8)]
    plan = Preferences(pairs=8, states_per_job=2)
    jobs = candidate_jobs(plan, states, stage="pi_1-candidates", prm_version="prm/0", seed=0)
    records = Records(tmp_path / "records")
    for job in jobs[:2]:
        records.append(play(job))
    asked.clear()
    with Queue(redis_url, "run") as queue, worker(redis_url, play):
        nobody = "http://127.0.0.1:9"
        services = Services(
            env=EnvClient(nobody), policy=Fleet([]), prm=Fleet([PRMClient(nobody)]), queue=queue
        )
        quiet = Progress(Console(quiet=True))
        collector = Collector(services, records, quiet, seed=0, batch=8, max_steps=30)
        collector.serve = lambda **_: None  # type: ignore[method-assign]
        collector.collect("pi_1-candidates", jobs, "candidates")
        collector.collect("pi_1-candidates", jobs, "candidates")
    assert sorted(asked) == [job.id for job in jobs[2:]]
    groups = [g for result in records.results("pi_1-candidates") for g in result.groups]
    assert [g.state for g in groups] == states


def test_anchors_are_at_most_so_many_for_each_pair(redis_url: str, tmp_path: Path) -> None:
    """Of each job's four states the first gives a pair, the others are ties."""

    def play(job: Job) -> JobResult:
        assert isinstance(job, PreferenceJob)
        assert (job.ties, job.margin) == (True, 0.05)
        found = [preference(job, k, "policy/0") for k in range(len(job.states))]
        ties = [tie.model_copy(update={"rejected": tie.chosen}) for tie in found[1:]]
        return JobResult(job_id=job.id, worker="test", seconds=0, preferences=[found[0], *ties])

    with Queue(redis_url, "run") as queue, worker(redis_url, play):
        preferences = source(
            queue, Records(tmp_path / "records"), "a", max_age=9, states_per_job=4, anchors=1.5
        )
        seen = [found.chosen == found.rejected for found in preferences]
    assert seen == [False, True, True, False, True]  # of 1.5 and 3 that may be
    assert (preferences.used, preferences.anchors, preferences.indifferent) == (2, 3, 3)


def test_what_an_earlier_fit_asked_for_is_passed_over(redis_url: str, tmp_path: Path) -> None:
    """A trainer was killed with one job waiting and the result of another on its way."""
    old = PreferenceJob(
        id="pi_1-preferences-old-0000",
        attempt="old",
        states=[State(task="t", observation="old")],
        seed=0,
        n=2,
        prm_version="prm/0",
    )
    with Queue(redis_url, "run") as queue:
        queue.publish(old)
        with worker(redis_url, all_preferred):
            while queue.lengths()["preferences"] == 0:
                time.sleep(0.05)
        queue.publish(old.model_copy(update={"id": "pi_1-preferences-old-0001"}))
        queue.purge(keep_attempt="new")
        preferences = source(queue, Records(tmp_path / "records"), "new", max_age=9)
        with worker(redis_url, all_preferred):
            seen = [found.state.observation for found in preferences]
    assert sorted(seen) == [str(k) for k in range(8)]
    assert preferences.stale == 0


@pytest.mark.usefixtures("impatient")
def test_a_job_given_up_ends_the_wait_for_it_with_its_reason(
    redis_url: str, tmp_path: Path
) -> None:
    with Queue(redis_url, "run") as queue, worker(redis_url, lambda _: None):
        inbox = Inbox(queue, Records(tmp_path / "records"))
        inbox.expect()
        queue.publish(RolloutJob(id="demos-0000", games=["g"], seed=0))
        while not queue.dead():
            time.sleep(0.05)
        assert inbox.receive("episodes", {"demos-0001"}) == []
        with pytest.raises(JobsFailed, match=r"demos-0000 .* it cannot be played"):
            inbox.receive("episodes", {"demos-0000"})


def test_a_result_that_could_not_be_recorded_comes_again(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: JobResult) -> bool:
        raise OSError("no space left on device")

    def play(job: Job) -> JobResult:
        return JobResult(job_id=job.id, worker="test", seconds=0)

    records = Records(tmp_path)
    with Queue(redis_url, "run") as queue, worker(redis_url, play):
        with monkeypatch.context() as patch:
            patch.setattr(records, "append", full)
            collector = rollout_collector(queue, records)
            with pytest.raises(OSError, match="no space left"):
                collector.collect("r", rollouts(1), "a game")
        [again] = Inbox(queue, records).receive("episodes", {"r-0000"})
    assert again.job_id == "r-0000"
    assert records.finished("r") == {"r-0000"}


def test_the_policy_and_the_prm_of_the_jobs_are_served_before_they_are_played(
    redis_url: str, tmp_path: Path
) -> None:
    policy, prm = Served("policy/9"), Served("prm/9")
    served: list[tuple[str, str]] = []

    def play(job: Job) -> JobResult:
        served.append((policy.version, prm.version))
        return JobResult(job_id=job.id, worker="test", seconds=0)

    with Queue(redis_url, "run") as queue, worker(redis_url, play):
        services = Services(
            env=EnvClient("http://127.0.0.1:9"),
            policy=Fleet([cast("Any", policy)]),
            prm=Fleet([cast("Any", prm)]),
            queue=queue,
        )
        records, quiet = Records(tmp_path), Progress(Console(quiet=True))
        collector = Collector(services, records, quiet, seed=0, batch=1, max_steps=30)
        games = [episode([], []).game]
        jobs = collector.jobs("eval", games, policy="policy/1", prm="prm/0", best_of=2)
        collector.collect("eval", jobs, "a game")
    assert served == [("policy/1", "prm/0")]


def test_a_result_of_another_version_ends_the_wait_and_its_job_is_played_again(
    redis_url: str, tmp_path: Path
) -> None:
    seconds = [math.nan, 0.0]  # the first is null in JSON, which no result has there

    def play(job: Job) -> JobResult:
        return JobResult(job_id=job.id, worker="test", seconds=seconds.pop(0))

    with Queue(redis_url, "run") as queue, worker(redis_url, play):
        mine = rollout_collector(queue, Records(tmp_path))
        with pytest.raises(JobsFailed, match=r"r-0000 was given up: .* worker of another version"):
            mine.collect("r", rollouts(1), "a game")
        mine.collect("r", rollouts(1), "a game")  # as a trainer does that is started again
    assert mine.records.finished("r") == {"r-0000"}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inboxes, "_WAIT", 0.3)
    monkeypatch.setattr(inboxes, "_QUIET", 1.0)
    monkeypatch.setattr(inboxes, "_STALLED", 15.0)


def rollouts(count: int) -> list[RolloutJob]:
    return [RolloutJob(id=f"r-{k:04d}", games=["g"], seed=k, actor="expert") for k in range(count)]


def rollout_collector(queue: Queue, records: Records, console: Console | None = None) -> Collector:
    nobody = EnvClient("http://127.0.0.1:9")
    services = Services(env=nobody, policy=Fleet([]), prm=Fleet([]), queue=queue)
    progress = Progress(console or Console(quiet=True))
    return Collector(services, records, progress, seed=0, batch=1, max_steps=30)


def test_how_many_were_won_is_not_taken_for_a_rate(redis_url: str, tmp_path: Path) -> None:
    def play(job: Job) -> JobResult:
        won = episode(["look"], [1.0]).model_copy(update={"won": True})
        return JobResult(job_id=job.id, worker="test", seconds=0, episodes=[won])

    console = Console(file=io.StringIO(), record=True, width=200)
    with Queue(redis_url, "run") as queue, worker(redis_url, play):
        rollout_collector(queue, Records(tmp_path), console).collect("r", rollouts(2), "games")
    assert "episodes 2, won 2/2" in console.export_text()


@pytest.mark.usefixtures("impatient")
def test_jobs_whose_records_were_deleted_are_played_again(redis_url: str, tmp_path: Path) -> None:
    """Redis knows them all and has none; one more is being played, for longer than that takes."""
    asked: list[str] = []
    slow = "r-0004"

    def play(job: Job) -> JobResult:
        asked.append(job.id)
        if job.id == slow:
            time.sleep(4)
        return JobResult(job_id=job.id, worker="test", seconds=0)

    jobs = rollouts(5)
    with Queue(redis_url, "run") as queue, worker(redis_url, play), worker(redis_url, play):
        rollout_collector(queue, Records(tmp_path)).collect("r", jobs[:4], "four games")
        (tmp_path / "r.jsonl").unlink()
        records = Records(tmp_path)
        rollout_collector(queue, records).collect("r", jobs, "five games")
        assert records.finished("r") == {job.id for job in jobs}
        assert sorted(asked) == sorted([job.id for job in jobs[:4]] * 2 + [slow])
        assert queue.lengths() == {"jobs": 0, "episodes": 0, "preferences": 0, "dead": 0}


@pytest.mark.usefixtures("impatient")
def test_a_redis_that_comes_back_empty_gets_the_jobs_again(redis_url: str, tmp_path: Path) -> None:
    """Rollouts, and preferences in the middle of a fit."""
    asked: list[str] = []

    def play(job: Job) -> JobResult:
        asked.append(job.id)
        if len(asked) in (2, 7):
            with redis.Redis.from_url(redis_url) as client:
                client.flushall()
        if isinstance(job, RolloutJob):
            return JobResult(job_id=job.id, worker="test", seconds=0)
        pairs = [preference(job, k, "policy/0") for k in range(len(job.states))]
        return JobResult(job_id=job.id, worker="test", seconds=0, preferences=pairs)

    with Queue(redis_url, "run") as queue, worker(redis_url, play):
        records = Records(tmp_path / "records")
        rollout_collector(queue, records).collect("r", rollouts(4), "four games")
        assert len(records.finished("r")) == 4
        assert len(asked) in (5, 6)  # the second for nothing, and the first if it was not read yet
        del asked[5:]
        found = list(source(queue, records, "a", max_age=9))
    assert sorted(pair.state.observation for pair in found) == list("01234567")


@pytest.mark.usefixtures("impatient")
def test_a_trainer_without_workers_gives_up_and_says_what_it_waits_for(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inboxes, "_STALLED", 3.0)
    with (
        Queue(redis_url, "run") as queue,
        pytest.raises(JobsFailed, match="with 3 jobs in the queue: are rollout workers running"),
    ):
        rollout_collector(queue, Records(tmp_path)).collect("r", rollouts(3), "three games")


@pytest.mark.usefixtures("impatient")
def test_a_job_that_takes_longer_is_waited_for_while_a_worker_has_it(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inboxes, "_STALLED", 8.0)  # a worker's heart beats every five seconds

    def play(job: Job) -> JobResult:
        time.sleep(12)
        return JobResult(job_id=job.id, worker="test", seconds=0)

    with Queue(redis_url, "run") as queue, worker(redis_url, play):
        mine = rollout_collector(queue, Records(tmp_path))
        mine.collect("r", rollouts(1), "a game")
    assert mine.records.finished("r") == {"r-0000"}


@pytest.mark.usefixtures("impatient")
def test_a_job_that_is_finished_as_the_wait_ends_counts(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look for results and the look for who has jobs."""
    monkeypatch.setattr(inboxes, "_STALLED", 0.5)
    with Queue(redis_url, "run") as queue, Queue(redis_url, "run") as workers:
        (job,) = rollouts(1)
        queue.publish(job)
        entry = workers.take(timeout=5)
        assert entry is not None

        def held(_: Queue, seconds: float) -> int:
            workers.finish(entry, JobResult(job_id=job.id, worker="test", seconds=0))
            return 0

        monkeypatch.setattr(Queue, "held", held)
        mine = rollout_collector(queue, Records(tmp_path))
        mine.collect("r", [job], "a game")
    assert mine.records.finished("r") == {job.id}


def test_states_of_d_are_spread_over_games() -> None:
    turn = Turn(
        observation="o",
        admissible=("a", "b"),
        action=Action(command="a"),
        policy_version="policy/0",
    )
    provenance = Provenance(engine="e", package_version="0", data_version="0", template_hash="0")
    episodes = [
        Episode(
            id=f"j/{k}",
            job_id="j",
            game=Game(id=f"game {k % 3}", split=Split.TRAIN, task_type="t", task=f"game {k % 3}"),
            seed=k,
            turns=(turn,) * 10 + (turn.model_copy(update={"admissible": ("only",)}),),
            final_observation="",
            won=False,
            provenance=provenance,
        )
        for k in range(6)
    ]
    states = sample_states(episodes, 100, per_game=4, seed=1)
    assert len(states) == 12
    assert {task: sum(s.task == task for s in states) for task in ("game 0", "game 1")} == {
        "game 0": 4,
        "game 1": 4,
    }
    assert all(state.admissible == ("a", "b") for state in states)
    assert states == sample_states(episodes, 100, per_game=4, seed=1)
    assert len(sample_states(episodes, 5, per_game=4, seed=1)) == 5
