from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from agentprm.cli import app
from agentprm.config import (
    Algorithm,
    Evaluation,
    MonitorSettings,
    changed,
    load_config,
    parse_overrides,
    read_config,
)


def test_values_are_toml_or_words() -> None:
    given = ["dpo.beta=0.1", "rollouts.games = 20", 'model="tiny"', "prompt=state", "a.b=[1, 2]"]
    assert parse_overrides(given) == {
        "dpo.beta": 0.1,
        "rollouts.games": 20,
        "model": "tiny",
        "prompt": "state",
        "a.b": [1, 2],
    }
    for bad in ("dpo.beta", "=3", "dpo..beta=1", "dpo beta=1"):
        with pytest.raises(ValueError, match="not of the form"):
            parse_overrides([bad])


def test_a_setting_is_replaced_and_its_neighbours_stay() -> None:
    plain = load_config("smoke")
    config = load_config("smoke", 3, {"dpo.beta": 0.2, "rollouts.vine.states": 5})
    assert config.dpo == plain.dpo.model_copy(update={"beta": 0.2})
    assert config.rollouts.vine is not None
    assert config.rollouts.vine.states == 5
    assert config.rollouts.games == plain.rollouts.games
    assert config.overrides == {"dpo.beta": 0.2, "rollouts.vine.states": 5}
    again = changed(config, {"dpo.beta": 0.3})
    assert (again.dpo.beta, again.seed) == (0.3, 3)
    assert again.overrides == {"dpo.beta": 0.3, "rollouts.vine.states": 5}


def test_a_preset_that_extends_another_has_its_settings_but_for_its_own(tmp_path: Path) -> None:
    preset = tmp_path / "mine.toml"
    preset.write_text('extends = "tiny"\niterations = 2\n[rollouts]\nvine = { states = 7 }\n')
    tiny, mine = load_config("tiny"), load_config(str(preset), overrides={"dpo.beta": 0.2})
    assert tiny.rollouts.vine is not None
    vine = tiny.rollouts.vine.model_copy(update={"states": 7})
    assert mine.rollouts == tiny.rollouts.model_copy(update={"vine": vine})
    assert (mine.iterations, mine.dpo.beta, mine.prm) == (2, 0.2, tiny.prm)
    for name in ("no", "../tiny", str(preset)):
        preset.write_text(f'extends = "{name}"\n')
        with pytest.raises(FileNotFoundError, match="is none of best, llama-3b, smoke, tiny"):
            load_config(str(preset))


def test_an_empty_table_takes_nothing_out_and_switches_on_what_is_not_there(tmp_path: Path) -> None:
    preset = tmp_path / "mine.toml"
    preset.write_text('extends = "tiny"\n[dpo]\n# beta = 0.2\n[rollouts.vine]\n[monitor]\n')
    tiny, mine = load_config("tiny"), load_config(str(preset))
    assert (mine.dpo, mine.rollouts) == (tiny.dpo, tiny.rollouts)
    assert tiny.monitor is None
    assert mine.monitor == MonitorSettings()


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"preferences.states_per_job": 257}, "states_per_job"),
        ({"batch": 257}, "batch"),
        (
            {
                "preferences.states_per_job": 256,
                "preferences.candidates": 64,
                "preferences.sampling.max_tokens": 512,
            },
            "preferences: states_per_job x candidates",
        ),
        (
            {
                "batch": 64,
                "evaluation.best_of": 64,
                "evaluation.best_of_sampling.max_tokens": 1024,
            },
            "batch x evaluation.best_of x evaluation.best_of_sampling.max_tokens",
        ),
        ({"update": "outcome-rejection", "shaping.alpha": 0.5}, "shaping.alpha"),
    ],
)
def test_what_no_request_could_ask_for_or_nothing_would_read_is_refused(
    overrides: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValidationError, match=named):
        load_config("tiny", overrides=overrides)


def test_a_request_may_be_as_large_as_the_services_take() -> None:
    load_config("tiny", overrides={"batch": 256, "preferences.states_per_job": 256})


