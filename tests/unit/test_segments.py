"""The attention over segments, where several heads share keys and values."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from agentprm.models import segments
from services.prm.packing import Row
from services.prm.segment import Segment, Store

HEADS, SHARED, SIZE = 6, 2, 8


def attended() -> torch.Tensor:
    """Of a new row, of one that goes on behind what is known, and of one with branches."""
    torch.manual_seed(0)
    known = Store()
    known.take(7)
    known.write(0, 0, torch.randn(SHARED, 7, SIZE), torch.randn(SHARED, 7, SIZE))
    rows = [Row([1] * 5, [4], 5), Row([1] * 11, [10], 11), Row([1] * 9, [6, 8], 4, (3, 2))]
    new = [
        Segment(0, Store(), rows[0], None),
        Segment(7, known, rows[1], None),
        Segment(0, Store(), rows[2], None),
    ]
    for segment in new:
        segment.store.take(len(segment.row))
    query, key, value = (
        torch.randn(1, heads, sum(map(len, new)), SIZE) for heads in (HEADS, SHARED, SHARED)
    )
    found, _ = segments.attend(SimpleNamespace(layer_idx=0), query, key, value, segments=new)
    return found


def test_shared_heads_are_repeated_where_a_mask_comes_with_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What CUDA is given; and that it is the same."""
    asked: list[tuple[bool, bool]] = []

    def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
        asked.append((kwargs["attn_mask"] is not None, kwargs["enable_gqa"]))
        return scaled_dot_product_attention(*args, **kwargs)

    monkeypatch.setattr(segments, "scaled_dot_product_attention", counted)
    on_cpu = attended()
    assert asked == [(False, True), (True, True), (True, True)]
    asked.clear()
    cuda, groups_heads = torch.device("cuda"), segments.groups_heads
    monkeypatch.setattr(segments, "groups_heads", lambda _, mask: groups_heads(cuda, mask))
    on_cuda = attended()
    assert asked == [(False, True), (True, False), (True, False)]
    torch.testing.assert_close(on_cuda, on_cpu, atol=1e-6, rtol=1e-6)
