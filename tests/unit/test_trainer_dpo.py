from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentprm.config import DPOSettings
from agentprm.prompts import load_prompt
from agentprm.protocol import Action, Preference
from services.trainer.dpo import fit_dpo
from services.trainer.fitting import Metrics, Save
from services.trainer.streaming import NoSamplesError
from tests.unit.trainer_episodes import create_small, episode, log_prob

PROMPT = load_prompt("chat")
STATES = [episode(["look"] * 6, [0] * 6).state(t) for t in range(6)]
GOOD = Action(reason="find mug", command="go to cabinet 1")
BAD = Action(reason="find mug", command="go to fridge 1")


class Source:
    """Preferences without end, or up to `last`, that knows how many were taken."""

    def __init__(self, last: int | None = None) -> None:
        self.taken = 0
        self.last = last

    def __iter__(self) -> Iterator[Preference]:
        while self.taken != self.last:
            self.taken += 1
            yield Preference(
                id=str(self.taken),
                job_id="job",
                attempt="0",
                state=STATES[self.taken % len(STATES)],
                chosen=GOOD,
                rejected=BAD,
                chosen_q=0.9,
                rejected_q=0.1,
                policy_version="policy/0",
                prm_version="prm/0",
                template_hash=PROMPT.hash,
            )


def margin(directory: Path) -> float:
    """log π(good) − log π(bad) in the third state."""
    good, bad = (log_prob(directory, PROMPT, STATES[2], action) for action in (GOOD, BAD))
    return good - bad


@pytest.mark.parametrize("accumulation", [1, 2])
def test_it_learns_what_is_preferred_and_reads_no_preference_before_it_is_due(
    tmp_path: Path,
    accumulation: int,
) -> None:
    small = create_small(tmp_path)
    source, published, lines = Source(), list[tuple[int, int, Path]](), list[Metrics]()

    def publish(save: Save, step: int) -> None:
        directory = tmp_path / str(step)
        save(directory)
        published.append((step, source.taken, directory))

    settings = DPOSettings(
        learning_rate=1e-3,
        max_steps=12,
        batch_pairs=4,
        accumulation=accumulation,
        publish_every=5,
        log_every=1,
    )
    metrics = fit_dpo(
        small, small, source, tmp_path / "out", settings, PROMPT, publish, log=lines.append
    )
    assert metrics["steps"] == 12
    assert metrics["preferences"] == source.taken == 48
    assert [(step, taken) for step, taken, _ in published] == [(5, 20), (10, 40)]
    assert lines[-1]["rewards/accuracies"] == 1
    margins = [margin(d) for d in (small, published[0][2], published[1][2], tmp_path / "out")]
    assert margins == sorted(margins)
    assert margins[-1] > margins[0] + 1


def test_of_a_tie_only_the_likelihood_counts(tmp_path: Path) -> None:
    small = create_small(tmp_path)
    ties = [tie.model_copy(update={"rejected": GOOD}) for tie in Source(last=12)]
    losses = list[Metrics]()
    settings = DPOSettings(max_steps=3, batch_pairs=4, chosen_weight=0.0, log_every=1)
    fit_dpo(small, small, ties, tmp_path / "flat", settings, PROMPT, log=losses.append)
    assert [line["loss"] for line in losses] == pytest.approx([math.log(2)] * 3, abs=1e-4)
    settings = DPOSettings(learning_rate=1e-3, max_steps=3, batch_pairs=4, chosen_weight=1.0)
    fit_dpo(small, small, ties, tmp_path / "out", settings, PROMPT)
    assert margin(tmp_path / "out") > margin(small) + 0.01


def test_it_ends_with_the_preferences(tmp_path: Path) -> None:
    small = create_small(tmp_path)
    settings = DPOSettings(max_steps=100, batch_pairs=4, checkpointing=True)
    metrics = fit_dpo(small, small, Source(last=10), tmp_path / "out", settings, PROMPT)
    assert metrics["steps"] == 3  # of 4, 4 and 2
    assert metrics["preferences"] == 10
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_without_a_preference_that_fits_there_is_nothing_to_train_on(
    tmp_path: Path,
) -> None:
    small = create_small(tmp_path)
    settings = DPOSettings(max_tokens=16)
    with pytest.raises(NoSamplesError, match="none was short enough"):
        fit_dpo(small, small, Source(last=3), tmp_path / "out", settings, PROMPT)
