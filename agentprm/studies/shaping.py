"""Process rewards shaped by a reference policy, where rollouts are few."""

from __future__ import annotations

from agentprm.config import Config
from agentprm.studies._comparison import Comparison
from agentprm.studies._study import Variant, with_fewer_rollouts

_FEWER = 4
"""One of so many rollouts is left."""
_ALPHAS = (0.0, 0.5, 1.0)


class Shaping(Comparison):
    """Targets (1−α) Q^π + α A^μ (eq. 13): α = 0 is AgentPRM, α = 1 imitation."""

    name = "shaping"
    title = "Shaping by a reference policy"
    paper = "fig. 7"

    def variants(self, config: Config) -> list[Variant]:
        """One for each α, on a quarter of the run's rollouts: that is where shaping is to help."""
        few = with_fewer_rollouts(config, _FEWER)
        return [Variant(f"alpha-{alpha:g}", {"shaping.alpha": alpha, **few}) for alpha in _ALPHAS]
