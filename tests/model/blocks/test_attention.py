from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from nas.errors import ArchitectureError
from nas.model.blocks.attention import GlobalAttention


def _block(tokens: int | None) -> GlobalAttention:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        block = GlobalAttention(6, tokens, (4, 5))
        with torch.no_grad():
            block.gate.factor.fill_(0.7)
            block.norm.weight.uniform_(0.5, 1.5)
            block.norm.bias.uniform_(-0.5, 0.5)
    return block


def _normalised(block: GlobalAttention, x: Tensor) -> Tensor:
    scaled = (x - x.mean()) / (x.var(correction=0) + block.norm.eps).sqrt()
    return scaled * block.norm.weight + block.norm.bias


def _reference(block: GlobalAttention, image: Tensor, tokens: int) -> Tensor:
    """The definition, one position at a time; image (C, H, W)."""
    w_q, w_k, w_v, w_o = (
        conv.weight[:, :, 0, 0] for conv in (block.query, block.key, block.value, block.output)
    )
    positions = image.flatten(1).T
    energies = [float((position**2).sum()) for position in positions]
    chosen = sorted(range(len(energies)), key=lambda i: -energies[i])[:tokens]
    mixed = [w_v @ position for position in positions]
    for i in chosen:
        query = _normalised(block, w_q @ positions[i])
        keys = [_normalised(block, w_k @ positions[j]) for j in chosen]
        logits = torch.stack([query @ key for key in keys]) / image.shape[0] ** 0.5
        weights = logits.exp() / logits.exp().sum()
        mixed[i] = sum(w * (w_v @ positions[j]) for w, j in zip(weights, chosen, strict=True))
    rows = [p + block.gate.factor * (w_o @ m) for p, m in zip(positions, mixed, strict=True)]
    return torch.stack(rows, 1).reshape(image.shape)


@pytest.mark.parametrize("tokens", [1, 7, 20, None])
def test_attention__equals_the_definition(tokens: int | None) -> None:
    block = _block(tokens)
    x = torch.randn(3, 6, 4, 5, generator=torch.Generator().manual_seed(1))
    expected = torch.stack([_reference(block, image, tokens or 20) for image in x])
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)


def test_attention__dense_is_sparse_with_every_token() -> None:
    dense, sparse = _block(None), _block(20)
    sparse.load_state_dict(dense.state_dict())
    x = torch.randn(2, 6, 4, 5)
    torch.testing.assert_close(dense(x), sparse(x))


def test_attention__starts_as_the_identity_and_can_leave_it() -> None:
    block = GlobalAttention(6, 5, (4, 5))
    x = torch.randn(2, 6, 4, 5)
    assert torch.equal(block(x), x)
    (block(x) * torch.randn_like(x)).sum().backward()
    assert block.gate.factor.grad is not None
    assert block.gate.factor.grad != 0


def test_attention__selection_survives_large_half_precision_values() -> None:
    block = _block(3).to(torch.float16)
    x = torch.rand(1, 6, 4, 5).half()
    x[0, :, 2, 3] = 3000.0  # its square is no float16
    index = block._select(x, 3)
    assert 2 * 5 + 3 in index[0, 0].tolist()


@pytest.mark.parametrize("tokens", [None, 9])
def test_attention__autocast_stays_finite_and_close(tokens: int | None) -> None:
    block = _block(tokens)
    x = 30 * torch.randn(2, 6, 4, 5, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        low = block(x)
    assert low.isfinite().all()
    torch.testing.assert_close(low.float(), block(x), rtol=0.1, atol=2.0)


def test_attention__every_weight_learns() -> None:
    block = _block(9)
    block(torch.randn(2, 6, 4, 5)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in block.parameters())


def test_attention__copies_are_independent() -> None:
    block = _block(4)
    twin = copy.deepcopy(block)
    with torch.no_grad():
        twin.gate.factor.zero_()
    assert float(block.gate.factor.detach()) == pytest.approx(0.7)


@pytest.mark.parametrize(("tokens", "size"), [(0, (4, 5)), (21, (4, 5)), (3841, (80, 80))])
def test_attention__impossible_numbers_of_tokens(tokens: int, size: tuple[int, int]) -> None:
    with pytest.raises(ArchitectureError, match=f"got {tokens}"):
        GlobalAttention(4, tokens, size)
