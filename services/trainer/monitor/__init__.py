"""The reward-hacking monitor: what a policy update (stage 3) does to the policy, while it runs.

A policy that is optimised against a PRM finds out where the PRM is wrong. Then its process reward
goes on rising while its success falls (the paper's figure 3). Without outcomes that shows in signs:
the policy is far from where its PRM was fitted, an ensemble disagrees on what the policy does, and
the process reward is higher than any policy near by would get.
"""

from services.trainer.monitor.readings import fitted_games, held_out_games
from services.trainer.monitor.watch import Watch, watch

__all__ = ["Watch", "fitted_games", "held_out_games", "watch"]
