"""What every HTTP service shares: keys, limits, problem bodies, metrics, logs, request ids.

A service is `create_app(name, health)` plus its own routes, and `serve(app, host, port)`.
"""

from agentprm.service._app import create_app
from agentprm.service._auth import ADMIN, require_admin
from agentprm.service._left import unless_left
from agentprm.service._limits import Limits
from agentprm.service._logs import configure_logging
from agentprm.service._openapi import problems, request_body
from agentprm.service._problems import ProblemError, json_response, shape_problems
from agentprm.service._server import serve

__all__ = [
    "ADMIN",
    "Limits",
    "ProblemError",
    "configure_logging",
    "create_app",
    "json_response",
    "problems",
    "request_body",
    "require_admin",
    "serve",
    "shape_problems",
    "unless_left",
]
