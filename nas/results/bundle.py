"""The folder that a user takes away: the network, what it was measured to do, and how.

- `architecture.yaml`: the network and everything known about it; `Architecture.load` reads it.
- `model.onnx`: the fused network, ready for an engine.
- `weights.safetensors`: the trained weights, for further training.
- `card.md`: the same facts for a person, and the contract of inputs and outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save

from nas.accuracy.evaluate import Accuracy
from nas.errors import StorageError
from nas.files import replace
from nas.latency.latency import Latency
from nas.model.detector import Detector, profile, suppression
from nas.results.worth import Worth, worth_section
from nas.space.architecture import Candidate
from nas.units import percent

__all__ = ["Bundle", "Provenance", "write_bundle"]

_OUTPUTS = """\
| name | shape | meaning |
|---|---|---|
| `images` (input) | float32 (1, 3, {height}, {width}) | RGB in 0..1, resized with its aspect kept \
to fit, top left, the rest filled with grey 114/255 |
| `boxes` | float32 (1, {anchors}, 4) | left, top, right, bottom in pixels of the input |
| `scores` | float32 (1, {anchors}, {classes}) | probability of each class, 0..1, independent |

"""
_DUPLICATES = {
    "outside": """\
Non-maximum suppression (IoU 0.65, class by class) is not in the graph; the mAP above includes it,
the latency does not.
""",
    "none": """\
No non-maximum suppression is needed: the network finds each object once, and its 100 best pairs of
box and class are its detections.
""",
}


@dataclass(frozen=True)
class Provenance:
    """Where a bundle comes from.

    Attributes:
        study: name of the study; empty for a network trained on its own.
        trial: its trial; None for what only a plain rule found.
        rule: the plain rule that chose it where the search did not.
        budget: the budget that was asked for.
        data: name and digest of the data set.
        classes: names, in the order of the scores.
        seed: of the search and the training.
        versions: package -> version.
        created: ISO date and time, UTC.
    """

    study: str
    trial: int | None
    budget: str
    data: dict[str, str]
    classes: tuple[str, ...]
    seed: int
    versions: dict[str, str]
    created: str
    rule: str = ""

    @property
    def origin(self) -> str:
        """Say where the network comes from."""
        if not self.study:
            return "trained on its own"
        by = f", chosen by the plain rule '{self.rule}'" if self.rule else ""
        where = f"the study `{self.study}`"
        return f"{where}{by}" if self.trial is None else f"trial {self.trial} of {where}{by}"


@dataclass(frozen=True)
class Bundle:
    """A trained candidate with what was measured on the very ONNX graph that is delivered.

    Its own engine gave the accuracies. `worth` compares it with what needs no search, and `trust`
    is what is known about the ranking that chose it, as `StudyResult.trust` has it.
    """

    candidate: Candidate
    detector: Detector
    onnx: bytes
    latency: Latency
    accuracies: tuple[Accuracy, ...]
    provenance: Provenance
    trust: Mapping[str, Any] | None = None
    worth: Worth | None = None

    def facts(self) -> dict[str, Any]:
        """Return everything known, as plain data for YAML."""
        counts = profile(self.candidate.architecture)
        return {
            "digest": self.candidate.architecture.digest,
            "precision": self.candidate.precision,
            "architecture": self.candidate.architecture.canonical(),
            "parameters": counts.parameters,
            "macs": counts.macs,
            "nms": suppression(self.candidate.architecture),
            "latency": self.latency.as_dict(),
            "accuracy": [accuracy.as_dict() for accuracy in self.accuracies],
            "ranking": dict(self.trust["verdict"]) if self.trust else None,
            **({"worth": self.worth.as_dict()} if self.worth else {}),
            "provenance": {
                **vars(self.provenance),
                "classes": list(self.provenance.classes),
            },
        }


def write_bundle(bundle: Bundle, folder: Path) -> None:
    """Write the files of a bundle; each is written whole or not at all.

    Raises:
        StorageError: the folder cannot be written to.
    """
    facts = yaml.safe_dump(bundle.facts(), sort_keys=False, allow_unicode=True, width=100)
    weights = {name: tensor.contiguous() for name, tensor in bundle.detector.state_dict().items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace(folder / "architecture.yaml", facts.encode())
        replace(folder / "model.onnx", bundle.onnx)
        replace(folder / "card.md", card(bundle).encode())
        digest = bundle.candidate.architecture.digest
        replace(folder / "weights.safetensors", save(weights, {"architecture": digest}))
    except OSError as error:
        raise StorageError(
            f"The bundle cannot be written to {folder}: {error.strerror or error}.",
            "Make room or choose another --workspace; nothing that was measured is lost.",
        ) from error


def card(bundle: Bundle) -> str:
    """Describe a bundle for a person, in Markdown."""
    architecture = bundle.candidate.architecture
    provenance, latency = bundle.provenance, bundle.latency
    counts = profile(architecture)
    height, width = architecture.input
    anchors = sum(architecture.tokens_at(level) for level in ("P3", "P4", "P5"))
    environment = "\n".join(f"| {k} | {v} |" for k, v in latency.environment.as_dict().items())
    versions = ", ".join(f"{name} {version}" for name, version in provenance.versions.items())
    return f"""\
