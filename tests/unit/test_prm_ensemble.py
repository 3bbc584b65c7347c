"""Ensembles: the mean and spread by hand, and what may be put together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer
from typer.testing import CliRunner

from agentprm.cli import app
from agentprm.ensembles import ENSEMBLE, read_members, write_ensemble
from agentprm.facts import METADATA
from agentprm.prompts import load_prompt
from agentprm.protocol import ScoreResponse
from agentprm.registry import CheckpointError, Registry
from services.prm.ensemble import Ensemble, combine, load_ensemble
from services.prm.scorer import Scorer
from tests.scorers import tiny_scorer

CHAT = load_prompt("chat")


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """prm/0 and prm/1 go together; prm/2 has other words, prm/3 was fitted with `state`."""
    registry = Registry(tmp_path / "checkpoints")
    for k in range(4):
        with registry.write(f"prm/{k}") as draft:
            tiny_scorer(draft, seed=k, vocabulary=400)
            if k == 2:
                tokenizer = AutoTokenizer.from_pretrained(draft)
                tokenizer.add_tokens(["extra"])
                tokenizer.save_pretrained(draft)
            prompt = load_prompt("state" if k == 3 else "chat")
            (draft / METADATA).write_text(json.dumps({"template_hash": prompt.hash}))
    return registry


def load(registry: Registry, version: str) -> Ensemble:
    def build(path: Path) -> Scorer:
        return Scorer(path, CHAT, device="cpu")

    return load_ensemble(registry, registry.open(version), CHAT, build)


def test_mean_and_spread_by_hand() -> None:
    answers = [
        ScoreResponse(
            conversations=[[a, 0.5], [0.25]],
            choices=[[0.1, b]],
            pairs=[a],
            prm_version=f"prm/{k}",
            template_hash="t",
        )
        for k, (a, b) in enumerate([(0.2, 0.3), (0.4, 0.3), (0.9, 0.6)])
    ]
    together = combine("prm/9", answers)
    assert together.prm_version == "prm/9"
    assert together.conversations == [[pytest.approx(0.5), 0.5], [0.25]]
    assert together.choices == [[pytest.approx(0.1), pytest.approx(0.4)]]
    assert not together.transcripts
    assert not together.texts
    assert not together.continuations
    assert together.spread is not None
    # 0.2, 0.4, 0.9 differ from 0.5 by -0.3, -0.1, 0.4: sqrt(0.26 / 2)
    assert together.spread.pairs == [pytest.approx(0.13**0.5)]
    assert together.spread.conversations == [[pytest.approx(0.13**0.5), 0], [0]]
    # 0.3, 0.3, 0.6 differ from 0.4 by -0.1, -0.1, 0.2: sqrt(0.06 / 2)
    assert together.spread.choices == [[pytest.approx(0, abs=1e-9), pytest.approx(0.03**0.5)]]


def test_a_checkpoint_alone_is_its_only_member(registry: Registry) -> None:
    [member] = load(registry, "prm/1").members
    assert member.version == "prm/1"


def test_members_are_loaded_in_their_order(registry: Registry) -> None:
    write_ensemble(registry, "prm/7", ["prm/1", "prm/0"])
    ensemble = load(registry, "prm/7")
    ensemble.check()
    assert [member.version for member in ensemble.members] == ["prm/1", "prm/0"]
    card = ensemble.card("prm/7")
    assert [checkpoint.version for checkpoint in card.checkpoints] == ["prm/1", "prm/0"]


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        (["prm/0", "prm/2"], "prm/2 has another tokenizer"),
        (["prm/0", "prm/3"], r"prm/3 was fitted with .* --prompt state"),
    ],
)
def test_members_that_read_otherwise_are_refused(
    registry: Registry, members: list[str], reason: str
) -> None:
    write_ensemble(registry, "prm/7", members)
    with pytest.raises(CheckpointError, match=reason):
        load(registry, "prm/7")


def test_a_damaged_member_refuses_the_whole(registry: Registry) -> None:
    write_ensemble(registry, "prm/7", ["prm/0", "prm/1"])
    (registry.path("prm/1") / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"prm/1/config\.json differs"):
        load(registry, "prm/7")


@pytest.mark.parametrize(
    ("version", "members", "reason"),
    [
        ("prm/7", ["prm/0"], "2 to 16 members"),
        ("prm/7", ["prm/0", "prm/0"], "all different"),
        ("prm/7", ["prm/0", "prm/8"], "no checkpoint prm/8"),
        ("prm/7", ["prm/0", "policy/0"], "not the version of a PRM"),
        ("prm/7", ["prm/0", "prm/../../x"], "not a checkpoint version"),
        ("policy/7", ["prm/0", "prm/1"], "not the version of a PRM"),
        ("prm/1", ["prm/0", "prm/1"], "exists already"),
        ("prm/7", ["prm/0", "prm/6"], "prm/6 is an ensemble"),
    ],
)
def test_what_is_no_ensemble_is_not_written(
    registry: Registry, version: str, members: list[str], reason: str
) -> None:
    write_ensemble(registry, "prm/6", ["prm/0", "prm/1"])
    before = registry.versions("prm")
    with pytest.raises(CheckpointError, match=reason):
        write_ensemble(registry, version, members)
    assert registry.versions("prm") == before


def test_a_damaged_list_of_members_is_named(tmp_path: Path) -> None:
    (tmp_path / ENSEMBLE).write_text('{"members": "prm/0"}')
    with pytest.raises(CheckpointError, match=r"ensemble\.json is damaged"):
        read_members(tmp_path)


def test_the_command_writes_one(registry: Registry) -> None:
    arguments = ["ensemble", "prm/7", "prm/0", "prm/1", "--run", str(registry.root.parent)]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert read_members(registry.open("prm/7")) == ["prm/0", "prm/1"]
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 1
    assert "exists already" in again.output
