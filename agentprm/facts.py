"""`agentprm.json`: what is written beside a checkpoint's weights about how they were made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from agentprm.prompts import PromptTemplate, load_prompt
from agentprm.protocol import PRMFacts
from agentprm.registry import CheckpointError, read_record

METADATA = "agentprm.json"


def read_facts(path: Path) -> PRMFacts:
    """What the checkpoint in the directory `path` says of itself; nothing, if it has no file.

    Raises:
        CheckpointError: the file is there and cannot be read.
    """
    return read_record(path / METADATA, PRMFacts) or PRMFacts()


def read_fit(path: Path, *needed: str) -> dict[str, Any]:
    """All that the checkpoint in the directory `path` says of its fit, `needed` among it.

    Raises:
        CheckpointError: it has no such file, which only our own fits write, or the file cannot be
            read or lacks what is needed.
    """
    file = path / METADATA
    if not file.is_file():
        raise CheckpointError(f"{path} has no {METADATA}, which would say how it was made")
    try:
        fit = orjson.loads(file.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error
    if not isinstance(fit, dict) or not fit.keys() >= set(needed):
        raise CheckpointError(f"{file} is damaged: it does not tell {' and '.join(needed)}")
    return fit


def require_template(facts: PRMFacts, prompt: PromptTemplate, name: str) -> None:
    """Refuse to serve a checkpoint with another prompt template than it was fitted with.

    Its scores would be numbers like any other, and wrong. A checkpoint that does not say what it
    was fitted with is taken.

    Raises:
        CheckpointError: the templates differ; the message says which flag to change.
    """
    if facts.template_hash in (None, prompt.hash):
        return
    known = {load_prompt(known).hash: known for known in ("chat", "state")}
    flag = known.get(facts.template_hash or "", "FILE, the template it was fitted with")
    raise CheckpointError(
        f"{name} was fitted with the prompt template {facts.template_hash}, and this service "
        f"renders states with {prompt.hash}: start it with --prompt {flag}"
    )
