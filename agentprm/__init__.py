"""AgentPRM: process reward models for LLM agents (Choudhury 2025, arXiv 2502.10325).

This package is what the services agree on: wire types, clients, prompts, queues and checkpoints.
It imports no service, and no torch at import time.
"""

from importlib.metadata import version

__version__ = version("agentprm")
