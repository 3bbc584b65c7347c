from __future__ import annotations

from pathlib import Path

import orjson
from typer.testing import CliRunner

from agentprm.cli import app
from agentprm.registry import Registry


def test_a_checkpoint_is_adopted_once_and_listed(tmp_path: Path) -> None:
    source, root = tmp_path / "mine", tmp_path / "checkpoints"
    source.mkdir()
    (source / "config.json").write_text('{"model_type": "llama"}')
    adopt = ["checkpoints", "adopt", str(source), "prm/3", "--registry", str(root)]
    assert CliRunner().invoke(app, adopt).exit_code == 0
    assert Registry(root).versions("prm") == ["prm/3"]

    again = CliRunner().invoke(app, adopt)
    assert again.exit_code == 2
    assert "exists already" in again.output

    (source / "weights.bin").write_bytes(b"x")
    pickled = CliRunner().invoke(app, [*adopt[:3], "prm/4", *adopt[4:]])
    assert pickled.exit_code == 2
    assert "weights.bin is a pickle" in pickled.output

    listed = CliRunner().invoke(app, ["checkpoints", "list", "--registry", str(root), "--json"])
    (row,) = orjson.loads(listed.stdout)
    assert (row["version"], row["canary"]) == ("prm/3", False)


def test_a_registry_that_is_not_there_is_told_from_an_empty_one(tmp_path: Path) -> None:
    found = ["checkpoints", "list", "--registry", str(tmp_path)]
    assert CliRunner().invoke(app, found).exit_code == 0
    missing = CliRunner().invoke(app, [*found[:-1], str(tmp_path / "nowhere")])
    assert missing.exit_code == 2
    assert "there is no directory" in missing.output
