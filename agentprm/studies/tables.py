"""Success and number of actions, over all games and by task type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from agentprm.results import SHORT, Rate, read_results
from agentprm.studies._study import Cells, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Tables(Study):
    """The paper's table 1 for AgentPRM, and table 2 of an InversePRM run."""

    name = "tables"
    title = "Success by task type"
    paper = "tables 1 and 2"

    def rows(self, runs: Mapping[str, Path]) -> list[Cells]:
        """A line for each policy and task type, `all` among them."""
        return [
            _cells(row.name, task, rate)
            for run in runs.values()
            for row in read_results(run)
            for task, rate in {"all": row, **row.by_task}.items()
        ]

    def draw(self, rows: Sequence[Cells], figure: Figure) -> None:
        """Success over all games, with intervals."""
        from agentprm.studies import figures

        chosen = [row for row in reversed(rows) if row["task"] == "all"]
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
        axes.set_yticks(range(len(chosen)), [row["policy"] for row in chosen])
        figures.percent(axes, "x")

    def findings(self, rows: Sequence[Cells]) -> str:
        """The table: success in % / mean number of actions."""
        tasks = list(dict.fromkeys(str(row["task"]) for row in rows))
        policies = list(dict.fromkeys(str(row["policy"]) for row in rows))
        cells = {
            (
                row["policy"],
                row["task"],
            ): f"{100 * float(row['success'] or 0):.0f} / {row['actions']:.1f}"
            for row in rows
        }
        lines = [
            "| policy | " + " | ".join(SHORT.get(task, task) for task in tasks) + " |",
            "|---" * (len(tasks) + 1) + "|",
        ]
        for policy in policies:
            own = (cells.get((policy, task), "–") for task in tasks)
            lines.append(f"| {policy} | " + " | ".join(own) + " |")
        return "Success in % / mean number of actions.\n\n" + "\n".join(lines)


def _cells(policy: str, task: str, rate: Rate) -> Cells:
    return {
        "policy": policy,
        "task": task,
        "games": rate.games,
        "success": rate.success,
        "low": rate.low,
        "high": rate.high,
        "actions": rate.actions,
    }
