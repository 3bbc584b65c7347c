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
    load_config,
    read_config,
)
from agentprm.config._fits import DPOSettings, FitSettings, PRMSettings, SFTSettings
from agentprm.config._monitor import MonitorSettings

__all__ = [
    "Config",
    "DPOSettings",
    "Demonstrations",
    "Evaluation",
    "FitSettings",
    "MonitorSettings",
    "PRMSettings",
    "PolicyEngine",
    "Preferences",
    "Rollouts",
    "SFTSettings",
    "Vine",
    "accelerate_file",
    "load_config",
    "read_config",
]
