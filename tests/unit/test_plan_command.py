"""`agentprm plan` refuses depths at which the values of a PRM cannot be added to rewards."""

from __future__ import annotations

import sys
from pathlib import Path

import orjson
import pytest
from typer.testing import CliRunner

from agentprm.cli import app
from agentprm.cli.services import Options
from agentprm.config import load_config
from agentprm.ensembles import write_ensemble
from agentprm.facts import METADATA
from agentprm.protocol import PRMFacts
from agentprm.registry import Registry

FACTS = {
    "prm/0": PRMFacts(algorithm="agent-prm", objective="absolute", alpha=0.0),
    "prm/1": PRMFacts(objective="relative"),
    "prm/2": PRMFacts(algorithm="inverse-prm"),
    "prm/3": PRMFacts(algorithm="agent-prm", objective="absolute", alpha=0.5),
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(load_config("smoke").model_dump_json())
    registry = Registry(tmp_path / "checkpoints")
    with registry.write("policy/0") as draft:
        (draft / "config.json").write_text("{}")
    for version, facts in FACTS.items():
        with registry.write(version) as draft:
            (draft / METADATA).write_text(facts.model_dump_json())
    write_ensemble(registry, "prm/4", ["prm/0", "prm/1"])
    return tmp_path


@pytest.mark.parametrize(
    ("prm", "why"),
    [
        ("prm/1", "relative"),
        ("prm/2", "an InversePRM"),
        ("prm/3", "shaped"),
        ("prm/4", "relative"),  # one of its members is
    ],
)
def test_what_is_no_return_is_not_added_to_rewards(run: Path, prm: str, why: str) -> None:
    asked = ["plan", "--run", str(run), "--prm", prm, "--depth", "2", "--model", "true"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code != 0
    said = " ".join(result.stderr.split())
    assert f"{prm} " in said
    assert why in said
    assert "give --depth 1" in said


def test_a_return_is(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on to the games of the run, which are there no more."""
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)
    (run / "games").write_text(str(run / "nowhere"))
    (run / "records").mkdir()
    asked = ["plan", "--run", str(run), "--prm", "prm/0", "--depth", "2", "--model", "true"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code != 0
    assert "depth" not in result.stderr
    assert "nowhere" in result.stderr


def test_the_true_game_is_forked_by_the_engine_that_has_room_for_it(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of a TextWorld session is one more process, and there are as many as games."""
    played: list[Options] = []

    def watched(
        home: Path, module: str, games: str, options: Options, *_: object, **__: object
    ) -> None:
        played.append(options)

    monkeypatch.setattr(sys.modules["agentprm.cli.plan"], "play_run", watched)
    config = load_config("smoke").model_copy(update={"engine": "textworld"})
    (run / "config.json").write_text(config.model_dump_json())
    asked = ["plan", "--run", str(run), "--prm", "prm/0", "--games", str(run)]
    result = CliRunner().invoke(app, [*asked, "--model", "true"])
    assert result.exit_code == 0, result.stderr
    assert [options.engine for options in played] == ["compiled"]


def test_the_rows_tell_what_the_look_ahead_took(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"games": 1, "success": 1.0, "low": 0.2, "high": 1.0, "actions": 3.0, "policy": "pi_0"}
    row |= {"prm": "q_0", "best_of": 4, "split": "train", "max_steps": 30, "temperature": 1.0}
    row |= {"seed": 0, "actions_error": 0.0, "by_task": {}, "choice": "prm"}
    row |= {"states": 5.0, "transitions": 4.0, "unknown": 0.5}

    def played(home: Path, *_: object, **__: object) -> None:
        (home / "results.json").write_bytes(orjson.dumps([row]))

    monkeypatch.setattr(sys.modules["agentprm.cli.plan"], "play_run", played)
    asked = ["plan", "--run", str(run), "--prm", "prm/0", "--games", str(run), "--model", "true"]
    result = CliRunner().invoke(app, [*asked, "--json"])
    assert result.exit_code == 0, result.stderr
    assert orjson.loads(result.stdout) == [row]
