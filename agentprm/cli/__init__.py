"""The `agentprm` command line.

It starts the same processes that compose starts as containers, and imports none of their code.
"""

from agentprm.cli.main import app

__all__ = ["app"]
