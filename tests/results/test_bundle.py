from __future__ import annotations

from typing import Any

import onnx
import pytest
from environments import ENVIRONMENT

from nas.accuracy.evaluate import Accuracy, Agreement
from nas.latency.latency import Latency
from nas.latency.onnx_export import export_onnx
from nas.model.detector import Detector, profile
from nas.results.bundle import Bundle, Provenance, card
from nas.space.architecture import Architecture, Candidate

ACCURACY = Accuracy(
    *(0.5, 0.7, None, None, None, 80, "validation", "trained", "engine"),
    agreement=Agreement(0.9876, 16, "onnxruntime fp32"),
)


def _bundle(kind: str) -> Bundle:
    def fusion(channels: int) -> dict[str, Any]:
        return {"block": "c2f", "channels": channels, "hidden": 4}

    architecture = Architecture.parse(
        {
            "input": 64,
            "classes": 2,
            "stem": {"channels": 8},
            "backbone": {f"P{n}": fusion(8) for n in range(2, 6)},
            "neck": {"kind": "fpn", "top_down": {"P4": fusion(8), "P3": fusion(8)}},
            "head": {"channels": 8, "kind": kind},
        }
    )
    detector = Detector(architecture)
    return Bundle(
        Candidate(architecture=architecture),
        detector,
        export_onnx(detector.deploy(), 64, 64, slim=True),
        Latency(1.0, 0.9, 1.1, "measured", ENVIRONMENT),
        (ACCURACY,),
        Provenance("", None, "", {"name": "d", "digest": "0"}, ("a", "b"), 0, {}, "today"),
    )


@pytest.mark.parametrize(
    ("kind", "nms", "says"),
    [
        ("decoupled", "outside", "suppression (IoU 0.65, class by class) is not in the graph"),
        ("one_to_one", "none", "No non-maximum suppression is needed"),
    ],
)
def test_bundle__says_whether_suppression_is_needed(kind: str, nms: str, says: str) -> None:
    bundle = _bundle(kind)
    assert bundle.facts()["nms"] == nms
    assert says in card(bundle)
    other = "No non-maximum" if nms == "outside" else "is not in the graph"
    assert other not in card(bundle)
    assert {one.key: one.value for one in onnx.load_from_string(bundle.onnx).metadata_props} == {
        "nms": nms
    }


def test_bundle__says_how_far_the_engine_finds_what_the_network_finds() -> None:
    bundle = _bundle("decoupled")
    expected = {"share": 0.9876, "images": 16, "reference": "onnxruntime fp32"}
    assert bundle.facts()["accuracy"][0]["agreement"] == expected
    words = "scored on the engine: 98.8% of detections as by onnxruntime fp32, on 16 images)"
    assert words in card(bundle)


def test_bundle__of_a_one_to_one_head_counts_what_is_deployed() -> None:
    bundle = _bundle("one_to_one")
    counted = profile(bundle.candidate.architecture)
    assert bundle.facts()["parameters"] == counted.parameters
    assert counted.parameters < sum(p.numel() for p in bundle.detector.parameters())
