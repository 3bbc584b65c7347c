"""Settings of the service processes: flags, or environment variables `AGENTPRM_<FLAG>`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, CliApp, SettingsConfigDict


class ProcessSettings(BaseSettings):
    """What every process takes. A process calls `from_command_line`; tests build it directly."""

    model_config = SettingsConfigDict(
        env_prefix="AGENTPRM_", cli_kebab_case=True, cli_hide_none_type=True
    )

    @classmethod
    def from_command_line(cls) -> Self:
        """The settings of this process; what is wrong with them ends it, without a traceback."""
        try:
            return CliApp.run(cls)
        except ValidationError as error:
            lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
            sys.exit("\n".join(lines))


class ServiceSettings(ProcessSettings):
    """What every HTTP service takes."""

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(description="port to listen on")


class ModelSettings(ServiceSettings):
    """What a service that serves a checkpoint takes."""

    registry: Path = Field(description="directory of checkpoints")
    checkpoint: str | None = Field(
        default=None,
        description="version to serve, such as policy/1; by default the one served last, if any",
    )
    load_timeout: float = Field(
        default=600.0, gt=0, description="seconds after which loading a checkpoint is given up"
    )
    prompt: str = Field(default="chat", description="chat, state, or a Jinja2 file")
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, ...")
    dtype: str = Field(default="auto", description="auto, float32, bfloat16 or float16")
    threads: int = Field(default=1, ge=1, description="torch threads on a CPU")
