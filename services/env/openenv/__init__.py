"""OpenEnv's wire over the same sessions: `/ws`, `/reset`, `/step`, `/state`, `/mcp`, `/schema`.

OpenEnv is an interface that environments for agents share (github.com/huggingface/OpenEnv). Its
clients play over a WebSocket, an episode a connection. The plain HTTP routes and `/mcp` are there
to try a server out: they share one episode.
"""

from services.env.openenv.routes import routes

__all__ = ["routes"]
