"""A SGLang server as far as swaps go, whose weights take as long to read as a test says."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException

from agentprm.models.replicas import Replicas
from agentprm.models.sglang import SGLangClient
from tests.fake_services import serving

LONGEST = 100
"""Most tokens of a prompt."""


@dataclass(frozen=True)
class Named:
    """A checkpoint that is nothing but its name, and fits every server."""

    path: Path

    @property
    def tag(self) -> str:
        return self.path.name

    def compare(self, server: SGLangClient) -> None:
        pass

    def try_on(self, server: SGLangClient) -> None:
        pass


@dataclass
class FakeSGLang:
    """Reads weights one at a time, each once `read` is set; `most` is how many came at once.

    Unless `takes`, it goes on answering from the weights it had. `prompts` are those it was asked
    to continue.
    """

    read: threading.Event = field(default_factory=threading.Event)
    asked: threading.Event = field(default_factory=threading.Event)
    version: str = "default"
    most: int = 0
    takes: bool = True
    prompts: list[list[int]] = field(default_factory=list)
    _inside: int = 0

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.get("/workers")
        def workers() -> None:
            raise HTTPException(404)

        @app.get("/ready")
        def ready() -> None:
            pass

        @app.get("/model_info")
        def info() -> dict[str, Any]:
            return {
                "model_path": "",
                "tokenizer_path": "",
                "weight_version": self.version,
                "is_generation": True,
            }

        @app.post("/generate")
        def generate(body: dict[str, Any]) -> Any:
            """The last token of a prompt once more, or of each of a list of them; of more than one
            token it takes until `read` is set."""
            ids = body["input_ids"]
            if isinstance(ids[0], list):
                return [self._answer(each) for each in ids]
            return self._answer(ids)

        @app.post("/update_weights_from_disk")
        def update(body: dict[str, Any]) -> dict[str, Any]:
            self._inside += 1
            self.most = max(self.most, self._inside)
            self.asked.set()
            assert self.read.wait(20)
            if self.takes:
                self.version = body["weight_version"]
            self._inside -= 1
            return {"success": True, "message": ""}

        return app

    def _answer(self, ids: list[int]) -> dict[str, Any]:
        if len(ids) > LONGEST:
            raise HTTPException(400, f"{len(ids)} tokens are too long")
        if len(ids) > 1:
            self.read.wait(20)
        self.prompts.append(ids)
        info = {
            "prompt_tokens": len(ids),
            "cached_tokens": 0,
            "finish_reason": {"type": "length"},
            "output_token_logprobs": [[0.0, ids[-1], None]],
            "weight_version": self.version,
        }
        return {"output_ids": ids[-1:], "text": "", "meta_info": info}


@contextmanager
def replicas_of(servers: Sequence[FakeSGLang]) -> Iterator[Replicas]:
    """The servers, in their order, which read weights at once."""
    with ExitStack() as stack:
        for server in servers:
            server.read.set()
        replicas = Replicas([stack.enter_context(serving(server.app())) for server in servers])
        stack.callback(replicas.close)
        yield replicas
