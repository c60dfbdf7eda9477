"""The command line: what a user types, and what they read when it is wrong."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from nas import cli
from nas.searcher.database import Database
from nas.searcher.request import Request, Workspace
from nas.space.space import load_space
from nas.space.subject import read_architecture
from nas.units import Budget

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run a command in an empty folder; return its exit code and all that it printed."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["nas", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return code, re.sub(r"\s+", " ", captured.out + captured.err)

    return call


def test_spaces__lists_what_ships_with_its_size(run: Run) -> None:
    code, text = run("spaces")
    assert code == 0
    assert "digits" in text
    assert f"{load_space('digits').size:,}" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--budget", "10"], ["'10'", "unit", "10ms"]),
        (["--budget", "-3ms"], ["'-3ms'", "remedy"]),
        (["--budget", "10 s"], ["'10 s'"]),
        (["--budget", "99999ms"], ["99999", "10000"]),
        (["--budget", "1ms", "--hardware", "cqu"], ["'cqu'", "'cpu'"]),
        (["--budget", "1ms", "--space", "digitz"], ["'digitz'", "'digits'"]),
        (["--budget", "1ms", "--space", "./nowhere.yaml"], ["nowhere.yaml", "cannot be read"]),
        (["--budget", "1ms", "--runtime", "openvin"], ["'openvin'", "'openvino'"]),
        (["--budget", "1ms", "--evaluations", "0"], ["at least 1", "0"]),
        (["--budget", "1ms", "--seed", "-1"], ["-1", "0..2147483647"]),
        (["--budget", "1ms", "--max-params", "many"], ["'many'", "5M"]),
        (["--budget", "1ms", "--max-macs", "0"], ["macs", "positive"]),
        (["--budget", "1ms", "--lambda", "-1"], ["lambda", "-1"]),
        (["--budget", "1ms", "--confirm", "0"], ["at least 1 candidate", "0"]),
        (["--budget", "1ms", "--jobs", "0"], ["at least 1 job", "0"]),
        (["--budget", "1ms", "--against", "digits:mini"], ["'mini'", "'min'"]),
        (["--budget", "1ms", "--data", "nowhere"], ["nowhere", "does not exist"]),
        (["--budget", "1ms", "--storage", "mysqlite:///x"], ["mysqlite"]),
        (["--budget", "1ms", "--storage", "sqlite:////proc/no/x.db"], ["/proc/no"]),
        (["--resume"], ["no study", "nas search"]),
        (["--resume", "--study", "x"], ["'x'"]),
        (["--study", "x", "--as", "y", "--hardware", "l4"], ["no study", "no database at"]),
    ],
)
def test_search__says_rule_value_and_remedy(
    run: Run, arguments: list[str], words: list[str]
) -> None:
    code, text = run("search", "--quick", *arguments)
    assert code == 1
    assert text.startswith("error:") or "error:" in text
    for word in words:
        assert word in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("option", "named"),
    [
        (["--recipe", "other.yaml"], "--recipe"),
        (["--space", "yolo_nas"], "--space"),
        (["--seed", "4"], "--seed"),
        (["--lambda", "0.3"], "--lambda"),
        (["--max-params", "1M"], "--max-"),
        (["--sampler", "tpe"], "--sampler"),
    ],
)
def test_search__resumed_as_it_was_asked_for_or_not_at_all(
    run: Run, tmp_path: Path, option: list[str], named: str
) -> None:
    """What was trained by one recipe must not go on in silence while another is asked for."""
    (tmp_path / "other.yaml").write_text("iterations: 7\n")
    stored = Request(budget=Budget(1.0), study="s", workspace=Workspace(tmp_path / "studies"))
    names = ("space", "data", "recipe", "hardware", "runtime")
    with (
        Database(stored.url) as database,
        database.recorded(
            "s",
            command="search",
            arguments=stored.arguments(),
            **dict.fromkeys(names, "x"),
            budget_ms=1.0,
            seed=0,
            versions={},
            commit=None,
        ),
    ):
        pass
    code, text = run("search", "--resume", "--study", "s", *option)
    assert code == 2
    for word in (named, "'s' was asked for with another", "leave the option out"):
        assert word in text.replace("│ ", "")


def test_hardware__lists_what_can_be_measured_here(run: Run) -> None:
    code, text = run("hardware")
    assert code == 0
    for word in ("cpu", "l4", "orin-nx", "openvino"):
        assert word in text


def test_measure__a_device_that_is_not_here(run: Run) -> None:
    code, text = run("measure", "digits:min", "--hardware", "l4")
    assert code == 1
    for word in ("l4 (NVIDIA L4) is not attached", "--hardware cpu"):
        assert word in text


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, ["--study", "not both"]),
        (["digits:min", "--study", "x"], 2, ["--study", "not both"]),
        (["--study", "x"], 1, ["'x'", "no study"]),
        (["digits:min", "--batch", "0"], 1, ["at least 1", "0"]),
        (["digits:min", "--image", "nowhere.png"], 1, ["nowhere.png"]),
        (["digits:min", "--protocol", "cold"], 2, ["'cold'", "buffered"]),
    ],
)
def test_measure__says_what_is_wrong(
    run: Run, arguments: list[str], code: int, words: list[str]
) -> None:
    found, text = run("measure", *arguments)
    assert found == code
    assert "Traceback" not in text
    for word in words:
        assert word in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--landmarks", "3"], ["at least 4", "3"]),
        (["--seeds", "0"], ["at least 1", "0"]),
        (["--threshold", "2"], ["threshold", "2"]),
        (["--study", "x"], ["'x'", "no study"]),
    ],
)
def test_trust__says_rule_value_and_remedy(
    run: Run, arguments: list[str], words: list[str]
) -> None:
    code, text = run("trust", *arguments)
    assert code == 1
    assert "Traceback" not in text
    for word in words:
        assert word in text


def test_search__refuses_an_estimate_when_told_to(run: Run) -> None:
    code, text = run(
        "search", "--hardware", "xavier-nx", "--budget", "9ms", "--latency", "measured", "--quick"
    )
    assert code == 1
    assert "xavier-nx" in text
    assert "is not attached" in text


def test_estimate__says_that_nothing_was_measured(run: Run) -> None:
    code, text = run("estimate", "hsv_det:yolov8n", "--hardware", "t4")
    assert code == 0
    figures = re.match(r"([\d.]+) ms, 80 % interval \[([\d.]+), ([\d.]+)\], estimated", text)
    assert figures
    ms, low, high = map(float, figures.groups())
    # YOLOv8n took 1.47 ms on a T4 (Ultralytics' chart, TensorRT FP16).
    assert low < 1.47 < high
    assert low < ms < high
    assert "Where it is: nas measure hsv_det:yolov8n --hardware t4 --precision fp16" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["digits:min", "--hardware", "cpu"], ["data sheet", "'cpu'"]),
        (["digits:min", "--hardware", "l5"], ["'l5'", "'l4'"]),
        (["digits", "--hardware", "l4"], ["'digits'", "digits:middle"]),
    ],
)
def test_estimate__says_rule_value_and_remedy(
    run: Run, arguments: list[str], words: list[str]
) -> None:
    code, text = run("estimate", *arguments)
    assert code == 1
    for word in words:
        assert word in text


def test_search__unknown_sampler_costs_no_training(run: Run, tmp_path: Path) -> None:
    code, text = run("search", "--quick", "--budget", "1ms", "--sampler", "tpa")
    assert code == 1
    assert "'tpa'" in text
    assert "'tpe'" in text
    assert not (tmp_path / "studies").exists()


def test_search__a_new_name_needs_the_study_that_it_is_for(run: Run) -> None:
    code, text = run("search", "--as", "y")
    assert code == 2
    assert "which study is re-targeted" in text


def test_search__needs_a_budget(run: Run) -> None:
    code, text = run("search")
    assert code == 2
    assert "--budget" in text


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("model.onnx", b"not a model", ["model.onnx"]),
        ("missing.onnx", None, ["missing.onnx"]),
        ("picture.png", b"", [".png"]),
        ("broken.yaml", b"input: [1,", ["broken.yaml", "line"]),
        ("other.yaml", b"a: 1\n", ["'a'"]),
    ],
)
def test_measure__refuses_what_is_no_network(
    run: Run, tmp_path: Path, name: str, content: bytes | None, words: list[str]
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    code, text = run("measure", name)
    assert code == 1
    for word in words:
        assert word in text


def test_measure__an_architecture_with_interval_source_and_environment(
    run: Run, tmp_path: Path
) -> None:
    space = load_space("digits")
    architecture = space.candidate(space.anchors["min"], classes=10).architecture
    (tmp_path / "architecture.yaml").write_text(architecture.to_yaml())
    code, text = run("measure", "architecture.yaml")
    assert code == 0
    assert re.search(r"[\d.]+ ms, 95 % interval \[[\d.]+, [\d.]+\], measured", text)
    assert "runtime: openvino" in text
    assert "precision: fp32" in text


def test_describe__every_layer_and_a_drawing(run: Run, tmp_path: Path) -> None:
    code, text = run("describe", "hsv_det:yolov8n")
    assert code == 0
    for word in ("23 layers", "3,157,184 parameters", "8.74 GFLOPs", "Detect"):
        assert word in text
    assert (tmp_path / "studies" / "hsv_det-yolov8n.svg").read_text().startswith("<")


def test_describe__plain_data(run: Run, tmp_path: Path) -> None:
    code, text = run("describe", "digits:min", "--classes", "3", "--json", "--svg", "x.svg")
    assert code == 0
    facts = json.loads(text)
    assert facts["classes"] == 3
    assert sum(layer["macs"] for layer in facts["layers"]) == facts["macs"]
    assert (tmp_path / "x.svg").exists()


def test_describe__warns_of_widths_that_engines_pad(run: Run, tmp_path: Path) -> None:
    space = load_space("digits")
    data = space.candidate(space.anchors["min"], classes=10).architecture.canonical()
    data["backbone"]["P3"]["hidden"] = 12
    (tmp_path / "odd.yaml").write_text(yaml.safe_dump(data))
    code, text = run("describe", "odd.yaml")
    assert code == 0
    assert "backbone.P3.hidden = 12" in text
    assert "use 8 or 16" in text


def test_layer_list__written_and_read_back_as_the_same_network(run: Run, tmp_path: Path) -> None:
    code, text = run("export", "yolo_nas:S", "--format", "ultralytics", "--output", "s.yaml")
    assert code == 0
    assert "Layer list: s.yaml" in text
    space = load_space("yolo_nas")
    published = space.candidate(space.anchors["S"], classes=80).architecture
    assert read_architecture(str(tmp_path / "s.yaml"), 1).digest == published.digest


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[[-1, 1, Conv, [16, 3, 2]], [5, 1, Conv, [16, 3, 2]]]", ["Layer 1 (Conv", "layer 5"]),
        ("[[-1, 1, Conw, [16, 3, 2]]]", ["Layer 0 (Conw", "'Conv'"]),
        ("[[-1, 1, Conv, [16, 3, 2]], [[-1, 0, -1], 1, Concat]]", ["Layer 1", "list of four"]),
        (
            "[[-1, 1, Conv, [16, 3, 2]], [-1, 1, Conv, [8, 3, 2]], [[0, 1], 1, Concat, [1]]]",
            ["Layer 2 (Concat", "(16, 320, 320) from layer 0", "(8, 160, 160) from layer 1"],
        ),
        ("[[-1, 1, Conv, [16, 3, 2]], [1, 1, Conv, [16, 3, 2]]]", ["Layer 1", "itself"]),
    ],
)
def test_describe__names_the_broken_layer(
    run: Run, tmp_path: Path, content: str, words: list[str]
) -> None:
    (tmp_path / "list.yaml").write_text(
        f"nc: 2\nbackbone: {content}\nhead: [[-1, 1, Detect, [nc]]]\n"
    )
    code, text = run("describe", "list.yaml")
    assert code == 1
    assert "Traceback" not in text
    for word in words:
        assert word in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], ["'nothing'", "digits:nothing"]),
        (["digits:mini"], ["'mini'", "'min'"]),
        (["digitz:min"], ["'digitz'", "'digits'"]),
    ],
)
def test_describe__says_which_names_there_are(
    run: Run, arguments: list[str], words: list[str]
) -> None:
    code, text = run("describe", *arguments)
    assert code == 1
    for word in words:
        assert word in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["needs something to change", "p4_depth"]),
        (["--vary", "p4_deptz"], ["'p4_deptz'", "'p4_depth'"]),
        (["--vary", "p4_depth=7"], ["p4_depth", "'7'"]),
        (["--recipe", "peak_rl=1"], ["'peak_rl'", "'peak_lr'"]),
        (["--recipe", "peak_lr=7"], ["7"]),
        (["--switch", "lookahed"], ["'lookahed'", "'lookahead'"]),
        (["--recipe", "missing.yaml"], ["missing.yaml", "cannot be read"]),
        (["--against", "mini"], ["'mini'", "'min'"]),
        (["--vary", "p4_depth", "--seeds", "0"], ["at least 1", "0"]),
    ],
)
def test_ablate__says_rule_value_and_remedy(
    run: Run, arguments: list[str], words: list[str]
) -> None:
    code, text = run("ablate", "digits:middle", "--quick", *arguments)
    assert code == 1
    assert "Traceback" not in text
    for word in words:
        assert word in text


READING = [
    *(["front"], ["explain"], ["export"], ["worth"], ["trust"], ["dashboard"]),
    *(["measure", "--study", "s"], ["front", "--study", "s"]),
    *(["search", "--resume"], ["search", "--study", "s", "--budget", "1ms", "--as", "t"]),
]


@pytest.mark.parametrize("arguments", READING, ids=" ".join)
@pytest.mark.parametrize("place", ["", "--storage", "--workspace"])
def test_stored__what_is_read_must_be_there_and_is_not_made(
    run: Run, tmp_path: Path, arguments: list[str], place: str
) -> None:
    typo = tmp_path / "typo"
    named = f"sqlite:///{typo}/x.db" if place == "--storage" else str(typo)
    code, text = run(*arguments, *([place, named] if place else []))
    assert code == 1
    assert "there is no database at" in text
    assert (str(typo) in text) == bool(place)
    assert "nas search --budget" in text
    assert not list(tmp_path.iterdir())


def test_stored__no_study_yet(run: Run, tmp_path: Path) -> None:
    Database(f"sqlite:///{tmp_path}/studies/nas.db").close()
    code, text = run("front")
    assert code == 1
    assert "There is no study in" in text


def test_stored__remedy_is_a_command_to_paste(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Whole, in one line however long, with what finds the same place again."""
    folder = tmp_path / f"it's {'very ' * 20}far"
    monkeypatch.setattr(sys, "argv", ["nas", "front", "--workspace", str(folder)])
    with pytest.raises(SystemExit):
        cli.main()
    told = capsys.readouterr().err.splitlines()
    line = next(line for line in told if "nas search" in line)
    assert shlex.split(line.partition(": nas ")[2]) == [
        *("search", "--budget", "0.4ms", "--workspace", str(folder))
    ]


