"""Success over iterations, of one run or of variants side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from agentprm.paired import paired
from agentprm.protocol import ChoiceRule, Episode
from agentprm.results import Row, read_results
from agentprm.runs import evaluation_stage, read_episodes
from agentprm.studies._by_task import by_task, of_all_games, rate_cells, table_by_task
from agentprm.studies._study import Cells, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Comparison(Study):
    """π_i, and the best of N of its actions by Q_{i-1}, after each iteration of each variant.

    Each line of all games is compared with its counterpart of the first variant, game by game.
    """

    def rows(self, runs: Mapping[str, Path]) -> list[Cells]:
        """A line for each row of the variants' own tables and each task type, `all` among them."""
        first = next(iter(runs.values()))
        return [
            cells
            for variant, run in runs.items()
            for row in read_results(run)
            for stage in [evaluation_stage(row.policy, row.prm)]
            for cells in compared(
                variant if len(runs) > 1 else "",
                row,
                read_episodes(run, stage),
                [] if run == first else read_episodes(first, stage),
            )
        ]

    def draw(self, rows: Sequence[Cells], figure: Figure) -> None:
        """π_i solid, one of N of its samples dashed; a colour for each variant, of one for each."""
        from agentprm.studies import figures

        axes = figure.subplots()
        lines: dict[tuple[str, bool], list[Cells]] = {}
        for row in of_all_games(rows):
            lines.setdefault((row["variant"], row["best_of"] > 1), []).append(row)
        variants = list(dict.fromkeys(variant for variant, _ in lines))
        for k, ((variant, chooses), chosen) in enumerate(lines.items()):
            look = variants.index(variant) if len(variants) > 1 else k
            axes.errorbar(
                [r["iteration"] + 0.03 * (k - len(lines) / 2) for r in chosen],
                [r["success"] for r in chosen],
                yerr=figures.spread(chosen),
                label=_label(chosen[0]),
                color=figures.SERIES[look % len(figures.SERIES)],
                marker=figures.MARKERS[look % len(figures.MARKERS)],
                linestyle="--" if chooses else "-",
                elinewidth=0.9,
            )
        figures.percent(axes)
        figures.whole_numbers(axes)
        axes.set_xlabel("iteration")
        figures.legend_below(figure, axes)

    def findings(self, rows: Sequence[Cells]) -> str:
        """The table by task type, and what differs from the first variant, game by game."""
        table = table_by_task(rows)
        first = rows[0]["variant"]
        pairs = [row for row in of_all_games(rows) if row["p"] is not None]
        if not pairs:
            return table
        said = [
            f"- {row['name']}: {row['gained']} gained, {row['lost']} lost, p = {row['p']:.2g}"
            for row in pairs
        ]
        return f"{table}\n\nAgainst {first}, by game (McNemar, exact):\n\n" + "\n".join(said)


def compared(
    variant: str, row: Row, episodes: Sequence[Episode], others: Sequence[Episode]
) -> Iterator[Cells]:
    """The lines of a row; that of all games says how it compares with `others`, if there are any.

    `gained` and `lost` count the games that only this one, or only the other, has won; `p` is that
    of McNemar's exact test, two-sided.
    """
    won, theirs = ({e.game.id: e.won for e in each} for each in (episodes, others))
    pairs = paired(theirs.values(), (won[game] for game in theirs)) if theirs else None
    for task, rate in by_task(row):
        told = pairs if rate is row else None
        yield {
            "variant": variant,
            "iteration": int(row.policy.removeprefix("pi_")),
            "policy": row.policy,
            "prm": row.prm,
            "best_of": row.best_of,
            "choice": row.choice.value,
            "name": f"{variant}: {row.name}" if variant else row.name,
            **rate_cells(task, rate),
            "actions_error": row.actions_error if rate is row else None,
            "gained": told.gained if told else None,
            "lost": told.lost if told else None,
            "p": told.p if told else None,
        }


def _label(row: Cells) -> str:
    steered = row["choice"] == ChoiceRule.PRM
    one_of = f"best of {row['best_of']}" if steered else f"one of {row['best_of']}"
    what = one_of if row["best_of"] > 1 else "policy"
    return f"{row['variant']}, {what}" if row["variant"] else what
