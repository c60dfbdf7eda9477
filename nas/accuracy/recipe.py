"""How to train: a value that decides the weights, apart from the network and the data."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Literal, Self

from nas.accuracy.adversarial import Adversarial
from nas.accuracy.curriculum import Curriculum
from nas.accuracy.lessons import Distillation
from nas.accuracy.lookahead import Lookahead
from nas.accuracy.loss import LossWeights
from nas.accuracy.pseudo_labels import PseudoLabels
from nas.accuracy.sampling import Rule
from nas.accuracy.stages import Stages
from nas.errors import InputError
from nas.space.architecture import digest_of

__all__ = ["Recipe"]

_AGAIN = 0.4  # share of the peak learning rate, where training starts from trained weights


@dataclass(frozen=True)
class Recipe:
    """How to train: everything that decides the weights, apart from the network and the data.

    Attributes:
        iterations: steps, of one update each.
        batch_size: images per step.
        peak_lr: learning rate of AdamW after the warm-up.
        final_lr: at the end of the cosine, as a share of the peak.
        warmup: share of the iterations in which the learning rate rises.
        weight_decay: of convolutions and projections; normalisation and biases have none.
        clip: largest norm of the gradient.
        ema_decay: of the averaged weights; see `WeightAverage`.
        ema_ramp: share of the iterations over which that decay grows.
        rule: which subnets a step trains; see `nas.accuracy.sampling`.
        largest_only: share of the iterations, at the start, that train only the largest subnet.
        fair: let every block type come equally often; see `Draws`.
        strata: buckets of cost that come equally often; see `Draws`. 0 leaves it to chance.
        apart: further iterations of a supernet, as a multiple of `iterations`, in which each input
            size has weights of its own; see `Supernet.split`. A step trains one of the sizes.
        in_place: what learning from the largest subnet of the step counts, beside the objects; see
            `nas.accuracy.distillation`. 0 for none.
        in_place_from: share of the iterations before which nothing is learnt from it: a network
            that knows nothing yet teaches nothing.
        shared_assignment: let the largest subnet of a step choose the anchors for all.
        zoom, shift, light, contrast, flip: see `Augmentation`.
        loss: weights of its parts.
        alpha, beta, topk: see `TaskAlignedAssigner`.
        amp: `bf16`, `fp16` with multiplied losses, `off`, or `auto`: bf16 where the hardware
            computes it natively, else fp16 on a GPU, else off.
        accumulate: parts that a batch is computed in, one after the other, to save memory. The
            loss is that of the whole batch; normalisation sees one part.
        recompute: keep only what enters a backbone stage, and compute the rest again on the way
            back: time for memory.
        checkpoint_every: iterations between checkpoints; it does not change the weights.
        seed: of data order, subnets and augmentation.
        teacher: folder or file of a trained network, see `nas.accuracy.teacher`, for distillation
            and pseudo-labels; empty where one is trained first: the largest of the search space.
        distillation, pseudo_labels, curriculum, adversarial, lookahead, stages: switches, all of
            them off; see the modules of these names.

    Raises:
        InputError: a value out of range.
    """

    iterations: int = 1200
    batch_size: int = 16
    peak_lr: float = 0.01
    final_lr: float = 0.02
    warmup: float = 0.05
    weight_decay: float = 0.02
    clip: float = 10.0
    ema_decay: float = 0.99
    ema_ramp: float = 0.1
    rule: Rule = "uniform"
    largest_only: float = 0.25
    fair: bool = True
    strata: int = 0
    apart: float = 0.667
    in_place: float = 0.0
    in_place_from: float = 0.5
    shared_assignment: bool = False
    zoom: float = 0.1
    shift: float = 0.05
    light: float = 0.1
    contrast: float = 0.1
    flip: bool = False
    loss: LossWeights = field(default_factory=LossWeights)
    alpha: float = 1.0
    beta: float = 6.0
    topk: int = 8
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"
    accumulate: int = 1
    recompute: bool = False
    checkpoint_every: int = 100
    seed: int = 0
    teacher: str = ""
    distillation: Distillation = field(default_factory=Distillation)
    pseudo_labels: PseudoLabels = field(default_factory=PseudoLabels)
    curriculum: Curriculum = field(default_factory=Curriculum)
    adversarial: Adversarial = field(default_factory=Adversarial)
    lookahead: Lookahead = field(default_factory=Lookahead)
    stages: Stages = field(default_factory=Stages)

    def __post_init__(self) -> None:
        counts = (self.iterations, self.batch_size, self.accumulate, self.checkpoint_every)
        if min(counts) < 1:
            raise InputError(
                "Iterations, batch size, its parts and steps between checkpoints are at least 1, "
                f"got {self}."
            )
        shares = (
            *(self.final_lr, self.warmup, self.largest_only),
            *(self.ema_decay, self.in_place_from),
        )
        if not all(0 <= share <= 1 for share in shares) or self.ema_decay == 1:
            raise InputError(f"Shares of a recipe lie in 0..1, got {self}.")
        if not (0 < self.peak_lr < 1 and self.clip > 0 and self.ema_ramp > 0):
            raise InputError(f"Learning rate, clip and ramp are above 0, got {self}.")
        least = min(self.in_place, self.apart, self.strata)
        if not (least >= 0 and max(self.in_place, self.apart) < math.inf):
            raise InputError(f"`in_place`, `apart` and `strata` are at least 0, got {self}.")
        if self.rule == "uniform" and (self.in_place or self.shared_assignment):
            raise InputError(
                "With one subnet a step there is no largest one to learn from, got the rule "
                f"'uniform', in_place={self.in_place} and "
                f"shared_assignment={self.shared_assignment}.",
                "Set the rule to 'sandwich', or leave both out.",
            )
        if self.distillation.features and self.accumulate > 1:
            raise InputError(
                "Features are distilled from whole batches, got "
                f"distillation.features={self.distillation.features} and "
                f"accumulate={self.accumulate}.",
                "Set accumulate to 1, or distil logits alone.",
            )

    @classmethod
    def quick(cls) -> Self:
        """A few seconds per network: enough to see every part work, not to compare networks."""
        return cls(iterations=120, batch_size=8, apart=0.25)

    def fine_tuning(self) -> Self:
        """A short further training of one detector that starts from trained weights."""
        return self._again(max(self.iterations // 4, 20))

    def by_size(self) -> tuple[Self, Self | None]:
        """Return how all input sizes learn together, and how each goes on with its own weights."""
        further = self.supernet_iterations - self.iterations
        return self, self._again(further) if further else None

    @property
    def supernet_iterations(self) -> int:
        """Steps of a supernet, in both of its stages."""
        return self.iterations + round(self.apart * self.iterations)

    def _again(self, iterations: int) -> Self:
        """From trained weights: without what only begins to teach a network."""
        return dataclasses.replace(
            self,
            iterations=iterations,
            peak_lr=_AGAIN * self.peak_lr,
            largest_only=0.0,
            in_place_from=0.0,
            # They begin with what the network can do already.
            curriculum=Curriculum(),
            stages=Stages(),
        ).untaught()

    def untaught(self) -> Self:
        """Return the same without a teacher; what it hides stays hidden."""
        return dataclasses.replace(
            self,
            teacher="",
            distillation=Distillation(),
            pseudo_labels=dataclasses.replace(self.pseudo_labels, threshold=0.0, images=""),
        )

    @property
    def needs_teacher(self) -> bool:
        """Whether a trained network takes part."""
        return self.distillation.on or self.pseudo_labels.on

    @property
    def digest(self) -> str:
        """Changes with anything that changes the weights."""
        data = dataclasses.asdict(self)
        del data["checkpoint_every"]
        return digest_of(data)

    def teaching(self, step: int) -> float:
        """Return what in-place distillation counts in a step, from 0."""
        return self.in_place if step >= self.in_place_from * self.iterations else 0.0

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to `final_lr * peak_lr`; steps from 0.

        The cosine begins when gates are free, and ends when fine-tuning begins; see `Stages`.
        """
        rising = self.warmup * self.iterations
        if step < rising:
            return self.peak_lr * (step + 1) / (rising + 1)
        high = max(rising, self.stages.gate_warmup * self.iterations)
        low = (1 - self.stages.fine_tuning) * self.iterations
        done = min(max(step - high, 0) / max(low - high, 1), 1)
        cosine = (1 + math.cos(math.pi * done)) / 2
        return self.peak_lr * (self.final_lr + (1 - self.final_lr) * cosine)
