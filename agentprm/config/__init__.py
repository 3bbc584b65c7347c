"""Typed settings: what a training run is made of, and what each fit takes."""

from agentprm.config._config import (
    Config,
    Demonstrations,
    Evaluation,
    PolicyEngine,
    Preferences,
    Rollouts,
    Vine,
    accelerate_file,
    changed,
    load_config,
    read_config,
)
from agentprm.config._fits import DPOSettings, FitSettings, PRMSettings, SFTSettings
from agentprm.config._overrides import parse_overrides

__all__ = [
    "Config",
    "DPOSettings",
    "Demonstrations",
    "Evaluation",
    "FitSettings",
    "PRMSettings",
    "PolicyEngine",
    "Preferences",
    "Rollouts",
    "SFTSettings",
    "Vine",
    "accelerate_file",
    "changed",
    "load_config",
    "parse_overrides",
    "read_config",
]
