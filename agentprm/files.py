"""Files that several processes read and write: replaced as a whole, locked, brought to the disk."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import structlog

from agentprm.validation import why

T = TypeVar("T")

log = structlog.get_logger()


def write_atomic(path: Path, content: bytes) -> None:
    """Replace the file as a whole: readers see the old content or the new, also after a crash."""
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        draft.write_bytes(content)
        sync(draft)
        draft.rename(path)
        sync(path.parent)
    except OSError as error:
        error.filename = str(path)  # a full disk's error names no file
        raise
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Bring a file or directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(directory: Path) -> None:
    """Bring a directory to the disk with all that it holds, before a name says it is complete."""
    paths = [path for path in directory.rglob("*") if path.is_file() or path.is_dir()]
    # the disk brings what is asked at once in one go: thousands of files take a tenth of the time
    with ThreadPoolExecutor(8, "sync") as threads:
        deque(threads.map(sync, [*paths, directory]), maxlen=0)


def drop_drafts(directory: Path) -> None:
    """Remove what killed processes left of drafts in `directory`; one that is written is locked, on
    this machine.
    """
    for draft in directory.glob(".draft-*"):
        try:
            with locked(directory):  # a draft that was made just now is locked in a moment
                killed = not is_locked(draft)
        except FileNotFoundError:  # it was finished, or given up, just now
            continue
        if killed:
            log.warning("removing a draft whose process was killed", directory=str(draft))
            shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def new_draft(directory: Path) -> Iterator[Path]:
    """A directory to fill within `directory`, locked until the block ends; what is not moved out of
    it, or moved itself, goes then.
    """
    with ExitStack() as stack:
        with locked(directory):
            draft = Path(
                stack.enter_context(
                    tempfile.TemporaryDirectory(
                        prefix=".draft-", dir=directory, ignore_cleanup_errors=True
                    )
                )
            )
            stack.enter_context(locked(draft))
        yield draft


@contextmanager
def fresh_draft(directory: Path) -> Iterator[Path]:
    """A new draft, after those that killed processes left in `directory` are gone."""
    drop_drafts(directory)
    with new_draft(directory) as draft:
        yield draft


class DamagedFile(ValueError):
    """A file of a run holds what was never written to it."""


def read_lines(path: Path, read: Callable[[bytes], T], mend: str) -> Iterator[T]:
    """What `read` makes of each line of a file that may be growing; nothing where there is no file.

    Raises:
        DamagedFile: of one it makes nothing; `mend` says what can be done then.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                value = read(line)
            except (ValueError, KeyError, TypeError) as error:
                message = f"{path}: line {number} cannot be read ({why(error)}). {mend}"
                raise DamagedFile(message) from error
            yield value


def drop_torn_line(path: Path) -> None:
    """Cut what a killed process left of the file's last line."""
    content = path.read_bytes() if path.exists() else b""
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        log.warning("dropping a torn last line", file=str(path), bytes=len(content) - whole)
        with path.open("r+b") as file:
            file.truncate(whole)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process (or thread) at a time in this block, of those that lock the same path.

    It is a directory, or a file, which is made where it is missing and stays. What several machines
    write needs a file: NFS keeps the lock of a directory to the machine that has it, and takes one
    only of files that are open for writing.
    """
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def is_locked(directory: Path) -> bool:
    """Whether somebody is in such a block."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def user_cache() -> Path:
    """The directory of this package in the user's cache; it may not be there yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "agentprm"
