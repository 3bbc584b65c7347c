"""What the commands have in common: where they go on, and how they end."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from pydantic import ValidationError
from typer.testing import CliRunner

from agentprm.cli import app
from agentprm.cli.common import digest_of, explained
from agentprm.prompts import load_prompt
from services.prm.settings import PRMServiceSettings


def test_what_was_played_in_other_games_or_by_another_prompt_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = tmp_path / "mine.j2"
    template.write_text(load_prompt("chat").source)
    own = digest_of(tmp_path / "a", str(template), "seed 0")
    monkeypatch.chdir(tmp_path)
    assert digest_of(Path("a"), str(template), "seed 0") == own
    with template.open("a") as file:
        file.write("{# changed #}")
    others = {
        digest_of(tmp_path / "b", "chat", "seed 0"),
        digest_of(tmp_path / "a", str(template), "seed 0"),
        digest_of(tmp_path / "a", "chat", "seed 1"),
    }
    assert len(others | {own}) == 4


def test_who_interrupts_a_command_is_told_what_comes_next(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for what, said in (((), "the same command goes on"), (("nothing is kept",), "nothing is kept")):
        with pytest.raises(typer.Exit) as ended, explained(*what):
            raise KeyboardInterrupt
        assert ended.value.exit_code == 130
        assert said in capsys.readouterr().err


def test_a_port_that_cannot_be_is_refused(tmp_path: Path) -> None:
    for port in ("65534", "80000"):  # the PRM is two ports further
        ended = CliRunner().invoke(app, ["up", "--run", str(tmp_path), "--port", port])
        assert (ended.exit_code, ended.exception.__class__) == (2, SystemExit)
        assert "65533" in ended.output
    with pytest.raises(ValidationError, match="65535"):
        PRMServiceSettings(registry=tmp_path, port=80000)


def test_a_run_that_is_not_there_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("none", "file"):
        ended = CliRunner().invoke(app, ["up", "--run", str(tmp_path / name)])
        assert ended.exit_code == 2
        assert f"there is no run directory {tmp_path / name}" in ended.output
