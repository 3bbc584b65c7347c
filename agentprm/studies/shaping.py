"""Process rewards shaped by a reference policy, where rollouts are few."""

from __future__ import annotations

from agentprm.config import Config
from agentprm.studies._comparison import Comparison
from agentprm.studies._study import Variant

_ALPHAS = (0.0, 0.5, 1.0)


class Shaping(Comparison):
    """Targets (1−α) Q^π + α A^μ (eq. 13): α = 0 is AgentPRM, α = 1 imitation."""

    name = "shaping"
    title = "Shaping by a reference policy"
    paper = "fig. 7"

    def variants(self, config: Config) -> list[Variant]:
        """One for each α, on a quarter of the run's rollouts: that is where shaping is to help."""
        games = max(2, config.rollouts.games // 4)
        return [
            Variant(f"alpha-{alpha:g}", {"shaping.alpha": alpha, "rollouts.games": games})
            for alpha in _ALPHAS
        ]
