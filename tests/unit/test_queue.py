"""The queue over a real redis-server."""

from __future__ import annotations

import math
import random
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from agentprm.protocol import JobResult, PreferenceJob, RolloutJob
from agentprm.queue import (
    DeadJob,
    Entry,
    Offer,
    Queue,
    QueueError,
    QueueSettings,
    WaitEnded,
    _lease,
)
from agentprm.redis_server import RedisServer

FAST = QueueSettings(claim_after=0.6, patience=20)

Open = Callable[..., Queue]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def connect(server: RedisServer) -> Iterator[Open]:
    """Opens queues on a run of their own; closes them all."""
    run = f"run-{random.getrandbits(32)}"
    queues: list[Queue] = []

    def open_queue(**options: object) -> Queue:
        options = {"settings": FAST} | options
        queues.append(Queue(server.url, run, **options))  # type: ignore[arg-type]
        return queues[-1]

    yield open_queue
    for queue in queues:
        queue.close()


def job(name: str) -> RolloutJob:
    return RolloutJob(id=name, games=["train/a/b"], seed=0)


def result(job_id: str) -> JobResult:
    return JobResult(job_id=job_id, worker="test", seconds=0.0)


def die(queue: Queue) -> None:
    """What a kill leaves: no heartbeat, and the entry pending."""
    queue._heartbeat.close()


def take(queue: Queue, timeout: float = 10.0) -> Entry[RolloutJob | PreferenceJob]:
    entry = queue.take(timeout)
    assert entry is not None
    return entry


def test_a_job_is_published_once_whoever_repeats_it(connect: Open) -> None:
    queues = [connect(), connect()]
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda i: queues[i % 2].publish(job(f"j/{i % 5}")), range(40)))
    assert sum(outcomes) == 5
    assert queues[0].lengths()["jobs"] == 5

    entry = take(queues[0])
    assert queues[0].finish(entry, result(entry.record.id))
    assert not queues[0].publish(job(entry.record.id)), "a finished job stays known"


def test_only_a_job_that_nobody_has_is_forgotten(connect: Open) -> None:
    """Not one that waits, is played, waits for its next try, was abandoned, or has a result."""
    trainer, worker = connect(), connect()
    names = ["played", "retried", "abandoned", "new"]
    for name in names:
        trainer.publish(job(name))
    entries = [take(worker) for _ in names[:-1]]
    worker.fail(entries[1], "bad luck")
    die(worker)
    assert trainer.forget_lost("episodes", names) == []
    assert worker.finish(entries[0], result("played"))
    assert trainer.forget_lost("episodes", names) == [], "a result waits"
    [answer] = trainer.results("episodes", count=8, timeout=1)
    trainer.acknowledge("episodes", [answer])
    assert trainer.forget_lost("preferences", names) == ["played"], "its record was not kept"
    assert [trainer.publish(job(name)) for name in names] == [True, False, False, False]
    trainer._redis.flushall()
    assert trainer.forget_lost("episodes", names) == names
    assert [trainer.publish(job(name)) for name in names] == [True] * 4


def test_a_dead_workers_job_is_claimed_and_its_late_answer_ignored(connect: Open) -> None:
    first, second, trainer = connect(), connect(), connect()
    trainer.publish(job("a"))
    held = take(first)
    die(first)
    claimed = take(second)
    assert (claimed.record, claimed.deliveries) == (held.record, 2)
    assert second.finish(claimed, result("a"))
    assert not first.finish(held, result("a")), "only the first answer counts"
    [entry] = trainer.results("episodes", count=8, timeout=1)
    assert entry.record.job_id == "a"
    assert trainer.lengths() == {"jobs": 0, "episodes": 1, "preferences": 0, "dead": 0}


def test_finish_may_be_repeated(connect: Open) -> None:
    queue = connect()
    queue.publish(job("a"))
    entry = take(queue)
    assert queue.finish(entry, result("a"))
    assert not queue.finish(entry, result("a"))
    assert queue.lengths()["episodes"] == 1


