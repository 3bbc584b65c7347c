"""What a fit has learned: its Q on held-out tasks, beside what knows nothing and what knows all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from rich.table import Table

from agentprm.facts import read_fit
from agentprm.registry import Registry
from services.trainer.chats.samples import ChatSamples
from services.trainer.training.calibration import Scored, calibration

_MEASURES = {"bce": "loss", "ece": "ECE", "auc": "AUC"}
"""Measures: the name that `calibration` has for each, and the table's."""


def learned(registry: Registry, versions: Sequence[str], data: ChatSamples) -> Table | str:
    """A row for each of the PRMs, as their fits measured them, or why there is none.

    The first row says of every turn the mean of the targets that were trained on: a PRM that does
    no better has learned nothing. The last one says the targets themselves, below which no loss is.
    """
    if not data.validation:
        return "Nothing was held out, so how good it is was not measured."
    targets = [target for sample in data.validation for target in sample.targets]
    outcomes = [sample.outcome for sample in data.validation for _ in sample.targets]
    mean = fmean(target for sample in data.training for target in sample.targets)
    table = Table(
        title=f"On {len(targets)} turns of {len(set(data.tasks.validation))} held-out tasks"
    )
    table.add_column("")
    for name in _MEASURES.values():
        table.add_column(name, justify="right")
    constant = calibration(Scored([mean] * len(targets), targets, outcomes))
    table.add_row(f"{mean:.3f} of every turn", *_cells(constant))
    for version in versions:
        fit = read_fit(registry.path(version), "metrics")
        measured = {name: fit["metrics"].get(f"val_{name}") for name in _MEASURES}
        table.add_row(version, *_cells(measured))
    table.add_row("Q̂ itself", *_cells(calibration(Scored(targets, targets, outcomes))))
    return table


def _cells(measures: Mapping[str, float | None]) -> list[str]:
    found = (measures.get(name) for name in _MEASURES)
    return ["–" if value is None else f"{value:.3f}" for value in found]
