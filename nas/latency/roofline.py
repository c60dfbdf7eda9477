"""How long an NVIDIA GPU takes for the layers of a network: a roofline with a few fitted numbers.

The roofline of Williams et al. ("Roofline", CACM 52(4), 2009) bounds a layer by the peaks of the
device. Batch 1 stays far below them, so four things are added, each with one number:

- a launch, which no work makes cheaper, and which a slower clock makes dearer;
- the time that one multiprocessor takes for one tile of the product: a layer with fewer tiles than
  the device has multiprocessors does not get faster by having more of them;
- narrow layers, whose few output channels fill a tile badly;
- power: a device that promises many operations per watt does not keep its clock. The FP32 products
  of NeuSight (Lee et al., 2024; V100, A100, H100, L4) reach a share of the peak that falls with the
  operations per watt to the power 0.56.

The numbers are fitted to measurements, with a pull towards what is expected of them before any.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import numpy.typing as npt
from pydantic import Field
from scipy.optimize import least_squares

from nas.errors import InputError
from nas.latency.hardware import Hardware
from nas.latency.workload import Layer, Workload
from nas.space.record import Record

__all__ = ["DevicePeaks", "Roofline", "Sample", "Values", "fit_roofline", "weights_of"]

Values = npt.NDArray[np.float64]

_BYTES = 2  # of an element in half precision
_TILE = 64 * 64  # outputs of a tile of the matrix product
_CLOCK_GHZ = 1.6  # the launch time is quoted at this clock
_TFLOPS_PER_W = 0.5  # the compute efficiency is quoted at this ratio
# Of the tensor cores' rate, for products of less than a vector of channels: kernels of depthwise
# convolutions use the other cores, which have a quarter of it (data sheets of T4 to A100).
_OTHER_CORES = 4
_VECTOR = 8
_ROWS_OF_A_CHIP = 10.0  # all rows of one chip weigh as much as this many


class DevicePeaks(Record):
    """What a data sheet says about a GPU; peaks are dense.

    Attributes:
        name: of the device.
        fp16_tflops: peak of the tensor cores in FP16, 1e12 operations a second.
        bandwidth_gbs: of its memory, 1e9 bytes a second.
        multiprocessors: streaming multiprocessors (SMs).
        clock_ghz: boost clock that the peak holds at.
        power_w: power that it may take.
    """

    name: str
    fp16_tflops: float = Field(gt=0, allow_inf_nan=False)
    bandwidth_gbs: float = Field(gt=0, allow_inf_nan=False)
    multiprocessors: float = Field(gt=0, allow_inf_nan=False)
    clock_ghz: float = Field(gt=0, allow_inf_nan=False)
    power_w: float = Field(gt=0, allow_inf_nan=False)

    @classmethod
    def of(cls, hardware: Hardware) -> Self:
        """Take the figures of a device of the registry.

        Raises:
            InputError: the device lacks one of them.
        """
        sheet = hardware.datasheet
        figures = {
            "fp16_tensor_tflops": sheet.fp16_tensor_tflops,
            "bandwidth_gbs": sheet.bandwidth_gbs,
            "multiprocessors": sheet.multiprocessors,
            "boost_mhz": sheet.boost_mhz,
            "tdp_w": sheet.tdp_w,
        }
        known = {name: figure.value for name, figure in figures.items() if figure is not None}
        if missing := sorted(figures.keys() - known.keys()):
            raise InputError(
                f"A latency is estimated from the data sheet of an NVIDIA GPU; that of "
                f"{hardware.name!r} lacks {', '.join(missing)}.",
                "Add the figures to a hardware file of your own, or measure.",
            )
        return cls(
            name=hardware.name,
            fp16_tflops=known["fp16_tensor_tflops"],
            bandwidth_gbs=known["bandwidth_gbs"],
            multiprocessors=known["multiprocessors"],
            clock_ghz=known["boost_mhz"] / 1000,
            power_w=known["tdp_w"],
        )


@dataclass(frozen=True)
class Sample:
    """A latency that somebody measured.

    Attributes:
        workload: of the network.
        peaks: of the device.
        chip: what devices of one die share: they are no independent evidence.
        ms: per image, batch 1, FP16.
    """

    workload: Workload
    peaks: DevicePeaks
    chip: str
    ms: float


class Roofline(Record):
    """The fitted numbers. A layer takes compute + memory + launch.

    The sum, not the larger of compute and memory: chips that were left out of the fit were
    predicted better by it, so little of the traffic of one image hides behind its computing.

    With the peak rate P (operations a second), bandwidth B, S multiprocessors, clock f in GHz, and
    p the peak in 1e12 operations a second per watt, a layer of F padded operations with K values
    summed for each of its N output channels, that moves D bytes, takes

        compute = F / (e P) (1 + narrow / N) + tile 2 64^2 K S / P,
        memory = D / (bandwidth B),  launch = launch_us (f / 1.6)^-clock,

    where e = compute (p / 0.5)^-power, at most 1.

    The defaults are what is expected before any measurement.

    Attributes:
        compute: share of the tensor peak that large layers reach, at 0.5e12 operations a joule.
        bandwidth: share of the memory bandwidth that they reach.
        tile: time of one tile, in those that a multiprocessor takes at its peak.
        launch_us: of every layer, in microseconds, at 1.6 GHz.
        narrow: output channels at which half of the work is lost.
        clock: exponent of the clock.
        power: exponent of the operations per watt.
    """

    compute: float = Field(default=0.5, gt=0)
    bandwidth: float = Field(default=0.75, gt=0)
    tile: float = Field(default=1.0, gt=0)
    launch_us: float = Field(default=4.0, gt=0)
    narrow: float = Field(default=8.0, gt=0)
    clock: float = 1.0
    power: float = 0.56

    def milliseconds(self, workload: Workload, peaks: DevicePeaks) -> float:
        """Return the latency of one image in FP16."""
        return float(_latencies(self, _Table.of([workload], [peaks]))[0])


@dataclass(frozen=True)
class _Table:
    """The layers of several networks, each on its device, one after another; SI units."""

    network: npt.NDArray[np.intp]
    operations: Values
    bytes: Values
    summed: Values
    outputs: Values
    peak: Values
    bandwidth: Values
    multiprocessors: Values
    clock: Values
    power: Values

    @classmethod
    def of(cls, workloads: Sequence[Workload], devices: Sequence[DevicePeaks]) -> Self:
        rows = [
            (index, *_numbers(layer), *_figures(device))
            for index, (workload, device) in enumerate(zip(workloads, devices, strict=True))
            for layer in workload.layers
        ]
        columns = np.array(rows, dtype=np.float64).reshape(-1, len(fields(cls))).T
        return cls(columns[0].astype(np.intp), *columns[1:])


def _latencies(law: Roofline, table: _Table) -> Values:
    """Return the latency of every network of a table, ms."""
    per_watt = table.peak / table.power / 1e12 / _TFLOPS_PER_W
    share = np.minimum(law.compute * per_watt**-law.power, 1.0)
    compute = table.operations / (share * table.peak) * (1 + law.narrow / table.outputs)
    compute += law.tile * 2 * _TILE * table.summed * table.multiprocessors / table.peak
    memory = table.bytes / (law.bandwidth * table.bandwidth)
    launch = law.launch_us * 1e-6 * (table.clock / _CLOCK_GHZ) ** -law.clock
    seconds: Values = np.bincount(table.network, compute + memory + launch).astype(np.float64)
    return 1e3 * seconds


def fit_roofline(samples: Sequence[Sample], strength: float) -> Roofline:
    """Fit the numbers to measurements: least squares of the logarithm, every chip weighing alike.

    Args:
        samples: at least one.
        strength: of the pull towards the defaults, in which each number has its own spread.
    """
    table = _Table.of([one.workload for one in samples], [one.peaks for one in samples])
    measured = np.log([one.ms for one in samples])
    weights = np.sqrt(weights_of(samples))
    pull = np.sqrt(strength) / np.array(list(_SPREADS.values()))

    def residuals(shift: Values) -> Values:
        predicted = _latencies(_shifted(shift), table)
        return np.concatenate([(np.log(predicted) - measured) * weights, shift * pull])

    found = least_squares(residuals, np.zeros(len(_SPREADS)), diff_step=1e-3, x_scale=0.1)
    return _shifted(found.x)


# How far a fitted number may be from its default: one standard deviation, of the logarithm, or of
# an exponent itself.
_SPREADS = {
    "compute": 0.5,
    "bandwidth": 0.3,
    "tile": 1.0,
    "launch_us": 0.5,
    "narrow": 1.0,
    "clock": 0.5,
    "power": 0.2,
}
_EXPONENTS = frozenset({"clock", "power"})


def _shifted(shift: Values) -> Roofline:
    start = Roofline()
    numbers = {
        name: getattr(start, name) + by if name in _EXPONENTS else getattr(start, name) * np.exp(by)
        for name, by in zip(_SPREADS, shift.tolist(), strict=True)
    }
    return Roofline(**{name: float(value) for name, value in numbers.items()})


def weights_of(samples: Sequence[Sample]) -> Values:
    """Return what each sample weighs in a fit: those of one chip together as much as 10 samples."""
    chips = [one.chip for one in samples]
    return np.array([_ROWS_OF_A_CHIP / chips.count(chip) for chip in chips])


def _numbers(layer: Layer) -> tuple[float, float, float, float]:
    """Return operations, bytes, values summed for an output, output channels."""
    moved = _BYTES * (layer.reads + layer.writes + layer.weights)
    if not layer.macs:
        return 0.0, moved, 0.0, 1.0
    if layer.groups > 1 and layer.in_channels < _VECTOR:
        wide = layer.groups * layer.out_channels
        return 2.0 * _OTHER_CORES * layer.macs, moved, 0.0, wide
    padded = -(-layer.in_channels // _VECTOR) * _VECTOR
    summed = padded * layer.kernel[0] * layer.kernel[1]
    return 2.0 * layer.padded_macs, moved, summed, layer.out_channels


def _figures(device: DevicePeaks) -> tuple[float, float, float, float, float]:
    return (
        device.fp16_tflops * 1e12,
        device.bandwidth_gbs * 1e9,
        device.multiprocessors,
        device.clock_ghz,
        device.power_w,
    )
