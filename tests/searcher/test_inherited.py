"""Statistics of candidates, computed once and read again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from nas.accuracy.dataset import Split
from nas.accuracy.digits import DigitsRecipe, digits_dataset
from nas.model.supernet import Supernet, recalibrate
from nas.searcher.inherited import InheritedDetectors, recalibration_images
from nas.space.space import load_space

SPACE = load_space("digits")
SMALLEST = SPACE.candidate(SPACE.anchors["min"], 10).architecture


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    recipe = DigitsRecipe(train=12, validation=1, test=1, size=64)
    return digits_dataset(recipe, tmp_path_factory.mktemp("digits")).train


@pytest.fixture(scope="module")
def supernet() -> Supernet:
    return Supernet(SPACE.covering(10))


def statistics(detector: nn.Module) -> dict[str, torch.Tensor]:
    norms = {name: m for name, m in detector.named_modules() if isinstance(m, nn.BatchNorm2d)}
    return {name: torch.stack([m.running_mean, m.running_var]) for name, m in norms.items()}


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(statistics(one).values(), statistics(other).values(), strict=True)
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in pairs)


def test_inherited_detectors__statistics_are_those_of_recalibration(
    supernet: Supernet, split: Split
) -> None:
    plain = supernet.extract(SMALLEST)
    recalibrate(plain, recalibration_images(split, SMALLEST))
    made = InheritedDetectors(supernet, "w", split)(SMALLEST)
    assert same(made, plain)
    weights = zip(made.parameters(), plain.parameters(), strict=True)
    assert all(torch.equal(a, b) and a.is_contiguous() for a, b in weights)


@pytest.mark.parametrize("most_bytes", [2**28, 2**22, 0])
def test_inherited_detectors__equal_beginnings_change_no_bit(
    supernet: Supernet, split: Split, monkeypatch: pytest.MonkeyPatch, most_bytes: int
) -> None:
    """Whether all beginnings are kept, one at a time, or none."""
    monkeypatch.setattr("nas.searcher.inherited.MOST_EARLY_BYTES", most_bytes)
    blocks, depths = ("c2f", "qarepvgg_csp", "c2f"), (1, 1, 2)
    points = [
        {**SPACE.anchors["min"], "p2_block": block, "p4_depth": depth}
        for block, depth in zip(blocks, depths, strict=True)
    ]
    together = InheritedDetectors(supernet, "w", split)
    for point in points:
        architecture = SPACE.candidate(point, 10).architecture
        made, alone = together(architecture), InheritedDetectors(supernet, "w", split)(architecture)
        buffers = zip(made.state_dict().values(), alone.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in buffers)
        assert made.training == alone.training


def test_inherited_detectors__beginnings_never_hold_more_than_they_may(
    supernet: Supernet, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even while another one is computed, for which the oldest make place."""
    points = [{**SPACE.anchors["min"], "p2_block": block} for block in ("c2f", "qarepvgg_csp")]
    architectures = [SPACE.candidate(point, 10).architecture for point in points]
    made = InheritedDetectors(supernet, "w", split)
    made(architectures[0])
    one = made._kept_bytes
    monkeypatch.setattr("nas.searcher.inherited.MOST_EARLY_BYTES", one)
    kept: list[int] = []

    def images(*args: Any) -> Iterator[torch.Tensor]:
        kept.append(made._kept_bytes)
        return recalibration_images(*args)

    monkeypatch.setattr("nas.searcher.inherited.recalibration_images", images)
    for architecture in architectures:
        made(architecture)
    assert kept == [0]
    assert made._kept_bytes == one > 0


def test_inherited_detectors__reads_what_it_kept(
    supernet: Supernet, split: Split, tmp_path: Path
) -> None:
    inherited = InheritedDetectors(supernet, "w", split, tmp_path)
    path = inherited.path(SMALLEST)
    assert path is not None
    first = inherited(SMALLEST)
    assert same(inherited(SMALLEST), first)
    # Statistics that no image gives can only come from the file.
    stored = load_file(path)
    name = next(one for one in stored if one.endswith("running_mean"))
    stored[name] = stored[name] + 7
    save_file(stored, path)
    moved = inherited(SMALLEST).get_buffer(name) - first.get_buffer(name)
    assert torch.allclose(moved, torch.tensor(7.0))


@settings(
    max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(kept=st.floats(0, 0.999))
def test_inherited_detectors__damaged_file_is_made_again(
    supernet: Supernet, split: Split, tmp_path: Path, kept: float
) -> None:
    inherited = InheritedDetectors(supernet, "w", split, tmp_path)
    path = inherited.path(SMALLEST)
    assert path is not None
    first = inherited(SMALLEST)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    assert same(inherited(SMALLEST), first)
    assert len(path.read_bytes()) == len(whole)


def test_inherited_detectors__statistics_of_another_network_are_not_taken(
    supernet: Supernet, split: Split, tmp_path: Path
) -> None:
    largest = SPACE.candidate(SPACE.anchors["max"], 10).architecture
    inherited = InheritedDetectors(supernet, "w", split, tmp_path)
    small, large = inherited.path(SMALLEST), inherited.path(largest)
    assert small is not None
    assert large is not None
    first = inherited(SMALLEST)
    small.rename(large)
    assert len(statistics(inherited(largest))) > len(statistics(first))


def test_inherited_detectors__other_weights_and_images_are_kept_apart(
    supernet: Supernet, split: Split, tmp_path: Path
) -> None:
    fewer = split.subset("train", range(6))
    paths = {
        InheritedDetectors(supernet, digest, images, tmp_path).path(SMALLEST)
        for digest in ("w", "v")
        for images in (split, fewer)
    }
    assert len(paths) == 4
