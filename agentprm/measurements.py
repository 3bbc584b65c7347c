"""What a study measures of a checkpoint: how it plays, and what the PRM thinks of its actions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import orjson
from pydantic import TypeAdapter

from agentprm.config import Evaluation
from agentprm.files import write_atomic
from agentprm.protocol import ChoiceRule, Record
from agentprm.results import Row


class Measurement(Record):
    """One measurement of the checkpoint `policy`. Its episodes are recorded as the stage `name`."""

    name: str
    policy: str
    plan: Evaluation
    """The games it plays; with `steered` the best of N by `prm`."""
    prm: str | None = None
    steered: bool = False
    choice: ChoiceRule = ChoiceRule.PRM
    """By another rule one of the N is taken without a PRM."""
    states: int = 0
    """States of π_0's evaluation at which the process reward by `prm` is measured as well."""


class ProcessReward(Record):
    """Mean Q of a policy's own actions at some states; `error` is half its 95 % interval."""

    states: int
    mean: float
    error: float


class Measured(Record):
    """What came of a measurement."""

    row: Row
    process_reward: ProcessReward | None = None


_TYPE = TypeAdapter(dict[str, Measured])


def read_measured(run: Path) -> dict[str, Measured]:
    """What has been measured in `run`, by name."""
    file = run / "measured.json"
    return _TYPE.validate_json(file.read_bytes()) if file.exists() else {}


def write_measured(run: Path, measured: Mapping[str, Measured]) -> None:
    """Replace `run/measured.json`."""
    content = {name: value.model_dump() for name, value in measured.items()}
    write_atomic(run / "measured.json", orjson.dumps(content, option=orjson.OPT_INDENT_2))


def write_plan(run: Path, measurements: Sequence[Measurement]) -> Path:
    """Write down what is to be measured in `run`; the file."""
    file = run / "measure.json"
    content = [measurement.model_dump(mode="json") for measurement in measurements]
    write_atomic(file, orjson.dumps(content, option=orjson.OPT_INDENT_2))
    return file


def read_plan(file: Path) -> list[Measurement]:
    """What `write_plan` wrote."""
    return TypeAdapter(list[Measurement]).validate_json(file.read_bytes())
