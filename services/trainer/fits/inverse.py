"""The fit of InversePRM: Q from what tells expert from learner transitions (algorithm 2, stage 2).

The reward that Q_i implies, r(s, a) = Q_i(s, a) − γ Q_i(s', a') with a' ~ π_i, is the logit of
"this transition is the expert's". The gradient flows through both Q: it is the reward that is
fitted, and Q(s', a') is no target as in temporal differences.

Q adds up logits over the rest of an episode. What the model computes, and what is served, is a mean
of them: z = Q / H for the effective horizon H = 1 + γ + ... + γ^{T-1}, as σ(z) in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PretrainedConfig, TrainingArguments

from agentprm.config import Algorithm, PRMSettings
from agentprm.encoding import Tokenizer
from agentprm.prompts import PromptTemplate
from agentprm.protocol import Episode, PRMFacts
from services.trainer.rollouts.transitions import NextActions
from services.trainer.targets.monte_carlo import split_by_game
from services.trainer.tiny.renumber import Numbers, pass_seeds
from services.trainer.training.batches import AlternatingBatches, by_length, padded
from services.trainer.training.calibration import Scored, calibration
from services.trainer.training.canaries import prm_canary
from services.trainer.training.fitting import (
    LogMetrics,
    Metrics,
    ReportStep,
    common_arguments,
    ignore,
    load_tokenizer,
    steps_of,
)
from services.trainer.training.forks import Fork, episode_forks
from services.trainer.training.prm_facts import facts_of, fitted_on
from services.trainer.training.prm_model import load_prm
from services.trainer.training.rows import NothingToTrainOnError
from services.trainer.training.saving import save_fit
from services.trainer.training.trainers import TokenBatchTrainer, train_through


@dataclass(frozen=True)
class Sample:
    """Transitions of one episode. `weight` is that of each, `expert` whose they are."""

    fork: Fork
    expert: bool
    weight: float = 1.0


_Passes = list[list[Sample]]
"""The samples of each pass."""


def fit_inverse_prm(
    base: Path,
    expert: Sequence[Episode],
    learner: Sequence[Episode],
    next_actions: NextActions,
    out: Path,
    settings: PRMSettings,
    prompt: PromptTemplate,
    max_steps: int,
    *,
    seed: int,
    split_seed: int,
    gamma: float,
    log: LogMetrics = ignore,
    progress: ReportStep = ignore,
) -> Metrics:
    """Fit Q on the transitions of D+ (`expert`) and D− (`learner`), and write it to `out`.

    An optimizer step takes `settings.accumulation` batches of either set, and both sets have the
    same weight in the fit. `settings.epochs` are passes over the set with fewer batches. `gamma` is
    γ of the reward, `max_steps` T, the most turns of an episode. The seeds are as in `fit_prm`.

    The games of the validation side take no part in the fit. Measured on them: `val_bce`, the loss
    (nats), `val_auc` and `val_ece` of telling the transitions apart, and the mean of what is served
    for the expert's and for the learner's actions.

    Raises:
        NothingToTrainOnError: a set has no transition that is short enough.
        ValueError: the model's attention is not full.
        CheckpointError: as `load_tokenizer`.
    """
    tokenizer = load_tokenizer(base)
    episodes = [*expert, *learner]
    sides = split_by_game(episodes, settings.validation_fraction, split_seed)
    read = partial(
        _samples, tokenizer, prompt, episodes, len(expert), next_actions, settings.max_tokens
    )
    passes = [read(sides[0], settings.renumbered, each) for each in pass_seeds(settings, seed)]
    validation = read(sides[1])
    positive, negative = _by_set(passes, settings.max_tokens)
    batches = AlternatingBatches(
        _lengths(positive),
        _lengths(negative),
        settings.batch_tokens,
        settings.epochs,
        seed,
    )
    training = _evened_out([*chain(*positive, *negative)], batches)
    in_pairs = settings.model_copy(update={"accumulation": 2 * settings.accumulation})
    model = load_prm(base, tokenizer.pad_token_id, seed)
    require_full_attention(model.config)
    horizon = effective_horizon(gamma, max_steps)
    with common_arguments(in_pairs, steps_of(batches, in_pairs), seed) as arguments:
        trainer = InversePRMTrainer(
            model=model,
            args=TrainingArguments(**arguments),
            train_dataset=training,
            data_collator=Collator(tokenizer.pad_token_id),
        )
        trainer.gamma, trainer.horizon = gamma, horizon
        metrics = train_through(batches, trainer, in_pairs.accumulation, log, progress)
        metrics |= {
            "expert_transitions": _transitions(positive[0]),
            "learner_transitions": _transitions(negative[0]),
        }
        if validation:
            metrics |= trainer.measure(validation, settings.batch_tokens)
        known = PRMFacts(template_hash=prompt.hash, algorithm=Algorithm.INVERSE_PRM, gamma=gamma)
        data = fitted_on(episodes, sides)
        facts = facts_of(known, data, settings, metrics, seed=seed, split_seed=split_seed)
        facts["effective_horizon"] = horizon
        save_fit(trainer, tokenizer, out, facts, prm_canary(prompt))
    return metrics


def effective_horizon(gamma: float, max_steps: int) -> float:
    """H = Σ_{k<T} γ^k: what Q is where every turn of T has a reward of 1."""
    return sum(gamma**k for k in range(max_steps))


class InversePRMTrainer(TokenBatchTrainer):
    """Trainer that tells the transitions of two sets apart."""

    gamma: float
    horizon: float

    def weight(self, batch: dict[str, Tensor]) -> Tensor:
        """The weight of all transitions."""
        return batch["weights"].sum()

    def total(self, model: torch.nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """−log σ(r) of the expert's transitions, −log σ(−r) of the learner's."""
        rewards, _ = self.rewards(model, inputs)
        return F.binary_cross_entropy_with_logits(
            rewards, inputs["expert"], weight=inputs["weights"], reduction="sum"
        )

    def rewards(self, model: torch.nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """r = Q(s, a) − γ Q(s', a'), and z of (s, a), both of shape [rows, transitions]."""
        logits = model(
            inputs["input_ids"],
            inputs["attention_mask"],
            inputs["positions"],
            position_ids=inputs["position_ids"],
        ).float()
        values, after = logits.chunk(2, dim=1)
        following = torch.where(inputs["ends"], 0.0, after)
        return self.horizon * (values - self.gamma * following), values

    @torch.no_grad()
    def measure(self, samples: Sequence[Sample], batch_tokens: int) -> Metrics:
        """How well transitions that took no part are told apart. All processes do it, in step."""
        self.model.eval()
        probabilities: list[float] = []
        labels: list[float] = []
        served: list[float] = []
        for batch in by_length([len(sample.fork) for sample in samples], batch_tokens):
            inputs = self._prepare_inputs(self.data_collator([samples[i] for i in batch]))
            rewards, values = self.rewards(self.model_wrapped, inputs)
            real = inputs["weights"] > 0
            probabilities += torch.sigmoid(rewards[real]).tolist()
            served += torch.sigmoid(values[real]).tolist()
            labels += inputs["expert"][real].tolist()
        measures = calibration(Scored(probabilities, labels, labels))
        metrics = {
            f"val_{name}": measures[name] for name in ("bce", "ece", "auc") if name in measures
        }
        for name, label in (("expert", 1.0), ("learner", 0.0)):
            if own := [q for q, whose in zip(served, labels, strict=True) if whose == label]:
                metrics[f"val_q_{name}"] = sum(own) / len(own)
        return metrics


class Collator:
    """Pads rows on the right, and their transitions likewise, with a weight of 0.

    `positions` are those of Q(s, a), then those of Q(s', a'). Of no rows it makes one of padding.
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """A batch."""
        samples = samples or [Sample(Fork([self.pad_token_id], [], [0], [None]), False, 0.0)]
        forks = [sample.fork for sample in samples]
        ids = padded([fork.ids for fork in forks], self.pad_token_id)
        mask = torch.stack([fork.mask(ids.shape[1]) for fork in forks])
        now = padded([fork.ends for fork in forks])
        after = padded([[end or 0 for end in fork.next_ends] for fork in forks])
        over = [[end is None for end in fork.next_ends] for fork in forks]
        expert = [[sample.expert] * len(sample.fork.ends) for sample in samples]
        weights = [[sample.weight] * len(sample.fork.ends) for sample in samples]
        return {
            "input_ids": ids,
            "attention_mask": mask[:, None],
            "position_ids": padded([fork.position_ids for fork in forks]),
            "positions": torch.cat([now, after], dim=1),
            "ends": padded(over, True, torch.bool),
            "expert": padded(expert, dtype=torch.float),
            "weights": padded(weights, dtype=torch.float),
        }


