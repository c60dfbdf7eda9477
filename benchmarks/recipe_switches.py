"""Which switches of the recipe pay on the embedded set? Each is turned on by itself.

The network and everything else stay as they are, every variant takes as many steps, and differences
are paired by seed. Pseudo-labels are compared with what they must make up for: the labelled part
alone. A control trains the baseline for more steps, as many as the dearest gain would pay for. What
a teacher costs to train is not in the time of its students; what it knows, and how good
its pseudo-labels are, stands beside them.

Run it as `python benchmarks/recipe_switches.py`, about 30 minutes of one core; the study is kept in
the workspace, and the same command goes on. It writes `benchmarks/results/recipe_switches.json`,
and the study's table and trainings to `studies/recipe_switches/results`.
"""

from __future__ import annotations

import argparse
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import write_result
from rich.console import Console

from nas.accuracy.dataset import Annotations, Dataset, Split
from nas.accuracy.detections import paired_iou
from nas.accuracy.evaluate import evaluate
from nas.accuracy.formats import load_dataset
from nas.accuracy.pseudo_labels import PseudoLabels, examples, labelled_part
from nas.accuracy.recipe import Recipe
from nas.accuracy.recipe_fields import with_fields
from nas.accuracy.teacher import Teacher
from nas.accuracy.training import Progress, train_detector
from nas.latency.clock import Elapsed
from nas.model.detector import Detector, profile
from nas.results.ablation import AblationResult
from nas.searcher.ablation import AblationRequest, ablate
from nas.searcher.database import Database
from nas.searcher.progress import Listener, Silent
from nas.searcher.request import Workspace
from nas.searcher.switches import SWITCHES, find_switches
from nas.searcher.teachers import find_teacher
from nas.searcher.variants import Changes, find_subject
from nas.space.architecture import Architecture

SUBJECT, STUDY = "digits:middle", "recipe_switches"
_LONGER = 1.39
"""Steps of a control: the baseline for as long as its students of logits take, teacher apart."""

_ROUNDS, _STEPS = 2, 8
_COLUMNS = (
    *("variant", "changed", "after", "reference", "seeds", "map50_95"),
    *("map50_95_low", "map50_95_high", "map_delta", "map_delta_low", "map_delta_high", "map_pairs"),
    *("map_p", "map_p_holm", "map_verdict", "cpu_s_per_step", "time_ratio", "peak_bytes"),
)


