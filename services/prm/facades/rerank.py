"""`POST /v1/rerank` and `/v2/rerank`, as Cohere's and Jina's clients call them.

The query is what the agent sees, as one text: it becomes the observation of a state without a task
and without a history. Each document is an action in that state: either two lines, `REASON: ...` and
`ACTION: ...`, or the command alone. The relevance score of a document is its Q.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import FastAPI, Response
from pydantic import BaseModel, Field

from agentprm.prompts import parse_action
from agentprm.protocol import (
    MAX_CANDIDATES,
    MAX_COMMAND,
    Action,
    Choice,
    Many,
    ScoreRequest,
    ScoreResponse,
    State,
    Text,
)
from agentprm.service import ProblemError, json_response

MAX_DOCUMENTS = 1000


class Document(BaseModel):
    """A document with its text in a field."""

    text: Text


class RerankRequest(BaseModel):
    """What is honoured of a request; other options are passed over.

    `model` may be anything: the checkpoint that serves answers, and the answer names it.
    """

    model: str | None = None
    query: Text
    documents: Many[Text | Document] = Field(min_length=1, max_length=MAX_DOCUMENTS)
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool = False


class Result(BaseModel):
    """A document's place in the request and its Q; its text where that was asked for."""

    index: int
    relevance_score: float
    document: Document | None


class RerankResponse(BaseModel):
    """The best first; of equals, the one that came first."""

    id: str
    model: str
    results: list[Result]


def add_rerank(app: FastAPI, score: Callable[[ScoreRequest], Awaitable[ScoreResponse]]) -> None:
    """Add the routes, answered by `score`."""

    @app.post("/v2/rerank", response_model=RerankResponse)
    @app.post("/v1/rerank", response_model=RerankResponse)
    async def _rerank(request: RerankRequest) -> Response:
        texts = [d if isinstance(d, str) else d.text for d in request.documents]
        state = State(task="", observation=request.query)
        actions = [_action(text, k) for k, text in enumerate(texts)]
        answer = await score(
            ScoreRequest(
                choices=[
                    Choice(state=state, actions=actions[k : k + MAX_CANDIDATES])
                    for k in range(0, len(actions), MAX_CANDIDATES)
                ]
            )
        )
        q = [value for choice in answer.choices for value in choice]
        best = sorted(range(len(q)), key=lambda k: -q[k])[: request.top_n]
        results = [
            Result(
                index=k,
                relevance_score=q[k],
                document=Document(text=texts[k]) if request.return_documents else None,
            )
            for k in best
        ]
        return json_response(
            RerankResponse(id=str(uuid.uuid4()), model=answer.prm_version, results=results)
        )


def _action(text: str, index: int) -> Action:
    action, well_formed = parse_action(text)
    if well_formed:
        return action
    command = text.strip()
    if len(command) > MAX_COMMAND:
        detail = f"documents.{index}: a command has at most {MAX_COMMAND} characters"
        raise ProblemError(422, "Invalid request", detail)
    return Action(command=command)
