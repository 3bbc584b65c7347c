"""Absolute against relative process rewards."""

from __future__ import annotations

from agentprm.config import Config
from agentprm.studies._comparison import Comparison
from agentprm.studies._study import Variant


class Relative(Comparison):
    """Q by its values (eq. 2) beside Q by pairs of actions in one state (section 2.3)."""

    name = "relative"
    title = "Absolute and relative process rewards"
    paper = "fig. 4"

    def variants(self, config: Config) -> list[Variant]:
        """One for each objective of the PRM."""
        return [
            Variant("absolute", {"prm.objective": "absolute"}),
            Variant("relative", {"prm.objective": "relative"}),
        ]
