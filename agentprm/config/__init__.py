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
from agentprm.config._updates import GRPOSettings, PolicyUpdate, RejectionSettings

__all__ = [
    "Config",
    "DPOSettings",
    "Demonstrations",
    "Evaluation",
    "FitSettings",
    "GRPOSettings",
    "PRMSettings",
    "PolicyEngine",
    "PolicyUpdate",
    "Preferences",
    "RejectionSettings",
    "Rollouts",
    "SFTSettings",
    "Vine",
    "accelerate_file",
    "changed",
    "load_config",
    "parse_overrides",
    "read_config",
]
