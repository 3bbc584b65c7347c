"""What is brought to the disk, under the name that it has then."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def synced() -> Iterator[list[Path]]:
    """The files and directories that are synced in this block, in their order."""
    paths: list[Path] = []

    def note(descriptor: int) -> None:
        paths.append(Path(f"/proc/self/fd/{descriptor}").readlink())

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", note)
        yield paths


def require_synced(paths: list[Path], draft: str, directory: Path) -> None:
    """All below `directory` was synced while one of its parents was called `draft` and more."""
    before = {path for path in paths if any(part.startswith(draft) for part in path.parts)}
    names = [path.relative_to(directory).as_posix() for path in directory.rglob("*")]
    assert names
    for name in names:
        assert any(path.as_posix().endswith(f"/{name}") for path in before), name
    assert paths[-1] == directory.parent, "the new name"
