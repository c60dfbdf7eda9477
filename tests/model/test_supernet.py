from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from nas.errors import ArchitectureError, InputError, StorageError
from nas.model.blocks.convolution import QARepVGG
from nas.model.detector import Detector, Predictions
from nas.model.supernet import Supernet, recalibrate, taking_statistics
from nas.space.architecture import Architecture, Fusion

Build = Callable[..., Architecture]
BLOCKS = ("qarepvgg_csp", "repvgg_csp", "conv_csp", "c2f")
SHARED = settings(
    deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def _with_blocks(architecture: Architecture, **update: Any) -> Architecture:
    """The same network with every block changed alike."""
    data = architecture.model_dump()
    places = [data["backbone"], data["neck"]["top_down"], data["neck"]["bottom_up"]]
    for place in places:
        for block in place.values():
            block.update(update)
    return Architecture.parse(data)


@pytest.fixture(scope="module")
def largest(build_architecture: Build) -> Architecture:
    return build_architecture(attention={"P4": {"tokens": 20}, "P3": {"kind": "dense"}})


@pytest.fixture(scope="module")
def supernet(largest: Architecture) -> Supernet:
    changes = itertools.product(BLOCKS, (True, False))
    covering = [_with_blocks(largest, block=b, concat_intermediates=c) for b, c in changes]
    return Supernet(covering, seed=1)


@st.composite
def subnets(draw: st.DrawFn, largest: Architecture) -> Architecture:
    """Any network whose parts are no larger."""
    data = largest.model_dump()
    for place in (data["backbone"], data["neck"]["top_down"], data["neck"]["bottom_up"]):
        for block in place.values():
            for size in ("channels", "hidden", "depth"):
                block[size] = draw(st.integers(1, block[size]))
            block["block"] = draw(st.sampled_from(BLOCKS))
            block["concat_intermediates"] = draw(st.booleans())
            block["shortcut"] = draw(st.booleans())
    data["stem"]["channels"] = draw(st.integers(1, 6))
    data["pooling"]["hidden"] = draw(st.integers(1, 8))
    data["head"]["channels"] = draw(st.tuples(*[st.integers(1, 10)] * 3))
    data["head"]["bins"] = draw(st.integers(2, 8))
    points = [None, {"kind": "dense"}, {"tokens": draw(st.integers(1, 19))}]
    data["attention"] = {level: draw(st.sampled_from(points)) for level in ("P3", "P4")}
    data["input"] = draw(st.sampled_from([(64, 96), (72, 64)]))
    return Architecture.parse(data)


def _images(architecture: Architecture, batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 3, *architecture.input, generator=torch.Generator().manual_seed(2))


def _equal(first: Predictions, second: Predictions) -> bool:
    if first.one_to_one is not None and second.one_to_one is not None:
        same = _equal(first.one_to_one, second.one_to_one)
        return same and _equal(first._replace(one_to_one=None), second._replace(one_to_one=None))
    pairs = list(zip(first, second, strict=True))
    assert pairs.pop() == (None, None)
    return all(torch.equal(a, b) for a, b in pairs)


@SHARED
@given(st.data(), st.booleans())
def test_activate__equals_extract_exactly(
    supernet: Supernet, largest: Architecture, data: st.DataObject, training: bool
) -> None:
    architecture = data.draw(subnets(largest))
    supernet.train(training)
    images = _images(architecture)
    # Twice: a subnet that is run in training mode must leave no trace for evaluation mode.
    first, second = supernet(images, architecture), supernet.activate(architecture)(images)
    extracted = supernet.extract(architecture)
    assert extracted.training == training
    assert _equal(first, second)
    assert _equal(first, extracted(images))


@SHARED
@given(st.data())
def test_gradients__reach_the_slices_and_nothing_else(
    supernet: Supernet, largest: Architecture, data: st.DataObject
) -> None:
    architecture = data.draw(subnets(largest))
    supernet.train().zero_grad()
    extracted = supernet.extract(architecture)
    images = _images(architecture)
    for network in (supernet.activate(architecture), extracted):
        predictions = network(images)
        (predictions.logits.square().mean() + predictions.bins.square().mean()).backward()
    plan = supernet._plan(architecture)
    for name, parameter in extracted.named_parameters():
        whole = supernet.shared[name.replace(".", "/")]
        expected = torch.zeros_like(whole)
        places = torch.arange(whole.numel()).reshape(whole.shape)
        for dimension, index in enumerate(plan.slices[name]):
            chosen = torch.arange(index) if isinstance(index, int) else index
            places = places if chosen is None else places.index_select(dimension, chosen)
        if parameter.grad is not None:
            expected.view(-1)[places.reshape(-1)] = parameter.grad.reshape(-1)
        got = torch.zeros_like(whole) if whole.grad is None else whole.grad
        torch.testing.assert_close(got, expected, msg=lambda text, name=name: f"{name}: {text}")


def test_slices__of_concatenations_by_hand(build_architecture: Build) -> None:
    wide = _with_blocks(build_architecture("c2f"), hidden=5, depth=3)
    narrow = _with_blocks(wide, hidden=2, depth=1)
    supernet = Supernet([wide])
    name = "backbone.P3.block.c2f.conv2.conv.weight"
    whole = supernet.shared[name.replace(".", "/")]
    assert whole.shape == (12, 25, 1, 1)
    part = dict(supernet.extract(narrow).named_parameters())[name]
    assert torch.equal(part, whole[:, [0, 1, 5, 6, 10, 11]])
    split = name.replace("conv2", "conv1")
    whole = supernet.shared[split.replace(".", "/")]
    part = dict(supernet.extract(narrow).named_parameters())[split]
    assert torch.equal(part, whole[[0, 1, 5, 6]])


def test_slices__of_bins_keep_the_four_sides_apart(build_architecture: Build) -> None:
    wide, narrow = (build_architecture(head={"channels": 8, "bins": bins}) for bins in (5, 2))
    name = "head.levels.P4.box_predictor.weight"
    supernet = Supernet([wide])
    whole = supernet.shared[name.replace(".", "/")]
    part = dict(supernet.extract(narrow).named_parameters())[name]
    assert torch.equal(part, whole[[0, 1, 5, 6, 10, 11, 15, 16]])


def test_table__is_as_wide_as_the_widest_in_every_part(build_architecture: Build) -> None:
    first = _with_blocks(build_architecture("c2f"), hidden=5, depth=1)
    second = _with_blocks(first, hidden=2, depth=3)
    shape = Supernet([first, second]).shared["backbone/P3/block/c2f/conv2/conv/weight"].shape
    assert shape == (12, 5 + 5 + 5 + 2 + 2, 1, 1)


def test_types__have_weights_of_their_own(supernet: Supernet, largest: Architecture) -> None:
    names = [
        {name for name, _ in supernet.extract(_with_blocks(largest, block=b)).named_parameters()}
        for b in BLOCKS
    ]
    common = set.intersection(*names)
    assert common
    assert not any(".block." in name for name in common)


def test_attention__sparse_and_dense_share_weights(build_architecture: Build) -> None:
    kinds = [{"kind": "dense"}, {"tokens": 3}]
    dense, sparse = (build_architecture(attention={"P4": kind}) for kind in kinds)
    assert Supernet([dense])._entries == Supernet([sparse])._entries


def test_activate__follows_the_weights_and_extract_does_not(
    supernet: Supernet, largest: Architecture
) -> None:
    twin = copy.deepcopy(supernet).eval()
    run, extracted = twin.activate(largest), twin.extract(largest)
    images = _images(largest)
    before = run(images)
    with torch.no_grad():
        for tensor in twin.parameters():
            tensor.mul_(1.5)
    assert _equal(before, extracted(images))
    assert not torch.equal(before.logits, run(images).logits)
    supernet.eval()
    assert _equal(before, supernet(images, largest))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"stem": {"channels": 7}}, "backbone.stem.conv3.conv.weight"),
        ({"stem": {"channels": 6, "kernel": 6}}, "backbone.stem.conv6.conv.weight"),
        ({"attention": {"P5": {"tokens": 3}}}, "neck.attention.P5.query.weight"),
        ({"classes": 4}, "head.levels.P3.class_predictor.weight"),
    ],
    ids=str,
)
def test_activate__outside_the_supernet_names_the_first_tensor(
    supernet: Supernet, largest: Architecture, change: dict[str, Any], named: str
) -> None:
    outside = Architecture.parse({**largest.model_dump(exclude_none=True), **change})
    for use in (supernet.activate, supernet.extract):
        with pytest.raises(ArchitectureError, match=f"outside the supernet: {named} has"):
            use(outside)


