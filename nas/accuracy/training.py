"""Training of a supernet, or of one detector, in a single loop.

Design choices:

- A schedule is counted in iterations, never in seconds: on a shared machine seconds mean nothing.
- Data order, subnets and augmentation of a step are functions of (seed, step). So a run is
  reproducible, bit for bit on one thread, and a resumed run equals one that was never interrupted.
- What is delivered is the moving average of the weights, not the last weights.
- No running statistics are kept while training: whoever wants to run the network recalibrates them
  on its own weights, and an image that breaks a step leaves no trace.
- bfloat16 where the processor multiplies it natively; assignment and losses are single precision.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from nas.accuracy.assigner import Objects, TaskAlignedAssigner
from nas.accuracy.augment import Augmentation
from nas.accuracy.checkpoint import Counters, load_checkpoint, save_checkpoint
from nas.accuracy.dataset import BatchSampler, Split, batches
from nas.accuracy.ema import WeightAverage
from nas.accuracy.loss import DetectionLoss
from nas.accuracy.recipe import Recipe
from nas.accuracy.sampling import Sample, Subnets
from nas.accuracy.step import Forward, Step
from nas.errors import TrainingError
from nas.model.detector import Detector
from nas.model.supernet import Supernet, recalibrate
from nas.space.architecture import Architecture, digest_of

__all__ = ["Progress", "TrainingResult", "train_detector", "train_supernet"]

_BAD_STEPS = 5  # in a row, before training goes back to the averaged weights
_ROLLBACKS = 3
_CALIBRATION_BATCHES = 16
_COLLECT_EVERY = 25  # steps


@dataclass(frozen=True)
class Progress:
    """Where a training stands after a step.

    Attributes:
        iteration: steps done.
        total: steps in all.
        loss: of the step; nan if it was skipped.
        parts: of the loss, by name.
    """

    iteration: int
    total: int
    loss: float
    parts: dict[str, float]


@dataclass(frozen=True)
class TrainingResult:
    """How a training went.

    Attributes:
        iterations: steps done in all, those before a resumption included.
        resumed_from: steps that a checkpoint had done already.
        skipped: steps without an update, because loss or gradient were not finite.
        loss: mean over the last tenth of the schedule, as far as this run did it; nan if it did
            nothing of it.
        precision: in which convolutions ran.
    """

    iterations: int
    resumed_from: int
    skipped: int
    loss: float
    precision: Literal["fp32", "bf16"]


def train_supernet(
    supernet: Supernet,
    sample: Sample,
    largest: Architecture,
    split: Split,
    recipe: Recipe,
    *,
    smallest: Architecture | None = None,
    progress: Callable[[Progress], None] | None = None,
    checkpoint: Path | None = None,
) -> TrainingResult:
    """Train shared weights, in place.

    Args:
        supernet: covers every architecture that `sample` draws.
        sample: draws the random subnet of a step.
        largest: see `Subnets`.
        split: what to learn from.
        recipe: how.
        smallest: see `Subnets`.
        progress: called after each step; may raise KeyboardInterrupt to stop.
        checkpoint: written regularly and when interrupted, read at the start if it exists; it is
            left there at the end, for the caller to delete once the weights are saved.

    Raises:
        TrainingError: loss or gradient do not stay finite.
        StorageError: the checkpoint cannot be written, or belongs to another training.
        InputError: the rule needs a smallest subnet.
    """
    warmup = round(recipe.largest_only * recipe.iterations)
    subnets = Subnets(recipe.rule, sample, largest, smallest, warmup)
    run = _Run(supernet, split, recipe, digest_of(["supernet", supernet.digest]), checkpoint)
    was_training = supernet.training
    supernet.train()
    try:
        with _rare_collections():
            return run.train(subnets, lambda one, images: supernet(images, one), progress)
    finally:
        supernet.train(was_training)


def train_detector(
    detector: Detector,
    split: Split,
    recipe: Recipe,
    *,
    progress: Callable[[Progress], None] | None = None,
    checkpoint: Path | None = None,
) -> TrainingResult:
    """Train one detector, in place, and fill its running statistics.

    Args and errors as in `train_supernet`; the parts of the recipe about subnets are not used.
    """
    architecture = detector.architecture
    identity = digest_of(["detector", architecture.digest])
    run = _Run(detector, split, recipe, identity, checkpoint)
    was_training = detector.training
    detector.train()
    try:
        with _rare_collections(), _batch_statistics(detector):
            result = run.train(
                lambda *_: (architecture,), lambda _, images: detector(images), progress
            )
        recalibrate(detector, _calibration(split, architecture, run.device))
    finally:
        detector.train(was_training)
    return result


class _Run:
    """One training: its state, and the loop."""

    def __init__(
        self, network: nn.Module, split: Split, recipe: Recipe, identity: str, path: Path | None
    ) -> None:
        self.network, self.split, self.recipe, self.path = network, split, recipe, path
        self.identity = digest_of([identity, recipe.digest, split.digest])
        self.device = next(network.parameters()).device
        self.bf16 = recipe.amp == "bf16" or (recipe.amp == "auto" and _native_bf16(self.device))
        self.optimizer = _optimizer(network, recipe)
        ramp = max(recipe.ema_ramp * recipe.iterations, 1.0)
        self.average = WeightAverage(network, recipe.ema_decay, ramp)
        self.counters = Counters()
        assigner = TaskAlignedAssigner(recipe.alpha, recipe.beta, recipe.topk)
        self.step = Step(
            DetectionLoss(recipe.loss, assigner),
            self.device,
            self.bf16,
            shared_assignment=recipe.shared_assignment,
        )
        self.augment = Augmentation(
            recipe.zoom, recipe.shift, recipe.light, recipe.contrast, recipe.flip
        )
        self.order = BatchSampler(len(split), recipe.batch_size, recipe.seed)

    def train(
        self,
        subnets: Callable[[int, np.random.Generator], tuple[Architecture, ...]],
        forward: Forward,
        progress: Callable[[Progress], None] | None,
    ) -> TrainingResult:
        """Run all steps that are left; the network ends with the averaged weights."""
        recipe = self.recipe
        self._resume()
        start, losses, consistent = self.counters.iteration, [], True
        try:
            for step in range(start, recipe.iterations):
                if step % _COLLECT_EVERY == 0:
                    gc.collect()
                generator = np.random.default_rng([recipe.seed, step])
                architectures = subnets(step, generator)
                images, objects = self._batch(step, architectures[0].input, generator)
                self.optimizer.zero_grad(set_to_none=True)
                parts = self.step.gradients(
                    architectures, images, objects, forward, recipe.teaching(step)
                )
                consistent = False
                parts = self._update(step, parts)
                consistent = True
                losses.append(sum(parts.values()))
                if self.counters.iteration % recipe.checkpoint_every == 0:
                    self._save()
                if progress:
                    progress(Progress(step + 1, recipe.iterations, losses[-1], parts))
        except KeyboardInterrupt:
            if consistent:  # else the state is between two steps: the last checkpoint holds
                self._save()
            raise
        self._save()
        self.average.apply(self.network)
        last = [loss for loss in losses[-max(recipe.iterations // 10, 1) :] if math.isfinite(loss)]
        return TrainingResult(
            iterations=self.counters.iteration,
            resumed_from=start,
            skipped=self.counters.skipped,
            loss=float(np.mean(last)) if last else math.nan,
            precision="bf16" if self.bf16 else "fp32",
        )

    def _batch(
        self, step: int, size: tuple[int, int], generator: np.random.Generator
    ) -> tuple[Tensor, Objects]:
        images, annotations = self.split.resized(*size).batch(self.order(step))
        changed, annotations = self.augment(images, annotations, generator)
        objects = Objects(*(tensor.to(self.device) for tensor in Objects.of(annotations)))
        # Channels last saves convolutions a tenth of their time on CPUs, and lets GPUs use theirs.
        changed = changed.to(self.device, memory_format=torch.channels_last)
        return changed, objects

    def _update(self, step: int, parts: dict[str, float]) -> dict[str, float]:
        """Take the step, or skip it if anything is not finite."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate(step)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip)
        counters = self.counters
        counters.iteration = step + 1
        if math.isfinite(sum(parts.values())) and math.isfinite(float(norm)):
            self.optimizer.step()
            counters.in_a_row = 0
            self.average.update(self.network, counters.iteration - counters.skipped)
            return parts
        counters.skipped += 1
        counters.in_a_row += 1
        if counters.in_a_row >= _BAD_STEPS:
            self._roll_back()
        return dict.fromkeys(parts, math.nan)

    def _roll_back(self) -> None:
        """Continue from the averaged weights, which only good steps have touched."""
        counters = self.counters
        counters.in_a_row = 0
        counters.rollbacks += 1
        if counters.rollbacks > _ROLLBACKS:
            raise TrainingError(
                f"The loss was not finite in {counters.skipped} of {counters.iteration} steps.",
                "Lower the learning rate, or set amp to 'off'.",
            )
        self.average.apply(self.network)
        self.optimizer = _optimizer(self.network, self.recipe)

    def _save(self) -> None:
        if self.path is not None:
            save_checkpoint(
                self.path, self.identity, self.counters, self.network, self.average, self.optimizer
            )

    def _resume(self) -> None:
        if self.path is not None and self.path.exists():
            self.counters = load_checkpoint(
                self.path, self.identity, self.network, self.average, self.optimizer
            )


