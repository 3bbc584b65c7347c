"""The reference policy μ of process reward shaping: its rollouts, and V^μ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate.utils import reduce

from agentprm.config import EXPERT, FIRST, PRMSettings, Shaping
from agentprm.prompts import PromptTemplate
from agentprm.protocol import Episode, RolloutJob, Sampling, Split
from agentprm.registry import Registry
from services.trainer.rollouts.collect import Collector
from services.trainer.targets.monte_carlo import averaged, episode_returns
from services.trainer.training.batches import by_length
from services.trainer.training.fitting import autocasts, load_tokenizer, processes
from services.trainer.training.prm_model import Collator, Sample, load_prm, read_at
from services.trainer.training.rows import all_rows

ROLLOUTS = "reference-rollouts"
"""The stage in which μ plays."""
VALUE = "value/0"
"""V^μ in the registry."""
_REFERENCE = "reference/0"
"""μ in the registry, where it is no policy of the run."""
_NO_LIMIT = 2**31
"""More tokens than any episode has."""


def reference_jobs(
    collector: Collector, registry: Registry, plan: Shaping, sampling: Sampling
) -> list[RolloutJob]:
    """What μ plays; a checkpoint from elsewhere is copied into the registry, to be served.

    Raises:
        NoGames, ServiceError: as `Collector.games`.
        CheckpointError: as `Registry.adopt`, of a checkpoint from elsewhere.
    """
    games = collector.games(Split.TRAIN, plan.games, "reference")
    games = [game for game in games for _ in range(plan.per_game)]
    if plan.reference == EXPERT:
        return collector.jobs(ROLLOUTS, games, actor="expert")
    directory = plan.directory
    policy = FIRST if directory is None else _REFERENCE
    if directory is not None and not registry.exists(policy):
        registry.adopt(directory, policy)
    return collector.jobs(ROLLOUTS, games, policy=policy, sampling=sampling)


def reference_values(episodes: Sequence[Episode], gamma: float) -> list[list[float]]:
    """V̂^μ(s_t) by Monte Carlo: the mean, over all visits of s_t, of μ's return from there.

    `values[i][t]` is that of turn t of episode i, NaN for the turns before the episode's start.
    """
    return averaged(episodes, episode_returns(episodes, gamma), by="state")


def predict_values(
    model: Path, episodes: Sequence[Episode], settings: PRMSettings, prompt: PromptTemplate
) -> list[list[float]]:
    """V(s_t) of every state that the episodes were in, by the value model in a directory.

    `values[i][t]` is that of turn t of episode i, NaN before the episode's start. States are read
    however long they are: `settings.max_tokens` limits what is trained. Several processes share
    the work, and each has all values.

    Raises:
        CheckpointError: as `load_tokenizer`.
    """
    torch.set_num_threads(settings.threads)
    state = processes()
    tokenizer = load_tokenizer(model)
    found = all_rows(tokenizer, prompt, episodes, max_tokens=_NO_LIMIT)
    samples = [Sample(row, read_at(row, "state"), [0.0] * len(row.turns), 0.0) for _, row in found]
    batches = by_length([len(row.ids) for _, row in found], settings.batch_tokens)
    classifier = load_prm(model, tokenizer.pad_token_id, seed=0).to(state.device).eval()
    collate = Collator(tokenizer.pad_token_id)
    longest = max((len(episode.turns) for episode in episodes), default=0)
    values = torch.zeros(len(episodes), longest)
    bf16 = torch.autocast(state.device.type, torch.bfloat16, enabled=autocasts(settings))
    with torch.no_grad(), bf16:
        for batch in batches[state.process_index :: state.num_processes]:
            tensors = collate([samples[k] for k in batch])
            read = [tensors[name] for name in ("input_ids", "attention_mask", "positions")]
            v = torch.sigmoid(classifier(*(tensor.to(state.device) for tensor in read))).cpu()
            for k, numbers in zip(batch, v, strict=True):
                i, row = found[k]
                values[i, row.turns] = numbers[: len(row.turns)]
    everywhere = reduce(values.to(state.device), "sum").tolist()
    return [
        [math.nan] * episode.start + known[episode.start : len(episode.turns)]
        for episode, known in zip(episodes, everywhere, strict=True)
    ]