def _samples(
    tokenizer: Tokenizer,
    prompt: PromptTemplate,
    episodes: Sequence[Episode],
    experts: int,
    next_actions: NextActions,
    max_tokens: int,
    side: Sequence[int],
    share: float = 0.0,
    seed: int = 0,
) -> list[Sample]:
    """The rows of one side, the expert's first, as the first `experts` episodes are.

    About `share` of them have other numbers.
    """
    found = []
    for i in side:
        numbers = Numbers.of_episode(episodes[i], share, seed)
        chosen = next_actions.get(episodes[i].id, {})
        chosen = {t: numbers.action(action) for t, action in chosen.items()}
        episode = numbers.episode(episodes[i])
        for fork in episode_forks(tokenizer, prompt, episode, chosen, max_tokens):
            found.append(Sample(fork, expert=i < experts))
    return found


def _by_set(passes: _Passes, max_tokens: int) -> tuple[_Passes, _Passes]:
    """The expert's samples of each pass, and the learner's.

    Raises:
        NothingToTrainOnError: the expert has none in some pass, or the learner.
    """
    expert = [[sample for sample in samples if sample.expert] for samples in passes]
    learner = [[sample for sample in samples if not sample.expert] for samples in passes]
    if not all((*expert, *learner)):
        raise NothingToTrainOnError(
            f"{len(expert[0])} rows of the expert and {len(learner[0])} of the learner have "
            f"transitions of at most {max_tokens} tokens; both are needed"
        )
    return expert, learner


