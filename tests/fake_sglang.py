"""A SGLang server as far as swaps go, whose weights take as long to read as a test says."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException

from agentprm.models.sglang import SGLangClient


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
    """Reads weights one at a time, each once `read` is set; `most` is how many came at once."""

    read: threading.Event = field(default_factory=threading.Event)
    asked: threading.Event = field(default_factory=threading.Event)
    version: str = "default"
    most: int = 0
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
        def generate(body: dict[str, Any]) -> dict[str, Any]:
            """A token after a prompt; of more than one token it takes until `read` is set."""
            if len(body["input_ids"]) > 1:
                self.read.wait(20)
            info = {
                "prompt_tokens": 1,
                "cached_tokens": 0,
                "finish_reason": {"type": "length"},
                "output_token_logprobs": [[0.0, 1, None]],
                "weight_version": self.version,
            }
            return {"output_ids": [1], "text": "", "meta_info": info}

        @app.post("/update_weights_from_disk")
        def update(body: dict[str, Any]) -> dict[str, Any]:
            self._inside += 1
            self.most = max(self.most, self._inside)
            self.asked.set()
            assert self.read.wait(20)
            self.version = body["weight_version"]
            self._inside -= 1
            return {"success": True, "message": ""}

        return app
