from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas import plugins
from nas.errors import InputError, UnknownNameError
from nas.latency.hardware import Environment, Hardware, cpu_name

TEXT = st.text(max_size=20)
ENVIRONMENTS = st.builds(
    Environment,
    device=TEXT,
    runtime=TEXT,
    runtime_version=TEXT,
    precision=TEXT,
    threads=st.integers(1, 64),
    protocol=TEXT,
    clock=TEXT,
    reference=TEXT,
)
ENVIRONMENT = Environment(
    device="a processor",
    runtime="openvino",
    runtime_version="1",
    precision="fp32",
    threads=1,
    protocol="hot",
    clock="wall",
    reference="0" * 16,
)


def test_hardware__every_name_leads_to_an_installed_runtime() -> None:
    for name in Hardware.names():
        assert Hardware.named(name).runtime in plugins.names("runtimes")


def test_hardware__unknown_name_lists_the_known() -> None:
    with pytest.raises(UnknownNameError, match=r"'l4'.*cpu"):
        Hardware.named("l4")


def test_device__is_the_same_twice() -> None:
    hardware = Hardware.named("cpu")
    assert hardware.device() == hardware.device() != ""


@given(ENVIRONMENTS)
def test_environment__survives_json(environment: Environment) -> None:
    again = Environment.from_dict(json.loads(json.dumps(environment.as_dict())))
    assert again == environment
    assert again.digest == environment.digest


@given(ENVIRONMENTS, ENVIRONMENTS)
def test_digest__is_equal_exactly_for_equal_environments(a: Environment, b: Environment) -> None:
    assert (a.digest == b.digest) == (a == b)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Environment)])
def test_digest__depends_on_every_field(field: str) -> None:
    other = 7 if field in {"threads", "batch"} else "other"
    assert dataclasses.replace(ENVIRONMENT, **{field: other}).digest != ENVIRONMENT.digest


def test_digest__stays_what_databases_hold() -> None:
    assert ENVIRONMENT.digest == "9ce6ff0d63b7a478"


@pytest.mark.parametrize(
    "change", [{"threads": "1"}, {"load": 3}, {"device": None}, {"batch": True}]
)
def test_from_dict__refuses_what_it_did_not_write(change: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Environment.from_dict({**ENVIRONMENT.as_dict(), **change})


def test_from_dict__refuses_a_missing_field() -> None:
    values = ENVIRONMENT.as_dict()
    del values["clock"]
    with pytest.raises(InputError, match="clock"):
        Environment.from_dict(values)


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        (
            "model name\t: Chip 9\ncpu family\t: 6\nmodel\t\t: 143\nflags\t: fpu amx_bf16 avx2\n\n"
            "model name\t: Another\n",
            "Chip 9 (cpu family 6, model 143; avx2 amx_bf16)",
        ),
        ("model name\t: Chip 9\n", "Chip 9"),
    ],
)
def test_cpu_name__reads_the_first_processor(tmp_path: Path, cpuinfo: str, expected: str) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(cpuinfo)
    assert cpu_name(path) == expected


def test_cpu_name__without_linux_asks_the_platform(tmp_path: Path) -> None:
    assert cpu_name(tmp_path / "missing")
