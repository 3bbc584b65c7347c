"""Settings of the service processes: flags, or environment variables `AGENTPRM_<FLAG>`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, CliApp, NoDecode, SettingsConfigDict

from agentprm.addresses import replica_urls, service_url
from agentprm.keys import ACCEPTED, Keys, is_loopback, sent_key


class ProcessSettings(BaseSettings):
    """What every process takes. A process calls `from_command_line`; tests build it directly."""

    model_config = SettingsConfigDict(
        env_prefix="AGENTPRM_", cli_kebab_case=True, cli_hide_none_type=True
    )

    @model_validator(mode="after")
    def _can_call(self) -> Self:
        sent_key()
        return self

    @classmethod
    def from_command_line(cls) -> Self:
        """The settings of this process; what is wrong with them ends it, without a traceback."""
        try:
            return CliApp.run(cls)
        except ValidationError as error:
            sys.exit("\n".join(_line(e["loc"], e["msg"]) for e in error.errors()))


Port = Annotated[int, Field(ge=0, le=65535)]
"""0 is any that is free."""
ServiceURL = Annotated[str, AfterValidator(service_url)]
ReplicaURLs = Annotated[str, AfterValidator(replica_urls)]
"""Of a service, or of replicas of it as a,b,...; or empty."""


class ServiceSettings(ProcessSettings):
    """What every HTTP service takes."""

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: Port = Field(description="port to listen on")
    no_auth: bool = Field(
        default=False, description="serve other machines without keys; everyone may do everything"
    )
    log_requests: bool = Field(
        default=True, description="a line in the log for requests that were answered too"
    )

    @model_validator(mode="after")
    def _guarded(self) -> Self:
        keys = Keys.from_environment()
        if keys and self.no_auth:
            raise ValueError(f"{ACCEPTED} is set, and no-auth too: unset one of them")
        if not keys and not self.no_auth and not is_loopback(self.host):
            raise ValueError(
                f"other machines can reach {self.host}, so keys are needed: set "
                f"{ACCEPTED}=read:KEY,admin:KEY in the environment (`openssl rand -hex 32` makes a "
                "key), or serve everyone by AGENTPRM_NO_AUTH=true"
            )
        return self


class LoadSettings(ProcessSettings):
    """What every process takes that loads checkpoints, or has them loaded."""

    load_timeout: float = Field(
        default=600.0, gt=0, description="seconds after which loading a checkpoint is given up"
    )


class ModelSettings(ServiceSettings, LoadSettings):
    """What a service that serves a checkpoint takes."""

    registry: Path = Field(description="directory of checkpoints")
    checkpoint: str | None = Field(
        default=None,
        description="version to serve, such as policy/1; by default the one served last, if any",
    )
    prompt: str = Field(default="chat", description="chat, state, or a Jinja2 file")
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, ...")
    dtype: str = Field(
        default="auto",
        description="float32, bfloat16 or float16; auto: float32 on a CPU, else the checkpoint's",
    )
    threads: int = Field(default=1, ge=1, description="torch threads on a CPU")


class EngineSettings(ModelSettings):
    """What a service takes whose model runs in its own process, or on SGLang servers."""

    engine: Literal["embedded", "sglang"] = Field(
        default="embedded", description="embedded: transformers in this process; or sglang"
    )
    engine_url: Annotated[list[str], NoDecode] = Field(
        default=[], description="a SGLang server, or several; or one sglang-router"
    )
    engine_timeout: float = Field(
        default=120.0,
        gt=0,
        description="seconds until a SGLang server that does not answer failed, unless it reads "
        "weights, which load-timeout is for",
    )
    engine_batches: int = Field(
        default=8, ge=1, description="batches that SGLang servers compute side by side"
    )

    @field_validator("engine_url", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """Repeated flags and comma lists alike."""
        parts = [value] if isinstance(value, str) else value
        if not isinstance(parts, list):
            return value
        return [service_url(url) for part in parts for url in str(part).split(",") if url]

    @model_validator(mode="after")
    def _sglang_has_servers(self) -> Self:
        if (self.engine == "sglang") != bool(self.engine_url):
            raise ValueError("--engine sglang and --engine-url belong together")
        return self


def _line(loc: tuple[int | str, ...], message: str) -> str:
    return ": ".join([*map(str, loc), message.removeprefix("Value error, ")])
