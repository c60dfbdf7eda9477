"""Features of a network without exporting it, once others with the same parts were exported.

Exporting a graph takes ten times as long as all else that a prediction needs. But features are
amounts that add up over layers, and the layers of a part, such as the stage P3, depend on little:
on what the part is, on the shapes that it takes and puts out, and on its neighbours, which may run
pointwise operators of each other. So every graph that was exported teaches what its parts consist
of, and a network of known parts is a sum of them. A space of half a million networks has a few
hundred different parts.

Whose a layer is follows from the scope that its node is named by, and from the order in which
layers run, where scopes are shared (`/neck/P4/block` may be of the way up or down).
What two graphs disagree about is never used again, and a graph with a layer of no part teaches
nothing: such networks are exported each time.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from nas.latency.features import latency_features
from nas.latency.workload import Layer as EngineLayer
from nas.latency.workload import Workload
from nas.space.architecture import Architecture
from nas.space.layers import Layer, layers

__all__ = ["KnownParts"]

_COUNT = re.compile(r"_\d+$")  # that exporters tell nodes of one name apart by
_NOWHERE = (0, 0)


class KnownParts:
    """The features of all parts of networks that were exported so far."""

    def __init__(self) -> None:
        self._known: dict[Hashable, NDArray[np.float64] | None] = {}

    def __len__(self) -> int:
        """Return how many different parts are known."""
        return sum(features is not None for features in self._known.values())

    def find(self, architecture: Architecture) -> NDArray[np.float64] | None:
        """Return the features of a network, (len(FEATURES),), or None if a part is not known."""
        found = [self._known.get(key) for key in _keys(architecture, layers(architecture))]
        known = [features for features in found if features is not None]
        if len(known) < len(found):
            return None
        total: NDArray[np.float64] = np.sum(known, axis=0)
        return total + latency_features(Workload((), architecture.input))

    def learn(self, architecture: Architecture, workload: Workload) -> NDArray[np.float64]:
        """Return the features of a network that was exported, and remember those of its parts."""
        listed = layers(architecture)
        owners = _owners(listed, workload.layers)
        if owners is not None:
            for key, part in zip(_keys(architecture, listed), owners, strict=True):
                features = latency_features(Workload(tuple(part), _NOWHERE))
                before = self._known.setdefault(key, features)
                if before is not None and not np.allclose(before, features):
                    self._known[key] = None
        return latency_features(workload)


def _keys(architecture: Architecture, listed: Sequence[Layer]) -> list[Hashable]:
    """Return what the engine layers of each part depend on."""
    users: list[list[str]] = [[] for _ in listed]
    for layer in listed:
        for source in layer.sources:
            if source >= 0:
                users[source].append(layer.module)
    return [
        (
            architecture.activation,
            layer.module,
            str(layer.arguments),
            layer.repeats,
            layer.shapes,
            tuple(sorted(users[layer.index])),
            tuple(
                (listed[source].module, listed[source].shapes, len(users[source]))
                if source >= 0
                else architecture.input
                for source in layer.sources
            ),
        )
        for layer in listed
    ]


def _owners(
    listed: Sequence[Layer], found: Sequence[EngineLayer]
) -> list[list[EngineLayer]] | None:
    """Tell which engine layers each part consists of; None if one belongs to none.

    Of several parts with one scope, it is the next: mostly, both run in the same order.
    """
    scopes = [[_scope(name) for name in layer.parts] for layer in listed]
    owned: list[list[EngineLayer]] = [[] for _ in listed]
    place = 0
    for layer in found:
        fits = [_fit(own, _plain(layer.name)) for own in scopes]
        best = [index for index, fit in enumerate(fits) if fit == max(fits) > 0]
        if not best:
            return None
        after = [index for index in best if index >= place]
        index = after[0] if after else best[-1]
        place = max(place, index)
        owned[index].append(layer)
    return owned


def _scope(part: str) -> list[str]:
    """Return the scope that the nodes of a module have: that of modules which are called."""
    names = part.split(".")
    if names[0] == "neck":
        del names[1]  # the way
    return [
        f"{before}.{name}" if name.isdigit() else name  # of a sequence
        for before, name in zip(["", *names], names, strict=False)
    ]


def _plain(name: str) -> list[str]:
    return [_COUNT.sub("", one) for one in name.strip("/").split("/")]


def _fit(scopes: Sequence[Sequence[str]], scope: Sequence[str]) -> int:
    """Return how closely a part encloses a node; what has no scope decodes, as the head does."""
    if len(scope) == 1:
        return int(["head"] in scopes)
    return max((len(own) for own in scopes if list(scope[: len(own)]) == own), default=0)
