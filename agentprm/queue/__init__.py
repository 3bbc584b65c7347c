"""Jobs, episodes and preferences as Redis streams with consumer groups.

    with Queue(url, run="tiny") as queue:                 # the trainer
        queue.publish(job)
        for entry in queue.results("episodes", count=16, timeout=5.0):
            ...                                           # make entry.record durable
            queue.acknowledge("episodes", [entry])

    with Queue(url, run="tiny", name="worker-1") as queue:  # a rollout worker
        if entry := queue.take(timeout=5.0):
            queue.finish(entry, play(entry.record))       # or fail(entry, why), give_back(entry)

What holds:

- A job id is queued at most once, however often it is published.
- A job taken is kept by a heartbeat. When the heartbeat stops, another worker claims the job.
- The first to finish a job leaves its result, and leaves it once; a later finish does nothing.
- Entries are deleted as they are acknowledged, so a stream's length is what is outstanding, and
  it never passes its bound.
- A trainer that restarts gets at once what it had taken and not acknowledged.
- What cannot be read, a job or a result, is a dead letter, and its job can be published again.
- Calls outlast a Redis that is gone or loading for up to `QueueSettings.patience` seconds.

Redis 6.2 or newer, not set to evict keys.
"""

from agentprm.queue._current import CurrentRun
from agentprm.queue._link import QueueError, WaitEnded
from agentprm.queue._queue import Queue
from agentprm.queue._values import DeadJob, Entry, Offer, QueueSettings, Results

__all__ = [
    "CurrentRun",
    "DeadJob",
    "Entry",
    "Offer",
    "Queue",
    "QueueError",
    "QueueSettings",
    "Results",
    "WaitEnded",
]
