from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nas import plugins
from nas.errors import InputError, MeasurementError, UnknownNameError
from nas.latency.detection import Attached, Machine, attached
from nas.latency.hardware import Datasheet, Figure, Hardware, Measured, read_devices, registry

SHIPPED = registry()
CPU = Attached(kind="cpu", name="A processor (avx2)")
DEVICE = {
    "name": "my-card",
    "kind": "gpu",
    "description": "My card",
    "runtimes": ["tensorrt"],
    "precisions": ["fp16"],
    "reported_as": ["NVIDIA My Card"],
    "datasheet": {"bandwidth_gbs": {"value": 300, "source": "card"}},
}
IN_TMP = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def gpu(name: str, memory_gb: float | None = None, **known: Any) -> Attached:
    return Attached(kind="gpu", name=name, memory_gb=memory_gb, **known)


def board(name: str, *modules: str) -> Attached:
    return Attached(kind="jetson", name=name, modules=frozenset(modules))


def write(folder: Path, *devices: dict[str, Any], name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump({"sources": {"card": "a page"}, "devices": list(devices)}))
    return path


def figures(device: Hardware) -> dict[str, Figure]:
    records = (device.datasheet, device.measured)
    every = {name: figure for record in records for name, figure in record}
    return {name: figure for name, figure in every.items() if figure is not None}


def names_of(device: Attached) -> set[str]:
    return {one.name for one in SHIPPED if one.fits(device)}


# The shipped registry


def test_registry__has_what_the_product_names() -> None:
    wanted = {"t4", "l4", "l40s", "a10", "orin-nano", "orin-nx", "agx-orin", "xavier-nx", "cpu"}
    wanted |= {f"rtx-{one}" for one in (3060, 3070, 3080, 3090, 4060, 4070, 4080, 4090)}
    assert wanted <= set(Hardware.names())
    for alias in ("a100", "a100-40gb", "a100-80gb", "h100", "h200"):
        assert Hardware.named(alias).name.startswith(alias.split("-")[0])


def test_named__the_processor_is_what_it_was() -> None:
    cpu = Hardware.named("cpu")
    assert cpu.runtime == "openvino"
    assert cpu.description == "one core of the processor of this machine"
    assert set(cpu.runtimes) <= set(plugins.names("runtimes"))


@pytest.mark.parametrize("device", SHIPPED, ids=lambda device: device.name)
def test_shipped__figures_have_a_source_and_agree(device: Hardware) -> None:
    for figure in figures(device).values():
        assert figure.source or figure.derived
    known = {name: figure.value for name, figure in figures(device).items()}
    if device.kind != "cpu":
        assert {"bandwidth_gbs", "fp32_tflops", "multiprocessors", "fp16_tensor_tflops"} <= set(
            known
        )
        assert known["fp32_tflops"] < known["fp16_tensor_tflops"]
    if "int8_tensor_tops" in known:
        assert known["int8_tensor_tops"] == pytest.approx(2 * known["fp16_tensor_tflops"], rel=0.03)
    if "boost_mhz" in known:
        lanes = 2 * known["cuda_cores"] * known["boost_mhz"] * 1e-6
        assert known["fp32_tflops"] == pytest.approx(lanes, rel=0.01)


@pytest.mark.parametrize("device", SHIPPED, ids=lambda device: device.name)
def test_shipped__nobody_measured_more_than_was_promised(device: Hardware) -> None:
    pairs = {"stream_bandwidth_gbs": "bandwidth_gbs", "fp32_gemm_tflops": "fp32_tflops"}
    known = {name: figure.value for name, figure in figures(device).items()}
    for measured, promised in pairs.items():
        if measured in known:
            assert 0.3 * known[promised] < known[measured] < known[promised]


def test_shipped__sources_are_written_out() -> None:
    l4 = Hardware.named("l4")
    assert l4.datasheet.bandwidth_gbs is not None
    assert "https://" in (l4.datasheet.bandwidth_gbs.source or "")
    assert l4.measured.stream_bandwidth_gbs is not None
    assert l4.measured.stream_bandwidth_gbs.value == 233


def test_shipped__keys_of_the_files_are_all_used() -> None:
    folder = Path(__file__).parents[2] / "hardware"
    for path in folder.glob("*.yaml"):
        data = yaml.safe_load(path.read_text())
        text = str(data["devices"])
        assert [key for key in data.get("sources", {}) if key not in text] == []


