from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.errors import InputError
from nas.latency.detection import detect
from nas.latency.environment import Environment
from nas.latency.hardware import Hardware

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
    ("runtime", "version", "precision", "digest"),
    [
        ("openvino", "2026.4.1", "bf16", "22999703b37124ed"),
        ("onnxruntime", "1.31.1", "fp32", "1acdd36329a4ab92"),
    ],
)
def test_digest__of_measurements_on_a_processor_survives_the_registry(
    tmp_path: Path, runtime: str, version: str, precision: str, digest: str
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("model name: Chip 9\ncpu family: 6\nmodel: 143\nflags: avx2 amx_bf16\n")
    machine = detect(cpuinfo=cpuinfo, device_tree=tmp_path, driver=tmp_path / "none")
    environment = Environment(
        device=Hardware.named("cpu").require_attached(machine).text,
        runtime=runtime,
        runtime_version=version,
        precision=precision,
        threads=1,
        protocol="hot",
        clock="process CPU time",
        reference="0123456789abcdef",
    )
    assert environment.digest == digest  # as version 0.1.0 computed it


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
