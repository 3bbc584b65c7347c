"""What is read off a policy at held-out states, without any outcome.

With a_1..a_n sampled from π_now at temperature 1 in a held-out state s:

- KL(π_now ‖ π_{i-1}) in nats, the divergence that eq. 3 penalises: its estimate in s is
  (1/n) Σ_j log π_now(a_j | s) − log π_{i-1}(a_j | s), which is unbiased for every n. (So is the
  other usual estimate, which adds e^δ − 1. But what that adds has its mean on actions that a
  policy far from π_{i-1} hardly ever samples, and far away is where this one is for.)
- process reward: (1/n) Σ_j Q_{i-1}(s, a_j), what stage 3 maximises.
- spread, where Q_{i-1} is an ensemble: the same mean of its members' standard deviation.

Each is averaged over the states.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from agentprm.config import MonitorSettings
from agentprm.ensembles import read_members
from agentprm.facts import read_fit
from agentprm.protocol import ActRequest, Choice, Sampling, ScoreRequest, State
from agentprm.registry import Registry
from services.trainer.monitor.reference import Reference
from services.trainer.rollouts.collect import NoGames, Services


class Monitor:
    """Reads a policy that serves, against Q_{i-1} and π_{i-1}, always at the same states.

    Every reading samples from the same seed, so that two of them differ by the policy alone.
    """

    def __init__(
        self,
        services: Services,
        reference: Reference,
        states: Sequence[State],
        plan: MonitorSettings,
        sampling: Sampling,
        *,
        prm_version: str,
        seed: int,
    ) -> None:
        self._services = services
        self._reference = reference
        self._states = list(states)
        self._prm_version = prm_version
        self._request = ActRequest(
            states=self._states,
            n=plan.samples,
            sampling=Sampling(decoding=sampling.decoding, max_tokens=sampling.max_tokens),
            seed=seed,
        )

    def read(self, version: str) -> dict[str, float]:
        """The readings of the policy `version`, which has to serve.

        `kl_error` is the standard error of `kl`, taken over the states.

        Raises:
            ServiceError: a service fails.
            WrongVersion: one answers with another version.
        """
        acted = self._services.act(self._request, version)
        candidates = [result.candidates for result in acted.results]
        choices = [
            Choice(state=state, actions=[candidate.action for candidate in found])
            for state, found in zip(self._states, candidates, strict=True)
        ]
        scored = self._services.score(ScoreRequest(choices=choices), self._prm_version)
        counts = [[candidate.count for candidate in found] for found in candidates]
        now = [[candidate.log_prob for candidate in found] for found in candidates]
        before = [
            self._reference.log_probs(state, found)
            for state, found in zip(self._states, candidates, strict=True)
        ]
        kl, kl_error = divergence(now, before, counts)
        readings = {"kl": kl, "kl_error": kl_error}
        readings["process_reward"] = _mean(scored.choices, counts)
        if scored.spread is not None:
            readings["spread"] = _mean(scored.spread.choices, counts)
        return readings


def divergence(
    now: Sequence[Sequence[float]],
    before: Sequence[Sequence[float]],
    counts: Sequence[Sequence[int]],
) -> tuple[float, float]:
    """KL(π_now ‖ π_before) in nats, a mean over states, and its standard error over the states.

    `now[i][j]` and `before[i][j]` are the log-probabilities of the j-th distinct action that π_now
    sampled in state i, `counts[i][j]` times.
    """
    of_state = [
        sum(n * (new - old) for new, old, n in zip(ours, theirs, times, strict=True)) / sum(times)
        for ours, theirs, times in zip(now, before, counts, strict=True)
    ]
    error = stdev(of_state) / math.sqrt(len(of_state)) if len(of_state) > 1 else math.nan
    return fmean(of_state), error


def held_out_games(registry: Registry, prm: str) -> set[str]:
    """The games that took no part in the fit of a PRM; of an ensemble, in that of any member.

    Raises:
        NoGames: there is none.
        CheckpointError: as `read_members` and `read_fit`.
    """
    games = set.intersection(*_games_of_members(registry, prm, "validation_games"))
    if not games:
        raise NoGames(f"no game was held out of the fit of {prm}: there is nothing to monitor")
    return games


def fitted_games(registry: Registry, prm: str) -> set[str]:
    """The games that a PRM was fitted on; of an ensemble, those of any member.

    Raises:
        CheckpointError: as `read_members` and `read_fit`.
    """
    return set.union(*_games_of_members(registry, prm, "training_games"))


def _games_of_members(registry: Registry, prm: str, side: str) -> list[set[str]]:
    versions = read_members(registry.path(prm)) or [prm]
    return [set(read_fit(registry.path(version), side)[side]) for version in versions]


def _mean(values: Sequence[Sequence[float]], counts: Sequence[Sequence[int]]) -> float:
    """The mean over states of the mean over samples."""
    return fmean(fmean(of_state, weights) for of_state, weights in zip(values, counts, strict=True))
