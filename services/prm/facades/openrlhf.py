"""`POST /get_reward`, as OpenRLHF calls a remote reward model (`--remote_rm_url`).

A query is a prompt and its response as one text, rendered by the policy's chat template. It is read
as it is, ended as the PRM's own template ends an answer: policy and PRM have to share a template.
The reward is the Q of the response. `prompts` and `labels`, which OpenRLHF also sends, are parts of
the queries and answers to compare with; the PRM needs neither.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Response
from pydantic import BaseModel, Field

from agentprm.protocol import MAX_TEXTS, Many, Rendered, ScoreRequest, ScoreResponse
from agentprm.service import json_response


class RewardRequest(BaseModel):
    """What is honoured of a request; the other fields are passed over."""

    query: Many[Rendered] = Field(min_length=1, max_length=MAX_TEXTS)


class RewardResponse(BaseModel):
    """Q of each query, in their order. `scores` are what OpenRLHF filters prompts by."""

    rewards: list[float]
    scores: list[float]


def add_get_reward(app: FastAPI, score: Callable[[ScoreRequest], Awaitable[ScoreResponse]]) -> None:
    """Add the route, answered by `score`."""

    @app.post("/get_reward", response_model=RewardResponse)
    async def _get_reward(request: RewardRequest) -> Response:
        answer = await score(ScoreRequest(texts=request.query))
        return json_response(RewardResponse(rewards=answer.texts, scores=answer.texts))
