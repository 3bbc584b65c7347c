from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from services.trainer.training.calibration import (
    Scored,
    area_under_curve,
    calibration,
    expected_calibration_error,
    reliability,
)
from services.trainer.training.log_probs import fused_log_probs, plain_log_probs
from services.trainer.training.losses import soft_bce, weighted_nll
from tests.unit.trainer_episodes import create_small


def test_soft_bce_by_hand() -> None:
    # sigma(0) = 1/2 whatever the target; sigma(ln 3) = 3/4 against 0.2
    logits = torch.tensor([[0.0, math.log(3)]])
    expected = math.log(2) - 0.2 * math.log(0.75) - 0.8 * math.log(0.25)
    loss = soft_bce(logits, torch.tensor([[0.9, 0.2]]), torch.ones(1, 2, dtype=torch.bool))
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_the_gradient_of_soft_bce_is_q_minus_target_and_0_where_masked() -> None:
    logits = torch.tensor([[0.3, -1.2, 5.0]], requires_grad=True)
    targets = torch.tensor([[0.95, 0.0, 0.5]])
    mask = torch.tensor([[True, True, False]])
    torch.autograd.backward(soft_bce(logits, targets, mask))
    expected = (torch.sigmoid(logits.detach()) - targets) * mask
    torch.testing.assert_close(logits.grad, expected)


def test_masked_entries_may_hold_anything() -> None:
    logits = torch.tensor([[0.0, float("inf")]])
    mask = torch.tensor([[True, False]])
    assert soft_bce(logits, torch.tensor([[1.0, 0.0]]), mask).item() == pytest.approx(math.log(2))
    assert soft_bce(logits, torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.bool)).item() == 0


def test_weighted_nll_by_hand() -> None:
    log_probs = torch.tensor([[-1.0, -2.0, -4.0]])
    weights = torch.tensor([[1.0, 0.5, 0.0]])
    assert weighted_nll(log_probs, weights).item() == pytest.approx(1 + 1)


def test_area_under_curve_by_hand() -> None:
    # of six pairs 0.5 > 0.1, 0.5 = 0.5, 0.9 beats all three, 0.5 < 0.7
    area = area_under_curve(torch.tensor([0.5, 0.9]), torch.tensor([0.1, 0.5, 0.7]))
    assert area == pytest.approx((1 + 0.5 + 0 + 3) / 6)


def test_expected_calibration_error_by_hand() -> None:
    q = torch.tensor([0.11, 0.19, 0.95, 1.0])  # two bins of two
    target = torch.tensor([0.0, 0.2, 1.0, 0.5])
    gap = (abs(0.30 - 0.2) + abs(1.95 - 1.5)) / 4
    assert expected_calibration_error(q, target) == pytest.approx(gap, abs=1e-6)


def test_the_reliability_table_by_hand() -> None:
    q = [0.95, 0.25, 1.0, 0.21, 0.299, 0.0]
    table = reliability(Scored(q, [1.0, 0.1, 0.8, 0.0, 0.2, 0.3], [1, 0, 1, 0, 1, 0]))
    assert [(b.low, b.high, b.turns) for b in table] == [(0, 0.1, 1), (0.2, 0.3, 3), (0.9, 1, 2)]
    assert [b.mean_q for b in table] == pytest.approx([0, 0.253, 0.975], abs=1e-9)
    assert [b.mean_target for b in table] == pytest.approx([0.3, 0.1, 0.9], abs=1e-9)
    assert [b.won for b in table] == pytest.approx([0, 1 / 3, 1], abs=1e-9)


def test_a_perfect_model_explains_everything() -> None:
    targets = [0.2, 0.9, 0.5]
    measures = calibration(Scored(targets, targets, [0, 1, 1]))
    assert measures["explained_variance"] == pytest.approx(1)
    assert measures["bce"] == pytest.approx(measures["entropy"])
    assert measures["ece"] == pytest.approx(0, abs=1e-6)
    assert measures["auc"] == 1


def test_what_the_data_does_not_define_is_left_out() -> None:
    measures = calibration(Scored([0.2, 0.3], [1.0, 1.0], [1, 1]))
    assert "auc" not in measures
    assert "explained_variance" not in measures


def test_the_fused_head_gives_the_same_log_probabilities_and_gradients(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(create_small(tmp_path), dtype=torch.float32)
    add_fused_lm_head(model)
    ids = torch.randint(5, 300, (3, 20), generator=torch.Generator().manual_seed(0))
    attention = torch.ones_like(ids)
    attention[1, 15:] = 0
    wanted = attention.bool() & (ids % 3 > 0)
    found = []
    for log_probs in (plain_log_probs, fused_log_probs):
        model.zero_grad()
        values = log_probs(model, ids, attention, wanted)
        torch.autograd.backward(values.sum())
        found.append((values.detach(), model.get_input_embeddings().weight.grad.clone()))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
    assert found[0][0].shape == (3, 19)
    assert (found[0][0][~wanted[:, 1:]] == 0).all()
