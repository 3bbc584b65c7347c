"""MCP's tools, as JSON-RPC. The one tool plays a command: agents do not reset."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from agentprm.service import ProblemError
from agentprm.validation import first_error, is_no_json
from services.env.openenv.episode import Episode, Play


class Call(BaseModel):
    """A JSON-RPC request."""

    jsonrpc: Literal["2.0"]
    method: str
    params: dict[str, Any] = {}
    id: str | Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None


async def answer(episode: Episode, body: bytes | dict[str, Any]) -> dict[str, Any]:
    """The answer to a request: a result or an error, never an exception."""
    try:
        if isinstance(body, bytes):
            call = Call.model_validate_json(body)
        else:
            call = Call.model_validate(body)
    except ValidationError as error:
        return _error(None, -32700 if is_no_json(error) else -32600, first_error(error))
    if call.method == "tools/list":
        tool = {
            "name": "play",
            "description": "Play a command of the game in progress.",
            "inputSchema": Play.model_json_schema(),
        }
        return {"jsonrpc": "2.0", "id": call.id, "result": {"tools": [tool]}}
    if call.method != "tools/call":
        return _error(call.id, -32601, f"no method {call.method[:40]!r}")
    if call.params.get("name") != "play":
        return _error(call.id, -32602, "the one tool is `play`")
    try:
        action = Play.model_validate(call.params.get("arguments"))
        played = await episode.step(action)
    except ValidationError as error:
        return _error(call.id, -32602, first_error(error))
    except ProblemError as error:
        content = [{"type": "text", "text": str(error)}]
        result: dict[str, Any] = {"content": content, "isError": True}
    else:
        content = [{"type": "text", "text": played.observation["text"]}]
        structured = played.model_dump()
        result = {"content": content, "structuredContent": structured, "isError": False}
    return {"jsonrpc": "2.0", "id": call.id, "result": result}


def _error(call_id: str | int | None, code: int, message: str) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": call_id, "error": {"code": code, "message": message}}