def test_a_heartbeat_keeps_a_long_job(connect: Open) -> None:
    settings = QueueSettings(claim_after=1.5)
    holder, other = connect(settings=settings), connect(settings=settings)
    holder.publish(job("a"))
    take(holder)
    assert other.take(timeout=2 * settings.claim_after) is None
    die(holder)
    assert take(other).record.id == "a"


def test_a_heartbeat_lets_go_of_a_job_that_another_has_claimed(connect: Open) -> None:
    slow, other, third = connect(), connect(), connect()
    slow.publish(job("a"))
    take(slow)
    with slow._heartbeat._lock:  # a worker that stands still
        take(other)
    die(other)
    assert take(third).record.id == "a"


def test_a_failed_job_is_tried_again_after_a_pause(connect: Open) -> None:
    """The first is a second long, however long a silent worker's job is left to it."""
    queue = connect(settings=QueueSettings(claim_after=60))
    queue.publish(job("a"))
    queue.fail(take(queue), "bad luck")
    assert queue.take(timeout=0.1) is None
    assert take(queue).deliveries == 2


def test_an_abandoned_job_comes_before_new_ones(connect: Open) -> None:
    settings = QueueSettings(claim_after=0.1)
    first, second = connect(settings=settings), connect(settings=settings)
    first.publish(job("old"))
    take(first)
    die(first)
    first.publish(job("new"))
    time.sleep(0.2)
    assert take(second).record.id == "old"


def test_who_has_lost_a_job_cannot_give_it_up(connect: Open) -> None:
    """Its last try, by its own settings, is another's first."""
    hasty = connect(settings=QueueSettings(claim_after=0.1, max_deliveries=1))
    other = connect(settings=QueueSettings(claim_after=0.1))
    hasty.publish(job("a"))
    lost = take(hasty)
    die(hasty)
    time.sleep(0.2)
    claimed = take(other)
    hasty.fail(lost, "bad luck")
    assert other.dead() == []
    assert other.finish(claimed, result("a"))


def test_a_failing_job_ends_in_the_dead_letters_and_can_be_published_again(connect: Open) -> None:
    settings = QueueSettings(claim_after=0.1, max_deliveries=3)
    queue = connect(settings=settings)
    queue.publish(job("a"))
    for delivery in (1, 2, 3):
        entry = take(queue)
        assert entry.deliveries == delivery
        queue.fail(entry, "the game is broken")
    assert queue.take(timeout=0.3) is None
    assert queue.dead() == [DeadJob("a", "the game is broken")]
    assert queue.publish(job("a"))
    queue.clear_dead()
    assert take(queue).deliveries == 1


def test_a_job_that_kills_its_workers_ends_in_the_dead_letters(connect: Open) -> None:
    settings = QueueSettings(claim_after=0.1, max_deliveries=2)
    trainer = connect(settings=settings)
    trainer.publish(job("a"))
    for _ in range(2):
        victim = connect(settings=settings)
        take(victim)
        die(victim)
    assert trainer.take(timeout=1.0) is None
    assert trainer.dead() == [DeadJob("a", "delivered 2 times and never answered")]


def test_a_job_given_back_is_there_at_once_and_does_not_count(connect: Open) -> None:
    settings = QueueSettings(claim_after=60)
    first, second = connect(settings=settings), connect(settings=settings)
    first.publish(job("a"))
    for _ in range(2 * settings.max_deliveries):
        first.give_back(take(first))
    assert take(second).deliveries == 1


def test_bounds_hold_and_waiting_ends_with_room_or_with_the_shutdown(connect: Open) -> None:
    settings = QueueSettings(max_jobs=2, max_episodes=1)
    stopped = threading.Event()
    trainer, worker = connect(settings=settings), connect(settings=settings, stopped=stopped)
    outcomes = [trainer.offer(job(name)) for name in "abca"]
    assert outcomes == [Offer.QUEUED, Offer.QUEUED, Offer.FULL, Offer.KNOWN]

    with ThreadPoolExecutor(2) as pool:
        published = pool.submit(trainer.publish, job("c"))
        first = take(worker)
        assert worker.finish(first, result(first.record.id))
        assert published.result(timeout=10)
        assert trainer.lengths()["jobs"] == 2

        second = take(worker)
        finished = pool.submit(worker.finish, second, result(second.record.id))
        [entry] = trainer.results("episodes", count=8, timeout=5)
        assert trainer.lengths()["episodes"] == 1
        trainer.acknowledge("episodes", [entry])
        assert finished.result(timeout=10)

        third = take(worker)
        finished = pool.submit(worker.finish, third, result(third.record.id))
        stopped.set()
        with pytest.raises(QueueError):
            finished.result(timeout=10)


