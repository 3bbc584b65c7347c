"""Ensembles of PRMs in the registry: a checkpoint that names others instead of holding weights."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from agentprm.facts import read_facts
from agentprm.protocol import PRMFacts, Record
from agentprm.registry import CheckpointError, Registry, read_record

ENSEMBLE = "ensemble.json"
MAX_MEMBERS = 16


class _Members(Record):
    members: list[str] = Field(min_length=2, max_length=MAX_MEMBERS)


def write_ensemble(registry: Registry, version: str, members: list[str]) -> None:
    """Make `version` (such as `prm/3`) the ensemble of the checkpoints `members`.

    Raises:
        CheckpointError: there are fewer than two members or too many, one appears twice, is no
            complete PRM checkpoint or is an ensemble itself, or `version` exists already.
    """
    if not 2 <= len(members) <= MAX_MEMBERS or len(set(members)) < len(members):
        raise CheckpointError(f"an ensemble has 2 to {MAX_MEMBERS} members, all different")
    for name in (version, *members):
        if not name.startswith("prm/"):
            raise CheckpointError(f"{name} is not the version of a PRM, such as prm/0")
    for member in members:
        if (registry.open(member) / ENSEMBLE).exists():
            raise CheckpointError(f"{member} is an ensemble: name its members instead")
    with registry.write(version) as draft:
        (draft / ENSEMBLE).write_text(_Members(members=members).model_dump_json(indent=2))


def read_members(path: Path) -> list[str]:
    """The versions of the members of the ensemble in `path`; none, if it is no ensemble.

    Raises:
        CheckpointError: the file that names them cannot be read.
    """
    ensemble = read_record(path / ENSEMBLE, _Members)
    return [] if ensemble is None else ensemble.members


def facts_of_all(registry: Registry, version: str) -> list[PRMFacts]:
    """What is known of a PRM, or of each member of an ensemble.

    Raises:
        CheckpointError: one of them is missing or damaged.
    """
    members = read_members(registry.open(version)) or [version]
    return [read_facts(registry.open(member)) for member in members]


def link_checkpoints(run: Path, home: Path, *versions: str) -> None:
    """A registry below `home` with some checkpoints of a run, for services of its own.

    With an ensemble come its members. What those services note of what they serve does not disturb
    the services of the run.

    Raises:
        CheckpointError: the run lacks one of them, or it is damaged.
    """
    theirs, own = Registry(run / "checkpoints"), Registry(home / "checkpoints")
    members = [member for version in versions for member in read_members(theirs.open(version))]
    for version in (*versions, *members):
        source, link = theirs.open(version), own.path(version)
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(source.resolve(), target_is_directory=True)
