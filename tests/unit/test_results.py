import io
from pathlib import Path

import pytest
from rich.console import Console

from agentprm.files import DamagedFile
from agentprm.protocol import (
    Action,
    ChoiceRule,
    Episode,
    Game,
    Provenance,
    Sampling,
    Split,
    Turn,
)
from agentprm.results import read_results, summarise, table, wilson, write_results
from agentprm.runs import checkpoint_name


def episode(k: int, task_type: str, turns: int, won: bool) -> Episode:
    turn = Turn(observation="o", action=Action(command="look"), policy_version="policy/0")
    last = turn.model_copy(update={"reward": float(won)})
    return Episode(
        id=f"eval-0000/{k}",
        job_id="eval-0000",
        game=Game(id=f"g{k}", split=Split.VALID_SEEN, task_type=task_type, task="t"),
        seed=k,
        turns=(turn,) * (turns - 1) + (last,),
        final_observation="end",
        won=won,
        provenance=Provenance(
            engine="textworld",
            package_version="0",
            data_version="0",
            template_hash="0",
            sampling=Sampling(temperature=0.5),
        ),
    )


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),  # published examples of the score interval
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0),
        (118, 134, 0.8149, 0.9251),
    ],
)
def test_wilson_interval(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson(successes, trials) == pytest.approx((low, high), abs=2e-4)


def test_summary_over_all_and_by_task() -> None:
    episodes = [
        episode(0, "pick_and_place_simple", 4, True),
        episode(1, "pick_and_place_simple", 30, False),
        episode(2, "look_at_obj_in_light", 8, True),
    ]
    row = summarise(episodes, policy="pi_1", prm=None, max_steps=30, seed=3)
    assert row.games == 3
    assert row.success == pytest.approx(2 / 3)
    assert row.actions == pytest.approx(14.0)
    # standard deviation of 4, 30, 8 is 14; 1.96 * 14 / sqrt(3)
    assert row.actions_error == pytest.approx(15.842, abs=1e-3)
    assert row.temperature == 0.5
    assert row.by_task["pick_and_place_simple"].success == 0.5
    assert row.by_task["pick_and_place_simple"].actions == 17.0
    assert row.by_task["look_at_obj_in_light"].games == 1


def test_results_round_trip(tmp_path: Path) -> None:
    row = summarise(
        [episode(0, "look_at_obj_in_light", 5, True)],
        policy="pi_0",
        prm="q_0",
        max_steps=30,
        seed=0,
    )
    write_results(tmp_path, [row])
    assert read_results(tmp_path) == [row]
    file = tmp_path / "results.json"
    whole = file.read_bytes()
    for damage in (whole[:100], b"[3]", b"3", whole.replace(b"pi_0", b"")[:-1]):
        file.write_bytes(damage)
        with pytest.raises(DamagedFile, match=rf"{file} cannot be read.*Delete it"):
            read_results(tmp_path)


@pytest.mark.parametrize(
    ("best_of", "choice", "prm", "name"),
    [
        (1, ChoiceRule.PRM, None, "pi_0"),
        (4, ChoiceRule.PRM, "q_0", "Best-of-4(pi_0, q_0)"),
        (4, ChoiceRule.MAJORITY, None, "Majority-of-4(pi_0)"),
        (4, ChoiceRule.RANDOM, None, "Random-of-4(pi_0)"),
    ],
)
def test_a_row_is_named_by_who_chose(
    best_of: int, choice: ChoiceRule, prm: str | None, name: str
) -> None:
    played = episode(0, "look_at_obj_in_light", 5, True)
    how = played.provenance.model_copy(update={"best_of": best_of, "choice": choice})
    played = played.model_copy(update={"provenance": how})
    row = summarise([played], policy="pi_0", prm=prm, max_steps=30, seed=0)
    assert list(table([row]).columns[0].cells) == [name]


def test_types_of_tasks_that_nobody_knows_divide_a_table_as_well() -> None:
    kinds = ["sort", "pick_two_obj_and_place", *(f"kind-{k}" for k in range(9))]
    episodes = [episode(k, kind, 4, k % 2 == 0) for k, kind in enumerate(kinds)]
    row = summarise(episodes, policy="pi_1", prm=None, max_steps=30, seed=3)
    names = [str(column.header) for column in table([row]).columns]
    assert names == ["policy", "success", "actions", "pick two", *(f"kind-{k}" for k in range(7))]
    few = summarise(episodes[:1], policy="pi_1", prm=None, max_steps=30, seed=3)
    assert [str(column.header) for column in table([few]).columns][3:] == ["sort"]


def test_names_are_printed_as_they_are_whatever_they_look_like() -> None:
    """A model's name and a type of tasks come from elsewhere; rich takes brackets for its own."""
    row = summarise(
        [episode(0, "[/b]x", 3, True), episode(1, "[math] sums", 3, False)],
        policy="ReAct(org/model[q4])",
        prm=None,
        max_steps=30,
        seed=0,
    )
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table([row]))
    printed = console.export_text()
    for name in ("ReAct(org/model[q4])", "[/b]x", "[math] sums"):
        assert name in printed


@pytest.mark.parametrize(
    ("directory", "name"),
    [
        ("runs/tiny/checkpoints/policy/3", "pi_3"),
        ("exported/prm/0", "q_0"),
        ("online/policy/1.16", "pi_1.16"),
        ("models/my-llama", "my-llama"),
        ("models/policy/7b-llama", "7b-llama"),
    ],
)
def test_a_row_names_a_checkpoint_by_its_directory(
    tmp_path: Path, directory: str, name: str
) -> None:
    assert checkpoint_name(tmp_path / directory) == name
