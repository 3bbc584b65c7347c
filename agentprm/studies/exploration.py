"""Ways of exploring in the rollouts."""

from __future__ import annotations

from agentprm.config import Config
from agentprm.studies._comparison import Comparison
from agentprm.studies._study import Variant

_STRATEGIES = (
    "Look into closed places first.",
    "Look at every surface before you open anything.",
    "Go to the places where such a thing is usually kept.",
)


class Exploration(Comparison):
    """Plain rollouts beside the strategies of section 4.1."""

    name = "exploration"
    title = "Exploration"
    paper = "fig. 6"

    def variants(self, config: Config) -> list[Variant]:
        """One for each strategy; of the latter three half of the rollouts are plain."""
        return [
            Variant("plain"),
            Variant("reset", {"rollouts.exploration.reset.fraction": 0.5}),
            Variant("steered", {"rollouts.exploration.steered.strategies": list(_STRATEGIES)}),
            Variant("posterior", {"rollouts.exploration.posterior.fraction": 0.5}),
        ]
