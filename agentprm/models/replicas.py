"""Several SGLang servers (or one behind a router) that serve one checkpoint between them.

A replica is asked only while it is known to serve the checkpoint in question, and each answer says
what computed it. One that fails or answers from other weights is set aside, and what it was asked
is asked of another.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import structlog
from prometheus_client import Gauge

from agentprm.models.sglang import Classified, Generate, Generated, SGLangClient, SGLangError
from agentprm.models.sglang_weights import Weights
from agentprm.service import ProblemError

SPREAD = 1.25
"""Most of a batch that one replica gets, in shares of an even split."""

READY = Gauge("agentprm_sglang_replicas_ready", "SGLang replicas that serve what they should")

log = structlog.get_logger()

A = TypeVar("A", Generated, Classified)
Q = TypeVar("Q")


class ReplicasError(Exception):
    """Not every replica could be put on a checkpoint. `refused`: a server says it is unfit."""

    def __init__(self, message: str, *, refused: bool) -> None:
        super().__init__(message)
        self.refused = refused


@dataclass
class _Replica:
    """A server, or a router. `tag` is what it serves, or None while it is set aside."""

    client: SGLangClient
    tag: str | None = None
    router: bool = False


class Replicas:
    """The servers at `urls`. Its methods may be called from several threads.

    Where a URL is a router's, its servers are told of checkpoints one by one. An answer may take
    `timeout` seconds, reading a checkpoint `load_timeout`.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        key: str | None = None,
        timeout: float = 120.0,
        load_timeout: float = 600.0,
    ) -> None:
        self._key = key
        self._timeout = timeout
        self._load_timeout = load_timeout
        self._clients: dict[str, SGLangClient] = {}
        self._replicas = [_Replica(self._client(url)) for url in urls]
        self._threads = ThreadPoolExecutor(32, "replica")
        self._routed = ThreadPoolExecutor(32, "routed")

    def tags(self) -> dict[str, str | None]:
        """What each replica serves; None for one that is set aside."""
        return {replica.client.url: replica.tag for replica in self._replicas}

    def close(self) -> None:
        """Close all connections."""
        for threads in (self._threads, self._routed):
            threads.shutdown(wait=False, cancel_futures=True)
        for client in self._clients.values():
            client.close()

    def compare(self, weights: Weights) -> None:
        """Have all replicas say whether they can take `weights`; none is touched.

        Raises:
            ReplicasError: one cannot, or is down; says which, and why.
        """
        self._all(self._compare_one, weights)

    def put(self, weights: Weights) -> None:
        """Have all replicas serve `weights`, which were compared, each tried by its canary.

        Raises:
            ReplicasError: one failed; says which, and why. Those that could are on `weights` then,
                the others set aside; nothing is put back.
        """
        self._all(self._put_one, weights)

    def check(self, weights: Weights) -> None:
        """Run the canary on every server that serves `weights`; raises what it raises.

        Raises:
            SGLangError: a replica does not answer, or is a router without servers.
        """
        for replica in self._replicas:
            if replica.tag == weights.tag:
                for server in self._servers(replica):
                    weights.try_on(server)

    def missing(self) -> list[str]:
        """The replicas that take no requests, such as those that are starting."""
        return [replica.client.url for replica in self._replicas if not self._up(replica)]

    def mend(self, weights: Weights) -> None:
        """Put the replicas that are set aside back on `weights`, where they can be reached."""
        for replica in self._replicas:
            if replica.tag == weights.tag or not self._up(replica):
                continue
            error = self._compare_one(replica, weights) or self._put_one(replica, weights)
            if error is None:
                log.info("replica back", replica=replica.client.url, tag=weights.tag)

    def generate(
        self, prompts: Sequence[Generate], tag: str, homes: Sequence[int]
    ) -> list[Generated]:
        """Continuations by the weights `tag`. Prompts of one `home` go to one replica, for the
        sake of its prefix cache, as long as the load stays even.

        Raises:
            ProblemError: 422, a server refuses a prompt; 503, no replica can answer, or one has
                not answered in time and is well.
        """
        return self._ask(prompts, tag, homes, lambda client, batch: client.generate(batch))

    def classify(
        self, sequences: Sequence[Sequence[int]], tag: str, homes: Sequence[int]
    ) -> list[Classified]:
        """Scores by the weights `tag`; the rest is as in `generate`."""
        return self._ask(sequences, tag, homes, lambda client, batch: client.classify(batch))

    def _ask(
        self,
        items: Sequence[Q],
        tag: str,
        homes: Sequence[int],
        call: Callable[[SGLangClient, Sequence[Q]], list[A]],
    ) -> list[A]:
        answers: dict[int, A] = {}
        for _ in range(1 + len(self._replicas)):  # each round more than the first loses one
            ready = [replica for replica in self._replicas if replica.tag == tag]
            if not ready:
                break
            missing = [k for k in range(len(items)) if k not in answers]
            shares = _shares(missing, homes, len(ready))
            found = self._threads.map(
                lambda pair: self._ask_one(pair[0], [items[k] for k in pair[1]], tag, call),
                [(replica, share) for replica, share in zip(ready, shares, strict=True) if share],
            )
            for share, batch in zip(filter(None, shares), found, strict=True):
                answers |= zip(share, batch, strict=False)
            if len(answers) == len(items):
                return [answers[k] for k in range(len(items))]
        detail = "no SGLang server answers with the weights that should serve"
        raise ProblemError(503, "Engine unavailable", detail, retry_after=1)

    def _ask_one(
        self,
        replica: _Replica,
        items: Sequence[Q],
        tag: str,
        call: Callable[[SGLangClient, Sequence[Q]], list[A]],
    ) -> list[A]:
        """Answers, or none where the replica had to be set aside."""
        try:
            if replica.router:  # it sends each where its beginning is known
                found = self._routed.map(lambda item: call(replica.client, [item]), items)
                answers = [answer for [answer] in found]
            else:
                answers = call(replica.client, items)
        except SGLangError as error:
            if error.status == 400:
                raise ProblemError(422, "Refused by the engine", str(error)) from error
            if error.late and self._up(replica):  # healthy, and asked for more than it can do
                detail = f"no answer within --engine-timeout ({self._timeout:g} s): ask for less"
                raise ProblemError(503, "Engine too slow", detail, retry_after=10) from error
            self._set_aside(replica, str(error))
            return []
        others = {answer.version for answer in answers} - {tag}
        if others:
            self._set_aside(replica, f"it serves {', '.join(sorted(others))}, not {tag}")
            return []
        return answers

    def _all(self, step: Callable[[_Replica, Weights], Exception | None], weights: Weights) -> None:
        errors = self._threads.map(step, self._replicas, itertools.repeat(weights))
        failed = [error for error in errors if error is not None]
        if failed:
            refused = any(not isinstance(e, SGLangError) or e.status == 400 for e in failed)
            raise ReplicasError("; ".join(map(str, failed)), refused=refused)

    def _compare_one(self, replica: _Replica, weights: Weights) -> Exception | None:
        try:
            for server in self._servers(replica):
                weights.compare(server)
        except Exception as error:
            if isinstance(error, SGLangError) and error.status is None:
                self._set_aside(replica, str(error))
            return error
        return None

    def _put_one(self, replica: _Replica, weights: Weights) -> Exception | None:
        self._mark(replica, None)
        try:
            for server in self._servers(replica):
                server.update_weights(weights.path, weights.tag, timeout=self._load_timeout)
                found = server.model_info().version
                if found != weights.tag:
                    raise ValueError(f"{server.url} says it serves {found}, not {weights.tag}")
                weights.try_on(server)
        except Exception as error:
            log.warning("replica set aside", replica=replica.client.url, reason=str(error))
            return error
        self._mark(replica, weights.tag)
        return None

    def _up(self, replica: _Replica) -> bool:
        try:
            return all(server.ready() for server in self._servers(replica))
        except SGLangError:
            return False

    def _servers(self, replica: _Replica) -> list[SGLangClient]:
        """The server itself, or those that are behind a router now."""
        workers = replica.client.workers()
        replica.router = workers is not None
        if workers is None:
            return [replica.client]
        if not workers:
            raise SGLangError(None, f"{replica.client.url} has no servers behind it")
        return [self._client(url) for url in workers]

    def _client(self, url: str) -> SGLangClient:
        if url not in self._clients:
            self._clients[url] = SGLangClient(url, key=self._key, timeout=self._timeout)
        return self._clients[url]

    def _set_aside(self, replica: _Replica, reason: str) -> None:
        log.warning("replica set aside", replica=replica.client.url, reason=reason)
        self._mark(replica, None)

    def _mark(self, replica: _Replica, tag: str | None) -> None:
        replica.tag = tag
        READY.set(sum(r.tag is not None for r in self._replicas))


def _shares(items: Sequence[int], homes: Sequence[int], count: int) -> list[list[int]]:
    """Items over `count` replicas: each at its home's, or at the next that is not full."""
    room = math.ceil(len(items) / count * SPREAD)
    shares: list[list[int]] = [[] for _ in range(count)]
    for item in items:
        start = homes[item] % count
        around = itertools.chain(range(start, count), range(start))
        next(shares[k] for k in around if len(shares[k]) < room).append(item)
    return shares
