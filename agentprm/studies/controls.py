"""What the gain is not: more fine-tuning, selection by outcomes, or many samples alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from agentprm.config import Algorithm, Config, PolicyUpdate
from agentprm.measurements import Measurement, read_measured
from agentprm.protocol import ChoiceRule
from agentprm.runs import evaluation_stage, read_episodes
from agentprm.studies._comparison import Comparison, compared
from agentprm.studies._study import Cells, Variant, by_default

_AGENT_PRM = "AgentPRM"
_RULES = (ChoiceRule.MAJORITY, ChoiceRule.RANDOM)


class Controls(Comparison):
    """AgentPRM beside its controls: more SFT, rejection sampling by outcomes, choices without Q."""

    name = "controls"
    title = "AgentPRM and its controls"
    paper = "table 1, baselines"

    def variants(self, config: Config) -> list[Variant]:
        """All go as many iterations, from one π_0. Settings that need a Q are AgentPRM's alone.

        Where π_0 was told strategies in hindsight, more SFT has one that was not.
        """
        without = by_default(config, "monitor", "shaping.alpha")
        ways = [f"rollouts.exploration.{way}" for way in ("reset", "steered", "posterior")]
        plain = without | by_default(config, "update", *ways)
        won = {"algorithm": "agent-prm", "update": "outcome-rejection"}
        return [
            Variant(_AGENT_PRM, {"algorithm": "agent-prm", "update": "online-dpo"}),
            Variant("more-SFT", {"algorithm": "sft", **plain}),
            Variant("won-rollouts", won | without),
        ]

    def measurements(self, run: Path, config: Config) -> list[Measurement]:
        """Of AgentPRM's first and last policy: the majority of N samples, and any of them."""
        ours = (config.algorithm, config.update) == (Algorithm.AGENT_PRM, PolicyUpdate.ONLINE_DPO)
        return [
            Measurement(
                name=f"controls-pi_{i}-{rule}",
                policy=f"policy/{i}",
                plan=config.evaluation,
                choice=rule,
            )
            for i in ((0, config.iterations) if ours else ())
            for rule in _RULES
        ]

    def rows(self, runs: Mapping[str, Path]) -> list[Cells]:
        """Those of a comparison; a choice without Q has the Best-of-N by Q for its counterpart."""
        rows = super().rows(runs)
        run = runs[_AGENT_PRM]
        for name, measured in read_measured(run).items():
            row = measured.row
            q = max(0, int(row.policy.removeprefix("pi_")) - 1)
            steered = read_episodes(run, evaluation_stage(row.policy, f"q_{q}"))
            rows += compared(row.choice.value, row, read_episodes(run, name), steered)
        return rows