class _Said(Silent):
    """Prints what was trained."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, text: str, *, warning: bool = False) -> None:  # noqa: ARG002
        self._console.print(text, highlight=False)


def main() -> None:
    """Run the study as far as it is not stored, look at the teachers, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--switches", nargs="*", default=["all"])
    parser.add_argument("--workspace", type=Path, default=Path("studies"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    request = AblationRequest(
        subject=SUBJECT,
        changes=Changes(
            recipe={"iterations": [str(round(_LONGER * arguments.iterations))]},
            switches=find_switches(arguments.switches),
        ),
        seeds=arguments.seeds,
        iterations=arguments.iterations,
        study=STUDY,
        workspace=Workspace(arguments.workspace),
    )
    listener = _Said(console)
    ablate(request, listener)
    with Database(request.url) as database:
        result = AblationResult.load(database, STUDY)
    figures = {
        "subject": SUBJECT,
        "caption": result.caption,
        "iterations": arguments.iterations,
        "batch_size": request.recipe().batch_size,
        "variants": [_variant(result, row) for _, row in result.table.iterrows()],
        "cpu_s_per_step_in_turns": _steps(request, listener),
        "teachers": _teachers(request, listener),
    }
    folder = Path("studies") / STUDY / "results"
    folder.mkdir(parents=True, exist_ok=True)
    result.table.to_csv(folder / "ablation.csv", index=False)
    result.trainings.drop(columns="resampled").to_csv(folder / "trainings.csv", index=False)
    console.print(f"Written to {write_result(STUDY, figures)} and {folder}")


def _variant(result: AblationResult, row: Any) -> dict[str, Any]:
    trained = result.trainings[result.trainings["variant"] == row["variant"]]
    values = {name: row[name] for name in _COLUMNS}
    plain = {name: None if value != value else value for name, value in values.items()}  # noqa: PLR0124
    return {**plain, "map50_95_by_seed": trained["map50_95"].tolist()}


def _steps(request: AblationRequest, listener: Listener) -> dict[str, float]:
    """Time a few steps of every switch, in turns; the least of the rounds, which others disturb."""
    dataset = load_dataset(None, request.workspace.cache)
    space, point = find_subject(SUBJECT)
    student = space.candidate(point, len(dataset.classes)).architecture
    largest = space.candidate(space.anchors["max"], len(dataset.classes)).architecture
    found: dict[str, float] = {}
    for name in ("baseline", *SWITCHES) * _ROUNDS:
        values = {} if name == "baseline" else SWITCHES[name].values
        recipe = with_fields(request.recipe(), values)
        place = request.workspace
        path = find_teacher(recipe, largest.at_input(student.input), dataset, place, listener)
        classes = len(dataset.classes)
        teacher = None if path is None else Teacher.load(path, dataset.train, classes)
        step_s = _step_s(student, dataset, recipe, teacher)
        found[name] = min(step_s, found.get(name, step_s))
    return found


class _Enough(Exception):  # noqa: N818 - it ends a training, and is no error
    """Enough steps were timed."""


def _step_s(
    student: Architecture, dataset: Dataset, recipe: Recipe, teacher: Teacher | None
) -> float:
    elapsed, marks = Elapsed(), list[float]()

    def hear(_: Progress) -> None:
        marks.append(elapsed.cpu_s)
        if len(marks) > _STEPS:
            raise _Enough

    with suppress(_Enough):
        train_detector(Detector(student), dataset.train, recipe, teacher=teacher, progress=hear)
    return float(np.median(np.diff(marks)))


def _teachers(request: AblationRequest, listener: Listener) -> dict[str, Any]:
    """Say what the two teachers know: the one of all labels, and the one of the labelled part."""
    dataset = load_dataset(None, request.workspace.cache)
    space, point = find_subject(SUBJECT)
    student = space.candidate(point, len(dataset.classes)).architecture
    largest = space.candidate(space.anchors["max"], len(dataset.classes)).architecture
    found: dict[str, Any] = {"student_macs": profile(student).macs}
    for name in ("logit_distillation", "pseudo_labels"):
        recipe = with_fields(request.recipe(), SWITCHES[name].values)
        size = student.input
        place = request.workspace
        path = find_teacher(recipe, largest.at_input(size), dataset, place, listener)
        assert path is not None
        teacher = Teacher.load(path, dataset.train, len(dataset.classes))
        found[name] = {
            "images": len(labelled_part(dataset.train, recipe.pseudo_labels)),
            "macs": profile(teacher.architecture).macs,
            "validation_map50_95": _score(teacher, dataset.validation),
        }
        if recipe.pseudo_labels.on:
            found[name] |= _quality(dataset, recipe.pseudo_labels, teacher)
    return found


def _score(teacher: Teacher, split: Split) -> float:
    size = teacher.architecture.input
    deployed = teacher.at(size).deploy()

    def predict(images: Any) -> tuple[Any, Any]:
        with torch.inference_mode():
            boxes, scores = deployed(torch.from_numpy(images).float() / 255)
        return boxes.numpy(), scores.numpy()

    return evaluate(predict, split.resized(*size), weights="trained", interval=False)[0].map50_95


def _quality(dataset: Dataset, settings: PseudoLabels, teacher: Teacher) -> dict[str, Any]:
    """Compare pseudo-labels with the labels that were hidden: same class, IoU of 0.5 or more."""
    count = len(labelled_part(dataset.train, settings))
    joined = examples(dataset.train, settings, teacher)
    truth = dict(zip(dataset.train.contents, dataset.train.annotations, strict=True))
    right = said = true = 0
    for content, objects in zip(joined.contents[count:], joined.annotations[count:], strict=True):
        said, true = said + len(objects), true + len(truth[content])
        right += _matched(objects, truth[content])
    return {
        "unlabelled_images": len(dataset.train) - count,
        "images_with_pseudo_labels": len(joined) - count,
        "precision": right / said,
        "recall_in_these": right / true,
    }


def _matched(said: Annotations, true: Annotations) -> int:
    iou = paired_iou(said.boxes[:, None], true.boxes[None])
    return int(((iou >= 0.5) & np.equal.outer(said.labels, true.labels)).any(1).sum())


if __name__ == "__main__":
    main()
