from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from services.trainer.training.batches import TokenBatches, by_length, padded


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=80),
    budget=st.integers(60, 300),
    seed=st.integers(0, 3),
)
def test_batches_stay_within_the_budget_and_cover_each_row_once_an_epoch(
    lengths: list[int], budget: int, seed: int
) -> None:
    batches = list(TokenBatches([lengths], budget, epochs=2, seed=seed))
    assert all(len(b) * max(lengths[i] for i in b) <= budget for b in batches)
    assert sorted(i for b in batches for i in b) == sorted(2 * list(range(len(lengths))))


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=20), epochs=st.integers(1, 5))
def test_an_epoch_takes_the_next_pass_and_behind_the_last_the_first(
    lengths: list[int], epochs: int
) -> None:
    other = [*lengths, 7]  # a pass may have more rows than another
    batches = TokenBatches([lengths, other], 60, epochs=epochs, seed=0)
    taken = [i for batch in batches for i in batch]
    both = [list(range(len(lengths))), [len(lengths) + i for i in range(len(other))]]
    for epoch in range(epochs):
        rows = both[epoch % 2]
        assert sorted(taken[: len(rows)]) == rows
        taken = taken[len(rows) :]
    assert taken == []
    assert batches.tokens == sum(sum((lengths, other)[epoch % 2]) for epoch in range(epochs))
    once = list(TokenBatches([lengths], 60, epochs=1, seed=0))
    assert list(batches)[: len(once)] == once


def test_a_row_over_the_budget_is_a_batch_of_its_own() -> None:
    assert sorted(TokenBatches([[5, 100, 5]], budget=10, epochs=1, seed=0)) == [[0, 2], [1]]


def test_no_small_remainder_is_left() -> None:
    batches = TokenBatches([[50] * 12], budget=600 - 50, epochs=1, seed=0)
    assert [len(batch) for batch in batches] == [6, 6]


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=40),
    accumulation=st.integers(1, 5),
    world=st.integers(1, 4),
)
def test_a_step_is_the_same_rows_however_many_processes_share_it(
    lengths: list[int], accumulation: int, world: int
) -> None:
    batches = TokenBatches([lengths], budget=100, epochs=2, seed=0)
    whole = list(batches)
    shares = [batches.share(accumulation, world, rank) for rank in range(world)]
    passes = math.ceil(accumulation / world)
    assert len({len(share) for share in shares}) == 1
    for step in range(math.ceil(len(whole) / accumulation)):
        of_step = whole[step * accumulation : (step + 1) * accumulation]
        shared = [share[step * passes : (step + 1) * passes] for share in shares]
        assert all(1 <= len(parts) <= passes for parts in shared)
        rows = sorted(i for parts in shared for part in parts for i in part)
        assert rows == sorted(i for batch in of_step for i in batch)


def test_whole_batches_stay_whole_and_a_single_one_is_cut() -> None:
    batches = TokenBatches([[10] * 4], budget=20, epochs=1, seed=0)
    first, second = batches
    assert batches.share(2, 2, 0) == [first]
    assert batches.share(2, 2, 1) == [second]
    assert batches.share(1, 2, 0) == [first[:1], second[:1]]
    assert [batches.share(1, 4, rank)[0] for rank in range(4)] == [first[:1], [], [], first[1:]]


def test_little_is_padding() -> None:
    lengths = torch.randint(50, 800, (500,), generator=torch.Generator().manual_seed(0)).tolist()
    batches = TokenBatches([lengths], budget=3500, epochs=1, seed=0)
    computed = sum(len(b) * max(lengths[i] for i in b) for b in batches)
    assert sum(lengths) / computed > 0.9


def test_by_length_takes_every_row_once_within_the_budget() -> None:
    assert by_length([3, 9, 1, 3, 30], 9) == [[2, 0, 3], [1], [4]]
    assert by_length([], 9) == []


def test_rows_are_filled_up_on_the_right() -> None:
    assert padded([[1, 2, 3], [4], []], 7).tolist() == [[1, 2, 3], [4, 7, 7], [7, 7, 7]]
    assert padded([[], []], dtype=torch.float).shape == (2, 0)
