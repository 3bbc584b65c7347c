"""The policy as a job asks it: its sampling, and the versions that it must be of."""

from __future__ import annotations

import random

from agentprm.client import PolicyClient
from agentprm.protocol import ActRequest, ActResponse, PreferenceJob, RolloutJob, State
from services.rollout.game import PlayError


class JobPolicy:
    """Answers of the policy service for one job."""

    def __init__(self, client: PolicyClient, job: RolloutJob | PreferenceJob) -> None:
        self._client = client
        self._job = job

    def act(
        self,
        states: list[State],
        n: int,
        seed: int,
        *,
        prm: bool = True,
        beta: float = 0.0,
        hints: list[str] | None = None,
    ) -> ActResponse:
        """`n` samples in each state, with `prm` scored by the job's PRM; see `ActRequest`.

        Raises:
            PlayError: another version than the job's has answered.
            ServiceError: the service fails.
        """
        job = self._job
        request = ActRequest(
            states=states,
            hints=hints,
            n=n,
            prm=prm,
            beta=beta,
            sampling=job.sampling,
            seed=seed,
        )
        answer = self._client.act(request)
        _require("policy", job.policy_version, answer.policy_version)
        if prm:
            _require("prm", job.prm_version, answer.prm_version)
        return answer


def seed_for(seed: int, purpose: int | str) -> int:
    """A seed for every turn, so that equal draws do not recur along an episode."""
    return random.Random(f"{seed}/{purpose}").getrandbits(31)


def _require(name: str, wanted: str | None, got: str | None) -> None:
    if wanted is not None and wanted != got:
        raise PlayError(f"{name} answered with {got}, not {wanted}")
