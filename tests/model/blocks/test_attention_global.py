from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from nas.errors import ArchitectureError
from nas.model.blocks.attention import GlobalAttention
from nas.space.attention import Selection


def _block(tokens: int | None, selection: Selection = "squared_l2") -> GlobalAttention:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        block = GlobalAttention(6, tokens, (4, 5), selection)
        with torch.no_grad():
            block.gate.factor.fill_(0.7)
            block.norm.weight.uniform_(0.5, 1.5)
            block.norm.bias.uniform_(-0.5, 0.5)
    return block


def _normalised(block: GlobalAttention, x: Tensor) -> Tensor:
    scaled = (x - x.mean()) / (x.var(correction=0) + block.norm.eps).sqrt()
    return scaled * block.norm.weight + block.norm.bias


def _reference(
    block: GlobalAttention, image: Tensor, chosen: list[int], trust: Tensor | None = None
) -> Tensor:
    """The definition, one position at a time; image (C, H, W), trust (N,) in 0..1."""
    w_q, w_k, w_v, w_o = (
        conv.weight[:, :, 0, 0] for conv in (block.query, block.key, block.value, block.output)
    )
    positions = image.flatten(1).T
    trust = torch.ones(len(positions)) if trust is None else trust
    mixed = [w_v @ position for position in positions]
    for i in chosen:
        query = _normalised(block, w_q @ positions[i])
        keys = [_normalised(block, w_k @ positions[j]) for j in chosen]
        logits = torch.stack([query @ key for key in keys]) / image.shape[0] ** 0.5
        weights = logits.exp() * trust[chosen]
        weights = weights / weights.sum()
        attended = sum(w * (w_v @ positions[j]) for w, j in zip(weights, chosen, strict=True))
        mixed[i] = (1 - trust[i]) * (w_v @ positions[i]) + trust[i] * attended
    rows = [p + block.gate.factor * (w_o @ m) for p, m in zip(positions, mixed, strict=True)]
    return torch.stack(rows, 1).reshape(image.shape)


def _largest(image: Tensor, tokens: int) -> list[int]:
    energies = [float((position**2).sum()) for position in image.flatten(1).T]
    return sorted(range(len(energies)), key=lambda i: -energies[i])[:tokens]


@pytest.mark.parametrize("tokens", [1, 7, 20, None])
def test_attention__equals_the_definition(tokens: int | None) -> None:
    block = _block(tokens)
    x = torch.randn(3, 6, 4, 5, generator=torch.Generator().manual_seed(1))
    expected = torch.stack([_reference(block, image, _largest(image, tokens or 20)) for image in x])
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


@pytest.mark.parametrize("tokens", [1, 7, 20])
def test_selection__l2_takes_the_positions_of_squared_l2(tokens: int) -> None:
    squared, root = _block(tokens), _block(tokens, "l2")
    x = torch.randn(3, 6, 4, 5, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(root(x), squared(x))


@pytest.mark.parametrize("tokens", [1, 7, 19])
@pytest.mark.parametrize("selection", ["random", "strided", "learned"])
def test_selection__equals_the_definition(selection: Selection, tokens: int) -> None:
    block = _block(tokens, selection)
    x = torch.randn(3, 6, 4, 5, generator=torch.Generator().manual_seed(1))
    expected = []
    for image in x:
        if selection == "learned":
            assert block.score is not None
            scores = block.score(image[None])[0, 0].flatten().detach()
            chosen = sorted(range(20), key=lambda i: -float(scores[i]))[:tokens]
            expected.append(_reference(block, image, chosen, scores.sigmoid()))
        elif selection == "strided":
            expected.append(_reference(block, image, [i * 20 // tokens for i in range(tokens)]))
        else:
            expected.append(_reference(block, image, block.fixed.tolist()))
    torch.testing.assert_close(block(x), torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_selection__random_is_fixed_for_a_size_and_grows_with_k() -> None:
    state = torch.random.get_rng_state()
    few, many, other = (
        GlobalAttention(4, k, size, "random").fixed.tolist()
        for k, size in ((10, (17, 30)), (40, (17, 30)), (10, (30, 17 * 2)))
    )
    assert set(few) < set(many)
    assert few != other
    assert len(set(many)) == 40
    assert 0 <= min(many) < max(many) < 510
    assert sum(place < 255 for place in many) in range(10, 31)
    again = GlobalAttention(4, 10, (17, 30), "random")
    assert again.fixed.tolist() == few
    assert not {"fixed", "merged"} & again.state_dict().keys()
    with torch.random.fork_rng(devices=[]):
        torch.random.set_rng_state(state)
        weight = GlobalAttention(4, 10, (17, 30)).query.weight
        torch.random.set_rng_state(state)
        assert torch.equal(weight, GlobalAttention(4, 10, (17, 30), "random").query.weight)


def test_learned__gradients_reach_the_score() -> None:
    block = _block(7, "learned")
    assert block.score is not None
    (block(torch.randn(2, 6, 4, 5)) * torch.randn(2, 6, 4, 5)).sum().backward()
    assert block.score.weight.grad.abs().min() > 0
    assert block.score.bias.grad.abs() > 0


def test_learned__extreme_scores_stay_finite() -> None:
    block = _block(7, "learned")
    assert block.score is not None
    for bias in (-1e4, 1e4):
        with torch.no_grad():
            block.score.bias.fill_(bias)
        output = block(torch.randn(2, 6, 4, 5))
        output.sum().backward()
        assert output.isfinite().all()
        assert all(p.grad.isfinite().all() for p in block.parameters() if p.grad is not None)


def _scene(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Images with 8 marked positions among 64, what is marked, and what channel 1 should become.

    Marked positions carry a number of the image in channel 1, each with noise of its own: only
    among themselves can they average it away. The others should stay what they are; their norms
    are larger.
    """
    inside = torch.zeros(16, 64)
    inside.scatter_(1, torch.rand(16, 64, generator=generator).topk(8, dim=1).indices, 1.0)
    number = torch.randn(16, 1, generator=generator)
    noise = torch.randn(16, 64, generator=generator)
    x = 1.5 * torch.randn(16, 8, 64, generator=generator) * (1 - inside[:, None])
    x[:, 0], x[:, 1] = inside, number * inside + noise
    target = torch.where(inside > 0, number, noise)
    return x.reshape(16, 8, 8, 8), inside, target


@torch.no_grad()
def _share_selected(inside: Tensor, places: Tensor) -> float:
    return float(inside.gather(1, places).sum() / inside.sum())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_learned__training_finds_the_informative_positions(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed + 1)
        block = GlobalAttention(8, 16, (8, 8), "learned", "none")
    assert block.score is not None
    x, inside, _ = _scene(generator)
    chance = 16 / 64
    assert _share_selected(inside, GlobalAttention(8, 16, (8, 8))._select(x, 16)[:, 0]) < chance
    assert _share_selected(inside, block.score(x).flatten(1).topk(16).indices) <= chance
    optimizer = torch.optim.Adam(block.parameters(), 0.03)
    for _ in range(150):
        images, _, target = _scene(generator)
        loss = (block.update(images)[:, 1].flatten(1) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert _share_selected(inside, block.score(x).flatten(1).topk(16).indices) > 0.9
