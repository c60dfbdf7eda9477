"""The hardware that a user names: the registry of devices, and which of them is attached.

A device is described in YAML, several to a file. The folder `hardware/` comes with the package; a
user's own files lie in `<workspace>/hardware/`, or are named by their path::

    sources:
      card: https://example.org/card            # what `source` below refers to
    devices:
      - name: my-card                           # what the user types
        kind: gpu                               # cpu, gpu or jetson
        description: My card, 8 GB
        runtimes: [tensorrt]                    # the usual one first
        precisions: [fp16, int8, fp32]          # the usual one first
        reported_as: [NVIDIA My Card]           # what nvidia-smi calls it
        datasheet:
          bandwidth_gbs: {value: 300, source: card}
          int8_tensor_tops: {value: 200, derived: "400 sparse of card / 2", note: not verified}
        measured:
          stream_bandwidth_gbs: {value: 240, source: card}

What is not known is left out. Figures of data sheets (`Datasheet`) and what somebody reached on the
device (`Measured`) are kept apart, because no network comes near the former.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from nas.errors import InputError, MeasurementError, UnknownNameError, nearest
from nas.latency.detection import Attached, Kind, Machine, cpu_name, detect
from nas.latency.environment import Environment
from nas.space.architecture import validation_message
from nas.space.record import Record
from nas.space.yaml_file import Document, parse_yaml, read_yaml

__all__ = [
    "Datasheet",
    "Environment",
    "Figure",
    "Hardware",
    "Measured",
    "cpu_name",
    "read_devices",
    "registry",
]

_SUFFIXES = (".yaml", ".yml")
_KEYS = ("sources", "devices")
# NVML reports what is left for programs, 94 % of what the label says on cards with ECC; the next
# smaller card of a name has 83 %.
_LEAST_MEMORY, _MOST_MEMORY = 0.88, 1.05

Words = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value),
]


class Figure(Record):
    """A number about a device, and where it comes from.

    Attributes:
        value: in the unit that the field's name says.
        source: where it was read: an address or a document.
        derived: how it follows from other figures.
        note: what to know before using it.
    """

    value: float = Field(gt=0, allow_inf_nan=False)
    source: str | None = None
    derived: str | None = None
    note: str | None = None

    @property
    def verified(self) -> bool:
        """Whether a page that states it was read."""
        words = f"{self.source} {self.derived} {self.note}".lower()
        return not any(doubt in words for doubt in ("unverified", "not verified", "no page"))

    @field_validator("source")
    @classmethod
    def _look_up(cls, source: str | None, info: ValidationInfo) -> str | None:
        """Put the reference in the place of its key in the file."""
        if source is None or info.context is None:
            return source
        if source not in info.context:
            hint = nearest(source, info.context)
            raise ValueError(
                f"{source!r} is not among the sources of the file"
                + (f". Did you mean {hint!r}?" if hint else "")
            )
        return str(info.context[source])

    @model_validator(mode="after")
    def _comes_from_somewhere(self) -> Figure:
        if not self.source and not self.derived:
            raise ValueError("a figure names its source, or says what it is derived from")
        return self


class Datasheet(Record):
    """What the maker promises. Peaks are dense, those of tensor cores where the name says so.

    Attributes:
        memory_gb: memory as the label says it, in GiB.
        bandwidth_gbs: of that memory, in 1e9 bytes a second.
        l2_mb: level-2 cache in MiB.
        multiprocessors: streaming multiprocessors (SMs).
        cuda_cores: FP32 lanes; each makes one multiplication and addition a clock.
        boost_mhz: clock that the peaks hold at.
        fp32_tflops: peak without tensor cores, in 1e12 operations a second.
        fp16_tensor_tflops: peak of tensor cores in FP16.
        int8_tensor_tops: peak of tensor cores in INT8.
        tdp_w: power that the device may take.
    """

    memory_gb: Figure | None = None
    bandwidth_gbs: Figure | None = None
    l2_mb: Figure | None = None
    multiprocessors: Figure | None = None
    cuda_cores: Figure | None = None
    boost_mhz: Figure | None = None
    fp32_tflops: Figure | None = None
    fp16_tensor_tflops: Figure | None = None
    int8_tensor_tops: Figure | None = None
    tdp_w: Figure | None = None


class Measured(Record):
    """What somebody reached on the device; by it the data sheet's figures are derated.

    Attributes:
        stream_bandwidth_gbs: bytes a second of element-wise additions, in 1e9.
        fp32_gemm_tflops: fastest FP32 matrix product.
    """

    stream_bandwidth_gbs: Figure | None = None
    fp32_gemm_tflops: Figure | None = None


class Hardware(Record):
    """A device that latencies are asked for.

    Attributes:
        name: what the user types.
        aliases: other names for it.
        kind: where it is looked for.
        description: one line for lists and reports.
        runtimes: that can run on it, the usual one first.
        precisions: that it computes in, the usual one first.
        reported_as: names that NVML and torch report, or the device tree of a Jetson; for a
            processor what its model name begins with, and any processor if empty.
        modules: part numbers of a Jetson, which tell apart what reports one name.
        architecture: of a GPU, such as `Ada`.
        compute_capability: of a GPU, such as `8.9`.
        dla_cores: deep-learning accelerators beside the GPU.
        unmeasurable: why this version cannot measure on it even where it is attached.
        note: what to know about the device.
        datasheet: what the maker promises.
        measured: what somebody reached.
    """

    name: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    aliases: Words = ()
    kind: Kind
    description: str = Field(min_length=1)
    runtimes: Words = Field(min_length=1)
    precisions: Words = Field(min_length=1)
    reported_as: Words = ()
    modules: Words = ()
    architecture: str | None = None
    compute_capability: str | None = Field(default=None, pattern=r"^\d+\.\d+$")
    dla_cores: int = Field(default=0, ge=0)
    unmeasurable: str | None = None
    note: str | None = None
    datasheet: Datasheet = Datasheet()
    measured: Measured = Measured()

    @property
    def runtime(self) -> str:
        """The runtime that is used unless another one is asked for."""
        return self.runtimes[0]

    @classmethod
    def named(cls, name: str, folder: Path | None = None) -> Hardware:
        """Look a device up.

        Args:
            name: name or alias, in any case, with spaces or hyphens; or the path of a YAML file
                that describes one device.
            folder: of the user's own files; it need not exist.

        Raises:
            UnknownNameError: no device has the name.
            InputError: a file cannot be read or breaks a rule, or describes several devices.
        """
        if name.endswith(_SUFFIXES) or "/" in name:
            return _only(read_devices(Path(name)), name)
        devices = registry(folder)
        found = _by_name(devices).get(_plain_name(name))
        if found is None:
            error = UnknownNameError.of("hardware", name, (device.name for device in devices))
            own = " Describe a device of your own in YAML: --hardware my_device.yaml."
            raise UnknownNameError(error.message, error.remedy + own)
        return found

    @classmethod
    def names(cls, folder: Path | None = None) -> tuple[str, ...]:
        """List the names that `named` accepts, sorted; aliases are left out.

        Raises:
            InputError: as `named`.
        """
        return tuple(sorted(device.name for device in registry(folder)))

    def device(self) -> str:
        """Name the device of this kind that is in this machine, for an `Environment`.

        Raises:
            MeasurementError: there is none.
        """
        return self.require_attached().text

    def require_attached(self, machine: Machine | None = None) -> Attached:
        """Return the device of this kind that is in this machine, the first if there are several.

        Args:
            machine: what was found; looked for now if None.

        Raises:
            MeasurementError: there is none; names what is there.
        """
        machine = machine or detect()
        for device in machine.devices:
            if self.fits(device):
                return device
        here = "; ".join(_described(device) for device in machine.devices)
        raise MeasurementError(
            f"{self.name} ({self.description}) is not attached to this machine, so its latency "
            f"cannot be measured here. Attached: {here}."
            + (f" NVIDIA GPUs may be hidden: {machine.blind}." if machine.blind else ""),
            "Run the same command on a machine that has it, or name what is attached, such as "
            f"--hardware {_most_like(machine)}."
            + ("" if self.kind == "cpu" else " `nas estimate` estimates it."),
        )

    def fits(self, device: Attached) -> bool:
        """Whether an attached device is one of this kind."""
        if device.kind != self.kind:
            return False
        reported = {_plain_report(one) for one in self.reported_as}
        name = _plain_report(device.name)
        if self.kind == "cpu":
            return not reported or any(name.startswith(one) for one in reported)
        if self.kind == "jetson" and self.modules and device.modules:
            return not device.modules.isdisjoint(self.modules)
        return name in reported and not device.partitioned and self._has_memory_of(device)

    def _has_memory_of(self, device: Attached) -> bool:
        """Cards of one name may differ in memory, and then differ in everything."""
        if self.datasheet.memory_gb is None or device.memory_gb is None:
            return True
        share = device.memory_gb / self.datasheet.memory_gb.value
        return _LEAST_MEMORY <= share <= _MOST_MEMORY


def registry(folder: Path | None = None) -> tuple[Hardware, ...]:
    """List the devices that come with the package, and those of a user's own files.

    Args:
        folder: of the user's own files; it need not exist.

    Raises:
        InputError: a file cannot be read or breaks a rule, or two devices share a name.
    """
    own: list[Hardware] = []
    if folder is not None and folder.is_dir():
        for path in sorted(folder.iterdir()):
            own += read_devices(path) if path.suffix in _SUFFIXES else ()
    devices = (*_shipped(), *own)
    _by_name(devices)
    return devices


def read_devices(path: Path) -> tuple[Hardware, ...]:
    """Read the devices that a YAML file describes.

    Raises:
        InputError: the file cannot be read or breaks a rule; the message says the line.
    """
    return _parsed(read_yaml(path, InputError))


@functools.cache
def _shipped() -> tuple[Hardware, ...]:
    devices: list[Hardware] = []
    for file in sorted(_shipped_folder().iterdir(), key=lambda file: file.name):
        if file.name.endswith(_SUFFIXES):
            devices += _parsed(parse_yaml(file.read_text("utf-8"), file.name, InputError))
    return tuple(devices)


def _shipped_folder() -> Traversable:
    try:
        return resources.files("nas.hardware")
    except ModuleNotFoundError:  # the checkout is on the path, and not installed
        return Path(__file__).parents[2] / "hardware"


class _File(Record):
    """The top level of the YAML."""

    sources: dict[str, str] = Field(default_factory=dict)
    devices: list[dict[str, Any]] = Field(min_length=1)


class _Devices(Record):
    devices: list[Hardware]


def _parsed(document: Document) -> tuple[Hardware, ...]:
    for key in document.data:
        if key not in _KEYS:
            raise InputError(
                f"{document.where((str(key),))}: unknown key {key!r}.",
                f"A file of devices has the keys {' and '.join(_KEYS)}.",
            )
    try:
        file = _File.model_validate(document.data)
        found = _Devices.model_validate({"devices": file.devices}, context=file.sources)
    except ValidationError as error:
        raise InputError(
            f"{document.name} describes no device: {validation_message(error, document)}.",
            "nas/latency/hardware.py shows what a device looks like.",
        ) from error
    return tuple(found.devices)


def _only(devices: tuple[Hardware, ...], name: str) -> Hardware:
    if len(devices) > 1:
        names = ", ".join(device.name for device in devices)
        raise InputError(
            f"{name} describes {len(devices)} devices: {names}.",
            "Put it into the folder hardware/ of the workspace, and name one of them.",
        )
    return devices[0]


def _by_name(devices: Iterable[Hardware]) -> dict[str, Hardware]:
    """Map every name and alias to its device.

    Raises:
        InputError: two devices share one.
    """
    found: dict[str, Hardware] = {}
    for device in devices:
        for name in dict.fromkeys(map(_plain_name, (device.name, *device.aliases))):
            if name in found:
                raise InputError(
                    f"Two devices are called {name!r}: {found[name].description}, and "
                    f"{device.description}.",
                    "Rename the one that is described in your own file.",
                )
            found[name] = device
    return found


def _plain_name(name: str) -> str:
    """Make equal what is typed in different ways: `RTX 4090`, `rtx_4090`, `rtx-4090`."""
    return re.sub(r"[\s_-]+", "-", name.strip().casefold())


def _plain_report(name: str) -> str:
    """Make equal what drivers of different age report: older ones leave out the maker."""
    return re.sub(r"\s+", " ", name.strip().casefold()).removeprefix("nvidia ")


def _described(device: Attached) -> str:
    names = _names_of(device)
    return device.text + (f" [--hardware {' or '.join(names)}]" if names else "")


def _most_like(machine: Machine) -> str:
    """Name the last device that has a name: a GPU comes after the processor."""
    names = [name for device in machine.devices for name in _names_of(device)]
    return names[-1] if names else "cpu"


def _names_of(device: Attached) -> list[str]:
    return [one.name for one in _shipped() if one.fits(device)]
