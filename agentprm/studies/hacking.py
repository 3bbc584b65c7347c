"""Reward hacking: where the process reward goes on rising and the success does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from agentprm.config import Config, MonitorSettings, read_config
from agentprm.facts import read_fit
from agentprm.measurements import Measurement, read_measured
from agentprm.registry import Registry, number
from agentprm.runs import read_episodes, read_metrics
from agentprm.studies._study import Cells, Study, StudyError, Variant, with_few_rollouts
from agentprm.trials import Trial, Trials

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MEMBERS = 3
_STATES = 128
_LOOKS = 5
"""Sets of weights along stage 3, where the preset itself publishes none."""


class Hacking(Study):
    """Process reward on validation states and success on validation games along stage 3.

    Beside them is what the monitor reads there without outcomes, and what its early stop would have
    done: it is tried on the same games, and the fits go on to their end.
    """

    name = "hacking"
    title = "Reward hacking"
    paper = "fig. 3"

    def variants(self, config: Config) -> list[Variant]:
        """PRMs of few rollouts, one alone and several as one, and of many; one iteration.

        Raises:
            StudyError: the run's policy update has no weights along the way.
        """
        fit = config.online
        if fit is None:
            raise StudyError(f"{config.update} is no online update: there is nothing along the way")
        group = "grpo" if fit is config.grpo else "dpo"
        every, steps = fit.publish_every, fit.max_steps
        every = every if every < steps else max(1, steps // _LOOKS)
        common = {
            "iterations": 1,
            f"{group}.publish_every": every,
            f"{group}.keep_every": every,
            "monitor.games": 0,
        }
        few = {**common, **with_few_rollouts(config)}
        return [
            Variant("few", few),
            Variant("few-ensemble", {**few, "prm.members": _MEMBERS}),
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
                plan=config.evaluation.under(config.algorithm, config.shaping.alpha),
                states=_STATES,
            )
            for step, version in sorted(steps.items())
        ]

    def rows(self, runs: Mapping[str, Path]) -> list[Cells]:
        """A line for each variant and step.

        `parted` marks the step where the two part. `kl` (nats) and `spread` are the monitor's;
        `ended` marks the step at which its early stop would have ended the fit, and `kept` the one
        whose weights it would have kept.
        """
        rows: list[Cells] = []
        for variant, run in runs.items():
            points = sorted(read_measured(run).items())
            process = [m.process_reward.mean for _, m in points if m.process_reward]
            parted = parting(process, [m.row.success for _, m in points])
            readings = _readings(run)
            ended, kept = _early_stop(run, [name for name, _ in points])
            rows += [
                {
                    "variant": variant,
                    "step": _step(name),
                    "process_reward": m.process_reward.mean if m.process_reward else None,
                    "process_reward_error": m.process_reward.error if m.process_reward else None,
                    "states": m.process_reward.states if m.process_reward else 0,
                    "games": m.row.games,
                    "success": m.row.success,
                    "low": m.row.low,
                    "high": m.row.high,
                    "parted": int(k == parted),
                    "kl": readings.get(_step(name), {}).get("kl"),
                    "spread": readings.get(_step(name), {}).get("spread"),
                    "ended": int(k == ended),
                    "kept": int(k == kept),
                }
                for k, (name, m) in enumerate(points)
            ]
        return rows

    def draw(self, rows: Sequence[Cells], figure: Figure) -> None:
        """A panel for each variant, with a dotted line where the two part, and a dashed one where
        the early stop would have ended the fit."""
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
                for mark, style in (("parted", ":"), ("ended", "--")):
                    if row[mark]:
                        axes.axvline(row["step"], color=figures.SERIES[4], linestyle=style)
            axes.set_title(variant, fontsize=10, loc="left")
            figures.percent(axes)
            axes.set_ylabel("")
        panels[-1].set_xlabel("optimizer steps of stage 3")
        figures.legend_below(figure, panels[0])

    def findings(self, rows: Sequence[Cells]) -> str:
        """Where process reward and success part, and what the monitor would have done."""
        paragraphs = []
        for variant in dict.fromkeys(row["variant"] for row in rows):
            chosen = [row for row in rows if row["variant"] == variant]
            paragraphs.append(f"{variant}: {_parting_in_words(chosen)} {_caught(chosen)}")
        return "\n\n".join(paragraphs)


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


def _parting_in_words(rows: Sequence[Cells]) -> str:
    at = next((row for row in rows if row["parted"]), None)
    if at is None:
        return "process reward and success do not part."
    last = rows[-1]
    sure = "more" if last["high"] < at["success"] else "no more"
    return (
        f"they part after step {at['step']}; by step {last['step']} success "
        f"fell from {at['success']:.1%} to {last['success']:.1%}, {sure} than its interval."
    )


def _caught(rows: Sequence[Cells]) -> str:
    """What the monitor's readings say at the end, and its early stop along the way."""
    kept, last = next(row for row in rows if row["kept"]), rows[-1]
    read = [row for row in rows if row["kl"] is not None]
    said = [f"the KL is {read[-1]['kl']:.2g} nats at step {read[-1]['step']}"] if read else []
    spread = [row for row in read if row["spread"] is not None]
    if spread:
        first, end = spread[0]["spread"], spread[-1]["spread"]
        said.append(f"the members' spread goes from {first:.2g} to {end:.2g}")
    ended = next((row for row in rows if row["ended"]), None)
    how = f"end stage 3 at step {ended['step']}" if ended else "let stage 3 run to its end"
    said.append(
        f"its trials on these games would {how} and keep step {kept['step']}, "
        f"{kept['success']:.1%} in place of {last['success']:.1%} (chosen, so a little too good)"
    )
    return f"The monitor: {'; '.join(said)}."


def _readings(run: Path) -> dict[int, dict[str, float]]:
    """What the monitor has read along the fit of π_1, by step; of a fit done twice the latter."""
    lines = (line for line in read_metrics(run) if line["stage"] == "pi_1" and "kl" in line)
    return {line["step"]: line for line in lines}


def _early_stop(run: Path, stages: Sequence[str]) -> tuple[int | None, int]:
    """At which of the measured sets of weights trials would have ended the fit, if at any, and
    which they would have kept."""
    played = [sorted(read_episodes(run, stage), key=lambda e: e.game.id) for stage in stages]
    first, *others = (
        Trial(stage, k, tuple(episode.won for episode in episodes))
        for k, (stage, episodes) in enumerate(zip(stages, played, strict=True))
    )
    trials = Trials(first, (read_config(run).monitor or MonitorSettings()).patience)
    for trial in others:
        trials.add(trial)
        if trials.stopped:
            return trial.step, trials.best.step
    return None, trials.best.step


def _step(name: str) -> int:
    return int(name.rpartition("-")[2])


def _steps(run: Path) -> int:
    """The optimizer steps of the fit of π_1; 0 where it is π_0, for want of preferences."""
    fit = read_fit(Registry(run / "checkpoints").path("policy/1"), "kind", "metrics")
    return 0 if fit["kind"] == "sft" else int(fit["metrics"]["steps"])
