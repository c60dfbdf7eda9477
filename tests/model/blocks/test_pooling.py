from __future__ import annotations

import torch
from torch import nn

from nas.model.blocks.pooling import SPP, SPPF, pooling
from nas.space.architecture import Pooling


def test_sppf__equals_spp_of_growing_kernels() -> None:
    chained, parallel = SPPF(6, 4, 5, "relu"), SPP(6, 4, (5, 9, 13), "relu")
    parallel.load_state_dict(chained.state_dict())
    x = torch.randn(2, 6, 17, 11)
    torch.testing.assert_close(chained(x), parallel(x))


def test_pooling__builds_what_the_record_says() -> None:
    assert isinstance(pooling(None, 4, "relu"), nn.Identity)
    assert isinstance(pooling(Pooling(hidden=2), 4, "relu"), SPPF)
    spp = pooling(Pooling(kind="spp", hidden=2, kernels=(3, 7)), 4, "relu")
    assert spp(torch.rand(1, 4, 3, 3)).shape == (1, 4, 3, 3)
