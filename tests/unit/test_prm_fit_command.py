"""What `agentprm prm fit` refuses before anything is fitted.

What it does not refuse ends here with a GPU that is not there, before a process is started.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agentprm.cli import app

CHAT = [{"role": "user", "content": "Which door?"}, {"role": "assistant", "content": "red"}]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.jsonl"
    lines = [{"messages": CHAT, "reward": reward} for reward in (1, 0)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture(autouse=True)
def _one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")


def fit(log: Path, run: Path, *flags: str, device: str = "cuda:1") -> tuple[int, str]:
    command = ["prm", "fit", str(log), "--run", str(run), "--model", "tiny"]
    command += ["--set", f"device={device}", "--set", "num_processes=1", *flags]
    done = CliRunner().invoke(app, command)
    return done.exit_code, " ".join(done.output.split())


def begun(log: Path, run: Path, *flags: str) -> str:
    """What it prints of a fit that it would do."""
    code, output = fit(log, run, *flags)
    assert code == 1
    assert "shows fewer GPUs" in output
    return output


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--set", "prm.objective=relative"], "needs several actions in one state"),
        (["--set", "shaping.alpha=0.5"], "needs rollouts of a reference policy"),
        (["--set", "algorithm=inverse-prm"], "is a training of the agent"),
        (["--set", "prm.epoch=2"], "prm.epoch"),
        (["--preset", "none"], "no preset"),
    ],
)
def test_settings_that_a_log_has_no_use_for(
    log: Path, tmp_path: Path, flags: list[str], why: str
) -> None:
    code, output = fit(log, tmp_path / "run", *flags)
    assert code == 2
    assert why in output
    assert not (tmp_path / "run").exists()


def test_a_log_that_cannot_be_read(tmp_path: Path) -> None:
    code, output = fit(tmp_path / "none.jsonl", tmp_path / "run")
    assert code == 1
    assert "no file or directory" in output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("model", ["./model", "../model", "/no/model", "~/no", "no/such/model"])
def test_a_model_that_is_no_directory(log: Path, tmp_path: Path, model: str) -> None:
    code, output = fit(log, tmp_path / "run", "--model", model)
    assert code == 2
    assert f"there is no directory {model}" in output
    assert not (tmp_path / "run").exists()
    begun(log, tmp_path / "run", "--model", str(tmp_path))


@pytest.mark.parametrize(
    ("device", "why"), [("cuda:0", "this machine shows no GPU"), ("gpu", "'gpu' is no device")]
)
def test_a_device_that_is_not_there(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, why: str
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    code, output = fit(log, tmp_path / "run", device=device)
    assert code == 1
    assert why in output
    assert not (tmp_path / "run" / "logs").exists(), "nothing was started"


def test_other_settings_or_other_chats_than_the_run_was_begun_with(
    log: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    begun(log, run)
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes(log.read_bytes() + b"\n")
    begun(moved, run)
    begun(log, run, "--seed", "1")  # nothing was done yet: the settings may have been a slip
    begun(log, run)
    (run / "base").mkdir()
    for flags in (["--seed", "1"], ["--preset", "smoke"], ["--set", "prm.epochs=3"]):
        code, output = fit(log, run, *flags)
        assert code == 2
        assert "holds a run with other settings" in output
    more = tmp_path / "more.jsonl"
    more.write_text(log.read_text() + "\n" + json.dumps({"messages": CHAT, "reward": 1}))
    code, output = fit(more, run)
    assert code == 2
    assert "holds a PRM of other chats" in output


def test_the_run_of_a_training(log: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    (run / "records").mkdir()
    (run / "records" / "demonstrations.jsonl").touch()
    code, output = fit(log, run)
    assert code == 2
    assert "was not fitted on chats" in output


def test_a_log_in_which_everything_ended_alike_is_fitted_with_a_warning(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text(json.dumps({"messages": CHAT, "reward": 1}))
    assert "all chats have the same outcome, 1" in begun(log, tmp_path / "run")


def test_a_name_is_printed_as_it_is(log: Path, tmp_path: Path) -> None:
    for name in ("r[bold]x", "lr[/x]", "r:X:"):
        assert f"Run {tmp_path / name}: 2 chats" in begun(log, tmp_path / name)
    assert "model a[b]/c, preset" in begun(log, tmp_path / "run", "--model", "a[b]/c")


def test_a_model_that_is_given_takes_the_settings_of_one_that_was_pretrained(
    log: Path, tmp_path: Path
) -> None:
    begun(log, tmp_path / "a")
    begun(log, tmp_path / "b", "--model", "some/model")
    presets = [json.loads((tmp_path / name / "config.json").read_text()) for name in "ab"]
    assert [(p["preset"], p["model"]) for p in presets] == [
        ("tiny", "tiny"),
        ("llama-3b", "some/model"),
    ]
