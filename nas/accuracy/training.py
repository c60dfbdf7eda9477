"""Training of a supernet, or of one detector, in a single loop.

Design choices:

- A schedule is counted in iterations, never in seconds: on a shared machine seconds mean nothing.
- Data order, subnets and augmentation of a step are functions of (seed, step). So a run is
  reproducible, bit for bit on one thread, and a resumed run equals one that was never interrupted.
- What is delivered is the moving average of the weights, not the last weights.
- No running statistics are kept while training: whoever wants to run the network recalibrates them
  on its own weights, and an image that breaks a step leaves no trace.
- Half precision where the hardware multiplies it natively; assignment and losses are in single
  precision.
- A process that is killed loses what it did since the last checkpoint. Steps are counted here and
  time is not, so the caller says when one is due.
"""

from __future__ import annotations

import dataclasses
import gc
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from nas.accuracy.assigner import Objects, TaskAlignedAssigner
from nas.accuracy.augment import Augmentation
from nas.accuracy.checkpoint import Counters, load_checkpoint, save_checkpoint
from nas.accuracy.dataset import Split
from nas.accuracy.distributed import ALONE, Processes
from nas.accuracy.lessons import Lesson
from nas.accuracy.loss import DetectionLoss
from nas.accuracy.memory import in_parts, recomputing
from nas.accuracy.optimization import Optimization
from nas.accuracy.pseudo_labels import examples
from nas.accuracy.recipe import Recipe
from nas.accuracy.sampling import Sample, Subnets
from nas.accuracy.stages import gates
from nas.accuracy.step import Forward, Precision, Step
from nas.accuracy.teacher import Teacher, calibration_images
from nas.errors import InputError
from nas.model.detector import Detector
from nas.model.supernet import Supernet, recalibrate
from nas.space.architecture import Architecture, digest_of

__all__ = ["Progress", "TrainingResult", "train_detector", "train_supernet"]

_COLLECT_EVERY = 25  # steps