def test_who_waits_for_room_does_not_send_the_result_again(connect: Open) -> None:
    queue = connect(settings=QueueSettings(max_episodes=1))
    for name in "ab":
        queue.publish(job(name))
    queue.finish(take(queue), result("a"))
    large = JobResult(job_id="b", worker="x" * 1_000_000, seconds=0.0)
    second = take(queue)
    before = queue._redis.info("stats")["total_net_input_bytes"]
    with ThreadPoolExecutor(1) as pool:
        finished = pool.submit(queue.finish, second, large)
        time.sleep(2)
        sent = queue._redis.info("stats")["total_net_input_bytes"] - before
        queue.acknowledge("episodes", queue.results("episodes", count=1, timeout=1))
        assert finished.result(timeout=10)
    assert 1_000_000 < sent < 1_500_000


def test_a_name_that_another_run_takes_is_empty_and_its_ids_are_free(connect: Open) -> None:
    queue = connect()
    with connect() as trainer:
        assert trainer.adopt("tiny-1")
        assert queue.publish(job("a"))
        assert not trainer.adopt("tiny-1")
    assert queue.lengths()["jobs"] == 1
    late = take(queue)
    assert connect().adopt("tiny-2")
    assert queue.lengths()["jobs"] == 0
    assert queue.publish(job("a"))
    assert not queue.finish(late, result("a"))  # of the job that tiny-1 had published
    assert queue.lengths() == {"jobs": 1, "episodes": 0, "preferences": 0, "dead": 0}


