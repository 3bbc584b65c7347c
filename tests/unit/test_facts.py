from __future__ import annotations

from pathlib import Path

import pytest

from agentprm.facts import METADATA, read_facts, read_fit, require_template
from agentprm.prompts import load_prompt
from agentprm.protocol import PRMFacts
from agentprm.registry import CheckpointError


def test_a_checkpoint_without_facts_is_taken(tmp_path: Path) -> None:
    facts = read_facts(tmp_path)
    assert facts == PRMFacts()
    require_template(facts, load_prompt("chat"), "prm/0")


def test_another_template_is_refused_by_the_flag_that_mends_it(tmp_path: Path) -> None:
    own = tmp_path / "own.j2"
    own.write_text("{{ observation }}")
    chat, state, other = load_prompt("chat"), load_prompt("state"), load_prompt(str(own))
    require_template(PRMFacts(template_hash=other.hash), other, "prm/0")
    with pytest.raises(CheckpointError, match=r"prm/0 was .* start it with --prompt chat$"):
        require_template(PRMFacts(template_hash=chat.hash), state, "prm/0")
    with pytest.raises(CheckpointError, match=rf"template {other.hash}.* --prompt FILE"):
        require_template(PRMFacts(template_hash=other.hash), chat, "prm/0")


@pytest.mark.parametrize("content", ["{", "[]", '{"calibration": {"ece": "low"}}'])
def test_damaged_facts_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / METADATA).write_text(content)
    with pytest.raises(CheckpointError, match=r"agentprm\.json is damaged"):
        read_facts(tmp_path)


def test_what_a_fit_has_to_say_is_there_or_the_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no agentprm\.json"):
        read_fit(tmp_path)
    for content in ("{", "[]", "{}", '{"kind": "sft"}'):
        (tmp_path / METADATA).write_text(content)
        with pytest.raises(CheckpointError, match=r"agentprm\.json is damaged"):
            read_fit(tmp_path, "kind", "metrics")
    (tmp_path / METADATA).write_text('{"kind": "sft", "metrics": {}, "more": 1}')
    assert read_fit(tmp_path, "kind", "metrics") == {"kind": "sft", "metrics": {}, "more": 1}
