from __future__ import annotations

import pytest
import torch

from nas.errors import EngineError
from nas.latency.runtimes.tensorrt_device import CudaDevice


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize(
    ("cuda", "reason"), [(None, "a torch with CUDA"), ("13.0", "an NVIDIA GPU")]
)
def test_device__none_is_an_error(
    monkeypatch: pytest.MonkeyPatch, cuda: str | None, reason: str
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    with pytest.raises(EngineError, match=f"TensorRT needs {reason}"):
        CudaDevice()
