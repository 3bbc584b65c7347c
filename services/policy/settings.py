"""What the policy service takes."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import NoDecode

from agentprm.settings import ModelSettings


class PolicySettings(ModelSettings):
    """The policy service: samples actions, and with a PRM returns the best of N."""

    port: int = Field(default=8002, description="port to listen on")
    prm_url: str | None = Field(default=None, description="PRM service, for requests with `prm`")
    prm_deadline: float = Field(
        default=60.0, gt=0, description="seconds until a PRM that does not answer is a 503"
    )
    prm_unreachable: float = Field(
        default=2.0, gt=0, description="the same for a PRM that takes no connection"
    )
    cache_tokens: int = Field(
        default=262_144, ge=0, description="tokens whose keys and values are kept between turns"
    )
    engine: Literal["embedded", "sglang"] = Field(
        default="embedded", description="embedded: transformers in this process; or sglang"
    )
    engine_url: Annotated[list[str], NoDecode] = Field(
        default=[], description="a SGLang server, or several; or one sglang-router"
    )
    engine_timeout: float = Field(
        default=120.0, gt=0, description="seconds until a SGLang server that does not answer failed"
    )
    engine_batches: int = Field(
        default=8, ge=1, description="batches that SGLang servers compute side by side"
    )
    queue: int = Field(default=16_384, ge=1, description="most samples that wait; then 429")

    @field_validator("engine_url", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """Repeated flags and comma lists alike."""
        parts = [value] if isinstance(value, str) else value
        if not isinstance(parts, list):
            return value
        return [url for part in parts for url in str(part).split(",") if url]

    @model_validator(mode="after")
    def _sglang_has_servers(self) -> Self:
        if (self.engine == "sglang") != bool(self.engine_url):
            raise ValueError("--engine sglang and --engine-url belong together")
        return self
