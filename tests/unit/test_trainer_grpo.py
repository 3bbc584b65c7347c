from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from agentprm.config import GRPOSettings
from agentprm.prompts import load_prompt
from agentprm.protocol import Action, Group
from services.trainer.fits.grpo import fit_grpo
from services.trainer.training.fitting import Metrics, load_tokenizer
from services.trainer.training.log_probs import plain_log_probs
from services.trainer.training.losses import clipped_policy_loss, squared_log_ratio
from services.trainer.training.rows import action_row
from services.trainer.training.saving import Save
from services.trainer.training.streaming import NoSamplesError
from tests.unit.trainer_episodes import (
    BAD,
    GOOD,
    STATES,
    Source,
    altered,
    create_small,
    group,
    log_prob,
)

PROMPT = load_prompt("chat")
WORST = Action(reason="look", command="help")
SCORED = [(GOOD, 0.9, 1), (BAD, 0.5, 2), (WORST, 0.1, 1)]


def groups(last: int | None = None) -> Source[Group]:
    """`SCORED` in all states."""
    return Source(lambda state, name: group(state, SCORED, name), last)


def test_the_advantage_is_q_less_the_mean_over_the_other_samples() -> None:
    given = group(STATES[0], [(GOOD, 0.8, 3), (BAD, 0.4, 1)])
    assert given.advantages == pytest.approx([0.8 - (2 * 0.8 + 0.4) / 3, 0.4 - 0.8])
    assert given.best.action == GOOD
    assert given.gap == pytest.approx(0.4)


def test_the_clipped_loss_by_hand() -> None:
    ratio = torch.tensor([[1.5, 0.5, 1.1], [1.5, 0.5, 1.1], [2.0, 9.0, 9.0]])
    mask = torch.tensor([[True] * 3, [True] * 3, [True, False, False]])
    advantages = torch.tensor([2.0, -1.0, 0.5])
    loss = clipped_policy_loss(ratio.log(), torch.zeros(3, 3), advantages, mask, 0.2)
    # Gains count up to 1.2, losses down to 0.8: min(1.5, 1.2) + min(0.5, 0.8) + 1.1 and
    # max(1.5, 1.2) + max(0.5, 0.8) + 1.1.
    expected = [-2 * (1.2 + 0.5 + 1.1), 1 * (1.5 + 0.8 + 1.1), -0.5 * 1.2]
    assert loss.tolist() == pytest.approx(expected)


def test_the_squared_log_ratio_by_hand() -> None:
    log_probs = torch.tensor([[-1.0, -2.0, -50.0]])
    reference = torch.tensor([[-1.5, -1.0, 0.0]])
    mask = torch.tensor([[True, True, False]])
    assert squared_log_ratio(log_probs, reference, mask).item() == pytest.approx((0.5 - 1) ** 2 / 2)


def test_the_expected_gradient_is_that_of_equation_3() -> None:
    """Over all draws of two actions of a softmax policy, against the exact objective."""
    q, beta = torch.tensor([0.9, 0.2, 0.4, 0.1]), 0.3
    reference = torch.tensor([0.1, 0.5, 0.2, 0.2]).log()
    theta = torch.tensor([0.3, -0.7, 1.1, 0.0], requires_grad=True)
    log_probs = theta.log_softmax(0)
    pi = log_probs.exp()
    objective = (pi * q).sum() - beta * (pi * (log_probs - reference)).sum()
    (exact,) = torch.autograd.grad(-objective, theta)

    log_probs = theta.log_softmax(0)
    mask = torch.ones(2, 1, dtype=torch.bool)
    loss = torch.zeros(())
    for draw in itertools.product(range(4), repeat=2):
        said, chance = log_probs[list(draw), None], pi[list(draw)].detach().prod()
        scored = [(Action(command=str(k)), float(q[k]), 1) for k in draw]
        advantages = torch.tensor(group(STATES[0], scored).advantages)
        gains = clipped_policy_loss(said, said.detach(), advantages, mask, 0.2)
        penalties = squared_log_ratio(said, reference[list(draw), None], mask)
        loss = loss + chance * (gains + beta * penalties).mean()
    (found,) = torch.autograd.grad(loss, theta)
    torch.testing.assert_close(found, exact)


