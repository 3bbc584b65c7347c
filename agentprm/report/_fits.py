"""What the fits of a run left behind: calibration of its PRMs, statistics, and times."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
from markupsafe import Markup
from matplotlib.figure import Figure

from agentprm.facts import METADATA, read_facts
from agentprm.protocol import Calibration, ReliabilityBin
from agentprm.registry import Registry, number
from agentprm.runs import read_metrics, read_stage_seconds, short_name
from agentprm.studies import figures

_SHOWN = {
    "steps": "steps",
    "loss": "loss",
    "preferences": "preferences",
    "indifferent": "indifferent",
    "stale": "stale",
    "accuracy": "accuracy",
    "margin": "margin",
    "kept_step": "kept the weights of step",
    "pairs": "pairs",
    "discarded_pairs": "pairs below the margin",
    "val_pair_accuracy": "held-out pairs in order",
    "expert_transitions": "transitions of the expert",
    "learner_transitions": "of the learner",
    "val_q_expert": "held-out Q of the expert's actions",
    "val_q_learner": "of the learner's",
    "val_bce": "held-out BCE",
    "val_entropy": "its floor",
    "val_auc": "AUC",
    "val_explained_variance": "explained variance",
    "tokens_per_second": "tokens/s",
    "seconds": "seconds",
    "waited_seconds": "of them waiting",
}
"""Measurements of fits that are shown, and what they are called."""


def describe_prms(registry: Registry) -> list[dict[str, Any]]:
    """Each PRM with the diagram of its reliability on held-out games, where there were any."""
    found = []
    for version in registry.versions("prm"):
        calibration = read_facts(registry.path(version)).calibration
        if calibration is not None:
            svg = figures.inline(_diagram(calibration), _spoken(version, calibration.bins))
            found.append({"version": version, "calibration": calibration, "svg": Markup(svg)})
    return found


def describe_fits(run: Path) -> list[dict[str, Any]]:
    """Each checkpoint in the order they are made: what it is, and what its fit measured."""
    registry = Registry(run / "checkpoints")
    policies, prms = registry.versions("policy"), registry.versions("prm")
    versions = sorted([*policies, *prms], key=lambda version: (number(version)[0], version in prms))
    counts = {line["stage"]: line for line in read_metrics(run) if "indifferent" in line}
    fits = []
    latest: dict[str, bytes] = {}
    for version in versions:
        kind, file = version.split("/")[0], registry.path(version) / METADATA
        if not file.exists():
            continue
        described = file.read_bytes()
        known = orjson.loads(described)
        if latest.get(kind) == described:  # for want of samples it is the one before
            known = {"kind": "as the one before"}
        latest[kind] = described
        measured = known.get("metrics", {}) | counts.get(short_name(version), {})
        numbers = [
            (label, f"{measured[name]:,.4g}") for name, label in _SHOWN.items() if name in measured
        ]
        fits.append({"version": version, "kind": known["kind"], "numbers": numbers})
    return fits


def stage_times(run: Path) -> list[dict[str, Any]]:
    """Stages, their time, and their share of the longest in percent, in the order they ended."""
    seconds = read_stage_seconds(run)
    longest = max(seconds.values(), default=1.0)
    return [
        {"stage": stage, "time": _clock(value), "share": 100 * value / longest}
        for stage, value in seconds.items()
    ]


def _diagram(calibration: Calibration) -> Figure:
    def draw(figure: Figure) -> None:
        figure.set_size_inches(3.6, 3.4)
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=figures.GRID, linestyle="--", linewidth=1)
        bins = calibration.bins
        most = max(b.turns for b in bins)
        axes.bar(
            [(b.low + b.high) / 2 for b in bins],
            [0.25 * b.turns / most for b in bins],
            width=0.08,
            color=figures.GRID,
            alpha=0.35,
            label="turns",
        )
        for name, label, k in (("mean_target", "target Q̂", 0), ("won", "won", 1)):
            axes.plot(
                [b.mean_q for b in bins],
                [getattr(b, name) for b in bins],
                color=figures.SERIES[k],
                marker=figures.MARKERS[k],
                label=label,
            )
        axes.set(xlim=(0, 1), xlabel="predicted Q", ylim=(0, 1), ylabel="found on held-out games")
        figures.legend_below(figure, axes)

    return figures.plot(draw)


def _spoken(version: str, bins: Sequence[ReliabilityBin]) -> str:
    points = ", ".join(f"Q {b.mean_q:.2f} target {b.mean_target:.2f}" for b in bins)
    return f"Reliability of {version}: {points}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
