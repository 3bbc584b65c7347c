"""A checkpoint as SGLang servers are told of it, and whether they can take it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from agentprm.models.sglang import SGLangClient
from agentprm.registry import STABLE

_NOT_SHAPE = {
    *("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"),
    *("pad_token_id", "bos_token_id", "eos_token_id"),  # fits name one for padding
}
"""Settings of a checkpoint that may differ from those a server was started with."""


class Weights(Protocol):
    """A checkpoint as SGLang servers are told of it."""

    @property
    def path(self) -> Path:
        """Its directory, which the servers see under the same name."""

    @property
    def tag(self) -> str:
        """What their answers are marked with; other weights have other tags."""

    def compare(self, server: SGLangClient) -> None:
        """Raise where the server cannot take the weights; it still has others."""

    def try_on(self, server: SGLangClient) -> None:
        """The canary: raise where the server does not compute what it should."""


def tag_of(path: Path) -> str:
    """What SGLang servers call the checkpoint in `path`; other files under that name differ."""
    mark = path / STABLE
    digest = hashlib.sha256(mark.read_bytes()).hexdigest()[:12] if mark.is_file() else "unmarked"
    return f"{path.parent.name}/{path.name}@{digest}"


def require_started_with(server: SGLangClient, config: Mapping[str, Any]) -> None:
    """The server was started with a checkpoint of this text configuration, where that can be read
    here. Tensors of another shape would end its process; missing ones it would not notice.

    Raises:
        ValueError: it was started with another.
        SGLangError: the server does not say what it serves.
    """
    from transformers import AutoConfig  # seconds to import

    started = Path(server.model_info().tokenizer_path)
    if not (started / "config.json").is_file():
        return
    theirs = AutoConfig.from_pretrained(started, local_files_only=True).get_text_config().to_dict()
    for name in sorted((config.keys() | theirs.keys()) - _NOT_SHAPE):
        if config.get(name) != theirs.get(name):
            raise ValueError(
                f"{server.url} was started with {name} {theirs.get(name)}, "
                f"the checkpoint has {config.get(name)}"
            )
