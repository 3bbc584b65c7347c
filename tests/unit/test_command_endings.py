"""What the commands have in common: where they go on, and how they end."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from pydantic import ValidationError
from pydantic_settings import CliApp
from typer.testing import CliRunner

from agentprm.cli import app
from agentprm.cli.chosen_games import GamesError, games_of_run
from agentprm.cli.common import console, digest_of, explained
from agentprm.cli.processes import Machine
from agentprm.cli.services import Options
from agentprm.files import write_atomic
from agentprm.prompts import load_prompt
from services.prm.settings import PRMServiceSettings
from services.trainer.evaluate import EvaluateSettings
from services.trainer.exclusive import exclusive
from tests.finished_run import finished_run
from tests.small_disk import small_disk


def test_what_was_played_in_other_games_or_by_another_prompt_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = tmp_path / "mine.j2"
    template.write_text(load_prompt("chat").source)
    own = digest_of(str(tmp_path / "a"), str(template), "seed 0")
    monkeypatch.chdir(tmp_path)
    assert digest_of("a", str(template), "seed 0") == own
    with template.open("a") as file:
        file.write("{# changed #}")
    others = {
        digest_of(str(tmp_path / "b"), "chat", "seed 0"),
        digest_of(str(tmp_path / "a"), str(template), "seed 0"),
        digest_of(str(tmp_path / "a"), "chat", "seed 1"),
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


def test_a_name_to_listen_on_is_refused(tmp_path: Path) -> None:
    """Without keys a service answers to no name that may be a stranger's."""
    ended = CliRunner().invoke(app, ["up", "--run", str(tmp_path), "--host", "box.example.org"])
    assert ended.exit_code == 2
    assert "--host is an IP address" in ended.output


def test_a_run_that_is_not_there_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("none", "file"):
        ended = CliRunner().invoke(app, ["up", "--run", str(tmp_path / name)])
        assert ended.exit_code == 2
        assert f"there is no run directory {tmp_path / name}" in ended.output


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["train", "--preset", "nonsense", "--run", "{tmp}/new"], "no preset 'nonsense'"),
        (["train", "--resume", "{tmp}/none"], "not the directory of a run"),
        (["eval", "--policy", "{tmp}", "--games", "/nowhere"], "config.json"),
        (["up"], "give --run, or"),
    ],
)
def test_mistakes_are_told_before_anything_is_started(
    tmp_path: Path, flags: list[str], told: str
) -> None:
    ended = CliRunner().invoke(app, [flag.format(tmp=tmp_path) for flag in flags])
    assert (ended.exit_code in (1, 2), ended.exception.__class__) == (True, SystemExit)
    assert told in " ".join(ended.output.split())
    assert not list(tmp_path.iterdir())


def test_a_run_is_served_as_it_was_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished_run(tmp_path, overrides={"max_steps": 7, "prompt": "state"})
    served: list[Options] = []
    monkeypatch.setattr(
        "agentprm.cli.up.serve_run", lambda run, games, options, **_: served.append(options)
    )
    assert CliRunner().invoke(app, ["up", "--run", str(tmp_path)]).exit_code == 0
    assert [(options.max_steps, options.prompt) for options in served] == [(7, "state")]


def test_a_run_that_is_worked_on_is_not_served(tmp_path: Path) -> None:
    """Its services note in the run what they serve, and so would these."""
    finished_run(tmp_path)
    with exclusive(tmp_path):
        refused = CliRunner().invoke(app, ["up", "--run", str(tmp_path)])
    assert refused.exit_code == 2
    assert f"--policy {tmp_path}/checkpoints/policy/0" in refused.output.replace("\n", "")


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--privileged"], "takes --games"),
        (["--sglang-command", "serve {model}"], "for --engine sglang"),
        (["--engine-url", "http://127.0.0.1:9"], "for --engine sglang"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], why: str
) -> None:
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)
    finished_run(tmp_path)
    (tmp_path / "games").unlink(missing_ok=True)
    refused = CliRunner().invoke(app, ["up", "--run", str(tmp_path), *flags])
    assert refused.exit_code == 2
    assert why in " ".join(refused.output.split())


