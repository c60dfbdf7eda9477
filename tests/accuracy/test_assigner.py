from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nas.accuracy.assigner import Assignment, Objects, TaskAlignedAssigner, pairwise_iou
from nas.accuracy.dataset import Annotations
from nas.errors import InputError


def _grid(side: int, stride: int) -> Tensor:
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return (torch.stack([x, y], -1).reshape(-1, 2) + 0.5) * stride


def _objects(*images: list[tuple[int, list[float]]]) -> Objects:
    return Objects.of(
        [
            Annotations(
                np.array([box for _, box in image], np.float32).reshape(-1, 4),
                np.array([label for label, _ in image], np.int64),
            )
            for image in images
        ]
    )


def _iou(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union > 0 else 0.0


def _by_loops(
    assigner: TaskAlignedAssigner, scores: Tensor, boxes: Tensor, anchors: Tensor, objects: Objects
) -> list[list[tuple[int, float] | None]]:
    """The assignment as the paper tells it, one anchor at a time: (object, quality) or None."""
    answer: list[list[tuple[int, float] | None]] = []
    for image in range(len(scores)):
        wanted: dict[int, list[tuple[float, int]]] = {}
        alignment: dict[tuple[int, int], float] = {}
        number = int(objects.present[image].sum())
        for m in range(number):
            box = objects.boxes[image, m].tolist()
            label = int(objects.labels[image, m])
            centres = anchors.tolist()
            inside = [
                a for a, (x, y) in enumerate(centres) if box[0] < x < box[2] and box[1] < y < box[3]
            ] or [
                min(
                    range(len(centres)),
                    key=lambda a: (
                        (centres[a][0] - (box[0] + box[2]) / 2) ** 2
                        + (centres[a][1] - (box[1] + box[3]) / 2) ** 2
                    ),
                )
            ]
            for a in inside:
                overlap = _iou(box, boxes[image, a].tolist())
                score = float(scores[image, a, label])
                alignment[m, a] = score**assigner.alpha * overlap**assigner.beta
            ranked = sorted(inside, key=lambda a: -alignment[m, a])[: assigner.topk]
            for a in ranked:
                wanted.setdefault(a, []).append((_iou(box, boxes[image, a].tolist()), m))
        owner = {a: max(asked, key=lambda pair: pair[0])[1] for a, asked in wanted.items()}
        row: list[tuple[int, float] | None] = [None] * len(anchors)
        for a, m in owner.items():
            mine = [b for b, other in owner.items() if other == m]
            largest = max(alignment[m, b] for b in mine)
            best = max(
                _iou(objects.boxes[image, m].tolist(), boxes[image, b].tolist()) for b in mine
            )
            row[a] = (m, alignment[m, a] / largest * best)
        answer.append(row)
    return answer


def _random_case(seed: int) -> tuple[Tensor, Tensor, Tensor, Objects]:
    generator = torch.Generator().manual_seed(seed)
    anchors = torch.cat([_grid(6, 8), _grid(3, 16)])
    scores = torch.rand(2, len(anchors), 3, generator=generator) * 0.9 + 0.05
    # Boxes around their own centres, so that no two alignments tie at zero overlap.
    half = torch.rand(2, len(anchors), 2, 2, generator=generator) * 30 + 24
    boxes = torch.cat([anchors - half[:, :, 0], anchors + half[:, :, 1]], -1)
    rng = np.random.default_rng(seed)
    images = []
    for count in rng.integers(0, 5, 2):
        low = rng.uniform(0, 30, (count, 2))
        corners = np.concatenate([low, low + rng.uniform(3, 40, (count, 2))], 1)
        images.append([(int(rng.integers(3)), [float(v) for v in box]) for box in corners])
    return scores, boxes, anchors, _objects(*images)


def _assign(case: tuple[Tensor, Tensor, Tensor, Objects], **options: float) -> Assignment:
    return TaskAlignedAssigner(**options)(*case)  # type: ignore[arg-type]


@given(seed=st.integers(0, 10_000), topk=st.integers(1, 60), beta=st.sampled_from([1.0, 6.0]))
@settings(deadline=None, max_examples=40)
def test_assigner__plain_loops_agree(seed: int, topk: int, beta: float) -> None:
    case = _random_case(seed)
    assigner = TaskAlignedAssigner(beta=beta, topk=topk)
    found = assigner(*case)
    for image, row in enumerate(_by_loops(assigner, *case)):
        for anchor, wanted in enumerate(row):
            assert bool(found.foreground[image, anchor]) == (wanted is not None)
            if wanted is not None:
                assert int(found.objects[image, anchor]) == wanted[0]
                assert float(found.quality[image, anchor]) == pytest.approx(wanted[1], rel=1e-4)
            else:
                assert float(found.quality[image, anchor]) == 0


@given(seed=st.integers(0, 10_000), beta=st.sampled_from([1.0, 6.0]))
@settings(deadline=None, max_examples=40)
def test_assigner__of_one_anchor_each_shares_none(seed: int, beta: float) -> None:
    case = _random_case(seed)
    scores, boxes, _, objects = case
    once, many = (_assign(case, topk=topk, beta=beta) for topk in (1, 8))
    for image in range(len(scores)):
        found = once.foreground[image]
        owners = once.objects[image][found].tolist()
        assert len(owners) == len(set(owners))
        assert all(objects.present[image, owner] for owner in owners)
        assert bool(owners) == bool(objects.present[image].any())
        # The same metric decides: whatever is best is among the best.
        assert many.foreground[image][found].all()
        overlap = pairwise_iou(objects.boxes, boxes)[image, owners, found.nonzero().flatten()]
        torch.testing.assert_close(once.quality[image][found], overlap)


def test_assigner__of_one_anchor_each_leaves_the_loser_of_a_conflict_without() -> None:
    anchors = torch.tensor([[10.0, 10.0], [30.0, 30.0]])
    objects = _objects([(0, [0.0, 0.0, 20.0, 20.0]), (0, [0.0, 0.0, 16.0, 16.0])])
    boxes = torch.tensor([[[0.0, 0.0, 20.0, 19.0], [20.0, 20.0, 40.0, 40.0]]])
    found = _assign((torch.full((1, 2, 1), 0.5), boxes, anchors, objects), topk=1)
    assert found.foreground.tolist() == [[True, False]]
    assert found.objects[0, 0] == 0


def test_assigner__a_box_without_a_centre_gets_the_nearest() -> None:
    anchors = _grid(4, 8)
    objects = _objects([(0, [9.0, 9.0, 11.0, 11.0])])
    scores = torch.full((1, 16, 1), 0.5)
    boxes = torch.cat([anchors - 4, anchors + 4], -1)[None]
    found = _assign((scores, boxes, anchors, objects))
    assert found.foreground[0].nonzero().flatten().tolist() == [5]  # centre (12, 12)


def test_assigner__conflict_goes_to_the_larger_overlap() -> None:
    anchors = torch.tensor([[10.0, 10.0]])
    objects = _objects([(0, [0.0, 0.0, 20.0, 20.0]), (1, [5.0, 5.0, 15.0, 15.0])])
    boxes = torch.tensor([[[0.0, 0.0, 20.0, 18.0]]])
    found = _assign((torch.tensor([[[0.1, 0.9]]]), boxes, anchors, objects))
    assert found.objects.tolist() == [[0]]
    assert found.quality[0, 0] == pytest.approx(0.9)


def test_assigner__best_anchor_reaches_the_best_overlap() -> None:
    anchors = torch.tensor([[5.0, 5.0], [15.0, 5.0]])
    boxes = torch.tensor([[[0.0, 0.0, 20.0, 10.0], [0.0, 0.0, 10.0, 10.0]]])
    scores = torch.tensor([[[0.25], [1.0]]])
    found = _assign(
        (scores, boxes, anchors, _objects([(0, [0.0, 0.0, 20.0, 10.0])])), alpha=0.5, beta=1.0
    )
    # Alignments are 0.25^0.5 * 1 and 1 * 0.5: equal, so both reach the largest overlap.
    assert found.quality[0].tolist() == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize("images", [1, 3])
def test_assigner__no_object_anywhere(images: int) -> None:
    anchors = _grid(2, 8)
    empty = _objects(*[[] for _ in range(images)])
    found = _assign((torch.rand(images, 4, 2), torch.rand(images, 4, 4), anchors, empty))
    assert not found.foreground.any()
    assert found.quality.shape == (images, 4)


def test_assigner__padding_changes_nothing() -> None:
    scores, boxes, anchors, objects = _random_case(3)
    padded = Objects(
        torch.cat([objects.boxes, torch.full((2, 3, 4), 20.0)], 1),
        torch.cat([objects.labels, torch.ones(2, 3, dtype=torch.int64)], 1),
        torch.cat([objects.present, torch.zeros(2, 3, dtype=torch.bool)], 1),
    )
    alone, together = (_assign((scores, boxes, anchors, each)) for each in (objects, padded))
    assert torch.equal(alone.foreground, together.foreground)
    assert torch.equal(alone.quality, together.quality)


def test_objects__pad_to_the_most() -> None:
    objects = _objects([(2, [0.0, 0.0, 1.0, 1.0])], [], [(0, [0.0] * 4), (1, [2.0, 2.0, 5.0, 5.0])])
    assert objects.present.tolist() == [[True, False], [False, False], [True, True]]
    assert objects.labels.tolist() == [[2, 0], [0, 0], [0, 1]]
    assert objects.boxes[2, 1].tolist() == [2, 2, 5, 5]


def test_pairwise_iou__by_hand() -> None:
    first = torch.tensor([[[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]]])
    second = torch.tensor([[[1.0, 0.0, 3.0, 2.0], [5.0, 5.0, 6.0, 6.0]]])
    assert pairwise_iou(first, second)[0].flatten().tolist() == pytest.approx([1 / 3, 0, 0, 0])


@pytest.mark.parametrize("options", [{"topk": 0}, {"alpha": -1.0}, {"beta": -0.1}])
def test_assigner__senseless_options(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="assigner needs"):
        TaskAlignedAssigner(**options)  # type: ignore[arg-type]
