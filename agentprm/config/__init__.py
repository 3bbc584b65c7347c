"""Typed settings: what a training run is made of, and what each fit takes."""

from agentprm.config._algorithm import Algorithm
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
from agentprm.config._shaping import EXPERT, FIRST, Shaping

__all__ = [
    "EXPERT",
    "FIRST",
    "Algorithm",
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
    "Shaping",
    "Vine",
    "accelerate_file",
    "load_config",
    "read_config",
]
