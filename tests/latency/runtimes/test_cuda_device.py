from __future__ import annotations

import pytest
import torch

from nas.errors import EngineError
from nas.latency.runtimes.cuda_device import CudaDevice


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize(
    ("cuda", "reason"), [(None, "needs a torch with CUDA"), ("13.0", "needs one of NVIDIA")]
)
def test_device__none_is_an_error(
    monkeypatch: pytest.MonkeyPatch, cuda: str | None, reason: str
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    with pytest.raises(EngineError, match=f"An engine on a GPU {reason}"):
        CudaDevice()
