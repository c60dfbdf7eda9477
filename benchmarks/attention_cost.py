"""What does each attention family cost beside dense attention, and from which map on does it pay?

Maps are P3, P4, P5 of four input sizes, with the channels of HSV-DET (256, 512, 512). Everything is
timed on OpenVINO with one thread, by process CPU time, in turns with one fixed reference (dense
attention on 20x20x512); within a map and a precision all entries are measured one after the other
in one process, and a ratio to dense is the quotient of two such ratios, its interval the quotient
of the far ends. A 1x1 convolution from the three channels of an image stands before every block.

- `block`: the whole module. `attention`: the same with its C x C projections taken out, so that
  selection, gathers, normalisation, scores, softmax and sums are left. `aifi` and `psa` are timed
  as blocks only.
- Multiplications are those of the laws in the classes: `scores` (queries times keys), `mixing`
  (scores and weighted sums), `macs` (everything).
- Memory is measured: how much the resident memory of a fresh process rises above what it was before
  the fp32 engine is built, up to the end of one run, at its peak. `score_bytes` is computed.

Skipped, and recorded with the reason, is what needs a tensor of scores above 2 GiB, more than 120
billion multiplications, or more positions than TopK sorts.

Run it as `python benchmarks/attention_cost.py`; it writes `benchmarks/results/attention_cost.json`
and `.html`. With `--quick` it takes two small maps, and writes `attention_cost_quick` instead.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from record import RESULTS, write_result
from rich.console import Console
from torch import Tensor, nn

from nas.latency.clock import Clock, ClockSettings, Elapsed
from nas.latency.onnx_export import export_graph
from nas.latency.runtimes.base import Engine
from nas.latency.runtimes.openvino import OpenVinoRuntime
from nas.model.blocks.attention import Attention, build_attention
from nas.model.blocks.attention_published import EncoderLayer, PartialAttention
from nas.model.blocks.convolution import Unit
from nas.space.attention import LARGEST_TOPK, AttentionPoint
from nas.space.record import LEVELS, Size, map_size

IMAGES = {"640": (640, 640), "720p": (720, 1280), "1080p": (1080, 1920), "4K": (2160, 3840)}
CHANNELS = {"P3": 256, "P4": 512, "P5": 512}
TOKENS = 512
FAMILIES: dict[str, dict[str, Any]] = {
    "dense": {"kind": "dense"},
    "sparse": {"tokens": TOKENS},
    "windowed": {"kind": "windowed", "window": 8},
    "strided": {"kind": "strided", "stride": 4},
    "lsh": {"kind": "lsh", "buckets": 32},
    "deformable": {"kind": "deformable", "points": 4},
    "aifi": {"kind": "aifi"},
    "psa": {"kind": "psa"},
}
SELECTIONS = ("l2", "learned", "random", "strided")
PRECISIONS = ("fp32", "bf16")
PROJECTIONS = ("query", "key", "value", "output")
MOST_BYTES = 2 * 1024**3
MOST_MACS = 120e9
_SLOW_MACS = 4e9
_REFERENCE = ("dense", 512, (20, 20))

Map = tuple[int, Size]
"""Channels, and height and width."""

_COLOURS = (
    *("#24292f", "#cf222e", "#1a7f37", "#8250df"),
    *("#bf8700", "#0a7ea4", "#d4699a", "#57606a"),
)


class _OnImages(nn.Module):
    def __init__(self, block: Attention) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, block.channels, 1), block

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.block(self.stem(images))
        return output


def main() -> None:
    """Measure every family on every map, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two small maps")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console, elapsed, rows = Console(width=170), Elapsed(), []
    for (channels, size), names in _maps(quick=arguments.quick).items():
        found = [_row(name, channels, size) for name in _names()]
        for row in found:
            if "skipped" not in row:
                row["peak_bytes"] = _in_child(partial(_peak_bytes, row["family"], channels, size))
        times = _in_child(partial(_times, found, channels, size))
        for row, entry in zip(found, times, strict=True):
            row.update(entry)
        _compare(found)
        rows += [{"map": names, **row} for row in found]
        _show(console, rows[-len(found) :], elapsed)
    name = "attention_cost_quick" if arguments.quick else "attention_cost"
    figures = {
        "engine": "openvino, 1 thread",
        "reference": "dense attention with projections, 512 x 20x20",
        "tokens": TOKENS,
        "families": FAMILIES,
        "pays_from_positions": _pays_from(rows),
        "wall_seconds": round(elapsed.wall_s),
        "rows": rows,
    }
    console.print(f"Written to {write_result(name, figures)} and {_draw(name, rows)}")


# --- what is compared ------------------------------------------------------------------------


