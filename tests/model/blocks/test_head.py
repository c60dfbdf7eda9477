from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
import torch

from nas.latency.onnx_export import export_onnx
from nas.model.blocks.head import ClassPredictor, Head, distances
from nas.model.detector import Detector, decode, needs_nms, profile
from nas.model.supernet import Supernet
from nas.space.architecture import Architecture

Build = Callable[..., Architecture]
HEAD = {"channels": 10, "box_channels": 8}


@pytest.mark.parametrize("stem", [True, False])
@pytest.mark.parametrize("depth", [1, 2])
def test_head__concatenates_levels(stem: bool, depth: int, build_architecture: Build) -> None:
    head = {"channels": [10, 12, 14], "box_channels": [6, 8, 9], "depth": depth, "stem": stem}
    architecture = build_architecture(head={**head, "bins": 5})
    features = [
        torch.rand(2, channels, *architecture.feature_size(level))
        for channels, level in ((12, "P3"), (16, "P4"), (20, "P5"))
    ]
    module = Head(architecture)
    logits, bins = module(features)
    anchors = sum(architecture.tokens_at(level) for level in ("P3", "P4", "P5"))
    assert logits.shape == (2, 3, anchors)
    assert bins.shape == (2, 4, 5, anchors)
    pixel = module.levels["P3"](features[0])[0][..., 12 + 3]  # row 1, column 3 of 12
    torch.testing.assert_close(logits[..., 15], pixel)


def test_head__starts_near_its_prior(build_architecture: Build) -> None:
    architecture = build_architecture()
    head = Head(architecture)
    shapes = ((12, "P3"), (16, "P4"), (20, "P5"))
    features = [torch.rand(2, c, *architecture.feature_size(level)) for c, level in shapes]
    scores = head(features)[0].sigmoid()
    assert scores.min() > 0.001
    assert scores.max() < 0.02


def test_class_predictor__folds_its_scale() -> None:
    predictor = ClassPredictor((6,), 3, 0.01)
    x = torch.randn(2, 6, 4, 4)
    torch.testing.assert_close(predictor.fuse()(x), predictor(x))


def test_distances__are_expectations() -> None:
    steps = torch.arange(4.0)[None]
    certain = torch.full((1, 4, 4, 7), -1e4)
    certain[:, :, 2] = 0.0
    assert torch.equal(distances(certain, steps), torch.full((1, 4, 7), 2.0))
    assert torch.allclose(distances(torch.zeros(1, 4, 4, 7), steps), torch.tensor(1.5))


@pytest.fixture(scope="module", params=[{}, {"stem": True, "depth": 2}], ids=["plain", "stem"])
def kinds(
    request: pytest.FixtureRequest, build_architecture: Build
) -> tuple[Architecture, Architecture]:
    """The same network with a decoupled and with a one-to-one head."""
    decoupled = HEAD | request.param
    once = decoupled | {"kind": "one_to_one"}
    return build_architecture(head=decoupled), build_architecture(head=once)


def _images() -> torch.Tensor:
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(5))


def test_one_to_one__needs_no_suppression(kinds: tuple[Architecture, Architecture]) -> None:
    assert [needs_nms(architecture) for architecture in kinds] == [True, False]


def test_one_to_one__one_to_many_branches_are_the_decoupled_head(
    kinds: tuple[Architecture, Architecture],
) -> None:
    plain, once = (Detector(architecture) for architecture in kinds)
    shared = {name: t for name, t in once.state_dict().items() if "one_to_one" not in name}
    plain.load_state_dict(shared)  # strict: all names and shapes are the same
    found, expected = once.eval()(_images()), plain.eval()(_images())
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.bins, expected.bins)
    assert expected.one_to_one is None


def test_one_to_one__learns_without_pulling_at_the_features(
    kinds: tuple[Architecture, Architecture],
) -> None:
    detector = Detector(kinds[1])
    once = detector(_images()).one_to_one
    (once.logits.square().mean() + once.bins.square().mean()).backward()
    reached = {name for name, p in detector.named_parameters() if p.grad is not None}
    expected = {name for name, _ in detector.named_parameters() if "head.one_to_one." in name}
    assert reached == expected


def test_one_to_one__deploys_its_own_branches_alone(
    kinds: tuple[Architecture, Architecture], randomize: Callable[..., None]
) -> None:
    detector = Detector(kinds[1]).eval()
    randomize(detector)
    deployed = detector.deploy()
    with torch.no_grad():
        once = detector(_images()).one_to_one
        boxes, scores = deployed(_images())
    torch.testing.assert_close(scores, once.logits.sigmoid(), rtol=0, atol=1e-4)
    torch.testing.assert_close(boxes, decode(once), rtol=1e-4, atol=1e-2)
    assert len(detector.head.levels) == 3  # the training network keeps everything
    counted = profile(kinds[1])
    assert counted == profile(kinds[0])  # what is deployed has the size of the decoupled network
    assert counted.parameters == sum(p.numel() for p in deployed.parameters())


def test_one_to_one__supernet_activates_what_it_extracts(
    kinds: tuple[Architecture, Architecture],
) -> None:
    plain, once = kinds
    supernet = Supernet([plain, once], seed=3)
    found, extracted = supernet(_images(), once), supernet.extract(once)(_images())
    assert torch.equal(found.one_to_one.logits, extracted.one_to_one.logits)
    assert torch.equal(found.one_to_one.bins, extracted.one_to_one.bins)
    many = supernet(_images(), plain)
    assert many.one_to_one is None
    assert torch.equal(many.logits, found.logits)


@pytest.mark.parametrize("slim", [False, True])
def test_export__says_whether_suppression_is_needed(
    kinds: tuple[Architecture, Architecture], slim: bool
) -> None:
    for architecture, expected in zip(kinds, ("outside", "none"), strict=True):
        graph = export_onnx(Detector(architecture).deploy(), 64, 96, slim=slim)
        model = onnx.load_from_string(graph)
        onnx.checker.check_model(model)
        assert {one.key: one.value for one in model.metadata_props}["nms"] == expected
