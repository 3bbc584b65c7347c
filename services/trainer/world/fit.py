"""`python -m services.trainer.world.fit --run RUN --iteration I` fits `world/I`.

It takes no services. Under `accelerate launch -m agentprm.lineage` its processes share the fit.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from pydantic import Field

from agentprm.config import Config
from agentprm.prompts import load_prompt
from agentprm.protocol import Episode
from agentprm.runs import DEMONSTRATIONS
from agentprm.service import configure_logging
from agentprm.settings import ProcessSettings
from services.trainer.fits.sft import fit_rows
from services.trainer.metrics import log_line
from services.trainer.rollouts.records import Records
from services.trainer.seeds import derive
from services.trainer.standalone import Bench, fit_by_itself
from services.trainer.targets.monte_carlo import split_by_game
from services.trainer.tiny.renumber import pass_seeds, renumbered
from services.trainer.training.fitting import (
    LogMetrics,
    Metrics,
    ReportStep,
    ignore,
    load_tokenizer,
)
from services.trainer.world.transitions import world_rows


class WorldFitSettings(ProcessSettings):
    """What is fitted."""

    run: Path = Field(description="run directory, with its config.json")
    iteration: int = Field(ge=0, description="i of the π_i that the model begins as")


def fit_world(
    base: Path,
    episodes: list[Episode],
    out: Path,
    config: Config,
    iteration: int,
    *,
    log: LogMetrics = ignore,
    progress: ReportStep = ignore,
) -> Metrics:
    """Train the causal model in `base` to tell what follows a command; write it to `out`.

    The loss is the mean negative log-likelihood of the outcomes' tokens alone. Its settings are
    those of supervised fine-tuning. The games held out are named in `agentprm.json`.

    Raises:
        NothingToTrainOnError: as `world_rows`.
        CheckpointError: as `load_tokenizer`.
    """
    seed = derive(config.seed, f"world_{iteration}")
    settings = config.sft.model_copy(update={"observation_weight": 0.0})
    sides = split_by_game(episodes, config.prm.validation_fraction, derive(config.seed, "world"))
    tokenizer = load_tokenizer(base)
    training = [episodes[i] for i in sides[0]]
    passes = [
        world_rows(tokenizer, renumbered(training, settings.renumbered, each), settings.max_tokens)
        for each in pass_seeds(settings, seed)
    ]
    games = [sorted({episodes[i].game.id for i in side}) for side in sides]
    facts = {"kind": "world", "training_games": games[0], "validation_games": games[1]}
    prompt = load_prompt(config.prompt)
    return fit_rows(
        base, passes, out, settings, prompt, facts, seed=seed, log=log, progress=progress
    )


def whole_episodes(records: Records, iteration: int) -> list[Episode]:
    """The demonstrations and the rollouts of π_0..π_i, without those that begin in a later state:
    the turns that were given to them do not tell what was possible."""
    episodes = [*records.episodes(DEMONSTRATIONS), *records.rollouts(*range(iteration + 1))]
    return [episode for episode in episodes if episode.start == 0]


def main() -> int:
    """Fit, unless it was done before. The exit code is 0 when the checkpoint is there."""
    settings = WorldFitSettings.from_command_line()
    configure_logging("world")
    i = settings.iteration
    return fit_by_itself(
        settings.run,
        f"world/{i}",
        f"world_{i}",
        partial(_fit, i),
        failed="the world model was not fitted",
    )


def _fit(i: int, bench: Bench) -> None:
    """Fit `world/I` of the run that the bench holds."""
    stage = f"world_{i}"
    base = bench.registry.open(f"policy/{i}")
    episodes = whole_episodes(Records(bench.run / "records"), i)
    bench.progress.start(stage, f"fitting the world model on {len(episodes)} episodes")
    report = bench.progress.update
    metrics = bench.metrics()
    if metrics is None:
        fit_world(base, episodes, Path(), bench.config, i, progress=report)
        return
    log = partial(log_line, metrics.log, stage)
    with bench.registry.write(f"world/{i}") as out:
        summary = fit_world(base, episodes, out, bench.config, i, log=log, progress=report)
    bench.progress.end(summary)


if __name__ == "__main__":
    sys.exit(main())
