"""Settings of the reward-hacking monitor."""

from __future__ import annotations

from pydantic import Field

from agentprm.config._settings import Settings
from agentprm.protocol import MAX_BATCH, MAX_CANDIDATES


class MonitorSettings(Settings):
    """What is looked at whenever the weights of a policy update are published (stage 3).

    The states are of games that took no part in the fit of the PRM. The policy update leaves these
    games out as well, so `prm.validation_fraction` decides how many states there can be.
    """

    states: int = Field(default=48, ge=2, le=MAX_BATCH)
    """Held-out states; fewer where the held-out games have fewer."""
    samples: int = Field(default=4, ge=1, le=MAX_CANDIDATES)
    """Actions sampled in each."""
    games: int = Field(default=0, ge=0)
    """Train games, of no rollout so far and if possible of no demonstration, that the published
    weights play; the best weights become π_i. 0 plays none: then the policy update runs to its
    end."""
    patience: int = Field(default=2, ge=1)
    """With `games`, the update is ended when this many published weights in a row are worse than
    the best by more than noise."""
