"""The fit of a relative PRM: Bradley–Terry on pairs of actions in one state (section 2.3).

Only differences within a state are fitted: σ(z(s, a) − z(s, a')) is the chance that a is the better
of the two. What a logit says by itself is left open, but for a weak pull of a pair's sum to 0,
which keeps the service's σ(z) where it is steep. So σ(z) orders the actions of a state and is no
chance of winning: no calibration is measured, but how often the order is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor
from transformers import TrainingArguments
from trl.trainer.reward_trainer import DataCollatorForPreference

from agentprm.config import Algorithm, PRMSettings
from agentprm.encoding import Tokenizer
from agentprm.prompts import PromptTemplate
from agentprm.protocol import Episode, PRMFacts, Ranking
from services.trainer.targets.monte_carlo import split_by_game
from services.trainer.targets.pairs import Pair, Pairs, preference_pairs
from services.trainer.tiny.renumber import Numbers, pass_seeds
from services.trainer.training.batches import TokenBatches, by_length
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
from services.trainer.training.losses import bradley_terry
from services.trainer.training.prm_facts import facts_of, fitted_on
from services.trainer.training.prm_model import load_prm
from services.trainer.training.rows import NothingToTrainOnError, action_row
from services.trainer.training.saving import save_fit
from services.trainer.training.trainers import TokenBatchTrainer, train_through

CENTER = 0.01
"""Weight of (z + z')² of a pair beside its Bradley–Terry loss, as TRL recommends it."""

_Row = dict[str, list[int]]


def fit_relative_prm(
    base: Path,
    episodes: Sequence[Episode],
    targets: Sequence[Sequence[float]],
    out: Path,
    settings: PRMSettings,
    prompt: PromptTemplate,
    *,
    seed: int,
    split_seed: int,
    gamma: float,
    alpha: float = 0.0,
    log: LogMetrics = ignore,
    progress: ReportStep = ignore,
) -> Metrics:
    """Fit the order of the actions of a state by `targets[i][t]`; write the PRM to `out`.

    A pair is of two actions whose targets differ by `settings.pair_margin` or more, divided by
    1 + `alpha` as differences of shaped targets are. `split_seed`, `gamma` and `alpha` are as in
    `fit_prm`, `seed`, `base` and `out` as in `fit_samples`. Of games held out it measures
    `val_pair_accuracy`, how often the better action has the higher score, and `val_pair_loss`.

    Raises:
        NothingToTrainOnError: there is no pair.
        CheckpointError: as `load_tokenizer`.
    """
    tokenizer = load_tokenizer(base)
    sides = split_by_game(episodes, settings.validation_fraction, split_seed)
    if alpha > 0:  # shaping makes differences of targets smaller by as much
        settings = settings.model_copy(update={"pair_margin": settings.pair_margin / (1 + alpha)})
    found = preference_pairs(episodes, targets, settings.pair_margin)
    log({"step": 0.0, **found.counts})
    encoded = partial(_encoded, tokenizer, prompt, episodes, max_tokens=settings.max_tokens)
    aside = set(sides[1])
    training = [pair for pair in found.pairs if pair.episode not in aside]
    validating = [pair for pair in found.pairs if pair.episode in aside]
    held_out = encoded(validating)
    passes = [
        [row for _, row in encoded(training, share=settings.renumbered, seed=each)]
        for each in pass_seeds(settings, seed)
    ]
    if not all(passes):
        raise NothingToTrainOnError(_nothing(found, settings))
    lengths = [[_length(row) for row in rows] for rows in passes]
    batches = TokenBatches(lengths, settings.batch_tokens, settings.epochs, seed)
    with common_arguments(settings, steps_of(batches, settings), seed) as arguments:
        trainer = _RelativeTrainer(
            model=load_prm(base, tokenizer.pad_token_id, seed),
            args=TrainingArguments(**arguments),
            train_dataset=Dataset.from_list([*chain(*passes)]),
            data_collator=_Collator(tokenizer.pad_token_id),
            processing_class=tokenizer,
        )
        metrics = train_through(batches, trainer, settings.accumulation, log, progress)
        metrics |= {
            **found.counts,
            "training_rows": float(len(passes[0])),
            "validation_rows": float(len(held_out)),
            "too_long": float(len(found.pairs) - len(held_out) - len(passes[0])),
        }
        ranking = None
        if held_out:
            rows = [row for _, row in held_out]
            differences = trainer.differences(rows, settings.batch_tokens)
            measures = ranking_measures(differences)
            metrics |= {f"val_pair_{name}": value for name, value in measures.items()}
            pairs = [pair for pair, _ in held_out]
            ranking = _ranking(pairs, episodes, measures["accuracy"], settings.pair_margin)
        known = PRMFacts(
            template_hash=prompt.hash,
            algorithm=Algorithm.AGENT_PRM,
            gamma=gamma,
            alpha=alpha,
            objective="relative",
            ranking=ranking,
        )
        data = fitted_on(episodes, sides)
        facts = facts_of(known, data, settings, metrics, seed=seed, split_seed=split_seed)
        save_fit(trainer, tokenizer, out, facts, prm_canary(prompt))
    return metrics


def ranking_measures(differences: Tensor) -> dict[str, float]:
    """Of z(better) − z(worse) for some pairs: how often it is positive, and the mean loss."""
    right = (differences > 0).float() + (differences == 0).float() / 2
    return {
        "accuracy": right.mean().item(),
        "loss": -F.logsigmoid(differences).mean().item(),
    }


def _ranking(
    pairs: Sequence[Pair], episodes: Sequence[Episode], accuracy: float, margin: float
) -> Ranking:
    """What `agentprm.json` says of the order of pairs that were held out."""
    return Ranking(
        accuracy=accuracy,
        margin=margin,
        pairs=len(pairs),
        states=len({pair.state for pair in pairs}),
        games=len({episodes[pair.episode].game.id for pair in pairs}),
    )


class _RelativeTrainer(TokenBatchTrainer):
    """The loss is a mean over the pairs of an optimizer step.

    TRL's RewardTrainer has a mean over a batch, and gathers its logits for what it logs; processes
    that share a step have different numbers of pairs, of which the one would weigh them wrongly and
    the other cannot be done.
    """

    def weight(self, batch: dict[str, Tensor]) -> Tensor:
        """The number of pairs."""
        return batch["pairs"]

    def total(self, model: torch.nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """The loss of the pairs; of a batch of none, which is padding, 0."""
        better, worse = _last_logits(model, inputs)[:, 0].float().chunk(2)
        pairs = int(inputs["pairs"])
        return bradley_terry(better[:pairs], worse[:pairs], CENTER)

    @torch.no_grad()
    def differences(self, rows: Sequence[_Row], batch_tokens: int) -> Tensor:
        """z(better) − z(worse) of each row. All processes compute all of it, in step."""
        self.model.eval()
        found = torch.zeros(len(rows))
        for batch in by_length([_length(row) for row in rows], batch_tokens):
            inputs = self._prepare_inputs(self.data_collator([rows[i] for i in batch]))
            chosen, rejected = _last_logits(self.model_wrapped, inputs)[:, 0].float().chunk(2)
            found[batch] = (chosen - rejected).cpu()
        return found


class _Collator:
    """TRL's collator, and the number of `pairs`. Of none it makes one of padding."""

    def __init__(self, pad_token_id: int) -> None:
        self._pad = pad_token_id
        self._collate = DataCollatorForPreference(pad_token_id)

    def __call__(self, rows: Sequence[_Row]) -> dict[str, Tensor]:
        padding = {"chosen_ids": [self._pad], "rejected_ids": [self._pad]}
        batch: dict[str, Tensor] = self._collate(list(rows) or [padding])
        return batch | {"pairs": torch.tensor(len(rows))}


def _last_logits(model: torch.nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """The logit at the last token of each row. The padding may be a token that ends actions too."""
    mask = inputs["attention_mask"]
    logits: Tensor = model(inputs["input_ids"], mask, mask.sum(1, keepdim=True) - 1)
    return logits


def _encoded(
    tokenizer: Tokenizer,
    prompt: PromptTemplate,
    episodes: Sequence[Episode],
    pairs: Sequence[Pair],
    *,
    max_tokens: int,
    share: float = 0.0,
    seed: int = 0,
) -> list[tuple[Pair, _Row]]:
    """The pairs that are short enough, about `share` of them with other numbers."""
    found = []
    for pair in pairs:
        state = episodes[pair.episode].state(pair.t)
        numbers = Numbers.of_state(state, share, seed)
        chosen, rejected = (
            action_row(tokenizer, prompt, numbers.state(state), numbers.action(action))[0]
            for action in (pair.chosen, pair.rejected)
        )
        if max(len(chosen), len(rejected)) <= max_tokens:
            found.append((pair, {"chosen_ids": chosen, "rejected_ids": rejected}))
    return found


def _length(row: _Row) -> int:
    """Tokens of a pair as it is computed, side by side."""
    return 2 * max(len(row["chosen_ids"]), len(row["rejected_ids"]))


def _nothing(found: Pairs, settings: PRMSettings) -> str:
    return (
        f"no pair of actions to train a relative PRM on: of {found.states} states "
        f"{found.one_action} have one action only, and {found.discarded} pairs differ by less than "
        f"{settings.pair_margin:g}; of the other {len(found.pairs)} those longer than "
        f"{settings.max_tokens} tokens (max_tokens) or of games held out do not train. "
        "Vine rollouts (rollouts.vine) try several actions in a state."
    )