def test_training__a_sandwich_lowers_the_loss(supernet: Supernet, largest: Architecture) -> None:
    twin = copy.deepcopy(supernet).train()
    small = _with_blocks(largest, hidden=2, depth=1, block="c2f")
    optimizer = torch.optim.AdamW(twin.parameters(), 0.02)
    images, losses = _images(largest, 4), []
    for _ in range(8):
        loss = sum(twin(images, net).bins.square().mean() for net in (largest, small))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_training__autocast_in_channels_last_is_finite(
    supernet: Supernet, largest: Architecture
) -> None:
    twin = copy.deepcopy(supernet).train()
    with torch.autocast("cpu", torch.bfloat16):
        predictions = twin(_images(largest).to(memory_format=torch.channels_last), largest)
    predictions.logits.float().square().mean().backward()
    assert predictions.logits.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in twin.parameters())


def test_supernet__starts_like_a_detector(largest: Architecture) -> None:
    supernet = Supernet([largest], seed=4)
    extracted, plain = supernet.extract(largest), Detector(largest, seed=4)
    for name, parameter in plain.named_parameters():
        own = dict(extracted.named_parameters())[name]
        spread, plain_spread = own.std(correction=0), parameter.std(correction=0)
        torch.testing.assert_close(spread, plain_spread, rtol=0.5, atol=0.05)
        assert abs(own.mean() - parameter.mean()) < 0.3
    other = Supernet([largest], seed=4)
    pairs = zip(supernet.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_activate__follows_the_mode(supernet: Supernet, largest: Architecture) -> None:
    supernet.train()
    run, images = supernet.activate(largest), _images(largest)
    trained = run(images)
    supernet.eval()
    supernet.activate(_with_blocks(largest, depth=1))  # shares modules with the other
    assert _equal(run(images), supernet.extract(largest)(images))
    supernet.train()
    assert _equal(run(images), trained)


def test_plans__are_bounded(build_architecture: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas.model.supernet._PLANS", 2)
    monkeypatch.setattr("nas.model.supernet._PARTS", 20)
    wide = build_architecture()
    supernet = Supernet([wide])
    for hidden in (1, 2, 3, 1):
        supernet.activate(_with_blocks(wide, hidden=hidden))
    assert len(supernet._plans) == 2
    assert all(len(parts) <= 20 + 14 for parts in supernet._parts.values())


def test_save__load_gives_the_same_supernet(supernet: Supernet, tmp_path: Path) -> None:
    file = tmp_path / "supernet.safetensors"
    copy.deepcopy(supernet).to(memory_format=torch.channels_last).save(file)
    loaded = Supernet.load(file)
    assert loaded.digest == supernet.digest
    assert loaded.architectures == supernet.architectures
    assert loaded.state_dict().keys() == supernet.state_dict().keys()
    pairs = zip(loaded.parameters(), supernet.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize("damage", ["text", "digest", "format", "tensor", "missing"])
def test_load__refuses_what_it_did_not_save(
    damage: str, largest: Architecture, tmp_path: Path
) -> None:
    file = tmp_path / "supernet.safetensors"
    supernet = Supernet([largest])
    supernet.save(file)
    tensors = load_file(file)
    described = json.dumps([largest.canonical()], sort_keys=True)
    metadata = {"format": "1", "architectures": described, "digest": supernet.digest}
    metadata |= {"digest": "0" * 16} if damage == "digest" else {}
    metadata |= {"format": "0"} if damage == "format" else {}
    if damage == "tensor":
        tensors.popitem()
    save_file(tensors, file, metadata)
    if damage == "text":
        file.write_text("no tensors")
    if damage == "missing":
        file.unlink()
    with pytest.raises(StorageError, match="supernet"):
        Supernet.load(file)


def test_save__into_a_missing_folder(largest: Architecture, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be written"):
        Supernet([largest]).save(tmp_path / "missing" / "file.safetensors")


def test_supernet__needs_an_architecture() -> None:
    with pytest.raises(ArchitectureError, match="at least one"):
        Supernet([])


def test_supernet__refuses_parameters_without_a_layout(
    largest: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dense(nn.Module):
        def __init__(self, _in_layout: tuple[int, ...], _spec: Fusion, _activation: str) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)

    monkeypatch.setattr("nas.model.blocks.backbone._block", lambda _name: Dense)
    with pytest.raises(ArchitectureError, match=r"linear\.weight has no layout"):
        Supernet([largest])


def _batches(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(4, 3, 8, 8, generator=generator) * (1 + i) + i for i in range(count)]


@pytest.mark.parametrize("count", [1, 5])
def test_recalibrate__statistics_are_the_means_over_batches(count: int) -> None:
    unit = QARepVGG((3,), (5,)).train()
    momentum, batches = unit.bn.momentum, _batches(count)
    seen: dict[str, list[torch.Tensor]] = {"bn": [], "post_bn": []}
    hooks = [
        getattr(unit, name).register_forward_pre_hook(
            lambda _layer, inputs, name=name: seen[name].append(inputs[0])
        )
        for name in seen
    ]
    recalibrate(unit, iter(batches))
    for hook in hooks:
        hook.remove()
    for name, inputs in seen.items():
        norm = getattr(unit, name)
        means = torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0)
        variances = torch.stack([x.var((0, 2, 3)) for x in inputs]).mean(0)
        torch.testing.assert_close(norm.running_mean, means, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var, variances, rtol=1e-4, atol=1e-5)
        assert norm.momentum == momentum
        assert norm.training
    assert all(p.grad is None for p in unit.parameters())


def test_recalibrate__forgets_what_was_there_and_keeps_the_mode() -> None:
    first, second = QARepVGG((3,), (5,)).eval(), QARepVGG((3,), (5,)).eval()
    second.load_state_dict(first.state_dict())
    recalibrate(first, [torch.full((2, 3, 4, 4), 9.0)])
    for unit in (first, second):
        recalibrate(unit, _batches(3))
        assert not any(module.training for module in unit.modules())
    pairs = zip(first.buffers(), second.buffers(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_taking_statistics__leaves_out_what_it_is_told_to() -> None:
    network = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2))
    batch = torch.randn(4, 2, 3, 3)
    with taking_statistics(network, network[0]):
        assert not network(batch).requires_grad
    assert torch.equal(network[0].running_mean, torch.zeros(2))
    assert torch.allclose(network[1].running_mean, batch.mean((0, 2, 3)), atol=1e-4)
    assert [norm.momentum for norm in network] == [0.1, 0.1]
    assert network.training


def test_recalibrate__needs_a_batch() -> None:
    unit = QARepVGG((3,), (5,))
    with pytest.raises(InputError, match="at least one batch"):
        recalibrate(unit, [])
    assert unit.bn.momentum == 0.03


def test_recalibrate__makes_deployed_scores_those_of_the_batch(
    supernet: Supernet, largest: Architecture
) -> None:
    supernet.train()
    detector, images = supernet.extract(largest), _images(largest, 8)
    expected = detector(images).logits.sigmoid()
    recalibrate(detector, [images])
    torch.testing.assert_close(detector.deploy()(images)[1], expected, rtol=0.05, atol=1e-3)


@pytest.fixture
def two_sizes(build_architecture: Build) -> tuple[Architecture, Architecture]:
    first = build_architecture(attention={"P4": {"tokens": 4}})
    second = first.at_input((2 * first.input[0], 2 * first.input[1]))
    return first, second


def test_split__gives_the_same_subnets_at_first(two_sizes: tuple[Architecture, ...]) -> None:
    whole = Supernet(two_sizes, seed=3).train()
    parted = whole.split()
    assert parted.training
    assert parted.digest != whole.digest
    for architecture in two_sizes:
        images = _images(architecture)
        assert _equal(whole(images, architecture), parted(images, architecture))
        pairs = zip(
            *(one.extract(architecture).parameters() for one in (whole, parted)), strict=True
        )
        assert all(torch.equal(a, b) for a, b in pairs)


def test_split__a_size_learns_alone(two_sizes: tuple[Architecture, ...]) -> None:
    parted = Supernet(two_sizes).split().train()
    first, second = two_sizes
    before = parted.extract(second)
    optimizer = torch.optim.SGD(parted.parameters(), lr=0.1)
    parted(_images(first), first).logits.square().sum().backward()
    optimizer.step()
    unchanged = zip(before.parameters(), parted.extract(second).parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in unchanged)
    moved = zip(before.parameters(), parted.extract(first).parameters(), strict=True)
    assert not all(torch.equal(a, b) for a, b in moved)


def test_split__refuses_other_sizes(two_sizes: tuple[Architecture, ...]) -> None:
    first, second = two_sizes
    with pytest.raises(ArchitectureError, match="weights for inputs of"):
        Supernet([first]).split().extract(second)


def test_split__is_saved_and_loaded(two_sizes: tuple[Architecture, ...], tmp_path: Path) -> None:
    parted = Supernet(two_sizes).split()
    with torch.no_grad():
        for number, parameter in enumerate(parted.parameters()):
            parameter.fill_(number)
    parted.save(tmp_path / "parted.safetensors")
    loaded = Supernet.load(tmp_path / "parted.safetensors")
    assert loaded.sizes == parted.sizes
    assert loaded.digest == parted.digest
    kept = zip(loaded.named_parameters(), parted.named_parameters(), strict=True)
    assert all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in kept)