FLAGS = {
    "search": "--hardware --budget --data --space --runtime --precision --latency --table --prior "
    "--max-params --max-macs --max-size --max-memory --sampler --evaluations --accuracy --subset "
    "--study --as --resume --lambda --alpha --seed --quick --recipe --no-trust --confirm "
    "--confirm-seeds --baselines --against --jobs --dry-run --storage --workspace",
    "front": "--study --lambda --budget --against --storage --workspace",
    "explain": "--study --output --storage --workspace",
    "trust": "--study --landmarks --seeds --iterations --jobs --threshold --storage --workspace",
    "worth": "--study --storage --workspace",
    "export": "--study --trial --format --output --classes --storage --workspace",
    "describe": "--classes --svg --json --workspace",
    "ablate": "--space --vary --recipe --switch --against --seeds --iterations --data --hardware "
    "--runtime --precision --jobs --study --quick --output --storage --workspace",
    "measure": "--study --hardware --runtime --precision --protocol --batch --image --threads "
    "--storage --workspace",
    "profile": "--hardware --space --measurements --runtime --precision --classes --output --seed "
    "--storage --workspace",
    "hardware": "--workspace",
    "estimate": "--hardware --workspace",
    "train": "--data --iterations --hardware --seed --quick --recipe --dry-run --workspace",
    "spaces": "",
    "dashboard": "--port --storage --workspace",
}


@pytest.mark.parametrize("command", [("search", "--budget", "1ms"), ("train", "digits:min")])
def test_recipe__a_file_that_cannot_be_says_its_line(
    run: Run, tmp_path: Path, command: tuple[str, ...]
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("batch_size: 4\npeak_lr: fast\n")
    code, text = run(*command, "--quick", "--recipe", str(path))
    assert code == 1
    assert "line 2" in text
    assert "'peak_lr' is a number" in text


def test_train__dry_run_trains_nothing(run: Run, tmp_path: Path) -> None:
    steps = ("--iterations", "7", "--dry-run", "--workspace", str(tmp_path / "ws"))
    code, text = run("train", "digits:min", "--quick", *steps)
    assert code == 0
    assert "7 steps" in text
    assert "Memory" in text
    assert not list((tmp_path / "ws").glob("trained-*"))


def test_flags__are_frozen() -> None:
    """A new knob belongs into the recipe or the search space, unless every user needs it."""
    commands = get_command(cli.app).commands  # type: ignore[attr-defined]
    found = {
        name: {option for p in command.params for option in p.opts if option.startswith("--")}
        for name, command in commands.items()
    }
    assert found == {name: set(flags.split()) for name, flags in FLAGS.items()}
