"""The fit of the process reward model: Q(s, a) on Monte Carlo targets by soft BCE (eq. 2).

A value model V(s) is the same model, read where the state ends and the action has not begun.
"""

from __future__ import annotations

import hashlib
import types
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel, TrainingArguments

from agentprm.config import Algorithm, PRMSettings
from agentprm.prompts import PromptTemplate
from agentprm.protocol import Calibration, Episode, GameSet, PRMFacts, TrainingData
from services.trainer.batches import TokenBatches, under_budget
from services.trainer.calibration import Scored, calibration, reliability
from services.trainer.canaries import prm_canary
from services.trainer.fitting import (
    Log,
    Metrics,
    Progress,
    common_arguments,
    ignore,
    load_tokenizer,
    save_fit,
    steps_of,
)
from services.trainer.losses import soft_bce
from services.trainer.rows import Row, all_rows
from services.trainer.targets import By, split_by_game
from services.trainer.trainers import TokenBatchTrainer, train_through


@dataclass(frozen=True)
class Sample:
    """An episode, or what one row holds of it, and what is to be read from it."""

    row: Row
    positions: list[int]
    """Of the tokens at which the model is read."""
    targets: list[float]
    outcome: float


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
    of: By = "action",
    log: Log = ignore,
    progress: Progress = ignore,
) -> Metrics:
    """Fit Q on `targets[i][t]`, the Q̂ of turn t of episode i, and write it to `out`.

    Turns before an episode's start have no target that is read. With `of="state"` it is V that is
    fitted, on the value of the state of each turn.

    `base` is a causal model, which gets a new value head, or an earlier PRM, whose head is kept.
    `seed` is that of batches, a new head and dropout, `split_seed` that of the games held out, and
    `gamma` the discount of the targets, which is recorded.

    The games of the validation side take no part in the fit; what is measured on them has the
    prefix `val_` (see `calibration`). `out` becomes an ordinary one-label classifier with its
    tokenizer, and `agentprm.json` that says how it was made.

    Raises:
        ValueError: there is nothing to train on.
    """
    tokenizer = load_tokenizer(base)
    sides = split_by_game(episodes, settings.validation_fraction, split_seed)
    training, validation = (
        _samples(tokenizer, prompt, episodes, targets, side, settings, of) for side in sides
    )
    lengths = [len(sample.row.ids) for sample in training]
    batches = TokenBatches(lengths, settings.batch_tokens, settings.epochs, seed)
    steps = steps_of(batches, settings)
    with common_arguments(settings, steps, seed) as arguments:
        trainer = _PRMTrainer(
            model=load_prm(base, tokenizer.pad_token_id, seed),
            args=TrainingArguments(**arguments),
            train_dataset=training,
            data_collator=Collator(tokenizer.pad_token_id),
        )
        metrics = train_through(batches, trainer, settings.accumulation, log, progress)
        metrics |= {
            "training_rows": float(len(training)),
            "validation_rows": float(len(validation)),
        }
        known = PRMFacts(
            template_hash=prompt.hash,
            algorithm=Algorithm.AGENT_PRM,
            gamma=gamma,
            data=training_data(episodes, sides),
            objective="absolute",
        )
        if validation:
            scored = trainer.score(validation, settings.batch_tokens)
            measures = calibration(scored)
            metrics |= {f"val_{name}": value for name, value in measures.items()}
            held_out = Calibration(
                ece=measures["ece"],
                turns=len(scored.q),
                games=len(games_of(episodes, sides[1])),
                bins=reliability(scored),
            )
            known = known.model_copy(update={"calibration": held_out})
        facts = {
            "kind": "prm" if of == "action" else "value",
            **known.model_dump(mode="json"),
            "settings": settings.model_dump(),
            "seed": seed,
            "split_seed": split_seed,
            "training_games": games_of(episodes, sides[0]),
            "validation_games": games_of(episodes, sides[1]),
            "metrics": metrics,
        }
        save_fit(trainer, tokenizer, out, facts, prm_canary(prompt))
    return metrics


def read_at(row: Row, of: By) -> list[int]:
    """The positions in a row at which each of its turns is read.

    Q(s, a) at the action's last token; V(s) at the last one before the action begins, the end of
    the chat template's header for an answer.
    """
    return [end - 1 if of == "action" else start - 1 for start, end in row.spans]


