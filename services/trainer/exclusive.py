"""One trainer at a time works on a run directory.

Results have one consumer, and records one writer: of two, each would read what the other has not
acknowledged yet, and every result would be in the records twice.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agentprm.runs import LOCK


class RunTaken(Exception):
    """Another process works on the run."""


@contextmanager
def exclusive(run: Path) -> Iterator[None]:
    """Keep every other trainer from `run` for the length of the block.

    The lock ends with its process, however that ends; the file stays and means nothing.

    Raises:
        RunTaken: another process is in such a block.
    """
    with (run / LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise RunTaken(
                f"{run} is being worked on already, by {file.read().strip() or 'a trainer'}; two "
                "would count every result twice. Wait until that one has ended, or stop it; then "
                "start this again."
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
