"""Process rewards shaped by a reference policy, where rollouts are few."""

from __future__ import annotations

from agentprm.config import Config
from agentprm.studies._comparison import Comparison
from agentprm.studies._study import Variant, with_few_rollouts

_ALPHAS = (0.0, 0.5, 1.0)


class Shaping(Comparison):
    """Targets (1−α) Q^π + α A^μ (eq. 13): α = 0 is AgentPRM, α = 1 imitation."""

    name = "shaping"
    title = "Shaping by a reference policy"
    paper = "fig. 7"

    def variants(self, config: Config) -> list[Variant]:
        """One for each α, where rollouts are few: there shaping is to help."""
        few = with_few_rollouts(config)
        return [Variant(f"alpha-{alpha:g}", {"shaping.alpha": alpha, **few}) for alpha in _ALPHAS]
