"""The PRM in the shapes that people have clients for already, each translated to `/v1/score`."""

from collections.abc import Awaitable, Callable

from fastapi import FastAPI

from agentprm.protocol import ScoreRequest, ScoreResponse
from services.prm.facades.openrlhf import add_get_reward
from services.prm.facades.rerank import add_rerank


def add_facades(app: FastAPI, score: Callable[[ScoreRequest], Awaitable[ScoreResponse]]) -> None:
    """Add the routes of all facades, answered by `score`."""
    add_rerank(app, score)
    add_get_reward(app, score)


__all__ = ["add_facades"]
