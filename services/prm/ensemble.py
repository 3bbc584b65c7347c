"""Several PRM checkpoints served as one: the mean of their scores, and how far they disagree.

An ensemble is a checkpoint of its own, whose directory holds the names of its members instead of
weights (`agentprm.ensembles`). So it has a version, is verified, swapped and resumed like any
other. A single checkpoint is served by the same code and costs nothing more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from agentprm.ensembles import read_members
from agentprm.facts import read_facts, require_template
from agentprm.models.serving import Served
from agentprm.prompts import PromptTemplate
from agentprm.protocol import Checkpoint, ModelCard, ScoreResponse, Scores
from agentprm.registry import CheckpointError, Registry
from services.prm.canary import check
from services.prm.scorer import BaseScorer


@dataclass(frozen=True)
class Ensemble:
    """What serves: the members, of which there is one unless several were put together."""

    members: tuple[Served[BaseScorer], ...]
    checkpoints: tuple[Checkpoint, ...]
    paths: tuple[Path, ...]
    """Where the members lie."""

    def check(self) -> None:
        """Try every member, and compare it with its own canary.

        Raises:
            CheckpointError, ValueError: as `services.prm.canary.check`.
        """
        for member, path in zip(self.members, self.paths, strict=True):
            check(member.weights, path)

    def card(self, version: str) -> ModelCard:
        """What is known of it, being served as `version`."""
        return ModelCard(
            version=version,
            template_hash=self.members[0].weights.prompt.hash,
            checkpoints=list(self.checkpoints),
        )

    async def score(
        self, version: str, ask: Callable[[Served[BaseScorer]], Awaitable[ScoreResponse]]
    ) -> ScoreResponse:
        """What `ask` gives for the only member, or the mean and spread of what it gives for each.

        All members answer, or the request fails.
        """
        if len(self.members) == 1:
            return await ask(self.members[0])
        return combine(version, await asyncio.gather(*map(ask, self.members)))


def load_ensemble(
    registry: Registry, path: Path, prompt: PromptTemplate, build: Callable[[Path], BaseScorer]
) -> Ensemble:
    """The checkpoint in `path`, or all members of the ensemble in it, verified.

    Raises:
        CheckpointError: a checkpoint is missing, damaged, or was fitted with another prompt
            template than `prompt`; or the members do not read text alike.
        OSError, ValueError: what `build` raises.
    """
    versions = read_members(path)
    paths = [registry.open(version) for version in versions] or [path]
    members, checkpoints = [], []
    for member in paths:
        version = f"{member.parent.name}/{member.name}"
        facts = read_facts(member)
        require_template(facts, prompt, version)
        members.append(Served(version, build(member)))
        checkpoints.append(Checkpoint(version=version, **facts.model_dump()))
        _require_alike(members[0], members[-1])
    return Ensemble(tuple(members), tuple(checkpoints), tuple(paths))


def combine(version: str, answers: list[ScoreResponse]) -> ScoreResponse:
    """The mean of the answers, with their sample standard deviation (n − 1) as `spread`."""
    forms = {name: [getattr(answer, name) for answer in answers] for name in Scores.model_fields}
    return ScoreResponse(
        **{name: _fold(values, fmean) for name, values in forms.items()},
        spread=Scores(**{name: _fold(values, stdev) for name, values in forms.items()}),
        prm_version=version,
        template_hash=answers[0].template_hash,
    )


def _fold(values: list[Any], fold: Callable[[list[float]], float]) -> Any:
    """Lists of one shape, made one by `fold` of the numbers in each place."""
    if isinstance(values[0], list):
        return [_fold(list(place), fold) for place in zip(*values, strict=True)]
    return fold(values)


def _require_alike(first: Served[BaseScorer], other: Served[BaseScorer]) -> None:
    one, two = first.weights.tokenizer, other.weights.tokenizer
    if one is not two and (
        one.get_vocab() != two.get_vocab() or one.chat_template != two.chat_template
    ):
        raise CheckpointError(
            f"{other.version} has another tokenizer or chat template than {first.version}: "
            "the members of an ensemble have to read text alike"
        )
