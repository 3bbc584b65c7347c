"""What the commands have in common: options, messages, and how they end."""

from __future__ import annotations

import hashlib
import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import orjson
import structlog
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from agentprm.chats import ChatsError
from agentprm.cli.chosen_games import GamesError, absolute
from agentprm.cli.processes import ProcessFailed
from agentprm.config import Config, dotted, load_config, parse_overrides, read_config
from agentprm.files import DamagedFile, write_atomic
from agentprm.prompts import load_prompt
from agentprm.protocol import MAX_STEPS, Sampling, Split
from agentprm.redis_server import RedisServerError
from agentprm.registry import CheckpointError, Registry, number
from agentprm.results import read_results
from agentprm.runs import QUEUE_NAME_FILE, is_begun
from agentprm.studies import StudyError
from agentprm.validation import all_errors

console = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)

Games = Annotated[
    str | None,
    typer.Option(
        help="directory of ALFWorld games, as alfworld-download makes it, or an environment of "
        "your own, as module:Class; by default those the run has played, if there is one, then "
        "$ALFWORLD_DATA, then ~/.cache/alfworld, then generated ones",
        metavar="DIR|MODULE:CLASS",
    ),
]
Device = Annotated[str, typer.Option(help="where models run: auto, cpu, cuda, ...")]
Seed = Annotated[int, typer.Option(help="all randomness of the run derives from it")]
PlaySeed = Annotated[int, typer.Option(help="orders the games, seeds the sampling")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="another value than the preset's, as dpo.beta=0.1; repeatable"),
]
Json = Annotated[bool, typer.Option("--json", help="print the result as JSON on stdout")]
Played = Annotated[Split, typer.Option(help="the games that are played")]
Count = Annotated[int, typer.Option(help="how many games, at most", min=1)]
MaxSteps = Annotated[int, typer.Option(help="turns of an episode", min=1, max=MAX_STEPS)]

_MENDED = (
    ChatsError,
    CheckpointError,
    DamagedFile,
    GamesError,
    ProcessFailed,
    RedisServerError,
    StudyError,
)
"""What a user can mend, as its message says."""


_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextmanager
def explained(
    interrupted: str = "the same command goes on where this one stopped",
) -> Iterator[None]:
    """Turn what a user can mend into a message, and SIGTERM and SIGINT into an orderly end.

    So too SIGHUP, of a terminal that is closed. SIGINT and SIGHUP stay ignored where they are, as
    in the background and under `nohup`. None of them, sent again, cuts the end short.
    `interrupted` is what to say then.
    """
    warnings_only = structlog.make_filtering_bound_logger(logging.WARNING)
    structlog.configure(
        wrapper_class=warnings_only, logger_factory=structlog.PrintLoggerFactory(sys.stderr)
    )
    ending = [each for each in _ENDING if signal.getsignal(each) is not signal.SIG_IGN]
    previous = {each: signal.signal(each, _interrupt) for each in ending}
    try:
        yield
    except _MENDED as error:
        console.print(f"[red]error:[/red] {escape(str(error))}")
        raise typer.Exit(1) from error
    except OSError as error:
        what = [str(part) for part in (error.filename, error.strerror) if part]
        console.print(f"[red]error:[/red] {escape(': '.join(what) or repr(error))}")
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        with suppress(OSError):  # of a terminal that was closed
            console.print(f"interrupted; {interrupted}")
        raise typer.Exit(130) from None
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)


def _interrupt(_: int, __: FrameType | None) -> NoReturn:
    for each in _ENDING:
        signal.signal(each, signal.SIG_IGN)  # a second one must not cut the orderly end short
    raise KeyboardInterrupt


def config_of(run: Path) -> Config:
    """The settings of a run; without them the command ends."""
    try:
        return read_config(run)
    except (FileNotFoundError, ValueError) as error:
        fail(str(error))


def settings(preset: str, seed: int = 0, overrides: Sequence[str] = ()) -> Config:
    """The settings of a preset; where they cannot be had the command ends."""
    try:
        return load_config(preset, seed, parse_overrides(overrides))
    except ValidationError as error:
        alone = any(each["type"] == "missing" for each in error.errors())
        hint = '\na preset takes what it does not say from another: begin it with extends = "tiny"'
        fail(all_errors(error) + (hint if alone else ""))
    except (FileNotFoundError, ValueError) as error:
        fail(str(error))


def new_or_same(run: Path, config: Config, go_on: str) -> None:
    """Write the settings of a run to its directory. Where one was begun there, it has to have them.

    Otherwise the command ends; `go_on` says how one goes on with that run.
    """
    if not is_begun(run):
        run.mkdir(parents=True, exist_ok=True)
        # Under another name it finds none of the jobs that were queued by the settings of before.
        (run / QUEUE_NAME_FILE).unlink(missing_ok=True)
        write_atomic(run / "config.json", config.model_dump_json(indent=2).encode())
        return
    there = dotted(config_of(run).model_dump(mode="json", exclude={"overrides"}))
    asked = dotted(config.model_dump(mode="json", exclude={"overrides"}))
    for name in {**asked, **there}:
        if there.get(name) != asked.get(name):
            fail(
                f"{run} holds a run with other settings ({name} is {there.get(name)} there, "
                f"{asked.get(name)} here): {go_on}, or give another --run"
            )


def require_unwanted(registry: Path, version: str) -> None:
    """Go on only where no fit of the run whose registry it is will make `version` itself: the loop
    would take what is there for its own.

    Raises:
        CheckpointError: `version` is none.
    """
    Registry(registry).path(version)
    run = registry.parent
    if not (run / "config.json").exists() or (run / "chats.json").exists():
        return  # nobody's, or that of a PRM from logs, which is fitted once
    iterations, kind = config_of(run).iterations, version.partition("/")[0]
    first = {"policy": iterations + 1, "prm": iterations}.get(kind, 0)
    if number(version)[0] < first:
        fail(f"the training of {run} makes {version} itself: take {kind}/{first} or a later one")


def digest_of(games: str, prompt: str, *settings: str) -> str:
    """Names a directory by what is played in it, so that nothing else is gone on with there."""
    parts = [absolute(games), load_prompt(prompt).hash, *settings]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def print_json(value: Any) -> None:
    """A value, on stdout."""
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() + "\n")


def print_results(run: Path) -> None:
    """The rows of a run, as JSON, as they were written: those of look-ahead say more."""
    read_results(run)  # which refuses what is damaged
    print_json(orjson.loads((run / "results.json").read_bytes()))


def fail(message: str) -> NoReturn:
    """End with a message about what was asked for."""
    console.print(f"[red]error:[/red] {escape(message)}")
    raise typer.Exit(2)


def at_temperature(sampling: Sampling, temperature: float | None) -> Sampling:
    """`sampling` at this temperature, of reasons and commands alike, where one is given."""
    if temperature is None:
        return sampling
    return sampling.model_copy(update={"temperature": temperature, "reason_temperature": None})
