"""What the PRM service takes."""

from __future__ import annotations

from pydantic import Field

from agentprm.settings import EngineSettings, Port


class PRMServiceSettings(EngineSettings):
    """The PRM service: tells Q(s, a)."""

    port: Port = Field(default=8003, description="port to listen on")
    cache_gib: float = Field(
        default=1.0, ge=0, description="memory for what is kept between requests, in GiB"
    )
