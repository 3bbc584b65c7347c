"""The row of look-ahead in the table of results."""

from __future__ import annotations

from collections.abc import Sequence

from agentprm.protocol import Episode, Lookahead
from agentprm.results import Row, summarise


class PlannedRow(Row):
    """A line of the table for a policy with look-ahead, and what an action took."""

    lookahead: Lookahead
    states: float
    """States, per action, in which the policy was sampled and the PRM asked."""
    transitions: float
    """Transitions, per action, that the model was asked for."""
    unknown: float
    """Those of them, per action, that it could not tell."""

    @property
    def name(self) -> str:
        """Its name in the table."""
        plan = self.lookahead
        size = f"{plan.depth}x{plan.width}"
        return f"{plan.model} {plan.shape} {size}({self.policy}, {self.prm})"


def summarise_planned(
    episodes: Sequence[Episode], *, policy: str, prm: str, max_steps: int, seed: int
) -> PlannedRow:
    """The table's row for `episodes`, all played with one look-ahead.

    Raises:
        ValueError: they were played without.
    """
    plan = episodes[0].provenance.lookahead
    searches = [turn.search for episode in episodes for turn in episode.turns if turn.search]
    if plan is None or not searches:
        raise ValueError("these episodes were played without look-ahead")
    row = summarise(episodes, policy=policy, prm=prm, max_steps=max_steps, seed=seed)
    actions = len(searches)
    return PlannedRow(
        **row.model_dump(),
        lookahead=plan,
        states=sum(search.states for search in searches) / actions,
        transitions=sum(search.transitions for search in searches) / actions,
        unknown=sum(search.unknown for search in searches) / actions,
    )
