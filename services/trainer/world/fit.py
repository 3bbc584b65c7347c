"""`python -m services.trainer.world.fit --run RUN --iteration I` fits `world/I`.

It takes no services. Under `accelerate launch -m agentprm.lineage` its processes share the fit.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import structlog
import transformers
from pydantic import Field
from rich.console import Console

from agentprm.config import Config, read_config
from agentprm.models.devices import DeviceError, require_visible
from agentprm.prompts import load_prompt
from agentprm.protocol import Episode
from agentprm.registry import Registry
from agentprm.runs import DEMONSTRATIONS
from agentprm.service import configure_logging
from agentprm.settings import ProcessSettings
from services.trainer.exclusive import exclusive
from services.trainer.fits.sft import fit_rows
from services.trainer.metrics import MetricsWriter
from services.trainer.opening import STOPS
from services.trainer.progress import Progress
from services.trainer.rollouts.records import Records
from services.trainer.seeds import derive
from services.trainer.targets.monte_carlo import split_by_game
from services.trainer.tiny.renumber import pass_seeds, renumbered
from services.trainer.training.fitting import (
    LogMetrics,
    Metrics,
    ReportStep,
    ignore,
    load_tokenizer,
    processes,
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
        for each in pass_seeds(settings.renumbered, settings.epochs, seed)
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
    transformers.logging.set_verbosity_error()
    run, i, config = settings.run, settings.iteration, read_config(settings.run)
    registry = Registry(run / "checkpoints")
    version, stage = f"world/{i}", f"world_{i}"
    state = processes()
    main_process = state.is_main_process
    progress = Progress(None if main_process else Console(quiet=True))
    if registry.exists(version):
        progress.skip(stage)
        return 0
    try:
        with ExitStack() as stack:
            base = registry.open(f"policy/{i}")
            require_visible(config.device)
            if main_process:
                stack.enter_context(exclusive(run))
            state.wait_for_everyone()  # until the run is this fit's
            episodes = whole_episodes(Records(run / "records"), i)
            progress.start(stage, f"fitting the world model on {len(episodes)} episodes")
            log: LogMetrics = ignore
            out = Path()
            if main_process:
                log = partial(stack.enter_context(MetricsWriter(run)).log_line, stage)
                out = stack.enter_context(registry.write(version))
            metrics = fit_world(base, episodes, out, config, i, log=log, progress=progress.update)
    except (*STOPS, DeviceError) as error:
        structlog.get_logger().error("the world model was not fitted", why=str(error))
        return 1
    progress.end(metrics)
    state.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
