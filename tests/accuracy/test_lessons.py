from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nas.accuracy.adversarial import Adversarial
from nas.accuracy.assigner import Objects
from nas.accuracy.dataset import Dataset
from nas.accuracy.lessons import Distillation, Lesson, channel_divergence
from nas.accuracy.lookahead import Lookahead
from nas.accuracy.recipe import Recipe
from nas.accuracy.teacher import Teacher, save_detector
from nas.accuracy.training import Progress, train_detector, train_supernet
from nas.errors import InputError, StorageError
from nas.model.detector import Detector
from nas.model.supernet import Supernet
from nas.space.architecture import Architecture

Tiny = Callable[..., Architecture]
BOTH = Distillation(logits=0.5, features=2.0)
SHORT = Recipe(iterations=4, batch_size=2, checkpoint_every=1)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, few_digits: Dataset, tiny: Tiny) -> Teacher:
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    detector = Detector(tiny(neck=24), seed=3)
    train_detector(detector, few_digits.train, Recipe(iterations=2, batch_size=4))
    save_detector(detector, path)
    return Teacher.load(path, few_digits.train, 10)


def _nothing() -> Objects:
    return Objects(torch.zeros(2, 0, 4), torch.zeros(2, 0).long(), torch.zeros(2, 0).bool())


def _images() -> torch.Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_lesson__a_student_that_is_the_teacher_learns_nothing_from_its_logits(teacher: Teacher):
    student = teacher.at((32, 32))
    lesson = Lesson(Distillation(logits=1.0), teacher, student.architecture)
    parts = lesson(_images(), student(_images()), _nothing())
    assert set(parts) == {"teacher_classes", "teacher_boxes"}
    assert all(abs(float(part)) < 1e-6 for part in parts.values())


def test_lesson__parts_have_their_weights(teacher: Teacher, tiny: Tiny):
    student = Detector(tiny())
    parts = []
    for settings in (BOTH, Distillation(logits=1.0, features=1.0)):
        lesson = Lesson(settings, teacher, student.architecture)
        with lesson.watching(student):
            found = lesson(_images(), student(_images()), _nothing())
        parts.append({name: float(part.detach()) for name, part in found.items()})
    half, whole = parts
    assert set(half) == {"teacher_classes", "teacher_boxes", "teacher_features"}
    assert half["teacher_boxes"] == pytest.approx(0.5 * whole["teacher_boxes"])
    assert half["teacher_features"] == pytest.approx(2 * whole["teacher_features"])
    assert whole["teacher_features"] > 0


def test_lesson__only_the_student_and_the_alignment_take_gradients(teacher: Teacher, tiny: Tiny):
    student = Detector(tiny())
    lesson = Lesson(BOTH, teacher, student.architecture)
    with lesson.watching(student):
        sum(lesson(_images(), student(_images()), _nothing()).values()).backward()
    for network in (student.backbone, student.neck, lesson):
        assert any(p.grad is not None and p.grad.any() for p in network.parameters())
    assert all(p.grad is None for p in teacher.at((32, 32)).parameters())


def test_channel_divergence__of_equal_maps_is_0_whatever_their_level():
    features = torch.randn(2, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    assert float(channel_divergence(features + 7, features)) == pytest.approx(0, abs=1e-6)
    assert float(channel_divergence(-features, features)) > 0.1


def test_channel_divergence__is_equation_4():
    student, teacher = torch.randn(2, 1, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    ours, theirs = (each.flatten(2).softmax(-1) for each in (student, teacher))
    expected = (theirs * (theirs / ours).log()).sum() / 2
    assert float(channel_divergence(student, teacher)) == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize(
    "switches",
    [
        {"distillation": BOTH},
        {"lookahead": Lookahead(2)},
        {"distillation": BOTH, "lookahead": Lookahead(3), "adversarial": Adversarial(0.01)},
    ],
)
def test_train_detector__with_switches_resumed_equals_uninterrupted(
    tmp_path: Path, few_digits: Dataset, teacher: Teacher, tiny: Tiny, switches
):
    recipe = dataclasses.replace(SHORT, **switches)

    def interrupt(progress: Progress) -> None:
        if progress.iteration == 3:
            raise KeyboardInterrupt

    whole, stopped = Detector(tiny()), Detector(tiny())
    train_detector(whole, few_digits.train, recipe, teacher=teacher)
    path = tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt):
        train_detector(
            stopped, few_digits.train, recipe, teacher=teacher, checkpoint=path, progress=interrupt
        )
    again = Detector(tiny())
    result = train_detector(again, few_digits.train, recipe, teacher=teacher, checkpoint=path)
    assert result.resumed_from == 3
    assert all(map(torch.equal, whole.parameters(), again.parameters()))


def test_train_detector__another_teacher_is_another_training(
    tmp_path: Path, few_digits: Dataset, teacher: Teacher, tiny: Tiny
):
    recipe = dataclasses.replace(SHORT, distillation=BOTH)
    path = tmp_path / "checkpoint"
    train_detector(Detector(tiny()), few_digits.train, recipe, teacher=teacher, checkpoint=path)
    other = dataclasses.replace(teacher, digest="another")
    with pytest.raises(StorageError, match="another training"):
        train_detector(Detector(tiny()), few_digits.train, recipe, teacher=other, checkpoint=path)


def test_train_supernet__learns_logits_from_a_teacher(few_digits, teacher: Teacher, tiny: Tiny):
    recipe = dataclasses.replace(SHORT, distillation=Distillation(logits=1.0))
    seen: list[set[str]] = []
    train_supernet(
        Supernet([tiny()]),
        lambda _step, _generator: tiny(),
        tiny(),
        few_digits.train,
        recipe,
        teacher=teacher,
        progress=lambda progress: seen.append(set(progress.parts)),
    )
    assert all("teacher_classes" in parts for parts in seen)


def test_train__what_cannot_be(few_digits: Dataset, teacher: Teacher, tiny: Tiny):
    features = dataclasses.replace(SHORT, distillation=Distillation(features=1.0))
    with pytest.raises(InputError, match="needs a teacher"):
        train_detector(Detector(tiny()), few_digits.train, features)
    with pytest.raises(InputError, match="subnets of a supernet differ"):
        train_supernet(
            Supernet([tiny()]),
            lambda *_: tiny(),
            tiny(),
            few_digits.train,
            features,
            teacher=teacher,
        )
    with pytest.raises(InputError, match="whole batches"):
        dataclasses.replace(features, accumulate=2)
    with pytest.raises(InputError, match="finite and at least 0"):
        Distillation(logits=-1.0)


def test_lesson__of_other_bins(teacher: Teacher, tiny: Tiny):
    data = tiny().canonical()
    student = Architecture.parse({**data, "head": {**data["head"], "bins": 5}})
    with pytest.raises(InputError, match="bin by bin"):
        Lesson(Distillation(logits=1.0), teacher, student)
    assert Lesson(Distillation(features=1.0), teacher, student).features is not None