# Detector {architecture.digest} ({bundle.candidate.precision})

Origin: {provenance.origin}; made on {provenance.created}. Budget: {provenance.budget or "none"}.

| what | value |
|---|---|
| latency | {_latency(latency)} |
{_accuracy_rows(bundle.accuracies)}
| parameters | {counts.parameters:,} (fused) |
| MACs | {counts.macs:,} at {height} x {width} |
| classes | {", ".join(provenance.classes)} |
| data | {provenance.data["name"]}, digest {provenance.data["digest"]} |
| seed | {provenance.seed} |

Accuracy is COCO mAP in 0..1. The validation split chose this network among many, so its figure
flatters; the test split chose nothing, and was used once for each trained network.
{_ranking(bundle)}
{worth_section(bundle.worth) if bundle.worth else ""}
## Input and outputs of `model.onnx`

{_OUTPUTS.format(height=height, width=width, anchors=anchors, classes=architecture.classes)}\
{_DUPLICATES[suppression(architecture)]}
## What the latency is true for

| | |
|---|---|
{environment}

Versions: {versions}.

## Architecture

```yaml
{architecture.to_yaml()}```
"""


def _ranking(bundle: Bundle) -> str:
    """Say whether the ranking that chose the network holds; nothing of one that no search chose."""
    if not bundle.provenance.study:
        return ""
    if bundle.trust is None:
        return "\nWhether the ranking of the search holds was not checked.\n"
    return f"\n{bundle.trust['verdict']['text']}\n"


def _latency(latency: Latency) -> str:
    interval = f"{percent(latency.level)} interval [{latency.low_ms:.3f}, {latency.high_ms:.3f}]"
    text = f"{latency.ms:.3f} ms, {interval}, {latency.source}"
    if latency.source == "measured":
        return f"{text} on this very graph"
    return f"{text}, NOT MEASURED: the budget is not promised"


def _accuracy_rows(accuracies: tuple[Accuracy, ...]) -> str:
    return "\n".join(
        f"| mAP50-95, {one.split} | {one.map50_95:.3f}{_interval(one)} ({one.weights} weights, "
        f"{one.images} images, scored on the {one.artifact}{_agreement(one)}); "
        f"mAP50 {one.map50:.3f} |"
        for one in accuracies
    )


def _agreement(accuracy: Accuracy) -> str:
    return f": {accuracy.agreement}" if accuracy.agreement else ""


def _interval(accuracy: Accuracy) -> str:
    if accuracy.low is None or accuracy.high is None:
        return ""
    return f", 95 % interval [{accuracy.low:.3f}, {accuracy.high:.3f}]"
