"""Settings from files: the presets, and what a run directory says of its run.

A preset is the name of a file in `agentprm/presets` (`tiny`), or a path to a TOML file of the same
shape; `extends` names the one whose settings hold where a file has none. The resolved settings are
written to `RUN/config.json` when the run starts; a resumed run reads them from there.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError

from agentprm.config._config import Config
from agentprm.config._overrides import dotted, merged
from agentprm.config._shaping import EXPERT, FIRST
from agentprm.validation import first_error

_PRESETS = Path(__file__).parents[1] / "presets"
_ARGUMENTS = {"preset", "seed", "overrides"}
_FITS = ("sft", "prm", "dpo", "grpo", "rejection")
_FORMER = ("seed", "split_seed", "gamma")
"""What earlier versions had among the settings of these fits. A run never read it from there."""


def load_config(preset: str, seed: int = 0, overrides: Mapping[str, Any] | None = None) -> Config:
    """The settings of a preset, with some of its own values replaced.

    Args:
        preset: its name, or a .toml file.
        seed: of the run.
        overrides: values by dotted names, such as `{"dpo.beta": 0.1}`.

    Raises:
        FileNotFoundError: there is neither such a preset nor such a file, or no policy in the
            directory of the reference.
        pydantic.ValidationError: an unknown setting is named, or an impossible value.
        ValueError: the preset is no TOML, or what the other arguments say is overridden.
    """
    if said := _ARGUMENTS & set(overrides or {}):
        raise ValueError(f"{min(said)} is no setting to override: give --seed or --preset")
    values = _values(Path(preset)) if preset.endswith(".toml") else _values(_shipped(preset))
    values |= {"preset": preset, "seed": seed, "overrides": dict(overrides or {})}
    config = Config.model_validate(merged(values, overrides or {}))
    directory = config.shaping.directory
    # Of a new run only: one that goes on has a copy of it.
    if directory is not None and not (directory / "config.json").is_file():
        raise FileNotFoundError(
            f"shaping.reference: {directory} is neither {EXPERT}, {FIRST} nor a policy's directory"
        )
    return config


def _values(preset: Path) -> dict[str, Any]:
    """What the file says, on top of what the preset says that it extends."""
    if not preset.is_file():
        raise FileNotFoundError(f"no preset {str(preset)!r}: there is no such file")
    try:
        values = tomllib.loads(preset.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{preset}: {error}") from error
    extended = values.pop("extends", None)
    if not extended:
        return values
    known = _known()
    if extended not in known:
        names = ", ".join(sorted(known))
        raise FileNotFoundError(f"{preset}: extends = {extended!r} is none of {names}")
    return merged(_values(known[extended]), dotted(values))


def _shipped(name: str) -> Path:
    known = _known()
    if name not in known:
        names = ", ".join(sorted(known))
        raise FileNotFoundError(f"no preset {name!r}: give one of {names}, or a .toml file")
    return known[name]


def _known() -> dict[str, Path]:
    return {path.stem: path for path in _PRESETS.glob("*.toml")}


def changed(config: Config, overrides: Mapping[str, Any]) -> Config:
    """`config` with other values of some settings, as `load_config` would have given it.

    Raises:
        pydantic.ValidationError: an unknown setting is named, or an impossible value.
    """
    values = config.model_dump() | {"overrides": {**config.overrides, **overrides}}
    return Config.model_validate(merged(values, overrides))


def read_config(run: Path) -> Config:
    """The settings that a run was started with.

    Raises:
        FileNotFoundError: `run` is not the directory of a run.
        ValueError: its settings cannot be read, as those of another version of this package.
    """
    path = run / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{run} holds no config.json: not the directory of a run")
    try:
        return Config.model_validate(_as_now(orjson.loads(path.read_bytes())))
    except orjson.JSONDecodeError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    except ValidationError as error:
        if error.errors()[0]["type"] not in ("missing", "extra_forbidden"):
            raise ValueError(f"{path} cannot be read: {first_error(error)}") from error
        raise ValueError(
            f"{path} is of another version of agentprm ({first_error(error)}): "
            "begin a new run, by another --run; in compose `docker compose down -v` removes the old"
        ) from error


def _as_now(values: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run, of an earlier version as well."""
    for fit in _FITS:
        for name in _FORMER:
            values.get(fit, {}).pop(name, None)
    # There was but one `keep_every`, that of DPO.
    kept = values.get("dpo", {}).get("keep_every", 0)
    values.get("grpo", {}).setdefault("keep_every", kept)
    return values
