"""Checkpoints: immutable numbered directories, safetensors only, marked STABLE when complete.

`root/policy/1` is π_1, `root/prm/0` is Q_0, and `root/online/1.30` is what the fit of π_1 handed to
the policy service after its step 30; `KINDS` names the others. A directory is written under a
temporary name, synced, renamed, and only then gets its STABLE mark, which lists every file with its
size and SHA-256. What a crash leaves behind is never marked: drafts (`.draft-*`) and unmarked
versions.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import orjson
import structlog
from pydantic import BaseModel, ValidationError

from agentprm.files import drop_drafts, locked, new_draft, sync, sync_tree, write_atomic
from agentprm.validation import first_error

M = TypeVar("M", bound=BaseModel)

STABLE = "STABLE"
KINDS = {
    "policy": "π_i",
    "online": "the weights of a policy that is being fitted",
    "prm": "Q_i",
    "world": "a world model that began as π_i",
    "expert": "a policy that demonstrates",
    "explorer": "a policy that reads privileged hints",
    "reference": "a reference policy μ that was brought along",
    "value": "V^μ",
}
"""The kinds of checkpoints, and what they are."""
_CLASSIFIERS = {"prm", "value"}
_VERSION = re.compile(rf"(?P<kind>{'|'.join(KINDS)})/[0-9]+(\.[0-9]+)?")
_PICKLE = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}

log = structlog.get_logger()


class CheckpointError(Exception):
    """A checkpoint that is not there, not complete, or not what was written. Says which file."""


class NoCheckpointError(CheckpointError):
    """There is no checkpoint of that version."""


class Registry:
    """The checkpoints below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, version: str) -> Path:
        """Where `version` lies, or would lie. Never outside the root.

        Raises:
            NoCheckpointError: `version` is not of the form `policy/1` or `online/1.3`, of one
                of `KINDS`.
        """
        if _VERSION.fullmatch(version) is None:
            raise NoCheckpointError(f"{version!r} is not a checkpoint version such as policy/1")
        return self.root / version

    def exists(self, version: str) -> bool:
        """Whether `version` is there and marked STABLE.

        Raises:
            NoCheckpointError: as `path`.
        """
        return (self.path(version) / STABLE).is_file()

    def versions(self, kind: str) -> list[str]:
        """The STABLE versions of a kind, such as `policy` or `prm`, oldest first."""
        found = (f"{kind}/{p.parent.name}" for p in (self.root / kind).glob(f"*/{STABLE}"))
        return sorted(filter(_VERSION.fullmatch, found), key=number)

    def newest(self, kind: str) -> str:
        """The last STABLE version of a kind.

        Members of an ensemble (`prm/0.1`) count only where there is nothing else.

        Raises:
            NoCheckpointError: there is none.
        """
        versions = self.versions(kind)
        if not versions:
            raise NoCheckpointError(f"{self.root} holds no finished {kind} checkpoint")
        whole = [version for version in versions if number(version)[1] == 0]
        return (whole or versions)[-1]

    def open(self, version: str) -> Path:
        """The directory of `version`, its files compared with the mark.

        Raises:
            NoCheckpointError: it is missing.
            CheckpointError: it is unmarked, or its files are not those that were written.
        """
        path = self.path(version)
        if not path.is_dir():
            raise NoCheckpointError(f"there is no checkpoint {version} below {self.root}")
        mark = path / STABLE
        if not mark.is_file():
            raise CheckpointError(f"{path} has no {STABLE} mark: it was not written to its end")
        expected = _read_mark(mark)
        found = {_name(file, path): file for file in _files(path) if file != mark}
        for name in sorted(expected.keys() - found.keys()):
            raise CheckpointError(f"{path / name} is missing")
        for name in sorted(found.keys() - expected.keys()):
            raise CheckpointError(f"{path / name} was added to a finished checkpoint")
        for name, file in found.items():
            if _digest(file) != expected[name]:
                raise CheckpointError(f"{file} differs from what was written (size or SHA-256)")
        return path

    def mark(self, version: str) -> str | None:
        """What tells `version` from one of the same name in another registry: the SHA-256 of its
        mark, which lists its files by theirs. None where there is none.

        Raises:
            NoCheckpointError: as `path`.
        """
        mark = self.path(version) / STABLE
        return hashlib.sha256(mark.read_bytes()).hexdigest() if mark.is_file() else None

    @contextmanager
    def write(self, version: str) -> Iterator[Path]:
        """A directory to fill; it becomes `version` when the block ends without an exception.

        Raises:
            NoCheckpointError: as `path`.
            CheckpointError: `version` exists (checkpoints are immutable) or holds pickled files.
        """
        target = self.path(version)
        self._refuse_existing(version)
        target.parent.mkdir(parents=True, exist_ok=True)
        with new_draft(target.parent) as draft:
            draft.chmod(0o755)  # the services may run as another user than the trainer
            yield draft
            mark = _seal(draft)
            with locked(target.parent):
                self._refuse_existing(version)
                if target.exists():  # unmarked, left by a process that was killed
                    shutil.rmtree(target)
                draft.rename(target)
                sync(target.parent)
                write_atomic(target / STABLE, mark)

    def drop_drafts(self) -> None:
        """Remove what killed processes left of checkpoints; a draft that is written is locked."""
        for kind in KINDS:
            drop_drafts(self.root / kind)

    def _refuse_existing(self, version: str) -> None:
        if self.exists(version):
            raise CheckpointError(f"{version} exists already: checkpoints are immutable")

    def serving(self, service: str) -> str | None:
        """The version that `service` (`policy` or `prm`) was last told to serve, if any.

        A service that is started again takes up this one.
        """
        note = self.root / f"serving-{service}"
        return note.read_text().strip() if note.is_file() else None

    def set_serving(self, service: str, version: str) -> None:
        """Remember across restarts what `service` serves."""
        self.root.mkdir(parents=True, exist_ok=True)
        write_atomic(self.root / f"serving-{service}", version.encode())

    def adopt(self, source: Path, version: str) -> None:
        """Copy an ordinary Hugging Face directory into the registry as `version`.

        What trainers and hubs leave beside the weights stays behind: pickled arguments, optimizer
        states and copies of the weights, and hidden files.

        Raises:
            CheckpointError: it is no such directory, a model of another kind than `version`, its
                weights are pickled only, or `version` exists already.
        """
        if not (source / "config.json").is_file():
            raise CheckpointError(
                f"{source} holds no config.json: not a Hugging Face checkpoint (of an ensemble its "
                "members are, one by one)"
            )
        _require_kind(source, version)
        pickled = sorted(file for file in source.iterdir() if file.suffix in _PICKLE)
        if pickled and not any(source.glob("*.safetensors")):
            raise CheckpointError(f"{pickled[0]} is a pickle: convert the weights to safetensors")
        with self.write(version) as draft:
            shutil.copytree(source, draft, dirs_exist_ok=True, ignore=_left_behind)

    def share(self, version: str, other: Registry) -> None:
        """Take over `version` of another registry: hard links, or copies between file systems.

        Raises:
            CheckpointError: `other` lacks it or has it damaged, or `version` exists here.
        """
        ignore = shutil.ignore_patterns(STABLE)
        source = other.open(version)
        with self.write(version) as draft:
            shutil.copytree(source, draft, ignore=ignore, copy_function=_link, dirs_exist_ok=True)

    def remove(self, version: str) -> None:
        """Forget `version`: its mark goes first, so that no reader takes half of it.

        Raises:
            NoCheckpointError: as `path`.
        """
        path = self.path(version)
        (path / STABLE).unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)


