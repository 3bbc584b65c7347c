"""Success over the iterations of a run."""

from __future__ import annotations

from agentprm.studies._comparison import Comparison


class Curves(Comparison):
    """Figure 2a; of an InversePRM run figure 5a."""

    name = "curves"
    title = "Success over iterations"
    paper = "fig. 2a, 5a"
