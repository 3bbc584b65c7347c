"""Test-time scaling: success by the number N of samples that the PRM chooses from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from agentprm.config import Config, Evaluation
from agentprm.measurements import Measurement, read_measured
from agentprm.studies._study import Cells, Study, Variant

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAMPLES = (1, 2, 4, 8, 16, 32)


class Scaling(Study):
    """Best-of-N by (π_0, Q_0) and by (π_K, Q_{K-1}), all at the temperature of Best-of-N."""

    name = "scaling"
    title = "Test-time scaling"
    paper = "fig. 2b, 5b"
    trains = False

    def variants(self, config: Config) -> list[Variant]:
        """The run as it is."""
        return [Variant("run")]

    def measurements(self, run: Path, config: Config) -> list[Measurement]:
        """Every N, for the first policy and the last. N = 1 is the policy alone."""
        plan = config.evaluation.under(config.algorithm, config.shaping.alpha)
        last = config.iterations
        return [
            Measurement(
                name=f"scaling-pi_{i}-{n:02d}",
                policy=f"policy/{i}",
                prm=f"prm/{q}",
                steered=n > 1,
                plan=plan.model_copy(
                    update={"sampling": plan.best_of_sampling, "best_of": max(n, 2)}
                ),
            )
            for i, q in ((0, 0), (last, last - 1))
            for n in SAMPLES
        ]

    def actors(self, plan: Evaluation) -> str:
        """One sampling for every N, so that nothing but N differs along the curve."""
        return f"every N, 1 too: {plan.choice_in_words}"

    def rows(self, runs: Mapping[str, Path]) -> list[Cells]:
        """A line for each policy and N."""
        measured = [m.row for run in runs.values() for m in read_measured(run).values()]
        return [
            {
                "policy": row.policy,
                "n": row.best_of,
                "games": row.games,
                "success": row.success,
                "low": row.low,
                "high": row.high,
                "actions": row.actions,
            }
            for row in measured
        ]

    def draw(self, rows: Sequence[Cells], figure: Figure) -> None:
        """Success over N, on a logarithmic axis."""
        from agentprm.studies import figures

        axes = figure.subplots()
        for k, policy in enumerate(dict.fromkeys(row["policy"] for row in rows)):
            chosen = [row for row in rows if row["policy"] == policy]
            axes.errorbar(
                [row["n"] * 1.04**k for row in chosen],
                [row["success"] for row in chosen],
                yerr=figures.spread(chosen),
                label=policy,
                color=figures.SERIES[k],
                marker=figures.MARKERS[k],
                elinewidth=0.9,
            )
        figures.percent(axes)
        axes.set_xscale("log", base=2)
        axes.set_xticks(SAMPLES, [str(n) for n in SAMPLES])
        axes.set_xlabel("N of Best-of-N")
        figures.legend_below(figure, axes)
