"""What a process prints, in a file that outlasts it."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

_BYTES = 64_000
"""What is looked at for the last lines: a log of weeks is large."""


class LogFile:
    """The file `path`, to which every start of a process adds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._before = 0

    def open(self) -> BinaryIO:
        """Begin a start: the file, for what it prints.

        Raises:
            OSError: it cannot be written to.
        """
        file = self.path.open("ab")
        self._before = file.tell()
        return file

    def tail(self, lines: int = 15) -> str:
        """The last lines that the last start has printed, under a line that names the file."""
        with self.path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(self._before, size - _BYTES))
            text = file.read().decode(errors="replace")
        return "\n".join([f"The end of {self.path}:", *text.splitlines()[-lines:]])
