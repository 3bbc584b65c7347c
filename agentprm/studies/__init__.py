"""The paper's figures and tables, each made anew from a run by one command.

A study is a module of its own: the variants of the run that it needs, what is measured of each, and
how that is drawn. Everything else is the same for all of them.
"""

from __future__ import annotations

from agentprm.studies._run import Work, run_study
from agentprm.studies._study import Cells, Study, StudyError, Variant
from agentprm.studies.controls import Controls
from agentprm.studies.curves import Curves
from agentprm.studies.exploration import Exploration
from agentprm.studies.hacking import Hacking
from agentprm.studies.inverse import Inverse
from agentprm.studies.relative import Relative
from agentprm.studies.scaling import Scaling
from agentprm.studies.shaping import Shaping
from agentprm.studies.tables import Tables

_ALL: tuple[Study, ...] = (
    Tables(),
    Controls(),
    Curves(),
    Scaling(),
    Hacking(),
    Relative(),
    Exploration(),
    Shaping(),
    Inverse(),
)

STUDIES = {study.name: study for study in _ALL}

__all__ = ["STUDIES", "Cells", "Study", "StudyError", "Variant", "Work", "run_study"]
