"""AgentPRM: process reward models for LLM agents (Choudhury 2025, arXiv 2502.10325).

This package is what the services agree on: wire types, clients, prompts, queues and checkpoints.
It imports no service. Of its modules only `models.devices`, `models.loading` and `models.segments`,
which compute, load torch when they are imported; the others wait until they need it.
"""

from importlib.metadata import version

__version__ = version("agentprm")
