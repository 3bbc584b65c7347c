"""Settings of exploration: how the rollouts of an iteration begin, and who begins them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from agentprm.config._settings import Settings

Share = Annotated[float, Field(gt=0, le=1)]


class Reset(Settings):
    """Reset-50-50: rollouts that begin in a state of a won episode."""

    fraction: Share = 0.5
    """Share of the rollouts."""


class Steered(Settings):
    """Steered exploration: the policy reads a strategy while it plays; what is trained on does not
    hold it."""

    fraction: Share = 0.5
    """Share of the rollouts."""
    strategies: tuple[str, ...] = Field(min_length=1)
    """Texts, one of which is drawn for each episode, such as `Look into closed places first.`"""
    hindsight: float = Field(default=0.0, ge=0, le=1)
    """Share of the demonstrations that π_0 reads with a strategy made from what the expert then
    did, for a model made from scratch, which understands no other; see docs/exploration.md."""


class Posterior(Settings):
    """PosteriorExplorer: a policy that is told where things are plays the first turns."""

    fraction: Share = 0.5
    """Share of the rollouts."""


class Exploration(Settings):
    """Ways for the rollouts of an iteration to begin. They share the rollouts; what is left begins
    at the game's beginning with the bare policy."""

    reset: Reset | None = None
    steered: Steered | None = None
    posterior: Posterior | None = None

    @model_validator(mode="after")
    def _at_most_all(self) -> Exploration:
        total = sum(way.fraction for way in (self.reset, self.steered, self.posterior) if way)
        if total > 1:
            raise ValueError(f"the fractions are {total:g} in all, at most 1")
        return self