def test_what_a_preset_has_is_taken_out_by_none(tmp_path: Path) -> None:
    assert load_config("tiny", overrides={"rollouts.vine": "none"}).rollouts.vine is None
    preset = tmp_path / "mine.toml"
    preset.write_text('extends = "llama-3b"\npolicy_device = "none"\nrollouts.vine = "none"\n')
    mine = load_config(str(preset))
    assert (mine.policy_device, mine.rollouts.vine) == (None, None)
    with pytest.raises(ValidationError):
        load_config("tiny", overrides={"gamma": "none"})


@pytest.mark.parametrize(
    "name", ["dpo.betta", "model.size", "rollouts.games", "sft.seed", "prm.split_seed", "prm.gamma"]
)
def test_what_is_no_setting_or_no_value_of_it_is_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        load_config("smoke", overrides={name: "no"})


def test_the_command_records_them_and_explains_a_wrong_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentprm.cli.train.train_run", lambda *_, **__: None)
    train = ["train", "--preset", "smoke", "--run", str(tmp_path), "--games", str(tmp_path)]
    done = CliRunner().invoke(app, [*train, "--set", "dpo.beta=0.2"])
    assert done.exit_code == 0, done.output
    assert orjson.loads((tmp_path / "config.json").read_bytes())["overrides"] == {"dpo.beta": 0.2}
    assert read_config(tmp_path).dpo.beta == 0.2
    slip = CliRunner().invoke(app, [*train, "--set", "dpo.beta=0.3"])
    assert slip.exit_code == 0, "nothing was done yet"
    assert CliRunner().invoke(app, [*train, "--set", "dpo.beta=0.2"]).exit_code == 0
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "demonstrations.jsonl").touch()
    other = CliRunner().invoke(app, train)
    assert other.exit_code == 2
    assert "dpo.beta is 0.2 there, 0.1 here" in " ".join(other.output.split())
    same = [*train, "--set", "dpo.beta=0.2", "--set", "dpo.publish_every=10"]
    publishes = read_config(tmp_path).dpo.publish_every
    same[-1] = f"dpo.publish_every={publishes}"
    assert CliRunner().invoke(app, same).exit_code == 0  # as it is anyway
    wrong = CliRunner().invoke(app, [*train, "--set", "dpo.beta"])
    assert wrong.exit_code == 2
    assert "group.name=value" in wrong.output
    for again in (["--set", "dpo.beta=0.2", "--set", "dpo.beta=0.3"], ["--set", "seed=5"]):
        refused = CliRunner().invoke(app, [*train, *again])
        assert refused.exit_code == 2
        assert "given twice" in refused.output or "give --seed" in refused.output
    unknown = CliRunner().invoke(app, [*train, "--set", "dpo.betta=1"])
    assert unknown.exit_code == 2
    assert "dpo.betta: there is no such setting" in " ".join(unknown.output.split())


def test_a_preset_that_says_too_little_or_is_no_toml_is_told_what_to_do(tmp_path: Path) -> None:
    preset = tmp_path / "mine.toml"
    for text, words in (
        ('update = "grpo"', 'begin it with extends = "tiny"'),
        ('update = "grpo', "mine.toml"),
    ):
        preset.write_text(text)
        done = CliRunner().invoke(app, ["train", "--preset", str(preset), "--run", str(tmp_path)])
        assert done.exit_code == 2
        assert words in " ".join(done.output.replace("\n", " ").split())


@pytest.mark.parametrize("setting", ["seed=3", "preset=tiny", "algorithm=sft", "run=elsewhere"])
def test_a_run_that_is_resumed_takes_no_setting(tmp_path: Path, setting: str) -> None:
    name, value = setting.split("=")
    done = CliRunner().invoke(app, ["train", "--resume", str(tmp_path), f"--{name}", value])
    assert done.exit_code == 2
    assert f"--{name} is for a new run" in done.output


@pytest.mark.parametrize("value", ["inf", "nan"])
def test_a_number_that_json_cannot_hold_is_refused(value: str) -> None:
    with pytest.raises(ValidationError, match="finite"):
        load_config("smoke", overrides=parse_overrides([f"dpo.max_grad_norm={value}"]))


