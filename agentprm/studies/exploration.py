"""Ways of exploring in the rollouts."""

from __future__ import annotations

from typing import Any

from agentprm.config import Config
from agentprm.studies._comparison import Comparison
from agentprm.studies._study import Variant, by_default

_STRATEGIES = (
    "Look into closed places first.",
    "Look at every surface before you open anything.",
    "Go to the places where such a thing is usually kept.",
)
_TINY_STRATEGIES = (
    "go to drawer, cabinet",
    "go to shelf, sidetable, dresser",
    "go to countertop, diningtable, fridge",
)
"""In the words of hindsight, the only ones that a model made from scratch can learn."""
_HINDSIGHT = 0.5


class Exploration(Comparison):
    """Plain rollouts beside the strategies of section 4.1."""

    name = "exploration"
    title = "Exploration"
    paper = "fig. 6"

    def variants(self, config: Config) -> list[Variant]:
        """One for each strategy alone; of the latter three half of the rollouts are plain.

        Of the model `tiny` the steered variant has a π_0 of its own, which was told strategies.
        """
        tiny = config.model == "tiny"
        strategies = list(_TINY_STRATEGIES if tiny else _STRATEGIES)
        steered: dict[str, Any] = {"rollouts.exploration.steered.strategies": strategies}
        if tiny:
            steered["rollouts.exploration.steered.hindsight"] = _HINDSIGHT
        ways: dict[str, dict[str, Any]] = {
            "reset": {"rollouts.exploration.reset.fraction": 0.5},
            "steered": steered,
            "posterior": {"rollouts.exploration.posterior.fraction": 0.5},
        }

        def without_others(name: str) -> dict[str, Any]:
            others = (f"rollouts.exploration.{way}" for way in ways if way != name)
            return by_default(config, *others)

        return [
            Variant(name, without_others(name) | ways.get(name, {})) for name in ("plain", *ways)
        ]
