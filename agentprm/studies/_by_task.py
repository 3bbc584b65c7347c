"""Success and number of actions by task type, as lines of a CSV and as a table to read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from agentprm.results import SHORT, Rate, Row
from agentprm.studies._study import Cells

ALL = "all"
"""The task type of a line that is of all games."""


def by_task(row: Row) -> Iterator[tuple[str, Rate]]:
    """The rate of all games, then that of each task type."""
    yield ALL, row
    yield from row.by_task.items()


def rate_cells(task: str, rate: Rate) -> Cells:
    """The columns of a rate."""
    return {
        "task": task,
        "games": rate.games,
        "success": rate.success,
        "low": rate.low,
        "high": rate.high,
        "actions": rate.actions,
    }


def of_all_games(rows: Sequence[Cells]) -> list[Cells]:
    """The lines that are of all games."""
    return [row for row in rows if row["task"] == ALL]


def table_by_task(rows: Sequence[Cells]) -> str:
    """Success in % / mean number of actions, in Markdown: `name` down, task types across."""
    tasks = list(dict.fromkeys(str(row["task"]) for row in rows))
    cells = {
        (row["name"], row["task"]): f"{100 * row['success']:.0f} / {row['actions']:.1f}"
        for row in rows
    }
    lines = [
        "| policy | " + " | ".join(SHORT.get(task, task) for task in tasks) + " |",
        "|---" * (len(tasks) + 1) + "|",
    ]
    for name in dict.fromkeys(row["name"] for row in rows):
        own = (cells.get((name, task), "–") for task in tasks)
        lines.append(f"| {name} | " + " | ".join(own) + " |")
    return "Success in % / mean number of actions.\n\n" + "\n".join(lines)
