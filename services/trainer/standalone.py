"""A fit by itself, outside of a run's loop. It takes no services, and its processes share it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import structlog
from accelerate import PartialState
from rich.console import Console

from agentprm.config import Config, read_config
from agentprm.models.devices import DeviceError, require_visible
from agentprm.registry import Registry
from services.trainer.exclusive import exclusive
from services.trainer.metrics import MetricsWriter
from services.trainer.opening import STOPS
from services.trainer.progress import Progress
from services.trainer.training.fitting import processes, quiet_transformers


@dataclass(frozen=True)
class Bench:
    """What such a fit works with, in one of its processes."""

    run: Path
    config: Config
    registry: Registry
    state: PartialState
    progress: Progress
    """Says nothing but on the main process."""
    stack: ExitStack
    """Closes with the fit."""

    def metrics(self) -> MetricsWriter | None:
        """What writes the run's measurements until the fit ends; the main process alone has one."""
        if not self.state.is_main_process:
            return None
        return self.stack.enter_context(MetricsWriter(self.run))


def fit_by_itself(
    run: Path,
    version: str,
    stage: str,
    fit: Callable[[Bench], None],
    *,
    failed: str,
    stops: tuple[type[Exception], ...] = (),
) -> int:
    """Call `fit` on the run, alone, unless the checkpoint `version` was made before.

    Every process of the fit calls this. What ends the work is logged as `failed`: `STOPS`, a
    missing device, and the errors that `stops` adds.

    Returns:
        The exit code: 0 when the checkpoint is there.
    """
    ends: tuple[type[Exception], ...] = (*STOPS, DeviceError, *stops)
    quiet_transformers()
    config, registry, state = read_config(run), Registry(run / "checkpoints"), processes()
    progress = Progress(None if state.is_main_process else Console(quiet=True))
    if registry.exists(version):
        progress.skip(stage)
        return 0
    try:
        require_visible(config.device)
        with ExitStack() as stack:
            if state.is_main_process:
                stack.enter_context(exclusive(run))
                registry.drop_drafts()
            state.wait_for_everyone()  # until the run is this fit's
            fit(Bench(run, config, registry, state, progress, stack))
    except ends as error:
        structlog.get_logger().error(failed, why=str(error))
        return 1
    state.destroy_process_group()
    return 0