def _lengths(passes: _Passes) -> list[list[int]]:
    """The tokens of each sample."""
    return [[len(sample.fork) for sample in samples] for samples in passes]


def _transitions(samples: Sequence[Sample]) -> float:
    """How many transitions they are, as a measurement."""
    return float(sum(len(sample.fork.ends) for sample in samples))


def _evened_out(samples: Sequence[Sample], batches: AlternatingBatches) -> list[Sample]:
    """The samples with weights by which the batches hold as much of the expert as of the learner.

    Else a constant, the log of the sets' ratio, would be part of every reward.
    """
    counts = {True: 0, False: 0}
    for batch in batches:
        for i in batch:
            counts[samples[i].expert] += len(samples[i].fork.ends)
    both = sum(counts.values())
    return [
        Sample(sample.fork, sample.expert, both / (2 * counts[sample.expert])) for sample in samples
    ]


def require_full_attention(config: PretrainedConfig) -> None:
    """The mask of a row that forks is all there is: a window would not be kept to.

    A model says which of its layers have a window, or has one `sliding_window` for all of them.

    Raises:
        ValueError: a layer of such a model does not attend to all that comes before.
    """
    layers = getattr(config, "layer_types", None)
    slides = getattr(config, "use_sliding_window", True) and getattr(config, "sliding_window", None)
    kinds = set(layers or (["sliding_attention"] if slides else [])) - {"full_attention"}
    if kinds:
        found = ", ".join(sorted(kinds))
        raise ValueError(f"inverse-prm needs full attention; this model has {found}")
