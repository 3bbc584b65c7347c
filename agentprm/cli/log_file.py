"""What a process prints, in a file that outlasts it."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

_BYTES = 64_000
"""What is looked at for the last lines."""
_LARGEST = 64_000_000
"""Of a file: some 300,000 requests, of which those of a run are a hundredth."""


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

    def bound(self) -> None:
        """Begin anew where the file is large: what it held is in `NAME.1.log`, until the next time.

        The process writes on; a line that it writes meanwhile may be lost.
        """
        if not self.path.exists() or self.path.stat().st_size <= _LARGEST:
            return
        with suppress(OSError):  # on a full disk this is what makes room
            shutil.copyfile(self.path, self.path.with_suffix(".1.log"))
        os.truncate(self.path, 0)
        self._before = 0

    def tail(self, lines: int = 15) -> str:
        """The last lines that the last start has printed, under a line that names the file."""
        with self.path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(self._before, size - _BYTES))
            text = file.read().decode(errors="replace")
        return "\n".join([f"The end of {self.path}:", *text.splitlines()[-lines:]])
