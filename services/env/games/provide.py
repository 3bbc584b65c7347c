"""Games for a directory that has none, such as a fresh volume: generated once, all or none."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import structlog

from agentprm.files import fresh_draft, locked, sync, sync_tree
from agentprm.protocol import Split
from services.env.games.generate import GenerationError, generate
from services.env.games.index import LAYOUT, DataError

COUNTS = {Split.TRAIN: 3000, Split.VALID_SEEN: 140, Split.VALID_UNSEEN: 134}
"""About as many as the published games."""
SEED = 0
LOCK = ".lock"
"""The file in the directory that is locked by whoever fills it."""


def provide(directory: Path, fraction: float = 1.0) -> None:
    """Fill `directory` with a `fraction` of `COUNTS` games, unless it holds games already.

    They come into being complete: a reader sees none of them or all. Several processes may ask at
    once, on several machines that share the directory; one works, the others wait for it.

    Raises:
        DataError: no game could be made.
        OSError: the directory cannot be written.
    """
    if _provided(directory):
        return
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory / LOCK):
        if _provided(directory):
            return
        structlog.get_logger().info("generating games", directory=str(directory))
        with fresh_draft(directory) as draft:
            try:
                for split, count in COUNTS.items():
                    games = generate(split, max(1, round(fraction * count)), SEED, draft)
                    deque(games, maxlen=0)
            except GenerationError as error:
                raise DataError(str(error)) from error
            sync_tree(draft)
            (draft / LAYOUT).rename(directory / LAYOUT)
            sync(directory)


def _provided(directory: Path) -> bool:
    return any(
        (root / split).is_dir() for root in (directory / LAYOUT, directory) for split in Split
    )