@dataclass(frozen=True)
class Progress:
    """Where a training stands after a step.

    Attributes:
        iteration: steps done.
        total: steps in all.
        loss: of the step; nan if it was skipped.
        parts: of the loss, by name.
        note: what a person should know of the step, as a sentence; mostly nothing.
    """

    iteration: int
    total: int
    loss: float
    parts: dict[str, float]
    note: str = ""


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
        overflows: steps without an update, because fp16 losses were multiplied by too much.
        rollbacks: returns to the averaged weights, each of which halved the learning rate.
    """

    iterations: int
    resumed_from: int
    skipped: int
    loss: float
    precision: Precision
    overflows: int = 0
    rollbacks: int = 0


def train_supernet(  # noqa: PLR0913 - what is trained, on what, how, and who hears of it
    supernet: Supernet,
    sample: Sample,
    largest: Architecture,
    split: Split,
    recipe: Recipe,
    *,
    smallest: Architecture | None = None,
    teacher: Teacher | None = None,
    progress: Callable[[Progress], None] | None = None,
    checkpoint: Path | None = None,
    due: Callable[[], bool] | None = None,
    processes: Processes = ALONE,
) -> TrainingResult:
    """Train shared weights, in place.

    Args:
        supernet: covers every architecture that `sample` draws.
        sample: draws the random subnet of a step.
        largest: see `Subnets`.
        split: what to learn from.
        recipe: how.
        smallest: see `Subnets`.
        teacher: for a recipe that needs one.
        progress: called after each step; may raise KeyboardInterrupt to stop.
        checkpoint: written regularly and when interrupted, read at the start if it exists; it is
            left there at the end, for the caller to delete once the weights are saved.
        due: asked after each step whether a checkpoint is due, beside those of the recipe.
        processes: that train it together, each of them by this call, on networks that are equal.

    Raises:
        TrainingError: loss or gradient do not stay finite, or another process has ended.
        StorageError: the checkpoint cannot be written, or belongs to another training.
        InputError: the rule needs a smallest subnet, or the recipe a teacher; features are to be
            distilled; or the batch has fewer images than processes.
    """
    if recipe.distillation.features:
        raise InputError(
            "Features are distilled into one network: the subnets of a supernet differ in width.",
            "Distil logits, or train one network.",
        )
    warmup = round(recipe.largest_only * recipe.iterations)
    subnets = Subnets(recipe.rule, sample, largest, smallest, warmup)
    identity = digest_of(["supernet", supernet.digest, *_digest(recipe, teacher)])
    lesson = Lesson.of(recipe.distillation, teacher, largest)
    split = examples(split, recipe.pseudo_labels, teacher)
    run = _Run(supernet, split, recipe, identity, _Saving(checkpoint, due), processes, lesson)
    was_training = supernet.training
    supernet.train()
    try:
        with _rare_collections(), recomputing(supernet, recompute=recipe.recompute):
            return run.train(subnets, lambda one, images: supernet(images, one), progress)
    finally:
        supernet.train(was_training)


def train_detector(
    detector: Detector,
    split: Split,
    recipe: Recipe,
    *,
    teacher: Teacher | None = None,
    progress: Callable[[Progress], None] | None = None,
    checkpoint: Path | None = None,
    due: Callable[[], bool] | None = None,
    processes: Processes = ALONE,
    until: int | None = None,
) -> TrainingResult:
    """Train one detector, in place, and fill its running statistics.

    Args and errors as in `train_supernet`; the parts of the recipe about subnets are not used. The
    training ends after `until` steps of its schedule; a later one goes on from its checkpoint.
    """
    architecture = detector.architecture
    identity = digest_of(["detector", architecture.digest, *_digest(recipe, teacher)])
    lesson = Lesson.of(recipe.distillation, teacher, architecture)
    split = examples(split, recipe.pseudo_labels, teacher)
    run = _Run(detector, split, recipe, identity, _Saving(checkpoint, due), processes, lesson)
    was_training = detector.training
    detector.train()
    try:
        with (
            _rare_collections(),
            _batch_statistics(detector),
            recomputing(detector.backbone, recompute=recipe.recompute),
            nullcontext() if lesson is None else lesson.watching(detector),
        ):
            result = run.train(
                lambda *_: (architecture,), lambda _, images: detector(images), progress, until
            )
        images = calibration_images(split, architecture.input)
        recalibrate(detector, (each.to(run.device) for each in images))
    finally:
        detector.train(was_training)
    return result


@dataclass(frozen=True)
class _Saving:
    """Where checkpoints are written, and who says when; None for nowhere, and for nobody."""

    path: Path | None
    due: Callable[[], bool] | None


class _Run:
    """One training: its state, and the loop."""

    def __init__(
        self,
        network: nn.Module,
        split: Split,
        recipe: Recipe,
        identity: str,
        saving: _Saving,
        processes: Processes,
        lesson: Lesson | None,
    ) -> None:
        if recipe.batch_size < processes.count:
            raise InputError(
                f"A batch of {recipe.batch_size} images has none for some of {processes.count} "
                "processes.",
                "Start fewer processes, or train with larger batches.",
            )
        self.device = next(network.parameters()).device
        if lesson is not None:
            lesson.to(self.device)
            # What aligns features is trained with the network, averaged and kept in checkpoints.
            network = network if lesson.features is None else nn.ModuleList([network, lesson])
        self.network, self.split, self.recipe, self.saving = network, split, recipe, saving
        self.processes = processes
        self.identity = digest_of([identity, recipe.digest, split.digest])
        self.precision = _precision(recipe, self.device)
        self.optimization = Optimization(
            network, recipe, scaled=self.precision == "fp16", processes=processes
        )
        assigner = TaskAlignedAssigner(recipe.alpha, recipe.beta, recipe.topk)
        self.step = Step(
            DetectionLoss(recipe.loss, assigner, processes),
            self.device,
            self.precision,
            perturb=recipe.adversarial if recipe.adversarial.epsilon else None,
            terms=() if lesson is None else (lesson,),
            scale=self.optimization.scaler.scale,
            shared_assignment=recipe.shared_assignment,
        )
        self.augment = Augmentation(
            recipe.zoom, recipe.shift, recipe.light, recipe.contrast, recipe.flip
        )
        self.unchanged = Augmentation(0, 0, 0, 0, recipe.flip)
        self.gates = gates(network)
        self.order = recipe.curriculum.order(
            split, recipe.batch_size, recipe.iterations, recipe.seed
        )

    def train(
        self,
        subnets: Callable[[int, np.random.Generator], tuple[Architecture, ...]],
        forward: Forward,
        progress: Callable[[Progress], None] | None,
        until: int | None = None,
    ) -> TrainingResult:
        """Run the steps left, all or up to `until`; the network ends with averaged weights."""
        recipe, counters = self.recipe, self._resume()
        start, losses, consistent = counters.iteration, [], True
        forward = in_parts(forward, recipe.accumulate)
        try:
            for step in range(start, min(until or recipe.iterations, recipe.iterations)):
                if step % _COLLECT_EVERY == 0:
                    gc.collect()
                generator = np.random.default_rng([recipe.seed, step])
                architectures = subnets(step, generator)
                images, objects = self._batch(step, architectures[0].input, generator)
                self.network.zero_grad(set_to_none=True)
                parts = self.step.gradients(
                    architectures, images, objects, forward, recipe.teaching(step)
                )
                consistent = False
                parts, note = self._update(step, parts)
                consistent = True
                losses.append(sum(parts.values()))
                if counters.iteration % recipe.checkpoint_every == 0 or self._due():
                    self._save()
                if progress:
                    progress(Progress(step + 1, recipe.iterations, losses[-1], parts, note))
        except KeyboardInterrupt:
            if consistent:  # else the state is between two steps: the last checkpoint holds
                self._save()
            raise
        self._save()
        self.optimization.average.apply(self.network)
        last = [loss for loss in losses[-max(recipe.iterations // 10, 1) :] if math.isfinite(loss)]
        return TrainingResult(
            iterations=counters.iteration,
            resumed_from=start,
            skipped=counters.skipped,
            loss=float(np.mean(last)) if last else math.nan,
            precision=self.precision,
            overflows=counters.overflows,
            rollbacks=counters.rollbacks,
        )

    def _batch(
        self, step: int, size: tuple[int, int], generator: np.random.Generator
    ) -> tuple[Tensor, Objects]:
        indices = self.order(step)
        part = self.processes.part(len(indices))
        images, annotations = self.split.resized(*size).batch(indices[part])
        fine = self.recipe.stages.in_fine_tuning(step, self.recipe.iterations)
        augment = self.unchanged if fine else self.augment
        changed, annotations = augment(
            images, annotations, generator, count=len(indices), first=part.start
        )
        objects = Objects(*(tensor.to(self.device) for tensor in Objects.of(annotations)))
        # Channels last saves convolutions a tenth of their time on CPUs, and lets GPUs use theirs.
        changed = changed.to(self.device, memory_format=torch.channels_last)
        return changed, objects

    def _update(self, step: int, parts: dict[str, float]) -> tuple[dict[str, float], str]:
        """Take the step, or leave it out; return the parts of the loss, and what to say of it."""
        means = self.processes.mean(torch.tensor(list(parts.values()), dtype=torch.float64))
        parts = dict(zip(parts, means.tolist(), strict=True))
        if self.recipe.stages.in_warmup(step, self.recipe.iterations):
            for gate in self.gates:
                gate.grad = None
        counters = self.optimization.counters
        before = counters.updates
        note = self.optimization.update(step, sum(parts.values()))
        return (parts if counters.updates > before else dict.fromkeys(parts, math.nan)), note

    def _due(self) -> bool:
        return self.saving.due is not None and self.saving.due()

    def _save(self) -> None:
        one = self.optimization
        if self.saving.path is not None and self.processes.first:
            save_checkpoint(
                self.saving.path,
                self.identity,
                one.counters,
                self.network,
                one.average,
                one.optimizer,
                one.scaler,
            )

    def _resume(self) -> Counters:
        """Read the checkpoint if there is one; return where training stands."""
        path, one = self.saving.path, self.optimization
        if path is not None and path.exists():
            one.counters = load_checkpoint(
                path, self.identity, self.network, one.average, one.optimizer, one.scaler
            )
        self.processes.require_equal(
            training=self.identity, checkpoint=dataclasses.asdict(one.counters)
        )
        return one.counters


def _digest(recipe: Recipe, teacher: Teacher | None) -> list[str]:
    return [teacher.digest] if teacher is not None and recipe.needs_teacher else []


def _precision(recipe: Recipe, device: torch.device) -> Precision:
    if recipe.amp != "auto":
        return "fp32" if recipe.amp == "off" else recipe.amp
    if _native_bf16(device):
        return "bf16"
    return "fp16" if device.type == "cuda" else "fp32"


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
