"""Process rewards from outcomes against process rewards from demonstrations."""

from __future__ import annotations

from agentprm.config import Config
from agentprm.studies._comparison import Comparison
from agentprm.studies._study import Variant


class Inverse(Comparison):
    """AgentPRM beside InversePRM (algorithm 2), from the same π_0."""

    name = "inverse"
    title = "AgentPRM and InversePRM"
    paper = "fig. 5, table 2"

    def variants(self, config: Config) -> list[Variant]:
        """One for each algorithm."""
        return [
            Variant("AgentPRM", {"algorithm": "agent-prm"}),
            Variant("InversePRM", {"algorithm": "inverse-prm"}),
        ]