# Names


@given(st.sampled_from(SHIPPED), st.sampled_from([" ", "_", "-"]), st.booleans())
def test_named__takes_any_case_and_separator(device: Hardware, mark: str, upper: bool) -> None:
    typed = device.name.replace("-", mark)
    assert Hardware.named(typed.upper() if upper else typed) is device


def test_named__unknown_name_says_the_nearest_and_how_to_add_one() -> None:
    with pytest.raises(UnknownNameError, match=r"'rtx-4900'.*'rtx-4090'.*my_device.yaml"):
        Hardware.named("rtx-4900")


# Files of a user


def test_named__reads_a_file_by_its_path(tmp_path: Path) -> None:
    device = Hardware.named(str(write(tmp_path, DEVICE)))
    assert device.name == "my-card"
    assert device.datasheet.bandwidth_gbs == Figure(value=300, source="a page")


def test_named__finds_a_device_of_the_workspace(tmp_path: Path) -> None:
    write(tmp_path, DEVICE)
    assert Hardware.named("my-card", tmp_path).runtime == "tensorrt"
    assert "my-card" in Hardware.names(tmp_path)
    assert Hardware.named("l4", tmp_path / "missing").name == "l4"


def test_named__a_file_of_two_devices_asks_which(tmp_path: Path) -> None:
    path = write(tmp_path, DEVICE, {**DEVICE, "name": "other"})
    with pytest.raises(InputError, match="my-card, other"):
        Hardware.named(str(path))