def test_settings_of_another_version_and_impossible_ones_are_told_apart(tmp_path: Path) -> None:
    plain = load_config("smoke").model_dump(mode="json")
    for change, why in (({"unheard": 1}, "another version of agentprm"), ({"gamma": 2}, "gamma")):
        (tmp_path / "config.json").write_bytes(orjson.dumps(plain | change))
        with pytest.raises(ValueError, match=why) as caught:
            read_config(tmp_path)
    assert "version" not in str(caught.value)
    (tmp_path / "config.json").write_text('{"preset": "sm')
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        read_config(tmp_path)


def test_a_run_from_when_fits_had_seeds_among_their_settings_is_still_read(tmp_path: Path) -> None:
    kept = {"dpo.keep_every": 20, "grpo.keep_every": 20}
    config = load_config("smoke", seed=3, overrides=kept)
    values = config.model_dump(mode="json")
    for fit in ("sft", "prm", "dpo", "grpo", "rejection"):
        values[fit]["seed"] = 0
    values["prm"] |= {"gamma": 0.95, "split_seed": 0}
    del values["grpo"]["keep_every"]
    (tmp_path / "config.json").write_bytes(orjson.dumps(values))
    assert read_config(tmp_path) == config


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        ({"expert": "handcoded"}, "needs engine"),
        ({"algorithm": "inverse-prm", "update": "outcome-rejection"}, "needs outcomes"),
        ({"algorithm": "inverse-prm", "rollouts.exploration.reset.fraction": 0.5}, "needs outcome"),
        ({"algorithm": "inverse-prm", "rollouts.exploration.posterior.fraction": 0.5}, "needs out"),
        ({"algorithm": "inverse-prm", "shaping.alpha": 0.5}, "needs outcomes"),
        ({"algorithm": "dagger", "rollouts.exploration.posterior.fraction": 0.5}, "no meaning"),
        ({"algorithm": "sft", "shaping.alpha": 0.5}, "no meaning"),
        ({"algorithm": "sft", "monitor.states": 9}, "no meaning"),
        ({"update": "rejection", "monitor.states": 9}, "publishes no weights"),
        (
            {"update": "outcome-rejection", "rollouts.exploration.posterior.fraction": 0.5},
            "would imitate what the explorer chose",
        ),
        ({"monitor.games": 9}, "lower publish_every"),
    ],
)
def test_what_would_be_ignored_is_refused(overrides: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        load_config("tiny", overrides=overrides)


def test_inverse_prm_has_a_margin_and_a_beta_on_its_own_scale() -> None:
    config = load_config("tiny")
    preferences, evaluation = config.preferences, config.evaluation
    assert preferences.under(Algorithm.AGENT_PRM, 0.0) == preferences
    assert evaluation.under(Algorithm.AGENT_PRM, 0.0) == evaluation.under(None, 0.0) == evaluation
    inverse = Algorithm.INVERSE_PRM
    assert preferences.under(inverse, 0.0).margin == preferences.inverse_margin < preferences.margin
    beta = evaluation.under("inverse-prm", 0.0).best_of_beta
    assert beta == evaluation.inverse_best_of_beta < evaluation.best_of_beta
    assert evaluation.choice_in_words.endswith("by Q + 0.1 log share (0.01 for Q of InversePRM)")


def test_shaping_has_them_on_the_scale_of_its_targets() -> None:
    """Differences of Q are smaller by the factor 1 + α (eq. 13, mapped onto [0, 1])."""
    preferences, evaluation = load_config("tiny").preferences, load_config("tiny").evaluation
    assert preferences.under(Algorithm.AGENT_PRM, 1.0).margin == preferences.margin / 2
    assert evaluation.under("agent-prm", 0.5).best_of_beta == pytest.approx(0.1 / 1.5)


def test_a_part_that_is_given_in_part_keeps_its_own_defaults() -> None:
    """Those of its place: an evaluation samples at half the temperature of rollouts."""
    given = {"games": 5, "sampling": {"max_tokens": 24}, "best_of_sampling": {"max_tokens": 32}}
    evaluation = Evaluation.model_validate(given)
    assert evaluation.sampling == Evaluation().sampling.model_copy(update={"max_tokens": 24})
    assert (evaluation.sampling.temperature, evaluation.best_of_sampling.temperature) == (0.5, 1.0)
    assert Evaluation.model_validate_json(evaluation.model_dump_json()) == evaluation
