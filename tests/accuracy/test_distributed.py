from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from nas.accuracy.distributed import ALONE, Processes


@given(st.integers(1, 9), st.integers(0, 40))
def test_part__shares_cover_a_batch_once_and_differ_by_one(count: int, images: int) -> None:
    parts = [Processes(rank, count).part(images + count) for rank in range(count)]
    covered = [index for part in parts for index in range(images + count)[part]]
    assert covered == list(range(images + count))
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_alone__changes_nothing() -> None:
    layer = torch.nn.Linear(2, 2)
    layer(torch.ones(1, 2)).sum().backward()  # type: ignore[no-untyped-call]
    assert layer.weight.grad is not None
    before = layer.weight.grad.clone()
    ALONE.average_gradients(layer.parameters())
    assert torch.equal(layer.weight.grad, before)
    assert ALONE.first
    assert ALONE.part(5) == slice(0, 5)
    assert Processes.joined() == ALONE
