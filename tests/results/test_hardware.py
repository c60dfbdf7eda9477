from __future__ import annotations

import io

from rich.console import Console

from nas.latency.detection import Attached, Machine
from nas.latency.measurable import measurable, unregistered
from nas.results.hardware import hardware_table


def drawn(machine: Machine) -> str:
    console = Console(file=io.StringIO(), width=200)
    table = hardware_table(measurable(machine=machine), unregistered(machine=machine))
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def line(text: str, name: str) -> str:
    return next(one for one in text.splitlines() if one.split()[:1] == [name])


def test_hardware_table__shows_figures_and_reasons() -> None:
    processor = Attached(kind="cpu", name="A processor (avx2)")
    text = drawn(Machine((processor, Attached(kind="gpu", name="NVIDIA B200"))))
    l4 = line(text, "l4").split()
    assert l4[3:9] == ["24", "300", "30.3", "121", "242", "no"]
    assert "attached is NVIDIA B200" in line(text, "l4")
    assert "openvino" in line(text, "cpu")
    assert "NVIDIA B200" in line(text, "?")
    assert "my_device.yaml" in line(text, "?")