_WAITS = """
import sys, tempfile, time
from agentprm.cli.common import explained
with tempfile.TemporaryDirectory(dir=sys.argv[1]), explained("nothing is kept"):
    print("waits", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_is_ended_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    argv = [sys.executable, "-c", _WAITS, str(tmp_path), "60"]
    ours = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, and inherited
    try:
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    finally:
        signal.signal(signal.SIGHUP, ours)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"waits\n"
        assert list(tmp_path.iterdir())
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
    assert b"nothing is kept" in said
    assert not list(tmp_path.iterdir())


def test_a_command_under_nohup_outlives_its_terminal(tmp_path: Path) -> None:
    argv = ["nohup", sys.executable, "-c", _WAITS, str(tmp_path), "1"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"waits\n"
        process.send_signal(signal.SIGHUP)
        assert process.wait(30) == 0


def test_a_disk_that_is_full_is_told_with_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "results.json"
    file.write_bytes(b"old")
    with pytest.raises(typer.Exit) as ended, explained(), small_disk(10):
        write_atomic(file, b"new" * 100)
    assert ended.value.exit_code == 1
    assert f"{file}: File too large" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert file.read_bytes() == b"old"


def test_a_directory_that_cannot_be_written_to_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "logs").touch()
    with pytest.raises(typer.Exit) as ended, explained():
        Machine(tmp_path)
    assert ended.value.exit_code == 1
    assert f"{tmp_path / 'logs'}: " in capsys.readouterr().err


def test_a_machine_runs_without_the_note_of_what_runs(tmp_path: Path) -> None:
    (tmp_path / "processes.json").mkdir()
    with Machine(tmp_path) as machine:
        machine.start("platform", "platform", in_terminal=True, quiet=True)
        assert machine.watch("platform") == 0


def test_games_are_not_given_to_an_environment_that_has_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for service in ("ENV", "POLICY", "PRM"):
        monkeypatch.setenv(f"AGENTPRM_{service}_URL", "http://127.0.0.1:9")
    trained: list[Path] = []
    monkeypatch.setattr(
        "agentprm.cli.train.train_connected", lambda run, *_, **__: trained.append(run)
    )
    train = ["train", "--preset", "smoke", "--run", str(tmp_path)]
    refused = CliRunner().invoke(app, [*train, "--games", str(tmp_path)])
    assert refused.exit_code == 2
    assert "AGENTPRM_ENV_URL" in refused.output
    done = CliRunner().invoke(app, train)
    assert done.exit_code == 0
    assert "warning" not in done.output
    idle = CliRunner().invoke(app, [*train, "--set", "engine=textworld", "--set", "gamma=1"])
    assert "engine: the services and workers run already" in " ".join(idle.output.split())
    assert trained == [tmp_path] * 2


def test_what_is_given_is_printed_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for service in ("ENV", "POLICY", "PRM"):
        monkeypatch.setenv(f"AGENTPRM_{service}_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("agentprm.cli.train.train_connected", lambda *_, **__: None)
    run = tmp_path / "r[bold]x:X:"
    done = CliRunner().invoke(app, ["train", "--preset", "smoke", "--run", str(run)])
    assert f"Run {run}: " in done.output
    assert f"Table: {run}/results.json   curves: tensorboard --logdir {run}" in done.output
    (run / "records").mkdir()
    (run / "games").write_text("a[red]")
    games_of_run(run, str(tmp_path / "[red]b"), console)
    assert f"{run} has played the games of a[red]" in capsys.readouterr().err
    with pytest.raises(typer.Exit), explained():
        raise GamesError("no games in :X:")
    assert "no games in :X:" in capsys.readouterr().err


def test_eval_plays_as_its_preset_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    played: list[tuple[Options, EvaluateSettings]] = []

    def watched(
        run: Path, module: str, games: str, options: Options, flags: list[str], **_: object
    ) -> None:
        urls = ["--env-url", "http://env", "--policy-url", "", "--prm-url", ""]
        given = ["--run", str(run), "--redis-url", "redis://r", *urls, *flags]
        played.append((options, CliApp.run(EvaluateSettings, given)))

    monkeypatch.setattr("agentprm.cli.evaluate.play_run", watched)
    policy, preset = tmp_path / "policy", tmp_path / "mine.toml"
    policy.mkdir()
    (policy / "config.json").write_text('{"model_type": "llama"}')
    preset.write_text(
        'extends = "tiny"\nmax_steps = 5\nprompt = "state"\n'
        'evaluation = { best_of = 4, split = "train" }\n'
    )
    command = ["eval", "--policy", str(policy), "--games", str(tmp_path), "--preset", str(preset)]
    majority = ["--choice", "majority", "--best-of", "2"]
    other = ["--max-steps", "7", "--prompt", "chat", "--split", "valid_seen", *majority]
    for flags in ([], other):
        done = CliRunner().invoke(app, [*command, *flags])
        assert done.exit_code == 0, done.output
    asked = [(e.max_steps, e.plan.best_of, e.plan.split, o.prompt) for o, e in played]
    assert asked == [(5, 4, "train", "state"), (7, 2, "valid_seen", "chat")]
    assert (played[0][1].policy_name, played[0][1].prm_name) == ("policy", None)
    assert not any(options.prm for options, _ in played), "none was given"


def test_a_report_without_what_draws_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    ended = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert ended.exit_code == 2
    assert ".[report]" in ended.output
