"""YOLOBench, as it ships: 572 detectors with mAP on two data sets and latency on four devices.

Data: `measurements/yolobench_572.csv`; where it comes from stands in `measurements/ATTRIBUTION.md`.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

PATH = Path(__file__).parents[1] / "measurements" / "yolobench_572.csv"

LATENCIES = {
    "a40_tensorrt": "nvidia_a40_trt_ms",
    "jetson_nano": "jetson_nano_gpu_ort_fp32_ms",
    "openvino": "intel_cpu_openvino_ms",
    "pi4_tflite": "raspi4_tflite_fp32_ms",
}
"""Device -> column of its latency in milliseconds, batch 1."""

ACCURACIES = {"voc": "map_50_95_voc", "coco": "map_50_95_coco"}
"""Data set -> column of mAP50-95, as a fraction."""


def load_yolobench() -> pd.DataFrame:
    """Return one row a network, indexed by its name, with the columns of the file.

    `arch` names one of 52 architectures, each at 11 input sizes. Where an architecture has a letter
    for a size, `depth_mult` and `width_mult` are missing, and the other way round.
    """
    return pd.read_csv(PATH, index_col="model_name")