def load_prm(base: Path, pad_token_id: int, seed: int) -> PreTrainedModel:
    """The classifier of `base`, whose forward pass takes positions and gives a logit for each.

    `forward(input_ids, attention_mask, positions)`: positions of shape (batch, turns) are those of
    the last tokens of the actions; the logits have the same shape. `position_ids` are given where
    they do not follow from the order of the tokens. transformers' own forward gives
    one logit a row. It is the method of the model that is replaced, and not a function beside it,
    because distributed wrappers synchronise around that method.
    """
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=1, dtype=torch.float32
    )
    model.config.pad_token_id = pad_token_id
    model.forward = types.MethodType(_score_turns, model)
    return model


def _score_turns(
    self: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    positions: Tensor,
    position_ids: Tensor | None = None,
) -> Tensor:
    outputs = self.base_model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=position_ids,
        use_cache=False,
    )
    hidden: Tensor = outputs.last_hidden_state
    index = positions.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])
    actions = hidden.gather(1, index).float()
    with torch.autocast(actions.device.type, enabled=False):  # bf16 would round Q to two digits
        logits = F.linear(actions, self.score.weight.float())
    return logits.squeeze(-1)


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
        lengths = [len(sample.row.ids) for sample in samples]
        order = sorted(range(len(samples)), key=lambda i: lengths[i])
        scored = Scored([], [], [])
        for batch in under_budget(lengths, order, batch_tokens):
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


class Collator:
    """Pads rows on the right, and their turns likewise; `turns` marks the real ones.

    Of no rows it makes one of padding.
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """The tensors of a batch, those of turns of shape (batch, most turns)."""
        samples = samples or [Sample(Row([self.pad_token_id], [], []), [], [], 0.0)]
        width = max(len(sample.row.ids) for sample in samples)
        most = max(len(sample.targets) for sample in samples)
        count = len(samples)
        ids = torch.full((count, width), self.pad_token_id)
        mask = torch.zeros(count, width, dtype=torch.long)
        positions = torch.zeros(count, most, dtype=torch.long)
        targets = torch.zeros(count, most)
        turns = torch.zeros(count, most, dtype=torch.bool)
        for i, sample in enumerate(samples):
            n, k = len(sample.row.ids), len(sample.targets)
            ids[i, :n] = torch.as_tensor(sample.row.ids)
            mask[i, :n] = 1
            positions[i, :k] = torch.as_tensor(sample.positions)
            targets[i, :k] = torch.as_tensor(sample.targets)
            turns[i, :k] = True
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "positions": positions,
            "targets": targets,
            "turns": turns,
        }


def _samples(
    tokenizer: Any,
    prompt: PromptTemplate,
    episodes: Sequence[Episode],
    targets: Sequence[Sequence[float]],
    side: Sequence[int],
    settings: PRMSettings,
    of: By,
) -> list[Sample]:
    if not side:
        return []
    rows = all_rows(tokenizer, prompt, [episodes[i] for i in side], settings.max_tokens)
    return [
        Sample(
            row=row,
            positions=read_at(row, of),
            targets=[targets[side[k]][t] for t in row.turns],
            outcome=episodes[side[k]].outcome,
        )
        for k, row in rows
    ]


def training_data(
    episodes: Sequence[Episode], sides: tuple[Sequence[int], Sequence[int]]
) -> TrainingData:
    """What a PRM was fitted on and what was held out; `sides` are those of `split_by_game`."""
    return TrainingData(
        splits=sorted({episode.game.split for episode in episodes}),
        training=_game_set(episodes, sides[0]),
        validation=_game_set(episodes, sides[1]),
    )


def games_of(episodes: Sequence[Episode], side: Sequence[int]) -> list[str]:
    """The ids of the games of one side, sorted."""
    return sorted({episodes[i].game.id for i in side})


def _game_set(episodes: Sequence[Episode], side: Sequence[int]) -> GameSet:
    games = games_of(episodes, side)
    digest = hashlib.sha256("\n".join(games).encode()).hexdigest()[:12]
    return GameSet(games=len(games), episodes=len(side), hash=digest)
