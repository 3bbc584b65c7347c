from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from transformers import LlamaForCausalLM
from typer.testing import CliRunner, Result

from agentprm.cli import app
from agentprm.registry import Registry
from tests.finished_run import finished_run
from tests.models import tiny_causal_lm
from tests.small_disk import small_disk
from tests.synced import require_synced, synced


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


def test_a_version_that_the_run_makes_itself_is_not_given_to_another(tmp_path: Path) -> None:
    """Before it is made: the loop would take it for its own, and fit none."""
    run, source = tmp_path / "run", tmp_path / "mine"
    source.mkdir()
    (source / "config.json").write_text('{"model_type": "llama"}')
    finished_run(run)  # of one iteration: policy/0, policy/1 and prm/0
    adopt = ["checkpoints", "adopt", str(source), "--registry", str(run / "checkpoints")]
    for version, free in (("policy/1", "policy/2"), ("prm/0.1", "prm/1")):
        refused = CliRunner().invoke(app, [*adopt, version])
        assert refused.exit_code == 2
        assert f"take {free}" in " ".join(refused.output.split())
        assert CliRunner().invoke(app, [*adopt, free]).exit_code == 0
    refused = CliRunner().invoke(app, ["ensemble", "prm/0", "prm/1", "prm/2", "--run", str(run)])
    assert refused.exit_code == 2
    assert "take prm/1" in " ".join(refused.output.split())
    (run / "chats.json").touch()  # a PRM from logs, to which a policy is added
    assert CliRunner().invoke(app, [*adopt, "prm/0.1"]).exit_code == 0


def test_a_registry_that_is_not_there_is_told_from_an_empty_one(tmp_path: Path) -> None:
    found = ["checkpoints", "list", "--registry", str(tmp_path)]
    assert CliRunner().invoke(app, found).exit_code == 0
    missing = CliRunner().invoke(app, [*found[:-1], str(tmp_path / "nowhere")])
    assert missing.exit_code == 2
    assert "there is no directory" in missing.output


# --- export ---------------------------------------------------------------------------------------


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """Two policies."""
    registry = Registry(tmp_path / "checkpoints")
    for k in range(2):
        registry.adopt(tiny_causal_lm(tmp_path / f"model-{k}", k), f"policy/{k}")
    return registry


def export(registry: Registry, out: Path) -> Result:
    return CliRunner().invoke(
        app, ["checkpoints", "export", str(out), "--registry", str(registry.root)]
    )


def names(directory: Path) -> list[str]:
    return sorted(path.relative_to(directory).as_posix() for path in directory.glob("*/*"))


def test_an_export_that_was_interrupted_can_be_done_again(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, out = LlamaForCausalLM.save_pretrained, tmp_path / "out"
    (out / ".draft-killed" / "policy" / "0").mkdir(parents=True)

    def interrupted(self: LlamaForCausalLM, directory: Path, **options: Any) -> None:
        save(self, directory, **options)
        if directory.name == "1":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(LlamaForCausalLM, "save_pretrained", interrupted)
        assert export(registry, out).exit_code != 0
    assert list(out.iterdir()) == []
    with synced() as paths:
        assert export(registry, out).exit_code == 0
    require_synced(paths, ".draft-", out / "policy" / "1")
    assert names(out) == ["policy/0", "policy/1"]
    assert [path.name for path in out.iterdir()] == ["policy"]


def test_an_export_that_finds_the_disk_full_says_so(registry: Registry, tmp_path: Path) -> None:
    weights = (registry.path("policy/0") / "model.safetensors").stat().st_size
    with small_disk(weights // 4):
        full = export(registry, tmp_path / "out")
    assert (full.exit_code, type(full.exception)) == (2, SystemExit)
    assert "policy/0 cannot be exported" in full.output
    assert "File too large" in full.output
    assert names(tmp_path / "out") == []
    assert export(registry, tmp_path / "out").exit_code == 0


def test_what_was_exported_before_is_left_alone(registry: Registry, tmp_path: Path) -> None:
    assert export(registry, tmp_path / "out").exit_code == 0
    (tmp_path / "out" / "policy" / "0" / "config.json").unlink()
    again = export(registry, tmp_path / "out")
    assert again.exit_code == 2
    assert "policy/0 exists already" in again.output
    assert not (tmp_path / "out" / "policy" / "0" / "config.json").exists()