def test_what_a_run_leaves_goes_in_time_and_a_run_that_lasts_keeps_what_it_has(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_lease, "_RENEW_SECONDS", 0.1)
    monkeypatch.setattr(_lease, "_KEPT_SECONDS", 1.0)
    with Queue(server.url, "left") as worker:
        with Queue(server.url, "left") as trainer:
            trainer.adopt("tiny-1")
            trainer.publish(job("a"))
            time.sleep(2.0)
            assert trainer.lengths()["jobs"] == 1
        deadline = time.monotonic() + 20
        while worker._redis.keys("agentprm:left:*"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        with Queue(server.url, "left") as trainer:  # after its time the run comes back
            trainer.adopt("tiny-1")
            assert trainer.publish(job("a"))
            worker.finish(take(worker), result("a"))
            assert [e.record.job_id for e in trainer.results("episodes", 1, 5)] == ["a"]


def test_results_come_back_until_acknowledged(connect: Open) -> None:
    queue = connect()
    for name in "ab":
        queue.publish(job(name))
        queue.finish(take(queue), result(name))
    taken = queue.results("episodes", count=1, timeout=1)
    restarted = connect()
    assert restarted.results("episodes", count=5, timeout=0) == taken
    restarted.acknowledge("episodes", taken)
    [entry] = restarted.results("episodes", count=5, timeout=1)
    assert entry.record.job_id == "b"


def test_what_earlier_attempts_at_a_fit_asked_for_is_purged(connect: Open) -> None:
    queue = connect()
    old, new = (
        [
            PreferenceJob(
                id=f"{attempt}/{i}",
                attempt=attempt,
                states=[],
                seed=0,
                n=2,
                prm_version="prm/0",
            )
            for i in (0, 1)
        ]
        for attempt in ("old", "new")
    )
    for each in (*old, *new):
        queue.publish(each)
    queue.publish(job("a"))
    trial = job("trial").model_copy(update={"attempt": "old"})
    queue.publish(trial)
    entry = take(queue)
    queue.finish(entry, result(entry.record.id))
    held = take(queue)
    assert held.record.id == "old/1"
    assert queue.purge("new") == 3
    assert queue.lengths() == {"jobs": 3, "episodes": 0, "preferences": 0, "dead": 0}
    assert not queue.finish(held, result("old/1")), "its answer is wanted no more"
    assert [queue.publish(each) for each in (*old, *new)] == [True, True, False, False]
    assert queue.publish(trial)


def test_an_entry_that_is_no_job_does_not_stop_the_workers(connect: Open) -> None:
    queue = connect()
    queue._redis.xadd(queue._streams.keys["jobs"], {"job": "bad", "attempt": "", "data": "{}"})
    queue.publish(job("a"))
    queue._redis.xadd(queue._streams.keys["jobs"], {"job": b"\xff"})
    assert take(queue).record.id == "a"
    assert queue.take(timeout=0.1) is None
    assert [dead.job_id for dead in queue.dead()] == ["bad", "\ufffd"]
    queue._redis.xadd(queue._streams.keys["episodes"], {"neither": "job nor data"})
    assert queue.results("episodes", count=1, timeout=0) == []
    assert [dead.job_id for dead in queue.dead()][2:] == [""]


def test_a_result_that_cannot_be_read_stops_nobody_and_its_job_can_be_published_again(
    connect: Open,
) -> None:
    trainer, worker = connect(), connect()
    for name in "abc":
        trainer.publish(job(name))
    unreadable = result("a").model_copy(update={"seconds": math.nan})  # null in JSON
    worker.finish(take(worker), unreadable)
    worker.finish(take(worker), result("b"))
    [entry] = trainer.results("episodes", count=8, timeout=1)
    assert entry.record.job_id == "b"
    [dead] = trainer.dead()
    assert dead.job_id == "a"
    assert "worker of another version" in dead.reason
    assert dead.reason.endswith("seconds: Input should be a valid number")
    restarted = connect()
    assert restarted.results("episodes", count=8, timeout=0) == [entry], "a comes no more"
    restarted.acknowledge("episodes", [entry])
    assert restarted.lengths() == {"jobs": 1, "episodes": 0, "preferences": 0, "dead": 1}
    assert restarted.publish(job("a"))
    assert not restarted.publish(job("b"))


@pytest.mark.parametrize("seed", range(3))
def test_every_job_counts_once_however_workers_and_trainers_die(
    server: RedisServer, seed: int
) -> None:
    """Random deaths at every point between taking a job and having counted its result."""
    rng = random.Random(seed)
    settings = QueueSettings(claim_after=0.05, max_deliveries=1000, max_episodes=3, max_jobs=8)
    stopped = threading.Event()
    url, run = server.url, f"deaths-{seed}"
    names = [f"j/{i}" for i in range(20)]
    records: list[tuple[str, str]] = []  # job and entry, as the trainer has them on disk

    def worker(rng: random.Random) -> None:
        while not stopped.is_set():
            with Queue(url, run, settings=settings, stopped=stopped) as queue:
                while entry := queue.take(timeout=0.2):
                    fate = rng.random()
                    if fate < 0.25:
                        break  # killed while playing
                    if fate < 0.35:
                        queue.fail(entry, "bad luck")
                        continue
                    if fate < 0.45:
                        queue.give_back(entry)
                        continue
                    if fate < 0.55:  # stands still long enough to lose the job, then answers
                        die(queue)
                        time.sleep(0.1)
                    try:
                        queue.finish(entry, result(entry.record.id))
                    except QueueError:
                        return
                    if fate < 0.65:
                        break  # killed after the answer
                    if fate < 0.75:
                        queue.finish(entry, result(entry.record.id))  # the answer's answer was lost

    threads = [
        threading.Thread(target=worker, args=(random.Random(seed * 10 + i),)) for i in (1, 2, 3)
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 60
    while {job_id for job_id, _ in records} != set(names):
        assert time.monotonic() < deadline
        with Queue(url, run, settings=settings) as trainer:  # every round, a trainer that restarts
            for name in names:
                if name not in {job_id for job_id, _ in records}:
                    trainer.offer(job(name))
            entries = trainer.results("episodes", count=2, timeout=0.2)
            records += [(entry.record.job_id, entry.id) for entry in entries]
            if rng.random() < 0.7:
                trainer.acknowledge("episodes", entries)
    with Queue(url, run, settings=settings) as trainer:
        while entries := trainer.results("episodes", count=8, timeout=0.3):
            records += [(entry.record.job_id, entry.id) for entry in entries]
            trainer.acknowledge("episodes", entries)
        assert trainer.lengths() == {"jobs": 0, "episodes": 0, "preferences": 0, "dead": 0}
    stopped.set()
    for thread in threads:
        thread.join(timeout=10)
    pushed = Counter(job_id for job_id, _ in set(records))
    assert pushed == Counter(names), "one entry a job, however often it was delivered"


def test_calls_outlast_a_full_redis(server: RedisServer, connect: Open) -> None:
    """What is finished makes room; what is asked for waits until there is."""
    queue = connect(settings=QueueSettings(max_deliveries=1))
    for name in ("a", "b"):
        queue.publish(job(name))
    done, failed = take(queue), take(queue)
    with redis.Redis.from_url(server.url, protocol=2) as admin:
        admin.config_set("maxmemory", 1)
        try:
            with ThreadPoolExecutor() as pool:
                call = pool.submit(queue.publish, job("c"))
                assert queue.finish(done, result("a"))
                queue.fail(failed, "it cannot be played")
                assert [dead.job_id for dead in queue.dead()] == ["b"]
                time.sleep(1.0)
                assert not call.done()
                admin.config_set("maxmemory", 0)
                assert call.result()
        finally:
            admin.config_set("maxmemory", 0)
    assert [e.record.job_id for e in queue.results("episodes", 5, 1.0)] == ["a"]


def test_a_redis_that_stays_full_is_said_to_be(server: RedisServer, connect: Open) -> None:
    queue = connect(settings=QueueSettings(patience=0.3))
    with redis.Redis.from_url(server.url, protocol=2) as admin:
        admin.config_set("maxmemory", 1)
        try:
            with pytest.raises(QueueError, match="maxmemory"):
                queue.publish(job("a"))
        finally:
            admin.config_set("maxmemory", 0)


def test_what_redis_refuses_for_good_is_no_traceback(server: RedisServer, connect: Open) -> None:
    queue = connect()
    with redis.Redis.from_url(server.url, protocol=2) as admin:
        admin.set(queue._streams.keys["ids"], "not a set")
    with pytest.raises(QueueError, match="WRONGTYPE"):
        queue.publish(job("a"))


def test_a_refused_password_is_told_at_once(server: RedisServer) -> None:
    patient = QueueSettings(patience=10)
    started = time.monotonic()
    with pytest.raises(QueueError, match="password"):
        Queue(f"{server.url}?username=nobody&password=wrong", "run", settings=patient)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "url", ["redis://:pa/ss@redis", "redis://:pa#ss@redis:6379/0", "http://:pass@redis"]
)
def test_a_url_that_is_none_is_told_without_its_password(url: str) -> None:
    with pytest.raises(QueueError, match="not the URL of a Redis") as told:
        Queue(url, "run")
    said = "".join(traceback.format_exception(told.value))
    assert "'pa" not in said
    assert "pass@" not in said


def test_a_result_does_not_wait_for_room_in_a_run_that_nobody_wants(connect: Open) -> None:
    worker = connect(settings=QueueSettings(max_episodes=1))
    for name in ("a", "b"):
        worker.publish(job(name))
    assert worker.finish(take(worker), result("a"))
    entry = take(worker)
    answers = iter([True, True, False])
    with pytest.raises(WaitEnded):
        worker.finish(entry, result("b"), lambda: next(answers))
    worker.give_back(entry)
    assert take(worker).record.id == "b", "the job is still there"
    assert worker.lengths()["episodes"] == 1
