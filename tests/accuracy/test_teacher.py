from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nas.accuracy.dataset import Dataset
from nas.accuracy.recipe import Recipe
from nas.accuracy.teacher import Teacher, save_detector
from nas.accuracy.training import train_detector
from nas.errors import InputError, StorageError
from nas.model.detector import Detector
from nas.model.supernet import Supernet
from nas.space.architecture import Architecture

Tiny = Callable[..., Architecture]


@pytest.fixture(scope="module")
def trained(few_digits: Dataset, tiny: Tiny) -> Detector:
    detector = Detector(tiny(side=64))
    train_detector(detector, few_digits.train, Recipe(iterations=3, batch_size=4))
    return detector.eval()


@pytest.fixture
def kept(trained: Detector, tmp_path: Path) -> Path:
    path = tmp_path / "teacher.safetensors"
    save_detector(trained, path)
    return path


def _images(side: int) -> torch.Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_teacher__says_what_the_saved_network_says(kept: Path, trained: Detector, few_digits):
    teacher = Teacher.load(kept, few_digits.train, 10)
    predictions, features = teacher(_images(64))
    with torch.no_grad():
        expected = trained(_images(64))
    assert torch.equal(predictions.logits, expected.logits)
    assert [tuple(each.shape[1:]) for each in features] == [(16, 8, 8), (16, 4, 4), (16, 2, 2)]
    assert not predictions.bins.requires_grad


def test_teacher__a_bundle_is_a_folder(tmp_path: Path, trained: Detector, few_digits: Dataset):
    (tmp_path / "architecture.yaml").write_text(trained.architecture.to_yaml())
    save_file(dict(trained.state_dict()), tmp_path / "weights.safetensors")
    teacher = Teacher.load(tmp_path, few_digits.train, 10)
    with torch.no_grad():
        expected = trained(_images(64))
    assert torch.equal(teacher(_images(64))[0].bins, expected.bins)


def test_teacher__a_supernet_teaches_by_its_largest(tmp_path: Path, tiny: Tiny, few_digits):
    path = tmp_path / "supernet.safetensors"
    Supernet([tiny(neck=8), tiny(neck=16)]).save(path)
    teacher = Teacher.load(path, few_digits.train, 10)
    assert teacher.architecture.neck_channels == (16, 16, 16)
    first, second = (teacher(_images(32))[0].logits for _ in range(2))
    assert torch.equal(first, second)
    assert first.isfinite().all()


def test_teacher__follows_the_input_size_with_statistics_of_its_own(kept, trained, few_digits):
    teacher = Teacher.load(kept, few_digits.train, 10)
    smaller = teacher.at((32, 32))
    assert smaller.architecture.input == (32, 32)
    for name, parameter in trained.named_parameters():
        assert torch.equal(parameter, smaller.get_parameter(name))
    means = [
        [norm.running_mean for norm in one.modules() if isinstance(norm, torch.nn.BatchNorm2d)]
        for one in (trained, smaller)
    ]
    assert not all(torch.equal(a, b) for a, b in zip(*means, strict=True))
    assert teacher.at((32, 32)) is smaller


def test_teacher__can_be_sent_to_another_process(kept: Path, few_digits: Dataset):
    teacher = Teacher.load(kept, few_digits.train, 10)
    sent = pickle.loads(pickle.dumps(teacher))
    assert torch.equal(sent(_images(32))[0].logits, teacher(_images(32))[0].logits)


def test_teacher__its_digest_is_that_of_its_weights(kept, trained, tmp_path, few_digits):
    same, other = tmp_path / "same.safetensors", tmp_path / "other.safetensors"
    save_detector(trained, same)
    save_detector(Detector(trained.architecture, seed=1), other)
    digests = [Teacher.load(each, few_digits.train, 10).digest for each in (kept, same, other)]
    assert digests[0] == digests[1] != digests[2]


def test_teacher__of_other_classes(kept: Path, few_digits: Dataset):
    with pytest.raises(InputError, match="has 10, and the data set 3"):
        Teacher.load(kept, few_digits.train, 3)


def test_teacher__what_cannot_be_read(tmp_path: Path, few_digits: Dataset):
    tensors, text = tmp_path / "tensors.safetensors", tmp_path / "text.safetensors"
    save_file({"a": torch.zeros(1)}, tensors, {"x": json.dumps(1)})
    text.write_text("no tensors")
    for path, match in (
        (tensors, "holds no network"),
        (text, "cannot be read"),
        (tmp_path / "missing", "cannot be read"),
        (tmp_path, "cannot be read"),
    ):
        with pytest.raises(StorageError, match=match):
            Teacher.load(path, few_digits.train, 10)
