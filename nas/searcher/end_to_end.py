"""What a deployed program waits for: an image is fitted, the network runs, its outputs are decoded.

The clock times a network alone. `EndToEnd` gives it the whole way of an image instead, with the
code of this project on both sides: what Pillow, NumPy and torch take there is what they take here,
and a program in C++ takes less. It is a value, so that it can be sent to a process that measures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from nas.accuracy.detections import Detections, detect_batch
from nas.accuracy.images import fitted_size, letterbox
from nas.errors import InputError
from nas.latency.runtimes.base import Engine, Images

__all__ = ["EndToEnd"]

_WHITE = np.float32(255)


@dataclass(frozen=True, eq=False)
class EndToEnd:
    """Times an image on its way to detections, as `around` of a latency meter.

    Its parts are `pre` (fit into the network's input, scale to 0..1, copy to the engine), `engine`,
    and `post` (copy the outputs, decode, suppress duplicates, map boxes to the image). An engine
    that takes a batch gets the image as many times.

    Args:
        image: uint8 (height, width, 3), RGB. What it shows matters: duplicates are suppressed
            among what the network finds.
        nms: whether duplicates are suppressed; see `nas.model.detector.needs_nms`.

    Raises:
        InputError: something else than such an image.
    """

    image: NDArray[np.uint8] = field(repr=False)
    nms: bool = True

    def __post_init__(self) -> None:
        shape, kind = self.image.shape, self.image.dtype
        if kind != np.uint8 or len(shape) != 3 or shape[2] != 3 or not self.image.size:
            raise InputError(f"An image is uint8 (height, width, 3), got {kind} {shape}.")

    @property
    def name(self) -> str:
        """What is timed: the size of the image and the suppression change what it costs."""
        height, width, _ = self.image.shape
        suppression = "" if self.nms else " without suppression"
        return f"end to end from {height}x{width}{suppression}"

    def __call__(self, engine: Engine) -> Callable[[], list[Detections]]:
        """Return what turns the image into detections; (batch,) of them, in its pixels."""
        threads = _threads_of(engine)

        def run() -> list[Detections]:
            with _torch_threads(threads):
                self._pre(engine)
                engine.run()
                return self._post(engine)

        return run

    def parts(self, engine: Engine) -> dict[str, Callable[[], object]]:
        """Return `pre`, `engine` and `post`."""
        threads = _threads_of(engine)

        def post() -> list[Detections]:
            with _torch_threads(threads):
                return self._post(engine)

        return {"pre": lambda: self._pre(engine), "engine": engine.run, "post": post}

    def _pre(self, engine: Engine) -> None:
        batch, _, height, width = engine.input_shape
        images: Images = np.empty(engine.input_shape, np.float32)
        for index in range(batch):
            fitted = letterbox(self.image, (height, width))
            np.divide(fitted.transpose(2, 0, 1), _WHITE, out=images[index])
        engine.bind(images)

    def _post(self, engine: Engine) -> list[Detections]:
        _, _, height, width = engine.input_shape
        size = self.image.shape[0], self.image.shape[1]
        fitted = fitted_size(size, (height, width))
        scale = np.array([size[1] / fitted[1], size[0] / fitted[0]] * 2, np.float32)
        outputs = engine.outputs()
        found = detect_batch(outputs["boxes"], outputs["scores"], nms=self.nms)
        return [Detections(one.boxes * scale, one.scores, one.labels) for one in found]


def _threads_of(engine: Engine) -> int:
    return int(engine.describe()["threads"])


@contextmanager
def _torch_threads(wanted: int) -> Iterator[None]:
    """Give torch as many threads as the engine has: a latency is that of so many cores."""
    before = torch.get_num_threads()
    if wanted != before:
        torch.set_num_threads(wanted)
    try:
        yield
    finally:
        if wanted != before:
            torch.set_num_threads(before)