def _maps(*, quick: bool) -> dict[Map, list[str]]:
    """Return every distinct map, small ones first, with the inputs and levels that have it."""
    found: dict[Map, list[str]] = {}
    for image, pixels in IMAGES.items():
        for level in LEVELS:
            found.setdefault((CHANNELS[level], map_size(pixels, level)), []).append(
                f"{image} {level}"
            )
    ordered = sorted(found, key=lambda one: one[1][0] * one[1][1])
    return {one: found[one] for one in (ordered[1:3] if quick else ordered)}


def _names() -> list[str]:
    return [*FAMILIES, *(f"sparse, {selection}" for selection in SELECTIONS)]


def _point(name: str, size: Size) -> AttentionPoint:
    family, _, selection = name.partition(", ")
    fields = {**FAMILIES[family], **({"selection": selection} if selection else {})}
    return AttentionPoint(**fields, gate="none").on(size)


def _row(name: str, channels: int, size: Size) -> dict[str, Any]:
    """Say what a family multiplies and holds on a map, or why it is skipped."""
    positions = size[0] * size[1]
    row = {"family": name, "channels": channels, "size": size, "positions": positions}
    if name == "lsh" and positions > LARGEST_TOPK:
        return {**row, "skipped": f"TopK sorts at most {LARGEST_TOPK} positions"}
    if name.startswith("sparse") and positions <= TOKENS:
        return {**row, "skipped": f"the map has no more than k = {TOKENS} positions: it is dense"}
    with torch.device("meta"):
        block = build_attention(_point(name, size), channels, size)
    row |= {"macs": block.macs, "mixing_macs": block.mixing_macs}
    row |= {"score_macs": _score_macs(block), "score_bytes": _score_bytes(block)}
    if row["score_bytes"] > MOST_BYTES:
        return {**row, "skipped": f"scores of {row['score_bytes'] / 1024**3:.1f} GiB"}
    if block.macs > MOST_MACS:
        return {**row, "skipped": f"{block.macs / 1e9:.0f} billion multiplications"}
    return row


def _score_macs(block: Attention) -> int:
    """Multiplications of queries with keys."""
    if isinstance(block, PartialAttention):
        return block.positions**2 * block.keys
    return 0 if not hasattr(block, "query") else block.mixing_macs // 2


def _score_bytes(block: Attention) -> int:
    """Size of all scores of an image in float32."""
    if isinstance(block, PartialAttention | EncoderLayer):
        return 4 * block.heads * block.positions**2
    return 4 * _score_macs(block) // block.channels


# --- measuring -------------------------------------------------------------------------------


def _graph(name: str, part: str, channels: int, size: Size) -> bytes:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        block = build_attention(_point(name, size), channels, size).eval()
    if part == "attention":
        for projection in PROJECTIONS:
            if hasattr(block, projection):
                setattr(block, projection, nn.Identity())
    _fuse(block)
    return export_graph(_OnImages(block), torch.zeros(1, 3, *size), "images", ["features"])


def _fuse(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, Unit):
            setattr(module, name, child.fuse())


def _engine(name: str, part: str, channels: int, size: Size, precision: str) -> Engine:
    engine = OpenVinoRuntime().build(_graph(name, part, channels, size), precision)
    images = np.random.default_rng(0).random(engine.input_shape, dtype=np.float32)
    engine.bind(images)
    return engine


def _times(rows: list[dict[str, Any]], channels: int, size: Size) -> list[dict[str, Any]]:
    """Time all entries of a map in turns with the reference, in each precision."""
    found: list[dict[str, Any]] = [{"times": {}} for _ in rows]
    for precision in PRECISIONS:
        if precision not in OpenVinoRuntime().precisions:
            continue  # this processor has no native kernels for it
        with _engine(_REFERENCE[0], "block", *_REFERENCE[1:], precision) as reference:
            scale = Clock().calibrate(reference.run).ms
            for row, entry in zip(rows, found, strict=True):
                for part in _parts(row, precision):
                    with _engine(row["family"], part, channels, size, precision) as engine:
                        time = _time(engine.run, reference.run, row["macs"], scale)
                    entry["times"][f"{part} {precision}"] = time
    return found


def _parts(row: dict[str, Any], precision: str) -> tuple[str, ...]:
    if "skipped" in row:
        return ()
    if "," in row["family"]:
        # Ways to select differ in the attention alone, and not by the precision of the projections.
        return ("attention",) if precision == "fp32" else ()
    return ("block",) if row["family"] in ("aifi", "psa") else ("block", "attention")


