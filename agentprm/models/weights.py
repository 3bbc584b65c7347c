"""What every service asks of the weights that transformers has read from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agentprm.registry import CheckpointError


def require_all(path: Path, info: Mapping[str, Any], *, unused: Sequence[str] = ()) -> None:
    """Refuse weights that are not those of the architecture that config.json names.

    transformers only warns: what is missing it makes up at random, and what has no place it drops.

    Args:
        info: what `from_pretrained` gives with `output_loading_info=True`.
        unused: beginnings of names that a checkpoint may hold without being asked for them.

    Raises:
        CheckpointError: weights are missing, or left over.
    """
    if info["missing_keys"]:
        raise CheckpointError(f"{path} lacks the weights {_some(info['missing_keys'])}")
    left = [key for key in info["unexpected_keys"] if not key.startswith(tuple(unused))]
    if left:
        raise CheckpointError(
            f"{path} holds weights for which its config.json has no place: {_some(left)}"
        )


def copy_from_file(model: Any) -> None:
    """Let the weights lie in memory of their own.

    safetensors maps them from the file. Whoever writes into that file later would change a model
    that serves, and whoever cuts it short would kill the process (SIGBUS). On a GPU they are
    copies already.
    """
    if model.device.type != "cpu":
        return
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()


def _some(names: Sequence[str]) -> str:
    shown = sorted(names)[:5]
    return ", ".join(shown) + (" ..." if len(names) > len(shown) else "")
