"""What the PRM service takes."""

from __future__ import annotations

from pydantic import Field

from agentprm.settings import EngineSettings, Port

CACHE_GIB = 1.0
"""What the embedded engine keeps on a CPU where nothing else is asked for."""


class PRMServiceSettings(EngineSettings):
    """The PRM service: tells Q(s, a)."""

    port: Port = Field(default=8003, description="port to listen on")
    cache_gib: float | None = Field(
        default=None,
        ge=0,
        description="memory for what is kept between requests, in GiB (embedded engine, each "
        f"member of an ensemble); by default {CACHE_GIB} on a CPU, an eighth of a GPU's memory, "
        "which members share, on a GPU",
    )
