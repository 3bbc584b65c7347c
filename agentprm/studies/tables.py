"""Success and number of actions, over all games and by task type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from agentprm.results import read_results
from agentprm.studies._by_task import by_task, of_all_games, rate_cells, table_by_task
from agentprm.studies._study import Cells, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Tables(Study):
    """The paper's table 1 for AgentPRM; table 2 stands beside the study `inverse`."""

    name = "tables"
    title = "Success by task type"
    paper = "table 1"

    def rows(self, runs: Mapping[str, Path]) -> list[Cells]:
        """A line for each policy and task type, `all` among them."""
        return [
            {"name": row.name, **rate_cells(task, rate)}
            for run in runs.values()
            for row in read_results(run)
            for task, rate in by_task(row)
        ]

    def draw(self, rows: Sequence[Cells], figure: Figure) -> None:
        """Success over all games, with intervals."""
        from agentprm.studies import figures

        chosen = of_all_games(rows)[::-1]
        axes = figure.subplots()
        axes.errorbar(
            [row["success"] for row in chosen],
            range(len(chosen)),
            xerr=figures.spread(chosen),
            linestyle="",
            marker="o",
            color=figures.SERIES[0],
        )
        axes.margins(y=0.15)
        axes.set_yticks(range(len(chosen)), [row["name"] for row in chosen])
        figures.percent(axes, "x")

    def findings(self, rows: Sequence[Cells]) -> str:
        """The table."""
        return table_by_task(rows)
