"""What a measurement is asked for and what it answers: settings, protocols and timings as values.

**Protocols.** How runs follow each other moves a latency by up to a half, differently for each
precision, so the protocol's name stands in every result and in every cache key:

* `hot`: runs follow each other without a pause, after a warm-up. What the network costs by itself.
* `buffered`: a pause, then one run, and that first run counts; nothing runs un-timed in between.
  What a deployed program sees that waits for the next image: caches, clocks and power states have
  had time to leave. The length of the pause is part of the name: `buffered 200 ms`.

Whatever is timed around the network says so behind a comma: `hot, end to end from 480x640`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from nas.errors import InputError, UnknownNameError

__all__ = [
    "Calibration",
    "ClockName",
    "ClockSettings",
    "ProtocolName",
    "Timing",
    "protocol_name",
]

ClockName = Literal["process CPU time", "wall"]

ProtocolName = Literal["hot", "buffered"]


@dataclass(frozen=True)
class Timing:
    """One measured latency.

    Args:
        ms: the latency per run, `ratio` x the calibrated reference. A run computes one batch.
        low_ms: lower end of the 95 % bootstrap interval over blocks.
        high_ms: upper end.
        ratio: candidate / reference, each the estimate over its samples.
        blocks: pairs of blocks that count.
        rejected: pairs of blocks that were thrown away.
        runs: runs of the candidate in the blocks that count.
        protocol: how runs followed each other; see this module.
        clock: which clock timed it.
        converged: whether the interval is as narrow as was wanted.
        other_load: CPUs that other processes kept busy meanwhile; None where Linux does not tell.
        p50_ms: median of the candidate's runs in the blocks that count, scaled as `ms` is, so that
            the four can be compared. Hot runs of less than a fiftieth of a block (0.2 ms) are timed
            several at a time, and then each counts with their mean.
        p90_ms: 90th percentile; of fewer than 10 runs, nearly the slowest one.
        p99_ms: 99th percentile; of fewer than 100 runs, nearly the slowest one.
        rejected_by: reason -> pairs of blocks that were thrown away for it.
        throttled: the device kept throttling although it was given time to cool down: the figure is
            that of a throttled device.
        disturbed: timed by the wall clock on a processor that others used, too; not to be trusted.
        watch: what watched the device for throttling, or `"nothing"`.
        parts_ms: for what is timed around a network, the ms of its parts, each timed by itself.
    """

    ms: float
    low_ms: float
    high_ms: float
    ratio: float
    blocks: int
    rejected: int
    runs: int
    protocol: str
    clock: ClockName
    converged: bool
    other_load: float | None
    p50_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    rejected_by: dict[str, int] = field(default_factory=dict)
    throttled: bool = False
    disturbed: bool = False
    watch: str = "nothing"
    parts_ms: dict[str, float] = field(default_factory=dict)

    @property
    def half_width(self) -> float:
        """Half the interval, relative to the latency."""
        return (self.high_ms - self.low_ms) / 2 / self.ms


@dataclass(frozen=True)
class Calibration:
    """The reference's own time per run, in ms, with its 95 % bootstrap interval over blocks."""

    ms: float
    low_ms: float
    high_ms: float


@dataclass(frozen=True, kw_only=True)
class ClockSettings:
    """How long a measurement may take, and how narrow its interval shall be.

    The defaults cost a network of 1 ms about 0.2 CPU seconds hot, and buffered 7 to 24 seconds of
    mostly waiting.

    Args:
        half_width: wanted half-width of the 95 % interval, relative to the latency.
        min_blocks: hot: pairs of blocks before the interval is looked at.
        max_blocks: hot: pairs of blocks at most, rejected ones included.
        block_ms: hot: how long a block runs ...
        min_samples: hot: ... and how many samples it has at least.
        percentile: hot: which percentile of all samples is the estimate.
        warmup_ms: how long each callable runs before the first block.
        pause_ms: buffered: the pause before each run; part of the protocol's name.
        min_pauses: buffered: pairs of runs before the interval is looked at.
        max_pauses: buffered: pairs of runs at most, rejected ones included.

    Raises:
        InputError: a value that cannot work.
    """

    half_width: float = 0.02
    min_blocks: int = 8
    max_blocks: int = 24
    block_ms: float = 10.0
    min_samples: int = 10
    percentile: float = 2.0
    warmup_ms: float = 20.0
    pause_ms: float = 200.0
    min_pauses: int = 16
    max_pauses: int = 60

    def __post_init__(self) -> None:
        if not 0 < self.half_width < 1:
            raise InputError(f"half_width must lie between 0 and 1, got {self.half_width:g}.")
        for kind in ("blocks", "pauses"):
            least, most = getattr(self, f"min_{kind}"), getattr(self, f"max_{kind}")
            if not 3 <= least <= most:
                raise InputError(
                    f"{kind.capitalize()} must keep 3 <= min_{kind} <= max_{kind}, "
                    f"got {least} and {most}."
                )
        if self.min_samples < 1 or not 0 <= self.percentile <= 100:
            raise InputError(
                "A block needs at least 1 sample and a percentile in 0..100, "
                f"got {self.min_samples} and {self.percentile:g}."
            )
        if not 0 < self.pause_ms <= 60_000:
            raise InputError(f"pause_ms must lie in 0..60000 ms, got {self.pause_ms:g}.")


def protocol_name(protocol: ProtocolName, settings: ClockSettings | None = None) -> str:
    """Return the name of a protocol as it stands in results and cache keys.

    Raises:
        UnknownNameError: it is neither `hot` nor `buffered`.
    """
    if protocol not in get_args(ProtocolName):
        raise UnknownNameError.of("protocol", protocol, get_args(ProtocolName))
    pause_ms = (settings or ClockSettings()).pause_ms
    return "hot" if protocol == "hot" else f"buffered {pause_ms:g} ms"