def _optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW; only tensors of two dimensions and more decay (not normalisation, bias, scales)."""
    parameters = list(network.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    # Not fused, the optimiser would spend longer on calls than on arithmetic.
    return torch.optim.AdamW(groups, lr=recipe.peak_lr, fused=True)


def _native_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16: elsewhere it is emulated, and several times slower.

    On a CPU that takes the AVX512_BF16 or the AMX instructions.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    native = (torch.cpu._is_avx512_bf16_supported, torch.cpu._is_amx_tile_supported)  # noqa: SLF001
    return device.type == "cpu" and any(asked() for asked in native)


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Leave the search for unreachable objects to the loop.

    A step makes thousands of small objects, for the modules of a new subnet and for autograd; each
    few hundred would start a search through everything in memory, together 10 % of a step.
    """
    enabled = gc.isenabled()
    gc.disable()
    gc.freeze()  # and what exists already is not searched at all
    try:
        yield
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()


@contextmanager
def _batch_statistics(detector: nn.Module) -> Iterator[None]:
    """Let batch normalisation keep no running statistics meanwhile."""
    norms = [m for m in detector.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def _calibration(
    split: Split, architecture: Architecture, device: torch.device
) -> Iterator[Tensor]:
    stream = batches(split.resized(*architecture.input), 32, seed=0)
    for _ in range(_CALIBRATION_BATCHES):
        yield next(stream)[0].to(device).float() / 255