def _time(
    run: Callable[[], object], reference: Callable[[], object], macs: int, scale_ms: float
) -> dict[str, Any]:
    blocks = 3 if macs > _SLOW_MACS else 10
    settings = ClockSettings(
        half_width=0.03, min_blocks=3, max_blocks=blocks, min_samples=1, warmup_ms=5.0
    )
    timing = Clock(settings=settings).measure(run, reference, scale_ms)
    return {
        "ms": timing.ms,
        "interval_ms": [timing.low_ms, timing.high_ms],
        "blocks": timing.blocks,
        "other_load": timing.other_load,
    }


def _peak_bytes(name: str, channels: int, size: Size) -> int:
    graph = _graph(name, "block", channels, size)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _memory("VmRSS")
    with OpenVinoRuntime().build(graph, "fp32") as engine:
        engine.infer(np.zeros(engine.input_shape, np.float32))
    return _memory("VmHWM") - before


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def _in_child(function: Callable[[], Any]) -> Any:
    """Call it in a forked process, whose memory and engines nothing else has touched."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(function)


# --- what it says ----------------------------------------------------------------------------


def _compare(rows: list[dict[str, Any]]) -> None:
    """Add ratios to the dense row of the same map, which comes first."""
    dense = rows[0]
    for row in rows:
        if "macs" not in row:
            continue
        for field in ("score_macs", "mixing_macs", "macs"):
            row[f"{field}_ratio"] = row[field] / dense[field]
        if "peak_bytes" in row and "peak_bytes" in dense:
            row["peak_bytes_ratio"] = row["peak_bytes"] / dense["peak_bytes"]
        for part, time in row["times"].items():
            if other := dense["times"].get(part):
                (low, high), (lowest, highest) = time["interval_ms"], other["interval_ms"]
                time["ratio"] = time["ms"] / other["ms"]
                time["ratio_interval"] = [low / highest, high / lowest]


def _pays_from(rows: list[dict[str, Any]]) -> dict[str, dict[str, int | None]]:
    """Return, by what was timed and family, the least N from which on all maps cost less.

    That is: the whole interval of the ratio to dense lies below 1. Maps of 512 channels only, so
    that N alone differs.
    """
    series: dict[tuple[str, str], list[tuple[int, bool]]] = {}
    for row in rows:
        for part, time in row.get("times", {}).items():
            if row["channels"] == CHANNELS["P5"] and "ratio" in time and row["family"] != "dense":
                point = row["positions"], time["ratio_interval"][1] < 1
                series.setdefault((part, row["family"]), []).append(point)
    found: dict[str, dict[str, int | None]] = {}
    for (part, family), points in series.items():
        paying = list(takewhile(lambda point: point[1], sorted(points, reverse=True)))
        found.setdefault(part, {})[family] = paying[-1][0] if paying else None
    return found


def _show(console: Console, rows: list[dict[str, Any]], elapsed: Elapsed) -> None:
    first = rows[0]
    console.print(f"{', '.join(first['map'])}: N {first['positions']}, C {first['channels']}")
    for row in rows:
        if "skipped" in row:
            console.print(f"  {row['family']:18} skipped: {row['skipped']}")
            continue
        times = [
            f"{part} {time['ms']:.1f} ms ({time.get('ratio', float('nan')):.2f})"
            for part, time in row["times"].items()
        ]
        memory = f"{row['peak_bytes'] / 1024**2:.0f} MiB"
        console.print(
            f"  {row['family']:18} {row['macs'] / 1e9:7.2f} GMAC {memory:>9}  {'  '.join(times)}"
        )
    console.print(f"  after {elapsed.wall_s:.0f} s")


def _draw(name: str, rows: list[dict[str, Any]]) -> Path:
    """Draw CPU time of the fp32 blocks over N, and write it as HTML."""
    figure = go.Figure()
    colours = dict(zip(FAMILIES, _COLOURS, strict=True))
    for channels, dash in ((512, "solid"), (256, "dot")):
        for family in FAMILIES:
            points = [
                (row["positions"], row["times"]["block fp32"]["ms"])
                for row in rows
                if (row["family"], row["channels"]) == (family, channels)
                and "block fp32" in row.get("times", {})
            ]
            if points:
                x, y = zip(*points, strict=True)
                line = {"dash": dash, "color": colours[family]}
                name_of = f"{family}, C = {channels}"
                figure.add_trace(go.Scatter(x=x, y=y, name=name_of, line=line))
    figure.update_layout(
        title="Whole attention blocks, fp32, OpenVINO, one thread; k = 512",
        xaxis={"title": "positions of the map, N", "type": "log"},
        yaxis={"title": "CPU time, ms", "type": "log"},
        template="plotly_white",
        width=960,
        height=600,
    )
    path = RESULTS / f"{name}.html"
    figure.write_html(path, include_plotlyjs="cdn")
    return path


if __name__ == "__main__":
    main()
