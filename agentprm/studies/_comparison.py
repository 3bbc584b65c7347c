"""Success over iterations, of one run or of variants side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from agentprm.results import read_results
from agentprm.studies._study import Cells, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Comparison(Study):
    """π_i, and the best of N of its actions by Q_{i-1}, after each iteration of each variant."""

    def rows(self, runs: Mapping[str, Path]) -> list[Cells]:
        """A line for each row of the variants' own tables."""
        return [cells for variant, run in runs.items() for cells in _rows(variant, run)]

    def draw(self, rows: Sequence[Cells], figure: Figure) -> None:
        """A colour for each variant: π_i solid, the best of N dashed."""
        from agentprm.studies import figures

        axes = figure.subplots()
        variants = list(dict.fromkeys(row["variant"] for row in rows))
        lines = [(variant, steered) for variant in variants for steered in (False, True)]
        for k, (variant, steered) in enumerate(lines):
            chosen = [
                r for r in rows if r["variant"] == variant and (r["prm"] is not None) is steered
            ]
            look = variants.index(variant) if len(variants) > 1 else k
            axes.errorbar(
                [r["iteration"] + 0.03 * (k - len(lines) / 2) for r in chosen],
                [r["success"] for r in chosen],
                yerr=figures.spread(chosen),
                label=_label(variant if len(variants) > 1 else "", chosen, steered=steered),
                color=figures.SERIES[look % len(figures.SERIES)],
                marker=figures.MARKERS[look % len(figures.MARKERS)],
                linestyle="--" if steered else "-",
                elinewidth=0.9,
            )
        figures.percent(axes)
        figures.whole_numbers(axes)
        axes.set_xlabel("iteration")
        figures.legend_below(figure, axes)


def _rows(variant: str, run: Path) -> Iterator[Cells]:
    for row in read_results(run):
        yield {
            "variant": variant,
            "iteration": int(row.policy.removeprefix("pi_")),
            "policy": row.policy,
            "prm": row.prm,
            "best_of": row.best_of,
            "games": row.games,
            "success": row.success,
            "low": row.low,
            "high": row.high,
            "actions": row.actions,
            "actions_error": row.actions_error,
        }


def _label(variant: str, rows: Sequence[Cells], *, steered: bool) -> str:
    what = f"best of {rows[0]['best_of']}" if steered and rows else "policy"
    return f"{variant}, {what}" if variant else what
