"""Updates by fine-tuning on what was selected of π_{i-1}: rejection sampling, by Q or by outcomes.

Neither looks at the policy while it is fitted, so what they train on is sampled beforehand and
recorded; that part resumes job by job. Neither has a KL penalty: few passes keep π_i close.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from agentprm.config import RejectionSettings
from agentprm.encoding import Tokenizer
from agentprm.prompts import PromptTemplate
from agentprm.protocol import Group
from services.trainer.fits.sft import fit_rows, fit_sft
from services.trainer.rollouts.collect import Collector
from services.trainer.rollouts.online import candidate_jobs, sample_states
from services.trainer.seeds import derive
from services.trainer.tiny.renumber import Numbers, pass_seeds
from services.trainer.training.fitting import load_tokenizer
from services.trainer.training.rows import Row, action_row
from services.trainer.updates.base import Update


class Rejection(Update):
    """Best-of-n fine-tuning: at states of D, the candidate that Q_{i-1} likes best."""

    def prepare(self, collector: Collector, i: int) -> None:
        """π_{i-1} samples candidates at states of its rollouts, and Q_{i-1} scores them."""
        config, plan = self.at.config, self.at.config.preferences
        stage = f"pi_{i}-candidates"
        rollouts = self.at.records.rollouts(i - 1)
        states = sample_states(rollouts, plan.pairs, plan.per_game, derive(config.seed, stage))
        jobs = candidate_jobs(
            plan,
            states,
            stage=stage,
            policy_version=f"policy/{i - 1}",
            prm_version=f"prm/{i - 1}",
            seed=derive(config.seed, stage, "sampling"),
            groups=True,
        )
        what = f"π_{i - 1} samples {plan.candidates} actions in each of {len(states)} states"
        collector.collect(stage, jobs, what)

    def fit(self, i: int, base: Path, out: Path) -> None:
        """π_i on the best candidates. The history before them is read and not trained on."""
        settings = self.at.config.rejection
        results = self.at.records.results(f"pi_{i}-candidates")
        groups = [group for result in results for group in result.groups]
        self.at.progress.start(f"pi_{i}", f"fine-tuning on the best of {len(groups)} states")
        tokenizer = load_tokenizer(base)
        seed = derive(self.at.config.seed, f"pi_{i}")
        passes = [
            list(_best(tokenizer, self.at.prompt, groups, settings, each))
            for each in pass_seeds(settings, seed)
        ]
        if not all(passes):
            self.keep(i, base, out, "no state was scored, or none was short enough")
            self.at.progress.end()
            return
        summary = fit_rows(
            base,
            passes,
            out,
            settings,
            self.at.prompt,
            seed=seed,
            **self.at.reports(f"pi_{i}"),
        )
        counts = {
            "too_long": float(len(groups) - len(passes[0])),
            "not_scored": float(sum(result.dropped for result in results)),
            "q_gain": sum(max(group.q) - group.mean_q for group in groups) / len(groups),
        }
        self.at.log(f"pi_{i}", len(groups), counts)
        self.at.progress.end({**summary, **counts})


class OutcomeRejection(Update):
    """Fine-tuning on the rollouts of π_{i-1} that were won. It asks no PRM."""

    def prepare(self, collector: Collector, i: int) -> None:
        """The rollouts are there already."""

    def fit(self, i: int, base: Path, out: Path) -> None:
        """π_i on all actions of the won rollouts."""
        rollouts = self.at.records.rollouts(i - 1)
        won = [episode for episode in rollouts if episode.won]
        self.at.progress.start(f"pi_{i}", f"fine-tuning on {len(won)} rollouts that were won")
        if not won:
            self.keep(i, base, out, f"none of {len(rollouts)} rollouts was won")
            self.at.progress.end()
            return
        seed = derive(self.at.config.seed, f"pi_{i}")
        settings = self.at.config.rejection
        reports = self.at.reports(f"pi_{i}")
        summary = fit_sft(base, won, out, settings, self.at.prompt, seed=seed, **reports)
        self.at.progress.end({**summary, "won": float(len(won)), "rollouts": float(len(rollouts))})


def _best(
    tokenizer: Tokenizer,
    prompt: PromptTemplate,
    groups: Sequence[Group],
    settings: RejectionSettings,
    seed: int,
) -> Iterator[Row]:
    """The best candidate of each state, where the two are short enough."""
    for group in groups:
        numbers = Numbers.of_state(group.state, settings.renumbered, seed)
        state, action = numbers.state(group.state), numbers.action(group.best.action)
        ids, span = action_row(tokenizer, prompt, state, action)
        if len(ids) <= settings.max_tokens:
            yield Row(ids, [span], [0])
