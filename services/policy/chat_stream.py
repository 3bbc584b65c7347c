"""A completion as OpenAI's stream of events, for clients that ask for no other.

Which of N answers is the best is known when all of them are there: each comes in one piece.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
from fastapi import Response

_SHARED = ("id", "created", "model")
_WHOLE = (*_SHARED, "object", "choices", "usage")


def stream_response(completion: dict[str, Any], *, usage: bool) -> Response:
    """All events of the stream; with `usage` the last of them counts the tokens."""
    lines = [orjson.dumps(chunk) for chunk in _chunks(completion, usage=usage)]
    body = b"".join(b"data: " + line + b"\n\n" for line in [*lines, b"[DONE]"])
    return Response(body, media_type="text/event-stream", headers={"cache-control": "no-cache"})


def _chunks(completion: dict[str, Any], *, usage: bool) -> Iterator[dict[str, Any]]:
    """Of each choice its text, then why it ended; there is what Best-of-N says of it, too."""
    head = {name: completion[name] for name in _SHARED} | {"object": "chat.completion.chunk"}
    if usage:
        head["usage"] = None
    more = {name: value for name, value in completion.items() if name not in _WHOLE}
    for choice in completion["choices"]:
        said = {"index": choice["index"], "delta": choice["message"], "finish_reason": None}
        yield head | {"choices": [said | {"logprobs": choice["logprobs"]}]}
        rest = {name: choice[name] for name in choice if name not in ("message", "logprobs")}
        yield head | more | {"choices": [rest | {"delta": {}, "logprobs": None}]}
    if usage:
        yield head | {"choices": [], "usage": completion["usage"]}
