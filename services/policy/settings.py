"""What the policy service takes."""

from __future__ import annotations

from pydantic import Field

from agentprm.settings import EngineSettings, Port, ServiceURL

CACHE_GIB = 1.5
"""What the embedded engine keeps on a CPU where nothing else is asked for."""


class PolicySettings(EngineSettings):
    """The policy service: samples actions, and with a PRM returns the best of N."""

    port: Port = Field(default=8002, description="port to listen on")
    prm_url: ServiceURL | None = Field(
        default=None, description="PRM service, for requests with `prm`"
    )
    prm_deadline: float = Field(
        default=60.0, gt=0, description="seconds until a PRM that does not answer is a 503"
    )
    prm_unreachable: float = Field(
        default=2.0, gt=0, description="the same for a PRM that takes no connection"
    )
    cache_gib: float | None = Field(
        default=None,
        ge=0,
        description="memory for keys and values kept between turns, in GiB (embedded engine); "
        f"by default {CACHE_GIB} on a CPU, an eighth of a GPU's memory on a GPU",
    )
    queue: int = Field(default=16_384, ge=1, description="most samples that wait; then 429")
