"""What the policy and the PRM service have in common about what computes below them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentprm.models.in_place import InPlaceServing
from agentprm.models.replicas import Replicas
from agentprm.models.serving import Serving
from agentprm.models.sglang import SGLangClient
from agentprm.registry import STABLE
from agentprm.settings import EngineSettings

_NOT_SHAPE = {
    *("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"),
    *("pad_token_id", "bos_token_id", "eos_token_id"),  # fits name one for padding
}
"""Settings of a checkpoint that may differ from those a server was started with."""

Facts = dict[str, str | int | float | bool | None]


@dataclass(frozen=True)
class Backend:
    """What an app needs of the engine below it.

    `concurrency` is how many batches are computed side by side; `running` is entered while the app
    runs; `facts` are for `/health`.
    """

    serving: Serving[Any]
    concurrency: int = 1
    running: Callable[[], AbstractAsyncContextManager[None]] = nullcontext
    facts: Callable[[], Facts] = dict


def open_replicas(settings: EngineSettings) -> Replicas:
    """The SGLang servers of the settings; none is asked yet. Their key is AGENTPRM_SGLANG_KEY."""
    key = os.environ.get("AGENTPRM_SGLANG_KEY")
    return Replicas(
        settings.engine_url,
        key=key,
        timeout=settings.engine_timeout,
        load_timeout=settings.load_timeout,
    )


def on_replicas(serving: InPlaceServing[Any], settings: EngineSettings) -> Backend:
    """A backend of SGLang servers.

    A server merges the requests it has itself, so batches need not wait for one another here.
    """

    def facts() -> Facts:
        tags = serving.replicas.tags()
        ready = sum(tag is not None for tag in tags.values())
        versions = {f"replica {url}": tag for url, tag in tags.items()}
        return {"replicas": len(tags), "replicas_ready": ready, **versions}

    return Backend(serving, settings.engine_batches, serving.running, facts)


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
