"""What does folding QARepVGG save, and what does the block cost beside C2f at equal MACs?

Each comparison is one measurement of the clock with the two graphs in turns, so a neighbour's load
falls on both: the figure is their ratio of CPU time, with its 95 % interval. A 1x1 convolution from
the three channels of an image stands before each block, under 1 % of its multiplications. Every
comparison is repeated with engines built anew, and a network against itself says what noise is.

Run it as `python benchmarks/qarepvgg.py`; it writes `benchmarks/results/qarepvgg.json`.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from record import write_result
from rich.console import Console
from rich.table import Table
from torch import nn

from nas import plugins
from nas.latency.clock import Clock, ClockSettings
from nas.latency.onnx_export import export_graph
from nas.latency.runtimes.base import Runtime
from nas.model.blocks.backbone import fusion
from nas.model.blocks.convolution import QARepVGG, Unit
from nas.space.architecture import Fusion

ENGINES = (("openvino", "fp32"), ("openvino", "bf16"), ("onnxruntime", "fp32"))
MAPS = ((32, 80), (64, 40), (128, 20), (256, 10))  # channels, side: a small detector at 320 px
_DEPTH = 2


class _Block(nn.Module):
    """An image, a 1x1 convolution, the block."""

    def __init__(self, channels: int, block: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 1)
        self.block = block

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.block(self.stem(images))
        return output


def main() -> None:
    """Measure every comparison on every engine, and write the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    console, rows = Console(width=120), []
    for name, precision in ENGINES:
        runtime: Runtime = plugins.load("runtimes", name)()
        if precision not in runtime.precisions:
            rows.append({"engine": f"{name} {precision}", "skipped": "not native on this machine"})
            continue
        for channels, side in MAPS:
            for pair in _pairs(channels, side):
                rows.append(_row(runtime, precision, pair, arguments.repeats))
                console.print(f"{rows[-1]['engine']} {channels}: {rows[-1]['of']}")
    _print(console, rows)
    figures = {"depth_of_stages": _DEPTH, "repeats": arguments.repeats, "comparisons": rows}
    console.print(f"Written to {write_result('qarepvgg', figures)}")


def _pairs(channels: int, side: int) -> list[dict[str, Any]]:
    """Return what is compared on one map: names, both modules, their MACs."""
    unit = QARepVGG((channels,), (channels,), act="silu")
    csp = _stage("qarepvgg_csp", channels, channels // 2)
    macs = _stage_macs("qarepvgg_csp", channels, channels // 2)
    rival = min(
        range(8, channels + 1), key=lambda hidden: abs(_stage_macs("c2f", channels, hidden) - macs)
    )
    common = {"channels": channels, "side": side}
    fused, alike = _fused(csp), _fused(_stage("c2f", channels, channels // 2))
    nearest = _fused(_stage("c2f", channels, rival))
    return [
        {**common, "of": "unit: fused / unfused", "pair": (_fused(unit), unit)},
        {**common, "of": "CSP stage: fused / unfused", "pair": (fused, csp)},
        {
            **common,
            "of": f"CSP stage fused / C2f, both hidden {channels // 2}",
            "pair": (fused, alike),
            "macs_ratio": macs / _stage_macs("c2f", channels, channels // 2),
        },
        {
            **common,
            "of": f"CSP stage fused / C2f, hidden {channels // 2} / {rival}",
            "pair": (fused, nearest),
            "macs_ratio": macs / _stage_macs("c2f", channels, rival),
        },
        {**common, "of": "CSP stage fused / itself", "pair": (fused, fused)},
    ]


def _stage(block: str, channels: int, hidden: int) -> nn.Module:
    spec = Fusion(block=block, channels=channels, hidden=hidden, depth=_DEPTH)
    return fusion((channels,), spec, "silu")


def _stage_macs(block: str, channels: int, hidden: int) -> int:
    """Multiplications per position of a deployed stage: 1x1 in, bottlenecks, 1x1 out."""
    parts = 2 + _DEPTH if block == "c2f" else 2
    return 2 * channels * hidden + _DEPTH * 18 * hidden**2 + parts * hidden * channels


def _fused(module: nn.Module) -> nn.Module:
    twin = copy.deepcopy(module).eval()
    if isinstance(twin, Unit):
        return twin.fuse()
    for parent in list(twin.modules()):
        for name, child in parent.named_children():
            if isinstance(child, Unit):
                setattr(parent, name, child.fuse())
    return twin


def _row(runtime: Runtime, precision: str, pair: dict[str, Any], repeats: int) -> dict[str, Any]:
    side, channels = pair["side"], pair["channels"]
    graphs = [_graph(module, channels, side) for module in pair["pair"]]
    measured = [_ratio(runtime, precision, graphs, seed) for seed in range(repeats)]
    ratios = [one["ratio"] for one in measured]
    return {
        "engine": f"{runtime.name} {precision}",
        **{key: value for key, value in pair.items() if key != "pair"},
        "ratio": float(np.median(ratios)),
        "ratio_per_mac": float(np.median(ratios)) / pair.get("macs_ratio", 1.0),
        "lowest": min(ratios),
        "highest": max(ratios),
        "measurements": measured,
    }


def _graph(module: nn.Module, channels: int, side: int) -> bytes:
    block = _Block(channels, module).eval()
    return export_graph(block, torch.zeros(1, 3, side, side), "images", ["features"])


def _ratio(runtime: Runtime, precision: str, graphs: list[bytes], seed: int) -> dict[str, Any]:
    """Build both engines and time them in turns; the ratio of CPU times with its interval."""
    clock = Clock(threads=1, settings=ClockSettings(max_blocks=40), seed=seed)
    with runtime.build(graphs[0], precision) as first, runtime.build(graphs[1], precision) as other:
        for engine in (first, other):
            images = np.random.default_rng(seed).random(engine.input_shape, dtype=np.float32)
            engine.bind(images)
        run: Callable[[], object] = first.run
        # With a reference of 1 ms the latency is the ratio, and so is its interval.
        timing = clock.measure(run, other.run, reference_ms=1.0)
    return {
        "ratio": timing.ratio,
        "interval": [timing.low_ms, timing.high_ms],
        "converged": timing.converged,
        "other_load": timing.other_load,
    }


def _print(console: Console, rows: list[dict[str, Any]]) -> None:
    table = Table("engine", "map", "comparison", "MACs", "time", "over engines built anew")
    for row in rows:
        if "skipped" in row:
            table.add_row(row["engine"], "", row["skipped"], "", "", "")
            continue
        where = f"{row['channels']} x {row['side']}x{row['side']}"
        spread = f"{row['lowest']:.3f} .. {row['highest']:.3f}"
        macs = f"{row.get('macs_ratio', 1.0):.3f}"
        table.add_row(row["engine"], where, row["of"], macs, f"{row['ratio']:.3f}", spread)
    console.print(table)


if __name__ == "__main__":
    main()
