"""Success rates and numbers of actions, with intervals: the paper's Table 1."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

import orjson
from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from agentprm.files import DamagedFile, write_atomic
from agentprm.protocol import ChoiceRule, Episode
from agentprm.validation import why

_WIDTH = 140
"""Columns of the table where there is no terminal."""
Z_95 = 1.959964
"""Standard errors on either side of a mean in its two-sided 95 % interval."""

SHORT = {
    "pick_and_place_simple": "pick",
    "look_at_obj_in_light": "look",
    "pick_clean_then_place_in_recep": "clean",
    "pick_heat_then_place_in_recep": "heat",
    "pick_cool_then_place_in_recep": "cool",
    "pick_two_obj_and_place": "pick two",
}
"""Task types as tables name them, in the order of the paper's."""
MAX_TASKS = 8
"""Types of tasks that fit into a table."""


class Rate(BaseModel):
    """Success over some games. `low` and `high` are Wilson's 95 % interval; rates in [0, 1]."""

    games: int
    success: float
    low: float
    high: float
    actions: float
    """Mean number of actions; an episode that failed counts with all it took."""


class Row(Rate):
    """One line of the table, with its conditions. `prm` is None where none took part."""

    policy: str
    prm: str | None
    best_of: int
    choice: ChoiceRule = ChoiceRule.PRM
    """How one of `best_of` > 1 samples was chosen."""
    split: str
    max_steps: int
    temperature: float
    seed: int
    actions_error: float
    """Half the width of the 95 % interval of `actions`."""
    by_task: dict[str, Rate]

    @property
    def name(self) -> str:
        """Its name in the table."""
        if self.best_of == 1:
            return self.policy
        names = {
            ChoiceRule.PRM: f"Best-of-{self.best_of}({self.policy}, {self.prm})",
            ChoiceRule.MAJORITY: f"Majority-of-{self.best_of}({self.policy})",
            ChoiceRule.RANDOM: f"Random-of-{self.best_of}({self.policy})",
        }
        return names[self.choice]


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a proportion (Wilson 1927), sound also near 0 and 1."""
    if trials == 0:
        return 0.0, 1.0
    p = successes / trials
    centre = p + Z_95**2 / (2 * trials)
    spread = Z_95 * math.sqrt(p * (1 - p) / trials + Z_95**2 / (4 * trials**2))
    scale = 1 + Z_95**2 / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def rate(episodes: Sequence[Episode]) -> Rate:
    """Success and mean number of actions of `episodes`."""
    won = sum(episode.won for episode in episodes)
    low, high = wilson(won, len(episodes))
    return Rate(
        games=len(episodes),
        success=won / len(episodes),
        low=low,
        high=high,
        actions=fmean(len(episode.turns) for episode in episodes),
    )


def summarise(
    episodes: Sequence[Episode], *, policy: str, prm: str | None, max_steps: int, seed: int
) -> Row:
    """The table's row for `episodes`, all played under the same conditions."""
    by_task = defaultdict(list)
    for episode in episodes:
        by_task[episode.game.task_type].append(episode)
    lengths = [len(episode.turns) for episode in episodes]
    spread = stdev(lengths) if len(lengths) > 1 else 0.0
    provenance = episodes[0].provenance
    return Row(
        **rate(episodes).model_dump(),
        policy=policy,
        prm=prm,
        best_of=provenance.best_of,
        choice=provenance.choice,
        split=episodes[0].game.split,
        max_steps=max_steps,
        temperature=provenance.sampling.temperature if provenance.sampling else 0.0,
        seed=seed,
        actions_error=Z_95 * spread / math.sqrt(len(lengths)),
        by_task={task: rate(group) for task, group in sorted(by_task.items())},
    )


def write_results(run: Path, rows: Sequence[Row]) -> None:
    """Replace `run/results.json` by these rows."""
    content = orjson.dumps([row.model_dump() for row in rows], option=orjson.OPT_INDENT_2)
    write_atomic(run / "results.json", content)


def read_results(run: Path) -> list[Row]:
    """The rows that a run has so far.

    Raises:
        DamagedFile: they cannot be read.
    """
    file = run / "results.json"
    try:
        return [Row.model_validate(row) for row in orjson.loads(file.read_bytes())]
    except (ValueError, TypeError) as error:
        raise DamagedFile(
            f"{file} cannot be read ({why(error)}). Delete it: the command that wrote it writes it "
            "anew from the records of the run."
        ) from error


def print_table(rows: Sequence[Row]) -> None:
    """Print the table on stdout; a pipe or a log file gets it in full width, too."""
    console = Console(emoji=False)
    if not console.is_terminal:
        console = Console(width=_WIDTH, emoji=False)
    console.print(table(rows))


def table(rows: Sequence[Row]) -> Table:
    """The rows as the paper prints them: success in percent and mean actions, also by task."""
    first = rows[0]
    result = Table(
        title=f"Success (%) within {first.max_steps} turns, {first.games} games of {first.split}",
        caption="[95 % interval]; actions: mean ± 95 %; by task: success in % / mean actions",
    )
    result.add_column("policy", no_wrap=True)
    result.add_column("success", justify="right", no_wrap=True)
    result.add_column("actions", justify="right", no_wrap=True)
    tasks = task_names(rows)
    for name in tasks.values():
        result.add_column(escape(name), justify="right", no_wrap=True)
    for row in rows:
        cells = [_cell(row.by_task.get(task)) for task in tasks]
        success = f"{row.success:.1%} [{row.low:.0%}, {row.high:.0%}]".replace("%", "")
        actions = f"{row.actions:.1f} ± {row.actions_error:.1f}"
        result.add_row(escape(row.name), success, actions, *cells)
    return result


def task_names(rows: Sequence[Row]) -> dict[str, str]:
    """The types of tasks in the rows, ALFWorld's first, with their short names.

    Of more than fit into a table there are the first ones; `results.json` has all.
    """
    found = {task for row in rows for task in row.by_task}
    ordered = [task for task in SHORT if task in found] + sorted(found - SHORT.keys())
    return {task: SHORT.get(task, task) for task in ordered[:MAX_TASKS]}


def _cell(rate: Rate | None) -> str:
    return "–" if rate is None else f"{100 * rate.success:.0f} / {rate.actions:.1f}"
