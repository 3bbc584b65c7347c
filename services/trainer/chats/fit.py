"""`python -m services.trainer.chats.fit --run RUN --chats LOG` fits `prm/0` on a log of chats.

It takes no services. Under `accelerate launch -m agentprm.lineage` its processes share the fit.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import orjson
import structlog
from pydantic import Field
from rich.console import Console

from agentprm.chats import CHATS_FILE, Chat, ChatsError, digest_of_chats, read_chats
from agentprm.config import Config
from agentprm.ensembles import write_ensemble
from agentprm.prompts import load_prompt
from agentprm.protocol import PRMFacts
from agentprm.registry import Registry
from agentprm.runs import short_name
from agentprm.service import configure_logging
from agentprm.settings import ProcessSettings
from services.trainer.base_model import BaseModelError, base_model, require_trainable
from services.trainer.chats.learned import learned
from services.trainer.chats.samples import ChatSamples, split_chats
from services.trainer.fits.prm import fit_samples
from services.trainer.metrics import MetricsWriter, log_line
from services.trainer.progress import Progress
from services.trainer.seeds import derive
from services.trainer.standalone import Bench, fit_by_itself
from services.trainer.training.fitting import (
    LogMetrics,
    Metrics,
    ignore,
    release_memory,
)

_FEW_STEPS = 30
"""Optimizer steps below which a small log is likely to have been gone through too seldom."""


class ChatsFitSettings(ProcessSettings):
    """What is fitted."""

    run: Path = Field(description="run directory, with its config.json")
    chats: Path = Field(description="the log: a .jsonl file, or a directory of such files")


def fit_chats(
    base: Path,
    data: ChatSamples,
    out: Path,
    config: Config,
    name: str,
    log: LogMetrics,
    report: Progress,
) -> Metrics:
    """Fit one PRM on the training side; write it to `out`. Its seed follows from its `name`.

    Raises:
        NothingToTrainOnError: the training side is empty.
        CheckpointError: as `load_tokenizer`.
    """
    turns = sum(len(sample.targets) for sample in data.training)
    left_out = f"; {data.left_out} end beyond prm.max_tokens" if data.left_out else ""
    what = f"fitting the PRM on {turns} turns of {len(data.training)} chats{left_out}"
    report.start(name, what)
    known = PRMFacts(
        algorithm=config.algorithm, gamma=config.gamma, alpha=0.0, objective="absolute"
    )
    summary = fit_samples(
        base,
        [data.training],
        data.validation,
        out,
        config.prm,
        load_prompt(config.prompt),
        known,
        data.tasks,
        seed=derive(config.seed, name),
        split_seed=derive(config.seed, "split"),
        log=log,
        progress=report.update,
    )
    report.end(summary)
    release_memory()
    return summary


def fit_members(
    base: Path,
    data: ChatSamples,
    config: Config,
    registry: Registry,
    metrics: MetricsWriter | None,
    report: Progress,
) -> list[str]:
    """Fit the PRMs that are not there yet, one or several that serve together; their versions.

    Of the processes that share the fits the one with `metrics` writes.

    Raises:
        NothingToTrainOnError: as `fit_chats`.
        CheckpointError: as `fit_chats`; or a version came to be there meanwhile, or a member of the
            ensemble is damaged.
    """
    members = [f"prm/0.{k}" for k in range(1, config.prm.members + 1)]
    versions = members if len(members) > 1 else ["prm/0"]
    for version in versions:
        name = short_name(version)
        if registry.exists(version):
            report.skip(name)
            continue
        with ExitStack() as stack:
            log: LogMetrics = ignore
            out = Path()
            if metrics is not None:
                log = partial(log_line, metrics.log, name)
                out = stack.enter_context(registry.write(version))
            summary = fit_chats(base, data, out, config, name, log, report)
            if metrics is not None and summary["steps"] < _FEW_STEPS:
                structlog.get_logger().warning(
                    "few steps teach little: give more passes or smaller steps, by --set "
                    "prm.epochs=N, prm.accumulation=1 or prm.batch_tokens=N, and another --run",
                    steps=int(summary["steps"]),
                )
    if metrics is not None and len(members) > 1:
        write_ensemble(registry, "prm/0", members)
    return versions


def main() -> int:
    """Fit, unless it was done before. The exit code is 0 when the checkpoint is there."""
    settings = ChatsFitSettings.from_command_line()
    configure_logging("prm-fit")
    return fit_by_itself(
        settings.run,
        "prm/0",
        "q_0",
        partial(_fit, settings.chats),
        failed="the PRM was not fitted",
        stops=(BaseModelError, ChatsError),
    )


def _fit(log: Path, bench: Bench) -> None:
    """Fit `prm/0` on a log of chats, and show what it has learned."""
    config = bench.config
    chats = read_chats(log)
    noted = orjson.loads((bench.run / CHATS_FILE).read_bytes())["sha256"]
    if digest_of_chats(chats) != noted:
        raise ChatsError(f"{log} has changed since it was read: fit a copy that nobody writes to")
    with bench.state.main_process_first():
        base = base_model(bench.run, config, _texts(chats))
    require_trainable(base, load_prompt(config.prompt), config.algorithm)
    data = split_chats(base, chats, config)
    versions = fit_members(base, data, config, bench.registry, bench.metrics(), bench.progress)
    if bench.state.is_main_process:
        Console().print(learned(bench.registry, versions, data))


def _texts(chats: Sequence[Chat]) -> list[str]:
    """What a model from scratch learns its words from; its chat template drops system messages."""
    return [m.content for chat in chats for m in chat.messages if m.role != "system"]


if __name__ == "__main__":
    sys.exit(main())
