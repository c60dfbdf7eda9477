from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from nas.accuracy import records
from nas.accuracy.dataset import Dataset, Problem
from nas.accuracy.formats import load_dataset
from nas.errors import DatasetError

Load = Callable[..., Dataset]
_COCO_FILE = "annotations/instances_train2017.json"
_LABELS = "labels/train/train_0.txt"


def _edit_coco(edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        content = json.loads((root / _COCO_FILE).read_text())
        edit(content)
        (root / _COCO_FILE).write_text(json.dumps(content))

    return damage


def _edit_yaml(**changes: object) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        content = yaml.safe_load((root / "data.yaml").read_text()) | changes
        kept = {key: value for key, value in content.items() if value is not None}
        (root / "data.yaml").write_text(yaml.safe_dump(kept))

    return damage


def _append_labels(*lines: str) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        with (root / _LABELS).open("a") as file:
            file.write("".join(f"{line}\n" for line in lines))

    return damage


def _box(number: int, box: object, **changes: object) -> Callable[[Path], None]:
    change = {"bbox": box} | changes
    return _edit_coco(lambda content: content["annotations"][number].update(change))


@pytest.mark.parametrize("layout", ["coco", "roboflow", "yolo"])
def test_load__three_splits_as_they_were_written(layout: str, shapes: Load) -> None:
    data = shapes(layout)
    assert data.test is not None
    assert data.classes == ("circle", "square", "triangle")
    assert [len(split) for split in (data.train, data.validation, data.test)] == [12, 6, 6]
    assert data.report.counts == {}
    assert data.name == "shapes"


def test_load__formats_agree(make_shapes: Callable[..., Path], tmp_path: Path) -> None:
    coco, yolo = (
        load_dataset(make_shapes(tmp_path / name, name), tmp_path / "cache").train
        for name in ("coco", "yolo")
    )
    for index, content in enumerate(coco.contents):
        other = yolo.contents.index(content)
        expected, found = coco.annotations[index], yolo.annotations[other]
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-3)
        np.testing.assert_array_equal(found.labels, expected.labels)
        np.testing.assert_array_equal(yolo.images[other], coco.images[index])


def test_load__shapes_have_the_colour_of_their_class(shapes: Load) -> None:
    train = shapes("coco").train
    for index, objects in enumerate(train.annotations):
        for box, label in zip(objects.boxes, objects.labels, strict=True):
            x, y = ((box[:2] + box[2:]) / 2).astype(int)
            assert train.images[index][y, x].argmax() == label


@pytest.mark.parametrize("layout", ["coco-file", "yolo"])
def test_load__missing_splits_are_drawn_and_said(layout: str, shapes: Load) -> None:
    data = shapes(layout, train=20, val=0, test=0)
    assert data.test is not None
    assert [len(split) for split in (data.train, data.validation, data.test)] == [14, 3, 3]
    contents = {c for split in (data.train, data.validation, data.test) for c in split.contents}
    assert len(contents) == 20
    assert "No validation split: 3 of 20 training images" in str(data.report)
    assert "No test split" in str(data.report)


