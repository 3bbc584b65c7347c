"""What was measured while training: JSON lines and TensorBoard, side by side."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import orjson
from torch.utils.tensorboard import SummaryWriter

from agentprm.files import drop_torn_line
from services.trainer.progress import LogStage


class MetricsWriter:
    """`run/metrics.jsonl` and `run/tensorboard/`. A restarted run appends to both."""

    def __init__(self, run: Path) -> None:
        file = run / "metrics.jsonl"
        drop_torn_line(file)
        self._file = file.open("ab")
        self._board = SummaryWriter(str(run / "tensorboard"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._file.close()
        self._board.close()

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Numbers of `stage` at its `step`."""
        line = {"time": time.time(), "stage": stage, "step": step, **values}
        self._file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(f"{stage}/{name}", value, step)
        self._board.flush()


def log_line(log: LogStage, stage: str, line: Mapping[str, float]) -> None:
    """Give `log` a line of a fit's measurements, in which the optimizer step is under `step`."""
    values = {name: value for name, value in line.items() if name != "step"}
    log(stage, int(line["step"]), values)