def number(version: str) -> tuple[int, int]:
    """Of `online/1.3` (1, 3), of `policy/1` (1, 0): the iteration and the step within it."""
    iteration, _, step = version.partition("/")[2].partition(".")
    return int(iteration), int(step or 0)


def read_record(file: Path, kind: type[M]) -> M | None:
    """What a JSON file of a checkpoint holds; None where there is no such file.

    Raises:
        CheckpointError: it holds something else.
    """
    if not file.is_file():
        return None
    try:
        return kind.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise CheckpointError(f"{file} is damaged: {first_error(error)}") from error


def _require_kind(source: Path, version: str) -> None:
    """Refuse a sequence classifier as a policy, and a language model as a PRM.

    Trainers write architectures of their own names, too: of those the weights tell when they load.
    """
    try:
        config = orjson.loads((source / "config.json").read_bytes())
    except ValueError:
        config = None
    if not isinstance(config, dict) or "model_type" not in config:
        raise CheckpointError(
            f"{source} is no Hugging Face checkpoint: its config.json names no model_type"
        )
    scores = version.partition("/")[0] in _CLASSIFIERS
    foreign = ("ForCausalLM", "LMHeadModel") if scores else ("ForSequenceClassification",)
    named = config.get("architectures") or []
    found = next((name for name in named if name.endswith(foreign)), None)
    if found is not None:
        raise CheckpointError(f"{source} is no {'PRM' if scores else 'policy'}: it is a {found}")


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # on another file system, or one without links
        shutil.copy2(source, target)


def _left_behind(_: str, names: list[str]) -> list[str]:
    return [
        name
        for name in names
        if name == STABLE or name.startswith(".") or Path(name).suffix in _PICKLE
    ]


def _seal(draft: Path) -> bytes:
    """Bring all files to the disk; return the mark that lists them."""
    sync_tree(draft)
    mark = {}
    for file in sorted(_files(draft)):
        if file.suffix in _PICKLE:
            raise CheckpointError(f"{file.name} is a pickle; checkpoints are safetensors only")
        mark[_name(file, draft)] = _digest(file)
    return orjson.dumps(mark, option=orjson.OPT_INDENT_2)


def _read_mark(mark: Path) -> dict[str, list[int | str]]:
    try:
        content = orjson.loads(mark.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{mark} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{mark} is damaged: it does not list files")
    return content


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _name(file: Path, folder: Path) -> str:
    return file.relative_to(folder).as_posix()


def _digest(file: Path) -> list[int | str]:
    with file.open("rb") as stream:
        return [file.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest()]
