"""The fit of DAgger: demonstrations, and the expert's labels of the learner's states."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from agentprm.config import SFTSettings
from agentprm.encoding import Tokenizer
from agentprm.prompts import PromptTemplate
from agentprm.protocol import Episode
from services.trainer.fits.sft import fit_rows
from services.trainer.tiny.renumber import Numbers, pass_seeds, renumbered
from services.trainer.training.fitting import (
    LogMetrics,
    Metrics,
    ReportStep,
    ignore,
    load_tokenizer,
)
from services.trainer.training.rows import Row, action_row, all_rows, require_rows


def fit_dagger(
    base: Path,
    demonstrations: Sequence[Episode],
    labelled: Sequence[tuple[Episode, int]],
    out: Path,
    settings: SFTSettings,
    prompt: PromptTemplate,
    *,
    seed: int,
    log: LogMetrics = ignore,
    progress: ReportStep = ignore,
) -> Metrics:
    """Train the causal model in `base` on both, and write it to `out`.

    `labelled` are turns t of the learner's episodes that carry the expert's action. Of their rows
    that action alone is trained on: the learner's own, before it, are only read.

    Raises:
        NothingToTrainOnError: there are no demonstrations to train on.
        CheckpointError: as `load_tokenizer`.
    """
    tokenizer = load_tokenizer(base)
    share, passes = settings.renumbered, []
    for each in pass_seeds(settings, seed):
        read = renumbered(demonstrations, share, each)
        rows = [row for _, row in all_rows(tokenizer, prompt, read, settings.max_tokens)]
        require_rows(rows, read, settings.max_tokens)
        for episode, t in labelled:
            numbers = Numbers.of_episode(episode, share, each)
            row = labelled_row(tokenizer, prompt, numbers.episode(episode), t)
            if len(row.ids) <= settings.max_tokens:
                rows.append(row)
        passes.append(rows)
    return fit_rows(base, passes, out, settings, prompt, seed=seed, log=log, progress=progress)


def labelled_row(tokenizer: Tokenizer, prompt: PromptTemplate, episode: Episode, t: int) -> Row:
    """State s_t of the learner with the expert's action as the answer.

    Raises:
        ValueError: the turn carries no expert's action.
    """
    label = episode.turns[t].expert
    if label is None:
        raise ValueError(f"turn {t} of {episode.id} was played without the expert's advice")
    ids, span = action_row(tokenizer, prompt, episode.state(t), label)
    return Row(ids, [span], [t], only_spans=True)