def test_load__drawn_splits_follow_the_seed(
    make_shapes: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_shapes(tmp_path / "shapes", "yolo", train=20, val=0, test=0)
    first, again, other = (
        load_dataset(path, tmp_path / "cache", seed).validation.digest for seed in (0, 0, 1)
    )
    assert first == again != other


@pytest.mark.parametrize("path", [None, "digits"])
def test_load__embedded_digits(path: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas.accuracy.formats.digits_dataset", lambda recipe, _: recipe)
    assert load_dataset(path, Path()).train == 1500
    assert load_dataset(path, Path(), quick=True).train == 400


def test_load__path_that_does_not_exist_hints_at_digits(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"digit does not exist.* Did you mean 'digits'"):
        load_dataset("digit", tmp_path)


def test_load__unknown_layout_lists_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"Looked for: .*COCO.*Roboflow.*data\.yaml"):
        load_dataset(tmp_path, tmp_path)


@pytest.mark.parametrize("layout", ["coco", "yolo"])
def test_load__digest_follows_one_changed_pixel(
    layout: str, make_shapes: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_shapes(tmp_path / "shapes", layout)
    before = load_dataset(path, tmp_path / "cache").digest
    file = next(path.rglob("train_0.png"))
    image = Image.open(file)
    image.putpixel((0, 0), (1, 2, 3))
    image.save(file)
    assert load_dataset(path, tmp_path / "cache").digest != before


def test_load__huge_data_is_named_by_sizes_and_says_so(
    shapes: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "CONTENT_LIMIT", 1000)
    assert "names and sizes stand for their contents" in str(shapes("coco").report)


@pytest.mark.parametrize("layout", ["coco", "yolo"])
def test_load__same_image_in_two_splits_is_said(layout: str, shapes: Load) -> None:
    def leak(root: Path) -> None:
        shutil.copy(next(root.rglob("train_0.png")), next(root.rglob("val_0.png")))

    assert "1 image is in more than one split" in str(shapes(layout, leak).report)


def _truncate(root: Path) -> None:
    file = next(root.rglob("train_0.png"))
    file.write_bytes(file.read_bytes()[:2000])


def _not_an_image(root: Path) -> None:
    next(root.rglob("train_0.png")).write_text("hello")


@pytest.mark.parametrize("layout", ["coco", "yolo"])
@pytest.mark.parametrize("damage", [_truncate, _not_an_image])
def test_load__unreadable_image_is_left_out(
    damage: Callable[[Path], None], layout: str, shapes: Load
) -> None:
    data = shapes(layout, damage)
    assert data.report.counts == {Problem.UNREADABLE_IMAGE: 1}
    assert len(data.train) == 11
    assert data.train.resized(32, 32).images.shape[0] == 11


def _list_missing(root: Path) -> None:
    (root / "train.txt").write_text("./images/train/train_0.png\nimages/train/absent.png\n\n")
    _edit_yaml(train="train.txt")(root)


@pytest.mark.parametrize(
    ("layout", "damage"),
    [("coco", lambda root: next(root.rglob("train_0.png")).unlink()), ("yolo", _list_missing)],
)
def test_load__missing_image_is_left_out(
    layout: str, damage: Callable[[Path], None], shapes: Load
) -> None:
    assert shapes(layout, damage).report.counts == {Problem.MISSING_IMAGE: 1}


@pytest.mark.parametrize(
    ("layout", "damage", "problem"),
    [
        ("coco", _box(0, [-9, -9, 40, 40]), Problem.BOX_OUTSIDE),
        ("coco", _box(0, [900, 900, 40, 40]), Problem.BOX_OUTSIDE),
        ("coco", _box(0, [5, 5, 0, 20]), Problem.EMPTY_BOX),
        ("coco", _box(0, [5, 5, 20, -20]), Problem.EMPTY_BOX),
        ("coco", _box(0, [5, 5, 20, 20], category_id=77), Problem.UNKNOWN_CATEGORY),
        ("coco", _box(0, [5, 5, 20]), Problem.MALFORMED),
        ("coco", _box(0, [5, 5, 20, "x"]), Problem.MALFORMED),
        ("coco", _box(0, [5, 5, 20, float("nan")]), Problem.MALFORMED),
        ("coco", _box(0, [5, 5, 20, 20], image_id=9999), Problem.MALFORMED),
        ("coco", _edit_coco(lambda c: c["annotations"].append("box")), Problem.MALFORMED),
        ("coco", _edit_coco(lambda c: c["images"].append({"id": 1})), Problem.MALFORMED),
        ("coco", _edit_coco(lambda c: c["images"].append(c["images"][0])), Problem.DUPLICATE_IMAGE),
        (
            "coco",
            _edit_coco(lambda c: c["images"].append({**c["images"][0], "id": 5})),
            Problem.DUPLICATE_IMAGE,
        ),
        ("yolo", _append_labels("0 0.9 0.5 0.6 0.2"), Problem.BOX_OUTSIDE),
        ("yolo", _append_labels("0 40 50 10 10"), Problem.BOX_OUTSIDE),
        ("yolo", _append_labels("0 0.5 0.5 0 0.2"), Problem.EMPTY_BOX),
        ("yolo", _append_labels("3 0.5 0.5 0.2 0.2"), Problem.UNKNOWN_CATEGORY),
        ("yolo", _append_labels("-1 0.5 0.5 0.2 0.2"), Problem.UNKNOWN_CATEGORY),
        ("yolo", _append_labels("0 0.5 0.5 0.2"), Problem.MALFORMED),
        ("yolo", _append_labels("cat 0.5 0.5 0.2 0.2"), Problem.MALFORMED),
        ("yolo", _append_labels("0.5 0.5 0.5 0.2 0.2"), Problem.MALFORMED),
        ("yolo", _append_labels("0 0.5 0.5 0.2 nan"), Problem.MALFORMED),
        ("yolo", _append_labels("inf 0.5 0.5 0.2 0.2"), Problem.MALFORMED),
        ("yolo", lambda root: (root / _LABELS).unlink(), Problem.UNANNOTATED_IMAGE),
        ("yolo", _edit_yaml(train=["images/train"] * 2), Problem.DUPLICATE_IMAGE),
    ],
)
def test_load__each_problem_is_counted_and_survived(
    layout: str, damage: Callable[[Path], None], problem: Problem, shapes: Load
) -> None:
    data = shapes(layout, damage)
    assert problem in data.report.counts
    assert "shapes" in data.report.examples[problem][0]
    assert all(
        (objects.boxes >= 0).all() and (objects.boxes[:, 2:] > objects.boxes[:, :2]).all()
        for objects in data.train.annotations
    )


def test_load__image_without_annotations_is_background(shapes: Load) -> None:
    data = shapes(
        "coco", _edit_coco(lambda content: content.update(annotations=content["annotations"][-3:]))
    )
    assert data.report.counts[Problem.UNANNOTATED_IMAGE] >= 9
    assert len(data.train) == 12


def test_load__box_is_clipped_to_its_image(shapes: Load) -> None:
    objects = shapes("coco", _box(0, [-9, -9, 40, 40])).train.annotations[0]
    np.testing.assert_array_equal(objects.boxes[0], [0, 0, 31, 31])


@pytest.mark.parametrize(
    ("layout", "damage"),
    [
        ("coco", _edit_coco(lambda content: content.update(annotations=[]))),
        ("yolo", lambda root: shutil.rmtree(root / "labels/train")),
    ],
)
def test_load__split_without_any_box_is_fatal(
    layout: str, damage: Callable[[Path], None], shapes: Load
) -> None:
    with pytest.raises(
        DatasetError, match=r"train split has 12 images, but no box(.|\n)*12 x image"
    ):
        shapes(layout, damage)


@pytest.mark.parametrize(("layout", "folder"), [("coco", "val2017"), ("yolo", "images/val")])
def test_load__split_without_any_image_is_fatal(layout: str, folder: str, shapes: Load) -> None:
    def spoil(root: Path) -> None:
        for file in (root / folder).iterdir():
            file.write_text("spoilt")

    with pytest.raises(DatasetError, match=r"validation split has no image(.|\n)*6 x unreadable"):
        shapes(layout, spoil)


@pytest.mark.parametrize("images", [1, 2])
def test_load__too_few_images_to_hold_any_out(shapes: Load, images: int) -> None:
    data = shapes("yolo", train=images, val=0, test=0)
    assert data.test is None
    assert len(data.train) == images
    assert data.validation.contents == data.train.contents
    assert "compared on the images that they learn from" in str(data.report)
    assert "No test split, and" in str(data.report)


def test_load__one_image_with_splits_of_its_own(shapes: Load) -> None:
    data = shapes("yolo", train=1, val=1, test=0)
    assert data.test is None
    assert data.validation.contents != data.train.contents


@pytest.mark.parametrize("seed", range(4))
def test_load__drawn_splits_have_objects_where_few_images_do(
    make_shapes: Callable[..., Path], tmp_path: Path, seed: int
) -> None:
    path = make_shapes(tmp_path / "shapes", "yolo", train=30, val=0, test=0)
    for number in range(3, 30):
        (path / f"labels/train/train_{number}.txt").write_text("")
    data = load_dataset(path, tmp_path / "cache", seed)
    assert data.test is not None
    assert [len(split) for split in (data.train, data.validation, data.test)] == [22, 4, 4]
    assert len({*data.train.contents, *data.validation.contents, *data.test.contents}) == 30


def test_load__classes_that_a_split_lacks_are_said(shapes: Load) -> None:
    data = shapes("yolo", train=30, val=1, test=0)
    held = {int(label) for label in data.validation.annotations[0].labels}
    absent = [name for label, name in enumerate(data.classes) if label not in held]
    note = f"The validation split has no object of {len(absent)} classes: {', '.join(absent)}."
    assert note in str(data.report)


def test_load__no_training_split(shapes: Load) -> None:
    with pytest.raises(DatasetError, match="needs a training split, got validation, test"):
        shapes("coco", train=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [],\n "annotations": [}', "line 2: not JSON"),
        ("[]", "lists called images, annotations, categories"),
        ('{"images": [], "annotations": {}, "categories": []}', "lists called"),
        ('{"images": [], "annotations": [], "categories": []}', "no categories"),
    ],
)
def test_coco__broken_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(DatasetError, match=rf"labels\.json.*{message}"):
        load_dataset(tmp_path / "labels.json", tmp_path)


def test_coco__bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_bytes(b"{\xff\xfe")
    with pytest.raises(DatasetError, match=r"labels\.json, byte 1: not UTF-8"):
        load_dataset(tmp_path / "labels.json", tmp_path)


def test_coco__two_files_for_one_split_are_ambiguous(shapes: Load) -> None:
    def copy(root: Path) -> None:
        shutil.copy(root / _COCO_FILE, root / "annotations/instances_train2014.json")

    with pytest.raises(DatasetError, match=r"instances_train2014\.json and instances_train2017"):
        shapes("coco", copy)


def test_coco__crowds_and_areas_are_kept(shapes: Load) -> None:
    objects = shapes("coco", _box(0, [5, 5, 30, 30], iscrowd=1, area=123)).train.annotations[0]
    assert objects.crowd[0]
    assert objects.areas[0] == 123


@pytest.mark.parametrize("folder", ["images/train2017", "images/train", "train", "images", "."])
def test_coco__images_are_found_in_the_usual_places(folder: str, shapes: Load) -> None:
    def move(root: Path) -> None:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for file in (root / "train2017").iterdir():
            file.rename(root / folder / file.name)

    assert len(shapes("coco", move).train) == 12


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [a]\ntrain: [", "line 2: this is not YAML"),
        ("- a", "must hold a mapping at its top level, got list"),
        ("names: [a]\ntrain: images\nnames: [b]", "line 3: the key 'names' stands twice"),
        ("names: {0: a, 1: b, 0: c}\ntrain: images", "line 1: the key '0' stands twice"),
        ("names: [a, b, a]\ntrain: images", "names that differ, and 0 and 2 are 'a'"),
        ("names: {0: a, 5: ' a'}\ntrain: images", "names that differ, and 0 and 5 are 'a'"),
        ("names: [a, null]\ntrain: images", "needs a name, and number 1 has None"),
        ("names: {0: a, 3: ''}\ntrain: images", "needs a name, and number 3 has ''"),
        ("names: [a, [b]]\ntrain: images", "needs a name, and number 1 has .'b'."),
        ("train: images", "names must list the classes"),
        ("names: {a: 1}\ntrain: images", "names must list the classes"),
        ("names: [a]\nnc: 2", "nc says 2 classes, names has 1"),
        ("names: [a]\ntrain: nowhere", "train images, nowhere, do not exist"),
        ("names: !!python/object:os.system [a]", "not YAML"),
    ],
)
def test_yolo__broken_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(DatasetError, match=rf"data\.yaml.*{message}") as error:
        load_dataset(tmp_path, tmp_path)
    assert error.value.remedy


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["a", "b", "c"], ("a", "b", "c")),
        ({0: "a", 1: "b", 2: "c"}, ("a", "b", "c")),
        ({2: "c", 0: "a", 1: "b", 7: "d"}, ("a", "b", "c", "d")),
    ],
)
def test_yolo__names_as_list_or_mapping(
    names: object, classes: tuple[str, ...], shapes: Load
) -> None:
    assert shapes("yolo", _edit_yaml(names=names)).classes == classes


