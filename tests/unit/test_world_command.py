from __future__ import annotations

from pathlib import Path

import orjson
import pytest
from typer.testing import CliRunner

from agentprm.cli.main import app
from agentprm.cli.world import newest_world
from agentprm.ensembles import link_checkpoints, write_ensemble
from agentprm.facts import METADATA
from agentprm.registry import CheckpointError, NoCheckpointError, Registry
from tests.finished_run import finished_run


def test_checkpoints_of_a_run_are_served_from_a_registry_beside_it(tmp_path: Path) -> None:
    run, home = tmp_path / "run", tmp_path / "run" / "plans" / "one"
    theirs, own = Registry(run / "checkpoints"), Registry(home / "checkpoints")
    with pytest.raises(CheckpointError, match="world fit"):
        newest_world(run)
    for version in ("world/0", "world/1"):
        with theirs.write(version) as out:
            (out / "config.json").write_text(version)
    assert newest_world(run) == "world/1"
    for _ in range(2):  # a repeated command finds its links
        link_checkpoints(run, home, "world/1")
    assert own.versions("world") == ["world/1"]
    assert (own.open("world/1") / "config.json").read_text() == "world/1"
    own.set_serving("policy", "world/1")
    assert theirs.serving("policy") is None
    with pytest.raises(CheckpointError, match="no checkpoint"):
        link_checkpoints(run, home, "prm/0")


def test_an_ensemble_is_linked_with_its_members_and_is_newer_than_they(tmp_path: Path) -> None:
    theirs, own = Registry(tmp_path / "checkpoints"), Registry(tmp_path / "home" / "checkpoints")
    members = ["prm/0.1", "prm/0.2"]
    for version in members:
        with theirs.write(version) as out:
            (out / "config.json").write_text(version)
    assert theirs.newest("prm") == "prm/0.2"
    write_ensemble(theirs, "prm/0", members)
    assert theirs.newest("prm") == "prm/0"
    link_checkpoints(tmp_path, tmp_path / "home", "prm/0")
    assert own.versions("prm") == ["prm/0", *members]
    with pytest.raises(NoCheckpointError, match="no finished policy"):
        theirs.newest("policy")


def test_a_relative_prm_is_no_judge_between_states(tmp_path: Path) -> None:
    finished_run(tmp_path)
    with Registry(tmp_path / "checkpoints").write("prm/1") as out:
        (out / METADATA).write_bytes(orjson.dumps({"kind": "prm", "objective": "relative"}))
    done = CliRunner().invoke(app, ["plan", "--run", str(tmp_path), "--model", "true"])
    assert done.exit_code != 0
    assert "prm/1 is relative" in done.output