def test_two_steps_on_one_batch_are_those_made_by_hand(tmp_path: Path) -> None:
    """Loss and gradient of a mean over samples, where batches of a step have different sizes.

    The reference is another policy than the one that is fitted.
    """
    small = create_small(tmp_path)
    other = altered(small, tmp_path / "other")
    groups = [group(STATES[0], SCORED), group(STATES[5], SCORED[:2])]
    settings = GRPOSettings(
        learning_rate=1e-9,  # the second step is at the same weights but for rounding
        max_steps=2,
        batch_groups=2,
        accumulation=2,
        reuse=2,
        beta=0.7,
        clip=0.05,
        precision="fp32",
        log_every=1,
    )
    lines: list[Metrics] = []
    fit_grpo(small, other, groups, tmp_path / "out", settings, PROMPT, seed=0, log=lines.append)

    tokenizer = load_tokenizer(small)
    policy, reference = (
        AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        for directory in (small, other)
    )
    total, log_ratios, samples = torch.tensor(0.0), 0.0, 0
    for given in groups:
        drawn = sum(c.count for c in given.candidates)
        mean = sum(c.count * (c.q or 0) for c in given.candidates) / drawn
        for candidate in given.candidates:
            ids, (start, end) = action_row(tokenizer, PROMPT, given.state, candidate.action)
            row = torch.tensor([ids])
            log_probs, before = (
                plain_log_probs(model, row, torch.ones_like(row), row >= 0)[0, start - 1 : end - 1]
                for model in (policy, reference)
            )
            advantage = ((candidate.q or 0) - mean) * drawn / (drawn - 1)  # over the others
            gain = advantage * (log_probs - log_probs.detach()).exp().sum()
            log_ratio = (log_probs - before.detach()).sum()
            total = total + candidate.count * (0.7 * log_ratio**2 / 2 - gain)
            log_ratios += candidate.count * log_ratio.item()
            samples += candidate.count
    torch.autograd.backward(total / samples)
    norm = math.sqrt(sum(p.grad.square().sum().item() for p in policy.parameters()))
    assert abs(log_ratios / samples) > 0.1
    for line in lines:
        assert line["loss"] == pytest.approx(total.item() / samples, rel=1e-4)
        assert line["grad_norm"] == pytest.approx(norm, rel=1e-3)
        assert line["q"] == pytest.approx((0.9 + 2 * 0.5 + 0.1 + 0.9 + 2 * 0.5) / 7)
        assert line["log_ratio"] == pytest.approx(log_ratios / samples, rel=1e-4)
        assert line["clipped"] == 0


@pytest.mark.parametrize("accumulation", [1, 2])
def test_it_learns_what_the_prm_prefers_and_reads_no_group_before_it_is_due(
    tmp_path: Path, accumulation: int
) -> None:
    small = create_small(tmp_path)
    source, published, lines = groups(), list[tuple[int, int, Path]](), list[Metrics]()

    def publish(save: Save, step: int) -> None:
        directory = tmp_path / str(step)
        save(directory)
        published.append((step, source.taken, directory))

    settings = GRPOSettings(
        learning_rate=4e-3,
        max_steps=8,
        batch_groups=4,
        accumulation=accumulation,
        reuse=2,
        publish_every=4,
        log_every=1,
    )
    metrics = fit_grpo(
        small, small, source, tmp_path / "out", settings, PROMPT, publish, seed=0, log=lines.append
    )
    assert metrics["steps"] == 8
    assert metrics["groups"] == source.taken == 16
    assert [(step, taken) for step, taken, _ in published] == [(4, 8), (8, 16)]
    made = [small, published[0][2], tmp_path / "out"]
    for better, worse in ((GOOD, BAD), (BAD, WORST)):
        margins = [
            log_prob(directory, PROMPT, STATES[2], better)
            - log_prob(directory, PROMPT, STATES[2], worse)
            for directory in made
        ]
        assert margins == sorted(margins)
    good = [log_prob(directory, PROMPT, STATES[2], GOOD) for directory in made]
    assert good[-1] > good[0] + 0.1
    assert any(line["clipped"] > 0 for line in lines[1::2]), "the second step on a batch is off it"
    assert all(line["clipped"] == 0 for line in lines[::2]), "the first step is at π_old"


def test_beta_holds_the_policy_back(tmp_path: Path) -> None:
    small = create_small(tmp_path)
    moved = {}
    for beta in (0.0, 1.0):
        settings = GRPOSettings(learning_rate=2e-3, max_steps=8, batch_groups=4, beta=beta)
        out = tmp_path / str(beta)
        fit_grpo(small, small, groups(), out, settings, PROMPT, seed=0)
        before, after = (log_prob(d, PROMPT, STATES[1], GOOD) for d in (small, out))
        moved[beta] = after - before
    assert 0 < moved[1.0] < moved[0.0]


def test_without_a_group_that_fits_there_is_nothing_to_train_on(tmp_path: Path) -> None:
    """One of its actions may be what makes it too long, if only by a token."""
    small, given = create_small(tmp_path), [group(STATES[0], SCORED)]
    ids, _ = action_row(load_tokenizer(small), PROMPT, STATES[0], GOOD)
    settings = GRPOSettings(max_tokens=len(ids) - 1)
    with pytest.raises(NoSamplesError, match="none was short enough"):
        fit_grpo(small, small, given, tmp_path / "o", settings, PROMPT, seed=0)
