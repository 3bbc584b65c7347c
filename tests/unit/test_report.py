"""What the report tells. How it looks is seen in a browser, by `test_report_page.py`."""

from __future__ import annotations

from pathlib import Path

import orjson

from agentprm.facts import METADATA
from agentprm.registry import Registry
from agentprm.report import render_report
from agentprm.runs import read_episodes
from agentprm.studies import STUDIES, run_study
from tests.finished_run import finished_run
from tests.unit.test_studies import Recorder


def test_candidates_stand_with_their_q_and_studies_with_their_conditions(tmp_path: Path) -> None:
    finished_run(tmp_path)
    run_study(STUDIES["scaling"], tmp_path, Recorder().work, {}, "agentprm study scaling")
    run_study(STUDIES["controls"], tmp_path, Recorder().work, {}, "agentprm study <controls>")
    page = render_report(tmp_path)
    assert page.count('class="candidates"') > 4
    shown = [
        f'<span class="q">{candidate.q:.3g}</span>'
        for episode in read_episodes(tmp_path, "eval-pi_1-q_0")
        for turn in episode.turns
        for candidate in turn.considered
    ]
    assert sum(q in page for q in set(shown)) > 10
    assert "Test-time scaling" in page
    assert "<td>won-rollouts: pi_1</td>" in page
    assert "&lt;controls&gt;" in page
    assert "<pre><code>agentprm study scaling" in page


def test_a_study_that_was_interrupted_as_it_was_written_is_not_shown(tmp_path: Path) -> None:
    finished_run(tmp_path)
    home = run_study(STUDIES["scaling"], tmp_path, Recorder().work, {}, "agentprm study scaling")
    (home / "conditions.md").unlink()
    (home / "figure.svg").write_text("")
    assert "Test-time scaling" not in render_report(tmp_path)


def test_a_policy_that_stayed_as_it_was_has_no_fit(tmp_path: Path) -> None:
    finished_run(tmp_path)
    registry = Registry(tmp_path / "checkpoints")
    facts = orjson.dumps({"kind": "dpo", "metrics": {"loss": 0.123}})
    for version in ("policy/7", "policy/8"):  # the second for want of preferences
        with registry.write(version) as draft:
            (draft / METADATA).write_bytes(facts)
    page = render_report(tmp_path)
    assert page.count("0.123") == 1
    assert page.count("as the one before") == 1


def test_fits_of_every_kind_tell_what_they_were_made_of(tmp_path: Path) -> None:
    finished_run(tmp_path)
    metrics = {
        "prm/1": {"pairs": 19.0, "discarded_pairs": 3117.0, "val_pair_accuracy": 0.75},
        "prm/2": {"expert_transitions": 8730.0, "learner_transitions": 8895.0, "val_q_expert": 0.6},
    }
    registry = Registry(tmp_path / "checkpoints")
    for version, measured in metrics.items():
        with registry.write(version) as draft:
            facts = {"kind": "prm", "metrics": measured}
            (draft / METADATA).write_bytes(orjson.dumps(facts))
    page = render_report(tmp_path)
    for words in ("pairs below the margin", "3,117", "8,730", "held-out Q of the expert"):
        assert words in page
