"""How a study is done: derive, train, measure, write. Each step is done once, whatever kills it."""

from __future__ import annotations

import csv
import importlib.metadata
import io
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from agentprm.config import Config, changed, read_config
from agentprm.files import write_atomic
from agentprm.measurements import Measurement, read_measured
from agentprm.results import read_results
from agentprm.runs import evaluation_stage, read_episodes, read_stage_seconds
from agentprm.studies._derive import derive_run, related, retrains
from agentprm.studies._study import Cells, Study, StudyError, Variant
from agentprm.validation import first_error

_ABSENT = object()
_PACKAGES = ("agentprm", "torch", "transformers", "trl")


@dataclass(frozen=True)
class Work:
    """What has a run trained, and checkpoints of it measured, by the processes that it takes."""

    train: Callable[[Path, Config], None]
    measure: Callable[[Path, Config, Sequence[Measurement]], None]
    say: Callable[[str], None]
    """Tells the user what is being done."""


def run_study(
    study: Study, run: Path, work: Work, overrides: Mapping[str, Any], command: str
) -> Path:
    """Do `study` on `run`, going on where an earlier attempt stopped; the directory of its results.

    That has `data.csv`, `figure.png`, `figure.svg`, `conditions.md`, and the variants in `runs/`.

    Args:
        study: which.
        run: directory of a run.
        work: what trains and measures.
        overrides: settings of all variants, by dotted names.
        command: how the user asked for it, for the record.

    Raises:
        StudyError: the run is not trained to its end; a variant takes settings it does not have; or
            `overrides` are of no use to the study. Nothing is trained before that is known.
        FileNotFoundError: `run` is not the directory of a run.
        ValueError: its settings, or what it recorded, cannot be read.
        CheckpointError: a checkpoint that a variant takes over is damaged.
    """
    directory = run / "studies" / study.name
    if not _trained(run, read_config(run)):
        raise StudyError(f"{run} is not trained to its end: `agentprm train --resume {run}`")
    variants = study.variants(read_config(run))
    _require_of_use(study, run, variants, overrides)
    runs = {v.name: _derived(study, run, v, overrides) for v in variants}
    for name, variant in runs.items():
        _finish(study, name, variant, work)
    runs = runs or {"run": run}
    rows = study.rows(runs)
    directory.mkdir(parents=True, exist_ok=True)
    write_atomic(directory / "data.csv", _csv(rows).encode())
    _draw(study, rows, directory)
    games = max(row["games"] for row in rows)
    conditions = _conditions(study, run, variants, runs, overrides, games, command)
    text = "\n\n".join(filter(None, (study.findings(rows), conditions)))
    write_atomic(directory / "conditions.md", f"{text}\n".encode())
    return directory


def _require_of_use(
    study: Study, run: Path, variants: Sequence[Variant], overrides: Mapping[str, Any]
) -> None:
    config = read_config(run)
    if overrides and not variants:
        raise StudyError(f"{study.name} reads what the run has: it takes no --set")
    for name in overrides:
        for known in sorted({known for variant in variants for known in variant.overrides}):
            values = [variant.overrides.get(known, _ABSENT) for variant in variants]
            if related(name, known) and any(value != values[0] for value in values):
                raise StudyError(f"--set {name}: it is what the variants of {study.name} differ in")
    for variant in variants:
        try:
            changed(config, {**variant.overrides, **overrides})
        except ValidationError as error:
            raise StudyError(f"variant {variant.name}: {first_error(error)}") from error
    if not study.trains and retrains(config, overrides):
        raise StudyError(f"{study.name} measures what the run has: --set evaluation.… alone")


def _derived(study: Study, run: Path, variant: Variant, overrides: Mapping[str, Any]) -> Path:
    """The directory of a variant, with what it shares with the run."""
    directory = run / "studies" / study.name / "runs" / variant.name
    try:
        derive_run(run, directory, {**variant.overrides, **overrides})
    except ValueError as error:
        raise StudyError(str(error)) from error
    return directory


def _finish(study: Study, name: str, directory: Path, work: Work) -> None:
    """Have a variant trained and measured."""
    config = read_config(directory)
    if study.trains and not _trained(directory, config):
        work.say(f"{study.name}: training the variant {name}")
        work.train(directory, config)
    measurements = study.measurements(directory, config)
    if {m.name for m in measurements} - read_measured(directory).keys():
        work.say(f"{study.name}: measuring the variant {name}")
        work.measure(directory, config, measurements)


def _trained(run: Path, config: Config) -> bool:
    """Whether the run's table has its last policy, alone and, where it has PRMs, steered."""
    if not (run / "results.json").exists():
        return False
    last = [row for row in read_results(run) if row.policy == f"pi_{config.iterations}"]
    return {row.prm is None for row in last} == ({True, False} if config.has_prm else {True})


def _csv(rows: Sequence[Cells]) -> str:
    with io.StringIO(newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        return file.getvalue()


def _draw(study: Study, rows: Sequence[Cells], directory: Path) -> None:
    from agentprm.studies import figures

    figures.write(figures.plot(lambda figure: study.draw(rows, figure)), directory)


def _conditions(
    study: Study,
    run: Path,
    variants: Sequence[Variant],
    runs: Mapping[str, Path],
    overrides: Mapping[str, Any],
    games: int,
    command: str,
) -> str:
    """Under which conditions the numbers came about: without them they say nothing."""
    config = read_config(next(iter(runs.values())))
    plan = config.evaluation
    common = {**read_config(run).overrides, **overrides}
    played = read_episodes(run, evaluation_stage("pi_0"))[0].provenance
    parts = [
        f"{study.title} ({study.paper} of arXiv 2502.10325).",
        f"Success on {games} games of {plan.split} within {config.max_steps} turns; "
        f"{study.actors(plan)}. Seed {config.seed}, one run of each variant: what differs between "
        "seeds is in no interval. Intervals of success are Wilson's, at 95 %; all policies play "
        "the same games from the same seeds.",
        f"Preset {config.preset}{_settings(common)}."
        + "".join(f" {v.name}: the run{_settings(v.overrides)}." for v in variants),
        f"Engine {played.engine}, data {played.data_version}, prompt {played.template_hash}; "
        + ", ".join(_versions())
        + f"; Python {platform.python_version()} on {platform.machine()}.",
    ]
    if variants:
        seconds = sum(sum(read_stage_seconds(run).values()) for run in runs.values())
        parts.append(f"What was not shared with the run took {seconds / 60:.0f} minutes.")
    return "\n".join(parts) + f"\n\n    {command}"


def _settings(overrides: Mapping[str, Any]) -> str:
    changes = ", ".join(f"{name} = {value}" for name, value in overrides.items())
    return f" with {changes}" if changes else ""


def _versions() -> Iterable[str]:
    for package in _PACKAGES:
        try:
            yield f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            continue
