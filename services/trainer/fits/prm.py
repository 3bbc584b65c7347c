"""The fit of the process reward model: Q(s, a) on Monte Carlo targets by soft BCE (eq. 2).

A value model V(s) is the same model, read where the state ends and the action has not begun.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor
from transformers import TrainingArguments

from agentprm.config import Algorithm, PRMSettings
from agentprm.encoding import Tokenizer
from agentprm.prompts import PromptTemplate
from agentprm.protocol import Calibration, Episode, PRMFacts
from services.trainer.targets.monte_carlo import By, split_by_game
from services.trainer.tiny.renumber import pass_seeds, renumbered
from services.trainer.training.batches import TokenBatches, by_length
from services.trainer.training.calibration import Scored, calibration, reliability
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
from services.trainer.training.losses import soft_bce
from services.trainer.training.prm_facts import FittedOn, facts_of, fitted_on
from services.trainer.training.prm_model import Collator, Sample, load_prm, read_at
from services.trainer.training.rows import NothingToTrainOnError, all_rows
from services.trainer.training.saving import save_fit
from services.trainer.training.trainers import TokenBatchTrainer, train_through


def fit_prm(
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
    of: By = "action",
    log: LogMetrics = ignore,
    progress: ReportStep = ignore,
) -> Metrics:
    """Fit Q on `targets[i][t]`, the Q̂ of turn t of episode i, and write it to `out`.

    Turns before an episode's start have no target that is read. With `of="state"` it is V that is
    fitted, on the value of the state of each turn.

    `split_seed` is that of the games held out; `gamma` and `alpha` are of the targets, and
    recorded. The rest is as in `fit_samples`.

    Raises:
        NothingToTrainOnError: no episode has a turn within `max_tokens`.
        CheckpointError: as `load_tokenizer`.
    """
    tokenizer = load_tokenizer(base)
    sides = split_by_game(episodes, settings.validation_fraction, split_seed)
    training, held_out = ([episodes[i] for i in side] for side in sides)
    training_targets, held_out_targets = ([targets[i] for i in side] for side in sides)
    passes = [
        _samples(
            tokenizer,
            prompt,
            renumbered(training, settings.renumbered, each),
            training_targets,
            settings.max_tokens,
            of,
        )
        for each in pass_seeds(settings, seed)
    ]
    validation = _samples(tokenizer, prompt, held_out, held_out_targets, settings.max_tokens, of)
    known = PRMFacts(
        template_hash=prompt.hash,
        algorithm=Algorithm.AGENT_PRM,
        gamma=gamma,
        alpha=alpha,
        objective="absolute",
    )
    return fit_samples(
        base,
        passes,
        validation,
        out,
        settings,
        prompt,
        known,
        fitted_on(episodes, sides),
        seed=seed,
        split_seed=split_seed,
        kind="prm" if of == "action" else "value",
        log=log,
        progress=progress,
    )


def fit_samples(
    base: Path,
    passes: Sequence[Sequence[Sample]],
    validation: Sequence[Sample],
    out: Path,
    settings: PRMSettings,
    prompt: PromptTemplate,
    known: PRMFacts,
    data: FittedOn,
    *,
    seed: int,
    split_seed: int,
    kind: str = "prm",
    log: LogMetrics = ignore,
    progress: ReportStep = ignore,
) -> Metrics:
    """Fit the numbers of samples where they say that the model is read; write it to `out`.

    An epoch goes through one of `passes`, behind the last through the first again. `base` is a
    causal model, which gets a new value head, or an earlier PRM, whose head is kept.
    `seed` is that of batches, a new head and dropout. `prompt` makes the canary.

    The validation side takes no part in the fit; what is measured on it has the prefix `val_` (see
    `calibration`). `out` becomes an ordinary one-label classifier with its tokenizer, and
    `agentprm.json` that says how it was made: what is `known` of that, on which `data`, and how
    well it went.

    Raises:
        NothingToTrainOnError: a pass has no samples.
        CheckpointError: as `load_tokenizer`.
    """
    if not all(passes):
        raise NothingToTrainOnError(
            f"no episode has a turn that ends within {settings.max_tokens} tokens: raise "
            "prm.max_tokens, or take a model whose tokens are longer"
        )
    tokenizer = load_tokenizer(base)
    lengths = [[len(sample.row.ids) for sample in samples] for samples in passes]
    batches = TokenBatches(lengths, settings.batch_tokens, settings.epochs, seed)
    with common_arguments(settings, steps_of(batches, settings), seed) as arguments:
        trainer = _PRMTrainer(
            model=load_prm(base, tokenizer.pad_token_id, seed),
            args=TrainingArguments(**arguments),
            train_dataset=list(chain.from_iterable(passes)),
            data_collator=Collator(tokenizer.pad_token_id),
        )
        metrics = train_through(batches, trainer, settings.accumulation, log, progress)
        metrics |= {
            "training_rows": float(len(passes[0])),
            "validation_rows": float(len(validation)),
        }
        held_out = None
        if validation:
            scored = trainer.score(validation, settings.batch_tokens)
            measures = calibration(scored)
            metrics |= {f"val_{name}": value for name, value in measures.items()}
            held_out = Calibration(
                ece=measures["ece"],
                turns=len(scored.q),
                games=len(set(data.validation)),
                bins=reliability(scored),
            )
        facts = facts_of(
            known.model_copy(update={"calibration": held_out}),
            data,
            settings,
            metrics,
            seed=seed,
            split_seed=split_seed,
            kind=kind,
        )
        save_fit(trainer, tokenizer, out, facts, prm_canary(prompt))
    return metrics


class _PRMTrainer(TokenBatchTrainer):
    """Trainer with soft cross-entropy over every turn of a batch of episodes."""

    def weight(self, batch: dict[str, Tensor]) -> Tensor:
        """The number of turns."""
        return batch["turns"].sum()

    def total(self, model: torch.nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """Soft cross-entropy of the turns."""
        logits = model(inputs["input_ids"], inputs["attention_mask"], inputs["positions"])
        return soft_bce(logits, inputs["targets"], inputs["turns"])

    @torch.no_grad()
    def score(self, samples: Sequence[Sample], batch_tokens: int) -> Scored:
        """Q of every turn of the samples. All processes compute all of it, in step."""
        self.model.eval()
        scored = Scored([], [], [])
        for batch in by_length([len(sample.row.ids) for sample in samples], batch_tokens):
            inputs = self._prepare_inputs(self.data_collator([samples[i] for i in batch]))
            logits = self.model_wrapped(
                inputs["input_ids"], inputs["attention_mask"], inputs["positions"]
            )
            q = torch.sigmoid(logits.float()).cpu()
            for i, values in zip(batch, q.tolist(), strict=True):
                turns = len(samples[i].targets)
                scored.q.extend(values[:turns])
                scored.targets.extend(samples[i].targets)
                scored.outcomes.extend([samples[i].outcome] * turns)
        return scored


def _samples(
    tokenizer: Tokenizer,
    prompt: PromptTemplate,
    episodes: Sequence[Episode],
    targets: Sequence[Sequence[float]],
    max_tokens: int,
    of: By,
) -> list[Sample]:
    rows = all_rows(tokenizer, prompt, episodes, max_tokens)
    return [
        Sample(
            row=row,
            positions=read_at(row, of),
            targets=[targets[k][t] for t in row.turns],
            outcome=float(episodes[k].won),
        )
        for k, row in rows
    ]
