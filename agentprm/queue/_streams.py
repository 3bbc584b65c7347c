"""The streams of a run as Redis has them: names, consumer groups, rows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import redis
from redis.commands.core import Script

from agentprm.queue._link import Link

GROUPS: dict[str, str] = {"jobs": "workers", "episodes": "trainer", "preferences": "trainer"}
"""Stream to the one consumer group that reads it."""

BLOCK = 1.0
"""Seconds of one blocking read: between two, abandoned jobs and the shutdown are looked for."""


class Row(NamedTuple):
    """An entry: its fields are `job` (id), `attempt` (of a fit, or empty) and `data` (JSON)."""

    id: str
    fields: dict[bytes, bytes]
    deliveries: int = 1

    @property
    def job_id(self) -> str:
        """Its job; empty where the entry is none of ours and says none."""
        return self.fields.get(b"job", b"").decode(errors="replace")


class Streams:
    """Calls on the keys `agentprm:<run>:*`. Every call outlasts a Redis that is away for a while.

    A Redis that came back without its data gets its consumer groups again.
    """

    def __init__(self, url: str, run: str, *, patience: float, stopped: threading.Event) -> None:
        self._link = Link(url, patience=patience, stopped=stopped)
        self.redis = self._link.redis
        self.keys = {name: f"agentprm:{run}:{name}" for name in (*GROUPS, "dead", "ids", "owner")}
        self.lease = f"agentprm:{run}:lease"
        """Not one of `keys`: who has taken the name keeps it while `clear` deletes those."""
        self._link.call(self._create_groups)

    def close(self) -> None:
        """Close the connections."""
        self._link.close()

    def call(self, command: Callable[[], Any], *, patience: float | None = None) -> Any:
        """The answer of Redis to a command that is safe to repeat."""

        def once() -> Any:
            try:
                return command()
            except redis.ResponseError as error:
                if "NOGROUP" not in str(error):
                    raise
                self._create_groups()
                return command()

        return self._link.call(once, patience=patience)

    def run(
        self,
        script: Script,
        keys: Iterable[str],
        *arguments: str | bytes | float,
        patience: float | None = None,
    ) -> Any:
        """The answer of a script on the keys of these names."""
        names = [self.keys[key] for key in keys]
        return self.call(lambda: script(names, arguments), patience=patience)

    def length(self, name: str) -> int:
        """Entries in a stream."""
        return int(self.call(partial(self.redis.xlen, self.keys[name])))

    def rows(self, name: str) -> list[Row]:
        """All entries of a stream; for no consumer do they count as read."""
        return _rows(self.call(partial(self.redis.xrange, self.keys[name])))

    def read(self, stream: str, consumer: str, count: int, timeout: float) -> list[Row]:
        """New entries for the consumer; waits for the first, `BLOCK` seconds at most."""
        block = max(1, round(1000 * min(timeout, BLOCK)))
        return self._read(stream, consumer, ">", count, block)

    def unacknowledged(self, stream: str, consumer: str, count: int) -> list[Row]:
        """Entries that the consumer has read and not acknowledged."""
        return self._read(stream, consumer, "0", count, None)

    def claim(self, stream: str, consumer: str, idle: float) -> Row | None:
        """An entry whose holder has been silent for `idle` seconds, now the consumer's.

        XPENDING looks through all entries held and tells their deliveries, which XAUTOCLAIM does
        not; XCLAIM takes nothing if another was quicker.
        """
        key, group, silence = self.keys[stream], GROUPS[stream], round(idle * 1000)
        idlers = self.call(
            lambda: self.redis.xpending_range(key, group, "-", "+", count=1, idle=silence)
        )
        if not idlers:
            return None
        ids = [idlers[0]["message_id"]]
        claimed = _rows(self.call(lambda: self.redis.xclaim(key, group, consumer, silence, ids)))
        deliveries = idlers[0]["times_delivered"] + 1
        return claimed[0]._replace(deliveries=deliveries) if claimed else None

    def held(self, stream: str, idle: float) -> int:
        """Entries whose holders were heard of in the last `idle` seconds."""
        key, group, most = self.keys[stream], GROUPS[stream], self.length(stream)
        if most == 0:
            return 0
        taken = self.call(lambda: self.redis.xpending_range(key, group, "-", "+", count=most))
        return sum(each["time_since_delivered"] < idle * 1000 for each in taken)

    def delete(self, stream: str, entry_ids: list[str]) -> None:
        """Acknowledge and delete entries, at once."""
        if not entry_ids:
            return
        key = self.keys[stream]

        def transaction() -> None:
            with self.redis.pipeline(transaction=True) as pipe:
                pipe.xack(key, GROUPS[stream], *entry_ids)
                pipe.xdel(key, *entry_ids)
                pipe.execute()

        self.call(transaction)

    def clear(self) -> None:
        """Delete everything but the lease."""
        self.call(lambda: self.redis.delete(*self.keys.values()))
        self._link.call(self._create_groups)

    def _read(
        self, stream: str, consumer: str, after: str, count: int, block: int | None
    ) -> list[Row]:
        streams: dict[Any, Any] = {self.keys[stream]: after}
        answer = self.call(
            lambda: self.redis.xreadgroup(
                GROUPS[stream], consumer, streams, count=count, block=block
            )
        )
        return _rows(answer[0][1]) if answer else []

    def _create_groups(self) -> None:
        for stream, group in GROUPS.items():
            try:
                self.redis.xgroup_create(self.keys[stream], group, id="0", mkstream=True)
            except redis.ResponseError as error:
                if "BUSYGROUP" not in str(error):
                    raise


def _rows(answer: Iterable[tuple[bytes, dict[bytes, bytes]]]) -> list[Row]:
    return [Row(entry_id.decode(), fields) for entry_id, fields in answer]
