"""One run at a time has a name in Redis."""

from __future__ import annotations

from contextlib import suppress

import structlog

from agentprm.queue import _scripts
from agentprm.queue._heartbeat import Heartbeat
from agentprm.queue._link import QueueError
from agentprm.queue._streams import Streams

LEASE_SECONDS = 30.0
"""Until a name is free whose run ended without a word."""
_RENEW_SECONDS = 5.0
_KEPT_SECONDS = 7 * 86400.0
"""Until what a run that went away left in Redis is gone. One that comes back later has the jobs
played again whose results it had not recorded."""

_log = structlog.get_logger()


class Lease:
    """The hold of a run on the name `run`, renewed in a thread until it is closed."""

    def __init__(self, streams: Streams, run: str) -> None:
        self._streams = streams
        self._run = run
        self._take = streams.redis.register_script(_scripts.LEASE)
        self._release = streams.redis.register_script(_scripts.RELEASE)
        self._owner: str | None = None
        self.lost = False
        """Whether another run has taken the name since, as while this process was suspended."""
        self._heartbeat = Heartbeat(self._renew, _RENEW_SECONDS)

    def take(self, owner: str) -> None:
        """Have the name for `owner`, a run's own name, which may have it already.

        Raises:
            QueueError: another run has it now.
        """
        holder = self._holder(owner)
        if holder != owner:
            raise QueueError(
                f"the run {holder} has the name {self._run!r} in this Redis now, and each of two "
                "would take the other's results for its own. Wait until that run has ended, or "
                "give this one another AGENTPRM_QUEUE_NAME, or a Redis of its own."
            )
        self._owner = owner
        self._heartbeat.hold(owner)

    def close(self) -> None:
        """Leave the name to others."""
        self._heartbeat.close()
        if self._owner is None:
            return
        keys, owner = [self._streams.lease], [self._owner]
        with suppress(QueueError):  # else the name is free a little later
            self._streams.call(lambda: self._release(keys, owner), patience=0.0)

    def _holder(self, owner: str, *, patience: float | None = None) -> str:
        """Take the lease for `owner`, or renew it; whoever has it then."""
        keys = [self._streams.lease, *self._streams.keys.values()]
        fields = (owner, round(LEASE_SECONDS * 1000), round(_KEPT_SECONDS * 1000))
        holder = self._streams.call(lambda: self._take(keys, fields), patience=patience)
        return str(holder.decode())

    def _renew(self, owner: str) -> bool:
        try:
            holder = self._holder(owner, patience=0.0)
        except QueueError:
            return True
        if holder != owner:
            self.lost = True
            _log.error("another run has taken the name of this one", name=self._run, run=holder)
        return not self.lost
