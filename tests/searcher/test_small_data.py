"""Data sets at the edge of what can be learned from, through training and scoring."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from nas.accuracy.dataset import Dataset
from nas.accuracy.formats import load_dataset
from nas.accuracy.recipe import Recipe
from nas.latency.runtimes.openvino import OpenVinoRuntime
from nas.searcher.engines import score_engine, trained_graph
from nas.searcher.inherited import InheritedDetectors
from nas.searcher.progress import Silent
from nas.searcher.request import Workspace
from nas.searcher.supernets import trained_supernet
from nas.space.space import load_space

SPACE = load_space("digits")
RECIPE = Recipe(iterations=3, batch_size=4)


def _with_one_class(root: Path) -> None:
    file = root / "annotations/instances_train2017.json"
    content = json.loads(file.read_text())
    content["categories"] = content["categories"][:1]
    for one in content["annotations"]:
        one["category_id"] = content["categories"][0]["id"]
    file.write_text(json.dumps(content))


def _trained_and_scored(dataset: Dataset, folder: Path) -> float:
    torch.set_num_threads(1)
    supernet = trained_supernet(SPACE, dataset, RECIPE, Workspace(folder), Silent())
    assert all(tensor.isfinite().all() for tensor in supernet.parameters())
    candidate = SPACE.candidate(SPACE.anchors["min"], len(dataset.classes))
    detector = InheritedDetectors(supernet, "x", dataset.train)(candidate.architecture)
    graph = trained_graph(detector, candidate, dataset.train)
    accuracy, detections = score_engine(
        graph, candidate, OpenVinoRuntime(), dataset.validation, weights="inherited"
    )
    assert len(detections) == len(dataset.validation)
    return accuracy.map50_95


def test_one_image__trains_and_scores(make_shapes: Callable[..., Path], tmp_path: Path) -> None:
    path = make_shapes(tmp_path / "shapes", "yolo", train=1, val=0, test=0)
    dataset = load_dataset(path, tmp_path / "cache")
    assert 0 <= _trained_and_scored(dataset, tmp_path) <= 1


def test_one_class_and_many_sizes__train_and_score(
    make_shapes: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_shapes(tmp_path / "shapes", "coco", train=10, val=0, test=0)
    _with_one_class(path)
    dataset = load_dataset(path, tmp_path / "cache")
    assert len(dataset.classes) == 1
    assert dataset.test is not None
    assert len(np.unique(dataset.train.sizes, axis=0)) > 3
    assert 0 <= _trained_and_scored(dataset, tmp_path) <= 1
