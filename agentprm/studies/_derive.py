"""Variants of a run: other settings, and everything shared that these settings do not touch.

The stages of the loop have an order, and so has what they leave behind: π_0, then for i = 1..K the
rollouts of π_{i-1}, Q_{i-1}, π_i. A setting is first read at one of these places; what lies before
it is taken over, what lies after it is done anew.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from agentprm.config import Config, changed, read_config
from agentprm.files import sync_tree, write_atomic
from agentprm.registry import Registry
from agentprm.runs import DEMONSTRATIONS, STAGE

Place = tuple[int, int]
"""Iteration, and the stage in it."""

_ROLLOUTS, _PRM, _POLICY = 1, 2, 3
_START = (0, 0)
_END = (10**9, 0)

_FIRST_READ: dict[str, Place] = {
    "sft": (0, _POLICY),
    "rollouts.exploration.steered.hindsight": (0, _POLICY),
    "rollouts": (1, _ROLLOUTS),
    "algorithm": (1, _PRM),
    "shaping": (1, _PRM),
    "gamma": (1, _PRM),
    "prm": (1, _PRM),
    "preferences": (1, _POLICY),
    "dpo": (1, _POLICY),
    "update": (1, _POLICY),
    "grpo": (1, _POLICY),
    "rejection": (1, _POLICY),
    "monitor": (1, _POLICY),
    "evaluation": _END,
    "iterations": _END,
    # By which machine: that is not what is being compared.
    "device": _END,
    "policy_device": _END,
    "prm_device": _END,
    "num_processes": _END,
    "accelerate": _END,
    "workers": _END,
    "policy_replicas": _END,
    "policy_engine": _END,
    "sglang_urls": _END,
}
"""Where the loop first reads a setting or a group; any other, such as the model, at its start."""


def derive_run(source: Path, run: Path, overrides: Mapping[str, Any]) -> None:
    """Make `run` the run `source` with other settings; its training then goes on from there.

    Done again it changes nothing. Checkpoints are hard links where the file system has them.

    Raises:
        ValueError: `run` was derived with other settings, or a setting is impossible.
        CheckpointError: a checkpoint of `source` is damaged.
        FileNotFoundError: `source` is not the directory of a run.
    """
    before = read_config(source)
    config = changed(before, overrides)
    if (run / "config.json").exists():
        if read_config(run) != config:
            raise ValueError(f"{run} was derived with other settings: remove it to begin anew")
        return
    settings = _differing(before, config, overrides)
    limit = _first_read(config, settings)
    (run / "records").mkdir(parents=True, exist_ok=True)
    for file in (source / "records").glob("*.jsonl"):
        place, evaluates = _records_place(file.stem)
        if place < limit and not (evaluates and _touches(settings, "evaluation")):
            shutil.copy2(file, run / "records")
    theirs, ours = Registry(source / "checkpoints"), Registry(run / "checkpoints")
    for version in (v for kind in ("policy", "prm", "online") for v in theirs.versions(kind)):
        if _checkpoint_place(version) < limit and not ours.exists(version):
            ours.share(version, theirs)
    sync_tree(run / "records")
    write_atomic(run / "config.json", config.model_dump_json(indent=2).encode())


def retrains(config: Config, overrides: Mapping[str, Any]) -> bool:
    """Whether a variant of a run, with settings that can be, leaves the loop anything to do.

    Raises:
        pydantic.ValidationError: an unknown setting is named, or an impossible value.
    """
    after = changed(config, overrides)
    differing = _differing(config, after, overrides)
    return "iterations" in differing or _first_read(after, differing) < _END


def related(name: str, other: str) -> bool:
    """Whether two settings are the same, or one is a group that the other is in."""
    return f"{name}.".startswith(f"{other}.") or f"{other}.".startswith(f"{name}.")


def _differing(before: Config, after: Config, names: Iterable[str]) -> set[str]:
    return {name for name in names if _value(before, name) != _value(after, name)}


def _value(config: Config, name: str) -> Any:
    """The setting of a dotted name; None where its group is not there."""
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part, None)
    return value


def _first_read(config: Config, names: Collection[str]) -> Place:
    """The earliest place that reads one of these settings.

    Evaluations read theirs last, but for the trials of a monitor, which choose π_i.
    """
    places = [_first_read_of(name) for name in names]
    plays = config.monitor is not None and config.monitor.games > 0
    if plays and any(related(name, "evaluation.sampling") for name in names):
        places.append((1, _POLICY))
    return min(places, default=_END)


def _first_read_of(name: str) -> Place:
    """The earliest of the places that read the setting `name`, what it is in, or what is in it."""
    places = [place for known, place in _FIRST_READ.items() if related(name, known)]
    return min(places, default=_START)


def _touches(names: Iterable[str], group: str) -> bool:
    """Whether one of the settings is in `group`."""
    return any(name.partition(".")[0] == group for name in names)


def _records_place(stage: str) -> tuple[Place, bool]:
    """Where records come about, and whether by an evaluation. Unknown ones are never taken over."""
    if stage == DEMONSTRATIONS:
        return _START, False
    match = STAGE.match(stage)
    if match is None:
        return _END, False
    i = int(match["pi"])
    if match["eval"]:
        q = (int(match["q"]) + 1, _PRM) if match["q"] else _START
        return max((i, _POLICY), q), True
    return ((i, _POLICY) if match["what"] == "preferences" else (i + 1, _ROLLOUTS)), False


def _checkpoint_place(version: str) -> Place:
    kind, _, name = version.partition("/")
    i = int(name.partition(".")[0])
    return (i + 1, _PRM) if kind == "prm" else (i, _POLICY)
