"""Settings of process reward shaping (section 4.2)."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from agentprm.config._settings import Settings

EXPERT, FIRST = "expert", "policy/0"


class Shaping(Settings):
    """What the PRM's targets take from a reference policy μ: (1 − α) Q^π + α A^μ (eq. 13)."""

    alpha: float = Field(default=0.0, ge=0, le=1)
    """α: 0 leaves the targets as they are, and needs no μ; 1 is imitation of μ (AggreVaTe)."""
    reference: str = FIRST
    """μ: `expert`, that of the environment; `policy/0`, this run's own π_0; or the directory of a
    policy checkpoint."""
    games: int = Field(default=100, ge=1)
    """Train games that μ plays, once in a run, for V^μ."""
    per_game: int = Field(default=4, ge=1)
    """Episodes a game."""

    @property
    def directory(self) -> Path | None:
        """Where μ lies, if it is neither the expert nor a policy of the run."""
        return None if self.reference in (EXPERT, FIRST) else Path(self.reference)
