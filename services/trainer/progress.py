"""What a person sees of a run: a line when a stage starts, every few seconds, and when it ends.

Lines and not bars, so that a terminal, a log file and `docker compose logs` all read well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from rich.console import Console
from rich.markup import escape

from agentprm.runs import STAGE_SECONDS

LogStage = Callable[[str, int, Mapping[str, float]], None]
"""Takes the stage, its step, and what was measured."""
Shown = Mapping[str, float | str]
"""What a line says beside its text: a text as it is, a number in four digits."""

_EVERY = 5.0
"""Seconds between two lines of one stage."""


class Progress:
    """Progress of one stage at a time, on stderr.

    Args:
        console: where to, if not there.
        log: gets the seconds that a stage took: those since this process began it.
    """

    def __init__(self, console: Console | None = None, log: LogStage | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
        self._log = log
        self._stage = ""
        self._started = self._printed = time.monotonic()
        self._first = 0

    def start(self, stage: str, what: str) -> None:
        """A stage begins; `what` says in a few words what it does."""
        self._stage = stage
        self._started = self._printed = time.monotonic()
        self._first = -1
        self._line(f"[bold]{escape(what)}[/bold]")

    def update(self, done: int, total: int, values: Shown | None = None) -> None:
        """`done` of `total` units are done; prints if the last line is old enough."""
        now = time.monotonic()
        if self._first < 0:
            self._first = done  # what an earlier run had done says nothing about the speed now
        if now - self._printed < _EVERY or done >= total:  # `end` tells of the last
            return
        self._printed = now
        speed = (done - self._first) / max(1e-9, now - self._started)
        left = f", {_clock((total - done) / speed)} left" if speed > 0 else ""
        self._line(f"{done}/{total}{left}{_numbers(values or {})}")

    def note(self, what: str, values: Shown) -> None:
        """Something was measured on the way."""
        self._line(f"{escape(what)}{_numbers(values)}")

    def end(self, values: Shown | None = None) -> None:
        """The stage is done."""
        seconds = time.monotonic() - self._started
        self._line(f"[green]done[/green] in {_clock(seconds)}{_numbers(values or {})}")
        if self._log is not None:
            self._log(self._stage, 0, {STAGE_SECONDS: seconds})

    def skip(self, stage: str) -> None:
        """A stage was done by an earlier run."""
        self._stage = stage
        self._line("[dim]done before[/dim]")

    def _line(self, text: str) -> None:
        clock = time.strftime("%H:%M:%S")
        self.console.print(f"[dim]{clock}[/dim] [cyan]{self._stage:<22}[/cyan] {text}")


def _numbers(values: Shown) -> str:
    return "".join(f", {name.replace('_', ' ')} {_short(value)}" for name, value in values.items())


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
