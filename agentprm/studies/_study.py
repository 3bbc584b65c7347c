"""What a study is: variants of a run, what is measured of each, and how that is drawn."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel

from agentprm.config import Config, Evaluation
from agentprm.measurements import Measurement

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Cells = dict[str, Any]
"""A line of the CSV by column. Rates are in [0, 1]; `low` and `high` are 95 % intervals."""

_FEWER = 16
"""Of the run's rollouts, one in so many where there are to be few."""


class StudyError(Exception):
    """A study cannot be done on this run."""


@dataclass(frozen=True)
class Variant:
    """The run with other settings. `name` is that of its directory, and its label in the figure."""

    name: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """By dotted names; none: the run as it is."""


def with_few_rollouts(config: Config) -> dict[str, Any]:
    """Settings by which few of the rollouts are left, and as many states for stage 3 as before.

    So what differs is the data of the PRM, and of stage 3 only what rollouts so few do not have.
    """
    rollouts = config.rollouts
    games = max(2, rollouts.games // _FEWER)
    few: dict[str, Any] = {
        "rollouts.games": games,
        "preferences.per_game": math.ceil(config.preferences.per_game * rollouts.games / games),
    }
    if rollouts.vine is not None:
        few["rollouts.vine.states"] = max(1, rollouts.vine.states // _FEWER)
    return few


def by_default(config: Config, *names: str) -> dict[str, Any]:
    """What sets these dotted names back to their defaults; none for those that have them."""
    given: dict[str, Any] = {}
    for name in names:
        *groups, last = name.split(".")
        group: BaseModel = config
        for part in groups:
            group = getattr(group, part)
        default = type(group).model_fields[last].get_default(call_default_factory=True)
        if getattr(group, last) != default:
            given[name] = default.model_dump() if isinstance(default, BaseModel) else default
    return given


class Study(ABC):
    """A figure or a table of the paper, made anew from a run."""

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    """The figure or table of arXiv 2502.10325."""
    trains: ClassVar[bool] = True
    """Whether variants are trained to their end before they are measured."""

    def variants(self, config: Config) -> list[Variant]:
        """What is derived from a run of these settings; nothing: the run itself is read.

        Raises:
            StudyError: the study cannot be done on such a run.
        """
        return []

    def measurements(self, run: Path, config: Config) -> list[Measurement]:
        """What is measured of a variant, beside the evaluations of its own training."""
        return []

    @abstractmethod
    def rows(self, runs: Mapping[str, Path]) -> list[Cells]:
        """The CSV, from the directories of the variants by their names.

        Raises:
            DamagedFile: what a variant recorded cannot be read.
        """

    @abstractmethod
    def draw(self, rows: Sequence[Cells], figure: Figure) -> None:
        """Draw the rows."""

    def actors(self, plan: Evaluation) -> str:
        """Who plays, and how actions are sampled, as a clause of the conditions."""
        return (
            f"the policy alone at {plan.sampling.in_words()}, {plan.choice_in_words} (N = "
            f"{plan.best_of} where nothing else is said)"
        )

    def findings(self, rows: Sequence[Cells]) -> str:
        """What the rows show that the figure does not, as Markdown."""
        return ""