@pytest.mark.parametrize("change", [{"name": "l4"}, {"aliases": ["L4"]}, {"aliases": ["A100"]}])
def test_registry__refuses_a_name_that_is_taken(tmp_path: Path, change: dict[str, Any]) -> None:
    write(tmp_path, {**DEVICE, **change})
    with pytest.raises(InputError, match="Two devices are called"):
        registry(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bandwith": 3}, r"unknown key 'bandwith'"),
        ({"datasheet": {"bandwith_gbs": {"value": 1, "source": "card"}}}, "mean 'bandwidth_gbs'"),
        ({"datasheet": {"l2_mb": {"value": 1, "source": "cart"}}}, "mean 'card'"),
        ({"datasheet": {"l2_mb": {"value": 1}}}, "names its source"),
        ({"datasheet": {"l2_mb": {"value": 0, "source": "card"}}}, "greater than 0"),
        ({"datasheet": {"l2_mb": {"value": float("inf"), "source": "card"}}}, "finite"),
        ({"datasheet": {"l2_mb": {"value": "4", "source": "card"}}}, "valid number"),
        ({"datasheet": {"l2_mb": 4}}, "valid dictionary"),
        ({"kind": "tpu"}, "'cpu', 'gpu' or 'jetson'"),
        ({"name": "My Card"}, "pattern"),
        ({"runtimes": []}, "at least 1"),
        ({"precisions": "fp16"}, "tuple"),
        ({"compute_capability": 8.9}, "string"),
    ],
)
def test_read_devices__says_what_is_wrong_and_where(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = write(tmp_path, {**DEVICE, **change})
    with pytest.raises(InputError, match=message) as caught:
        read_devices(path)
    assert "mine.yaml, line" in str(caught.value)


@pytest.mark.parametrize("text", ["", "- a", "devices: []", "device: 3", "devices: [!!python/x 1]"])
def test_read_devices__refuses_other_files(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"mine\.yaml"):
        read_devices(path)


FIELDS = [*((Datasheet, one) for one in Datasheet.model_fields)]
FIELDS += [*((Measured, one) for one in Measured.model_fields)]


@IN_TMP
@given(
    st.dictionaries(
        st.sampled_from(FIELDS), st.floats(1e-9, 1e9, allow_subnormal=False), max_size=8
    )
)
def test_read_devices__keeps_every_figure(
    tmp_path: Path, values: dict[tuple[type[Datasheet | Measured], str], float]
) -> None:
    parts: dict[str, dict[str, Any]] = {"datasheet": {}, "measured": {}}
    for (record, name), value in values.items():
        parts[record.__name__.lower()][name] = {"value": value, "derived": "by hand"}
    (device,) = read_devices(write(tmp_path, {**DEVICE, **parts}))
    assert {name: figure.value for name, figure in figures(device).items()} == {
        name: value for (_, name), value in values.items()
    }


# What is attached


@pytest.mark.parametrize(
    ("device", "names"),
    [
        (gpu("NVIDIA L4", 22.5), {"l4"}),
        (gpu("Tesla T4", 15.0), {"t4"}),
        (gpu("NVIDIA A100-SXM4-40GB", 40.0), {"a100-sxm4-40gb"}),
        (gpu("A100-SXM4-40GB", 39.4), {"a100-sxm4-40gb"}),
        (gpu("NVIDIA A100 80GB PCIe", 80.0), {"a100-pcie-80gb"}),
        (gpu("NVIDIA H100 80GB HBM3", 79.6), {"h100-sxm"}),
        (gpu("NVIDIA H200", 140.4), {"h200-sxm"}),
        (gpu("NVIDIA GeForce RTX 3080", 10.0), {"rtx-3080"}),
        (gpu("NVIDIA GeForce RTX 3080", 12.0), {"rtx-3080-12gb"}),
        (gpu("NVIDIA GeForce RTX 4060 Ti", 16.0), {"rtx-4060-ti-16gb"}),
        (gpu("NVIDIA GeForce RTX 3060", 8.0), set()),
        (gpu("NVIDIA GeForce RTX 3060 Laptop GPU", 6.0), set()),
        (gpu("NVIDIA A10G", 22.5), set()),
        (gpu("NVIDIA H200", 140.4, partitioned=True), set()),
        (board("NVIDIA Jetson Orin Nano Developer Kit", "p3767-0005"), {"orin-nano"}),
        (board("NVIDIA Jetson Orin Nano Developer Kit"), {"orin-nano"}),
        (board("A camera", "p3767-0005-super"), {"orin-nano-super"}),
        (board("A camera", "p3767-0000"), {"orin-nx"}),
        (board("A camera", "p3767-0001"), {"orin-nx-8gb"}),
        (board("NVIDIA Jetson AGX Orin Developer Kit", "p3701-0005"), {"agx-orin"}),
        (board("NVIDIA Jetson Xavier NX Developer Kit", "p3668-0000"), {"xavier-nx"}),
        (CPU, {"cpu"}),
    ],
)
def test_fits__tells_devices_apart(device: Attached, names: set[str]) -> None:
    assert names_of(device) == names


def test_fits__a_described_processor_is_that_model_only() -> None:
    chip = Hardware(
        name="chip",
        kind="cpu",
        description="Chip 9",
        runtimes=("openvino",),
        precisions=("fp32",),
        reported_as=("Chip 9",),
    )
    assert chip.fits(Attached(kind="cpu", name="Chip 9 (cpu family 6; avx2)"))
    assert not chip.fits(CPU)


def test_device__is_the_same_twice() -> None:
    hardware = Hardware.named("cpu")
    assert hardware.device() == hardware.device() != ""


def test_device__of_what_is_not_here_raises() -> None:
    missing = next(one for one in SHIPPED if not any(map(one.fits, attached())))
    with pytest.raises(MeasurementError, match=f"{missing.name}.*not attached"):
        missing.device()


def test_require_attached__returns_the_device() -> None:
    l4 = gpu("NVIDIA L4", 22.5, uuid="GPU-1")
    machine = Machine((CPU, gpu("NVIDIA GeForce RTX 3090", 24.0), l4))
    assert Hardware.named("l4").require_attached(machine) is l4


def test_require_attached__names_what_is_there_and_the_remedy() -> None:
    machine = Machine((CPU, gpu("NVIDIA GeForce RTX 3090", 24.0)))
    with pytest.raises(MeasurementError) as caught:
        Hardware.named("l4").require_attached(machine)
    assert "l4 (NVIDIA L4) is not attached" in caught.value.message
    assert "NVIDIA GeForce RTX 3090 (24.0 GB) [--hardware rtx-3090]" in caught.value.message
    assert "--hardware rtx-3090" in caught.value.remedy


def test_require_attached__says_what_hides_gpus() -> None:
    with pytest.raises(MeasurementError, match="pip install nvidia-ml-py"):
        Hardware.named("l4").require_attached(Machine((CPU,), "pip install nvidia-ml-py"))
