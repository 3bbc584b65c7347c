"""Studies on a small finished run: what a variant shares, what is done once, what is written."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from agentprm.config import Config, changed, load_config, read_config
from agentprm.measurements import Measured, Measurement, ProcessReward, write_measured
from agentprm.paired import Paired, paired
from agentprm.protocol import JobResult
from agentprm.registry import CheckpointError, Registry
from agentprm.results import read_results, summarise, write_results
from agentprm.runs import read_episodes
from agentprm.studies import STUDIES, Study, StudyError, Work, figures, run_study
from agentprm.studies._derive import derive_run
from agentprm.studies.hacking import parting
from services.trainer.metrics import MetricsWriter
from tests.finished_run import TASKS, finished_run

WITH_A_PRM: list[dict[str, Any]] = [
    {"update": "grpo"},
    {"update": "rejection"},
    {"update": "outcome-rejection"},
    {"monitor.states": 20},
    {"shaping.alpha": 0.5},
    {"rollouts.exploration.reset.fraction": 0.5},
]


def shared(run: Path) -> tuple[set[str], set[str]]:
    registry = Registry(run / "checkpoints")
    versions = {*registry.versions("policy"), *registry.versions("prm")}
    return versions, {file.stem for file in (run / "records").glob("*")}


START = {"demonstrations"}
PI_0 = {"demonstrations", "eval-pi_0"}
ROLLOUTS = PI_0 | {"pi_0-rollouts"}
PRM = ROLLOUTS | {"eval-pi_0-q_0"}
ALL = PRM | {"eval-pi_1", "eval-pi_1-q_0"}


@pytest.mark.parametrize(
    ("setting", "checkpoints", "records"),
    [
        ({"seed": 1}, set(), set()),
        ({"sft.epochs": 9}, set(), START),
        (
            {
                "rollouts.exploration.steered.strategies": ["go to shelf"],
                "rollouts.exploration.steered.hindsight": 0.5,
            },
            set(),
            START,
        ),
        ({"rollouts.exploration.reset.fraction": 0.5}, {"policy/0"}, PI_0),
        ({"rollouts.games": 9}, {"policy/0"}, PI_0),
        ({"prm.epochs": 9, "dpo.beta": 0.2}, {"policy/0"}, ROLLOUTS),
        ({"dpo.beta": 0.2}, {"policy/0", "prm/0"}, PRM),
        ({"monitor.states": 20}, {"policy/0", "prm/0"}, PRM),
        ({"evaluation.games": 5}, {"policy/0", "prm/0", "policy/1"}, START | {"pi_0-rollouts"}),
        ({}, {"policy/0", "prm/0", "policy/1"}, ALL),
        ({"workers": 7, "device": "cpu"}, {"policy/0", "prm/0", "policy/1"}, ALL),
        ({"algorithm": "agent-prm", "dpo.beta": 0.1}, {"policy/0", "prm/0", "policy/1"}, ALL),
    ],
)
def test_a_variant_takes_over_what_lies_before_its_settings(
    tmp_path: Path, setting: dict[str, Any], checkpoints: set[str], records: set[str]
) -> None:
    finished_run(tmp_path / "run")
    derive_run(tmp_path / "run", tmp_path / "variant", setting)
    derive_run(tmp_path / "run", tmp_path / "variant", setting)
    assert shared(tmp_path / "variant") == (checkpoints, records)
    assert read_config(tmp_path / "variant").overrides == {"iterations": 1, **setting}
    with pytest.raises(ValueError, match="derived with other settings"):
        derive_run(tmp_path / "run", tmp_path / "variant", {"gamma": 0.5})


@pytest.mark.parametrize(
    ("games", "made"), [(0, {"policy/0", "prm/0", "policy/1"}), (5, {"policy/0", "prm/0"})]
)
def test_a_policy_that_trials_chose_depends_on_how_evaluations_sample(
    tmp_path: Path, games: int, made: set[str]
) -> None:
    run = tmp_path / "run"
    finished_run(run)
    config = changed(read_config(run), {"monitor.games": games, "dpo.publish_every": 5})
    (run / "config.json").write_text(config.model_dump_json())
    derive_run(run, tmp_path / "variant", {"evaluation.sampling.temperature": 0.9})
    assert shared(tmp_path / "variant")[0] == made


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
@pytest.mark.parametrize("preset", ["smoke", "tiny", "llama-3b"])
def test_the_variants_of_a_study_are_possible_runs(study: Study, preset: str) -> None:
    config = load_config(preset)
    variants = [changed(config, variant.overrides) for variant in study.variants(config)]
    assert len({variant.model_dump_json() for variant in variants}) == len(variants)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"rollouts.exploration.reset.fraction": 0.3},
        {"rollouts.exploration.posterior.fraction": 0.3},
        {"rollouts.exploration.steered.strategies": ["go to shelf"]},
    ],
)
def test_exploration_compares_each_way_alone(settings: dict[str, Any]) -> None:
    config = load_config("smoke", overrides=settings)
    variants = STUDIES["exploration"].variants(config)
    ways = {v.name: changed(config, v.overrides).rollouts.exploration for v in variants}
    for name, exploration in ways.items():
        given = {way for way, value in exploration if value is not None}
        assert given == ({name} - {"plain"})


@pytest.mark.parametrize("settings", WITH_A_PRM)
def test_controls_are_possible_whatever_the_run_does_with_its_prm(settings: dict[str, Any]) -> None:
    config = load_config("smoke", overrides=settings)
    variants = [changed(config, v.overrides) for v in STUDIES["controls"].variants(config)]
    assert [(v.algorithm, v.update) for v in variants] == [
        ("agent-prm", "online-dpo"),
        ("sft", "online-dpo"),
        ("agent-prm", "outcome-rejection"),
    ]
    assert variants[0] == changed(config, {"algorithm": "agent-prm", "update": "online-dpo"})


def test_more_sft_begins_from_the_same_policy_whatever_explores(tmp_path: Path) -> None:
    config = finished_run(tmp_path / "run", overrides={"rollouts.exploration.reset.fraction": 0.5})
    (variant,) = (v for v in STUDIES["controls"].variants(config) if v.name == "more-SFT")
    derive_run(tmp_path / "run", tmp_path / "variant", variant.overrides)
    assert shared(tmp_path / "variant") == ({"policy/0"}, PI_0)


def test_nothing_is_trained_for_a_study_of_which_a_variant_is_impossible(tmp_path: Path) -> None:
    config = finished_run(tmp_path, overrides={"shaping.alpha": 0.5})
    assert config.shaping.alpha == 0.5
    recorder = Recorder()
    with pytest.raises(StudyError, match="variant InversePRM"):
        run_study(STUDIES["inverse"], tmp_path, recorder.work, {}, "")
    assert recorder.trained == []
    assert not (tmp_path / "studies").exists()


@pytest.mark.parametrize(
    ("study", "settings", "why"),
    [
        ("curves", {"evaluation.games": 5}, "takes no --set"),
        ("tables", {"seed": 1}, "takes no --set"),
        ("controls", {"update": "grpo"}, "variants of controls differ"),
        ("hacking", {"rollouts.games": 5}, "variants of hacking differ"),
        ("exploration", {"rollouts.exploration.reset.fraction": 0.9}, "differ"),
        ("scaling", {"dpo.beta": 0.2}, "measures what the run has"),
        ("scaling", {"evaluation.games": 0}, "evaluation.games"),
        ("scaling", {"iterations": 2}, "measures what the run has"),
    ],
)
def test_settings_that_a_study_has_no_use_for_are_refused(
    tmp_path: Path, study: str, settings: dict[str, Any], why: str
) -> None:
    finished_run(tmp_path)
    recorder = Recorder()
    with pytest.raises(StudyError, match=why):
        run_study(STUDIES[study], tmp_path, recorder.work, settings, "")
    assert recorder.trained == []
    assert not (tmp_path / "studies").exists(), "the command without them is not in the way"


def test_settings_of_all_variants_are_those_of_each(tmp_path: Path) -> None:
    finished_run(tmp_path)
    recorder = Recorder()
    common = {"rollouts.games": 9, "workers": 3}
    run_study(STUDIES["exploration"], tmp_path, recorder.work, common, "")
    configs = [read_config(run) for run in recorder.trained]
    assert [(c.rollouts.games, c.workers) for c in configs] == [(9, 3)] * len(configs)


def test_weights_along_stage_3_are_shared_with_the_policy_they_led_to(tmp_path: Path) -> None:
    finished_run(tmp_path / "run")
    theirs = Registry(tmp_path / "run" / "checkpoints")
    with theirs.write("online/1.10") as draft:
        (draft / "weights").write_bytes(b"")
    for name, setting, kept in (("same", {}, ["online/1.10"]), ("other", {"dpo.beta": 0.2}, [])):
        derive_run(tmp_path / "run", tmp_path / name, setting)
        assert Registry(tmp_path / name / "checkpoints").versions("online") == kept


def test_a_shared_checkpoint_is_the_same_files_and_outlives_its_source(tmp_path: Path) -> None:
    finished_run(tmp_path / "run")
    derive_run(tmp_path / "run", tmp_path / "variant", {})
    theirs, ours = (Registry(tmp_path / name / "checkpoints") for name in ("run", "variant"))
    mine = ours.open("prm/0") / "agentprm.json"
    assert mine.samefile(theirs.open("prm/0") / "agentprm.json")
    theirs.remove("prm/0")
    ours.open("prm/0")
    (theirs.path("policy/0") / "agentprm.json").unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        derive_run(tmp_path / "run", tmp_path / "another", {})


class Recorder:
    """Stands for the processes: leaves behind what they would, and notes what it was asked."""

    def __init__(self) -> None:
        self.trained: list[Path] = []
        self.measured: list[tuple[Path, list[str]]] = []

    @property
    def work(self) -> Work:
        return Work(self._train, self._measure, lambda _: None)

    def _train(self, run: Path, config: Config) -> None:
        self.trained.append(run)
        source = run.parents[3]
        rows = [
            summarise(read_episodes(source, stage), policy=policy, prm=prm, max_steps=30, seed=0)
            for policy, prm, stage in (
                ("pi_1", None, "eval-pi_1"),
                ("pi_1", "q_0", "eval-pi_1-q_0"),
            )
        ]
        write_results(run, rows)
        for stage in ("eval-pi_1", "eval-pi_1-q_0"):
            shutil.copy2(source / "records" / f"{stage}.jsonl", run / "records")
        registry = Registry(run / "checkpoints")
        if not registry.exists("policy/1"):
            registry.share("policy/1", Registry(source / "checkpoints"))
        for step in (10, 20):
            with registry.write(f"online/1.{step}") as draft:
                (draft / "weights").write_bytes(b"")
        with MetricsWriter(run) as metrics:
            for step, kl in ((0, 0.0), (10, 0.5), (20, 2.0), (30, 2.5)):
                metrics.log("pi_1", step, {"kl": kl, "process_reward": 0.5})

    def _measure(self, run: Path, config: Config, measurements: Sequence[Measurement]) -> None:
        self.measured.append((run, [m.policy for m in measurements]))
        episodes = read_episodes(run.parents[3], "eval-pi_1")
        found = {}
        for k, m in enumerate(measurements):
            played = episodes[0].provenance.model_copy(
                update={"choice": m.choice, "best_of": m.plan.best_of if m.choice != "prm" else 1}
            )
            won = [
                episode.model_copy(update={"won": k < 2, "provenance": played})
                for episode in episodes
            ]
            result = JobResult(job_id=m.name, worker="w", seconds=0, episodes=won)
            line = result.model_dump_json() + "\n"
            (run / "records" / f"{m.name}.jsonl").write_text(line)
            name = m.policy.replace("policy/", "pi_")
            row = summarise(won, policy=name, prm=None, max_steps=30, seed=0)
            reward = ProcessReward(states=8, mean=k / 10, error=0.01)
            found[m.name] = Measured(row=row, process_reward=reward)
        write_measured(run, found)


def lines(directory: Path) -> list[dict[str, str]]:
    with (directory / "data.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", ["curves", "tables"])
def test_what_a_run_has_is_drawn_without_any_work(tmp_path: Path, name: str) -> None:
    finished_run(tmp_path)
    recorder = Recorder()
    directory = run_study(STUDIES[name], tmp_path, recorder.work, {}, f"agentprm study {name}")
    assert recorder.trained == []
    written = {file.name for file in directory.iterdir()}
    assert written == {"data.csv", "figure.png", "figure.svg", "conditions.md"}
    text = (directory / "conditions.md").read_text()
    for condition in (
        "12 games of valid_seen within 30 turns",
        "temperature 0.5",
        "Seed 0",
        "Wilson",
        "torch",
        f"agentprm study {name}",
        "data 2.1.1",
    ):
        assert condition in text
    assert "| Best-of-8(pi_1, q_0) | 75 / 11.2 |" in text
    rows = [row for row in lines(directory) if row["task"] == "all"]
    assert [(r["name"], round(12 * float(r["success"]))) for r in rows] == [
        ("pi_0", 4), ("Best-of-8(pi_0, q_0)", 6), ("pi_1", 7), ("Best-of-8(pi_1, q_0)", 9)
    ]  # fmt: skip
    assert len(lines(directory)) == 4 * (1 + len(TASKS))


def test_hacking_measures_along_stage_3_and_says_where_the_two_part(tmp_path: Path) -> None:
    finished_run(tmp_path)
    recorder = Recorder()
    study = STUDIES["hacking"]
    directory = run_study(study, tmp_path, recorder.work, {"evaluation.games": 12}, "agentprm ...")
    names = [run.name for run in recorder.trained]
    assert names == ["few", "few-ensemble", "many"]
    configs = [read_config(run) for run in recorder.trained]
    assert [c.rollouts.games for c in configs] == [2, 2, 20]  # two: one is held out
    per_game = [c.preferences.per_game for c in configs]
    assert per_game == [10 * per_game[2], 10 * per_game[2], per_game[2]]  # as many states of D
    assert all(c.monitor is not None and c.monitor.games == 0 for c in configs)
    assert [c.prm.members for c in configs] == [1, 3, 1]
    assert all(c.evaluation.games == 12 and c.dpo.keep_every == 4 for c in configs)
    asked = [policies for _, policies in recorder.measured]
    assert asked == [["policy/0", "online/1.10", "online/1.20", "policy/1"]] * 3

    rows = [row for row in lines(directory) if row["variant"] == "few"]
    marks = [(row["step"], row["parted"], row["ended"], row["kept"]) for row in rows]
    assert marks == [
        ("0", "0", "0", "0"), ("10", "1", "0", "1"), ("20", "0", "0", "0"), ("30", "0", "1", "0")
    ]  # fmt: skip
    assert [row["kl"] for row in rows] == ["0.0", "0.5", "2.0", "2.5"]
    said = (directory / "conditions.md").read_text()
    assert "few: they part after step 10; by step 30 success fell from 100.0% to 0.0%, more" in said
    assert "the KL is 2.5 nats at step 30" in said
    assert "end stage 3 at step 30 and keep step 10, 100.0% in place of 0.0%" in said
    before = len(recorder.trained), len(recorder.measured)
    run_study(study, tmp_path, recorder.work, {"evaluation.games": 12}, "agentprm ...")
    assert (len(recorder.trained), len(recorder.measured)) == before


def test_hacking_looks_along_stage_3_also_where_the_preset_publishes_nothing() -> None:
    config = load_config("smoke", overrides={"dpo.publish_every": 100, "dpo.max_steps": 50})
    for variant in STUDIES["hacking"].variants(config):
        dpo = changed(config, variant.overrides).dpo
        assert (dpo.publish_every, dpo.keep_every) == (10, 10)


def test_hacking_follows_the_update_of_the_run_and_refuses_one_without_a_way() -> None:
    grpo = load_config("tiny", overrides={"update": "grpo"})
    for variant in STUDIES["hacking"].variants(grpo):
        settings = changed(grpo, variant.overrides)
        assert settings.dpo.keep_every == 0
        assert settings.grpo.keep_every == settings.grpo.publish_every < settings.grpo.max_steps
    with pytest.raises(StudyError, match="nothing along the way"):
        STUDIES["hacking"].variants(load_config("smoke", overrides={"update": "rejection"}))


def test_fewer_rollouts_are_fewer_of_all_kinds() -> None:
    config = load_config("tiny")
    few, _, many = (changed(config, v.overrides) for v in STUDIES["hacking"].variants(config))
    assert few.rollouts.vine is not None
    assert many.rollouts.vine is not None
    assert 16 * few.rollouts.games == many.rollouts.games
    assert few.rollouts.vine.states == many.rollouts.vine.states // 16
    states = [c.rollouts.games * c.preferences.per_game for c in (few, many)]
    assert states[0] == states[1]


def test_a_baseline_has_no_prm_and_is_trained_to_its_end_without(tmp_path: Path) -> None:
    finished_run(tmp_path)
    config = changed(read_config(tmp_path), {"algorithm": "sft"})
    (tmp_path / "config.json").write_text(config.model_dump_json())
    rows = [row for row in read_results(tmp_path) if row.prm is None]
    write_results(tmp_path, rows)
    directory = run_study(STUDIES["curves"], tmp_path, Recorder().work, {}, "agentprm ...")
    assert dict.fromkeys(row["policy"] for row in lines(directory)).keys() == {"pi_0", "pi_1"}


def test_controls_are_compared_with_agent_prm_game_by_game(tmp_path: Path) -> None:
    """The recorder wins all games by π_0 and none by π_1; by Q_0 the run won 6 and 9 of the 12."""
    finished_run(tmp_path)
    recorder = Recorder()
    directory = run_study(STUDIES["controls"], tmp_path, recorder.work, {}, "agentprm ...")
    assert [run.name for run in recorder.trained] == ["AgentPRM", "more-SFT", "won-rollouts"]
    ((run, policies),) = recorder.measured
    assert (run.name, policies) == ("AgentPRM", ["policy/0"] * 2 + ["policy/1"] * 2)
    measurements = STUDIES["controls"].measurements(run, read_config(run))
    assert [m.choice for m in measurements] == ["majority", "random"] * 2
    assert not any(m.steered or m.prm for m in measurements)

    rows = {row["name"]: row for row in lines(directory) if row["task"] == "all"}
    assert {row["p"] for name, row in rows.items() if name.startswith("AgentPRM")} == {""}
    found = {name: (row["gained"], row["lost"]) for name, row in rows.items()}
    assert found["won-rollouts: pi_1"] == ("0", "0")  # the recorder gives it our own episodes
    assert found["majority: Majority-of-4(pi_1)"] == ("0", "9")
    assert found["random: Random-of-4(pi_0)"] == ("6", "0")
    text = (directory / "conditions.md").read_text()
    assert "Against AgentPRM, by game" in text
    assert "- majority: Majority-of-4(pi_1): 0 gained, 9 lost, p = 0.0039" in text


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [(0, 0, 1.0), (1, 0, 1.0), (0, 5, 2 / 32), (1, 5, 14 / 64), (3, 3, 1.0)],
)
def test_the_exact_sign_test_by_hand(gained: int, lost: int, p: float) -> None:
    before = [False] * gained + [True] * lost + [True, False]
    after = [True] * gained + [False] * lost + [True, False]
    assert paired(before, after) == Paired(gained, lost)
    assert paired(before, after).p == pytest.approx(p)
    with pytest.raises(ValueError, match="shorter"):
        paired(before, after[:-1])


def test_the_sign_test_of_thousands_of_games() -> None:
    assert Paired(2000, 2000).p == 1
    assert 0 < Paired(1900, 2100).p < 0.01


def test_scaling_measures_the_run_without_training(tmp_path: Path) -> None:
    finished_run(tmp_path)
    recorder = Recorder()
    directory = run_study(STUDIES["scaling"], tmp_path, recorder.work, {}, "agentprm ...")
    assert recorder.trained == []
    ((run, policies),) = recorder.measured
    assert policies == ["policy/0"] * 6 + ["policy/1"] * 6
    measurements = STUDIES["scaling"].measurements(run, read_config(run))
    assert [m.plan.best_of for m in measurements[1:6]] == [2, 4, 8, 16, 32]
    assert not measurements[0].steered
    assert {m.plan.sampling.temperature for m in measurements} == {1.0}
    said = (directory / "conditions.md").read_text()
    assert "every N, 1 too: Best-of-N at temperature 1." in said


def test_a_legend_of_long_labels_stays_within_the_figure() -> None:
    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for variant in ("AgentPRM", "InversePRM"):
            for who in ("policy", "best of 16"):
                axes.plot([0, 1], [0, 1], label=f"{variant}, {who}")
        figures.legend_below(figure, axes)

    figure = figures.plot(draw)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    inside = legend.get_window_extent()
    assert figure.bbox.x0 <= inside.x0
    assert inside.x1 <= figure.bbox.x1
    assert len(legend.get_texts()) == 4


def test_an_unfinished_run_and_a_wrong_setting_are_refused(tmp_path: Path) -> None:
    finished_run(tmp_path)
    with pytest.raises(StudyError, match=r"variant few: evaluation\.games"):
        run_study(STUDIES["hacking"], tmp_path, Recorder().work, {"evaluation.games": 0}, "")
    (tmp_path / "results.json").unlink()
    with pytest.raises(StudyError, match="not trained to its end"):
        run_study(STUDIES["curves"], tmp_path, Recorder().work, {}, "")


@pytest.mark.parametrize(
    ("process", "success", "expected"),
    [
        ([0.1, 0.2, 0.3, 0.4], [0.2, 0.5, 0.4, 0.3], 1),
        ([0.1, 0.2, 0.3, 0.4], [0.2, 0.3, 0.4, 0.5], None),  # both rise
        ([0.1, 0.4, 0.3, 0.2], [0.2, 0.5, 0.4, 0.3], None),  # both fall
        ([0.1, 0.2, 0.3, 0.4], [0.2, 0.5, 0.4, 0.5], None),  # success comes back
        ([0.1, 0.2, 0.3, 0.4], [0.5, 0.4, 0.3, 0.2], 0),
        ([0.1], [0.2], None),
    ],
)
def test_where_process_reward_and_success_part(
    process: list[float], success: list[float], expected: int | None
) -> None:
    assert parting(process, success) == expected