def test_yolo__number_of_classes_without_names(shapes: Load) -> None:
    assert shapes("yolo", _edit_yaml(names=None, nc=3)).classes == ("0", "1", "2")


def test_yolo__polygon_becomes_its_box(shapes: Load) -> None:
    data = shapes("yolo", _append_labels("1 0.25 0.5 0.5 0.25 0.75 0.5 0.5 1"))
    height, width = data.train.sizes[0]
    expected = np.array([0.25, 0.25, 0.75, 1]) * [width, height, width, height]
    np.testing.assert_allclose(data.train.annotations[0].boxes[-1], expected, rtol=1e-5)


def test_yolo__entries_of_roboflow_begin_one_folder_too_high(shapes: Load) -> None:
    assert len(shapes("yolo", _edit_yaml(path=None, train="../images/train")).train) == 12


def test_yolo__test_split_that_does_not_exist_is_drawn_and_said(shapes: Load) -> None:
    data = shapes("yolo", _edit_yaml(test="nowhere"))
    assert "names a test split, nowhere, that does not exist" in str(data.report)
    assert "No test split: 2 of 12" in str(data.report)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"images": ' + "9" * 5000 + "}"])
def test_load__json_that_python_does_not_read_is_an_error(
    make_shapes: Callable[..., Path], tmp_path: Path, text: str
) -> None:
    root = make_shapes(tmp_path / "shapes", "coco")
    (root / "annotations" / "instances_train2017.json").write_text(text)
    with pytest.raises(DatasetError, match="JSON that cannot be read"):
        load_dataset(root, tmp_path / "cache")


def test_load__byte_order_mark_and_impossible_file_name(
    make_shapes: Callable[..., Path], tmp_path: Path
) -> None:
    root = make_shapes(tmp_path / "shapes", "coco", train=4)
    path = root / "annotations" / "instances_train2017.json"
    path.write_text(path.read_text().replace("train_0", "n" * 400), "utf-8-sig")
    found = load_dataset(root, tmp_path / "cache")
    assert len(found.train) == 3
    assert "1 x missing image" in str(found.report)
