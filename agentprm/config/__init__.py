"""Typed settings: what a training run is made of, and what each fit takes."""

from agentprm.config._algorithm import Algorithm
from agentprm.config._config import Config, PolicyEngine, Scratch, accelerate_file
from agentprm.config._exploration import Exploration, Posterior, Reset, Steered
from agentprm.config._fits import (
    DPOSettings,
    FitSettings,
    OnlineSettings,
    PRMSettings,
    SFTSettings,
)
from agentprm.config._load import changed, load_config, read_config
from agentprm.config._monitor import MonitorSettings
from agentprm.config._overrides import dotted, parse_overrides
from agentprm.config._shaping import EXPERT, FIRST, Shaping
from agentprm.config._stages import Demonstrations, Evaluation, Preferences, Rollouts, Vine
from agentprm.config._updates import GRPOSettings, PolicyUpdate, RejectionSettings

__all__ = [
    "EXPERT",
    "FIRST",
    "Algorithm",
    "Config",
    "DPOSettings",
    "Demonstrations",
    "Evaluation",
    "Exploration",
    "FitSettings",
    "GRPOSettings",
    "MonitorSettings",
    "OnlineSettings",
    "PRMSettings",
    "PolicyEngine",
    "PolicyUpdate",
    "Posterior",
    "Preferences",
    "RejectionSettings",
    "Reset",
    "Rollouts",
    "SFTSettings",
    "Scratch",
    "Shaping",
    "Steered",
    "Vine",
    "accelerate_file",
    "changed",
    "dotted",
    "load_config",
    "parse_overrides",
    "read_config",
]
