"""Reward hacking: where the process reward goes on rising and the success does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from agentprm.config import Config
from agentprm.facts import METADATA
from agentprm.measurements import Measurement, read_measured
from agentprm.registry import Registry, number
from agentprm.studies._study import Cells, Study, Variant

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FEWER = 4
"""Of the run's games for rollouts, one in so many where the PRM is to have few."""
_MEMBERS = 3
_STATES = 128
_LOOKS = 5
"""Sets of weights along stage 3, where the preset itself publishes none."""


class Hacking(Study):
    """Process reward on validation states and success on validation games along stage 3."""

    name = "hacking"
    title = "Reward hacking"
    paper = "fig. 3"

    def variants(self, config: Config) -> list[Variant]:
        """PRMs of few rollouts, one alone and several as one, and of many; one iteration."""
        games = {"rollouts.games": max(2, config.rollouts.games // _FEWER)}
        every, steps = config.dpo.publish_every, config.dpo.max_steps
        every = every if every < steps else max(1, steps // _LOOKS)
        common = {"iterations": 1, "dpo.publish_every": every, "dpo.keep_every": every}
        return [
            Variant("few", {**common, **games}),
            Variant("few-ensemble", {**common, **games, "prm.members": _MEMBERS}),
            Variant("many", common),
        ]

    def measurements(self, run: Path, config: Config) -> list[Measurement]:
        """The weights that were kept, with π_0 before them and π_1 after."""
        kept = [v for v in Registry(run / "checkpoints").versions("online") if number(v)[0] == 1]
        steps = {0: "policy/0", _steps(run): "policy/1"}
        steps |= {number(version)[1]: version for version in kept}
        return [
            Measurement(
                name=f"hacking-{step:05d}",
                policy=version,
                prm="prm/0",
                plan=config.evaluation,
                states=_STATES,
            )
            for step, version in sorted(steps.items())
        ]

    def rows(self, runs: Mapping[str, Path]) -> list[Cells]:
        """A line for each variant and step. `parted` marks the step where the two part."""
        rows: list[Cells] = []
        for variant, run in runs.items():
            points = [(name, m) for name, m in sorted(read_measured(run).items())]
            process = [m.process_reward.mean for _, m in points if m.process_reward]
            parted = parting(process, [m.row.success for _, m in points])
            rows += [
                {
                    "variant": variant,
                    "step": int(name.rpartition("-")[2]),
                    "process_reward": m.process_reward.mean if m.process_reward else None,
                    "process_reward_error": m.process_reward.error if m.process_reward else None,
                    "states": m.process_reward.states if m.process_reward else 0,
                    "games": m.row.games,
                    "success": m.row.success,
                    "low": m.row.low,
                    "high": m.row.high,
                    "parted": int(k == parted),
                }
                for k, (name, m) in enumerate(points)
            ]
        return rows

    def draw(self, rows: Sequence[Cells], figure: Figure) -> None:
        """A panel for each variant, with a line where the two part."""
        from agentprm.studies import figures

        variants = list(dict.fromkeys(row["variant"] for row in rows))
        figure.set_size_inches(4.4, 1.8 * len(variants) + 0.8)
        panels = figure.subplots(len(variants), sharex=True, squeeze=False)[:, 0]
        for axes, variant in zip(panels, variants, strict=True):
            chosen = [row for row in rows if row["variant"] == variant]
            steps = [row["step"] for row in chosen]
            axes.errorbar(
                steps,
                [row["process_reward"] for row in chosen],
                yerr=[row["process_reward_error"] for row in chosen],
                label="process reward",
                color=figures.SERIES[1],
                marker=figures.MARKERS[1],
                elinewidth=0.9,
            )
            axes.errorbar(
                steps,
                [row["success"] for row in chosen],
                yerr=figures.spread(chosen),
                label="success",
                color=figures.SERIES[0],
                marker=figures.MARKERS[0],
                elinewidth=0.9,
            )
            for row in chosen:
                if row["parted"]:
                    axes.axvline(row["step"], color=figures.SERIES[4], linestyle=":")
            axes.set_title(variant, fontsize=10, loc="left")
            figures.percent(axes)
            axes.set_ylabel("")
        panels[-1].set_xlabel("optimizer steps of stage 3")
        figures.legend_below(figure, panels[0])

    def findings(self, rows: Sequence[Cells]) -> str:
        """The step where process reward and success part, for each variant."""
        sentences = []
        for variant in dict.fromkeys(row["variant"] for row in rows):
            chosen = [row for row in rows if row["variant"] == variant]
            at = next((row for row in chosen if row["parted"]), None)
            if at is None:
                sentences.append(f"{variant}: process reward and success do not part.")
                continue
            last = chosen[-1]
            sure = "more" if last["high"] < at["success"] else "no more"
            sentences.append(
                f"{variant}: they part after step {at['step']}; by step {last['step']} success "
                f"fell from {at['success']:.1%} to {last['success']:.1%}, {sure} than its interval."
            )
        return " ".join(sentences)


def parting(process: Sequence[float], success: Sequence[float]) -> int | None:
    """The first point after which every process reward is higher, and every success lower.

    None where there is no such point before the last.
    """
    for k in range(len(success) - 1):
        rises = min(process[k + 1 :]) > process[k]
        falls = max(success[k + 1 :]) < success[k]
        if rises and falls:
            return k
    return None


def _steps(run: Path) -> int:
    """The optimizer steps of the fit of π_1; 0 where it is π_0, for want of preferences."""
    facts = orjson.loads((run / "checkpoints" / "policy" / "1" / METADATA).read_bytes())
    return 0 if facts["kind"] == "sft" else int(facts["metrics"]["steps"])
