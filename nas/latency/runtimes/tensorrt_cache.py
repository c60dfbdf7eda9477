"""TensorRT's timing cache on disk: what it learnt about kernels, for the next build.

With a cache a build takes seconds instead of minutes, and a second build of one network chooses
the kernels of the first. It is true for one device, TensorRT and CUDA only, so these name the file.

A file that is damaged or belongs elsewhere costs a slower build, so it is a note and no error.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from nas.files import replace

__all__ = ["CacheKey", "TimingCacheFile", "default_folder"]

_MAGIC = b"nas timing cache 1"


def default_folder() -> Path:
    """Where caches live unless another place is given: the user's cache folder."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "nas-detector" / "tensorrt"


@dataclass(frozen=True, kw_only=True)
class CacheKey:
    """What a timing cache is true for.

    Args:
        device: name of the GPU, such as `"NVIDIA L4"`.
        capability: its compute capability, such as `"8.9"`.
        tensorrt: release of TensorRT.
        cuda: version of CUDA.
    """

    device: str
    capability: str
    tensorrt: str
    cuda: str

    @property
    def text(self) -> str:
        """The key in one line."""
        return f"{self.device}; sm {self.capability}; TensorRT {self.tensorrt}; CUDA {self.cuda}"

    @property
    def file_name(self) -> str:
        """A readable name; its digest keeps apart what looks alike once it is a name."""
        readable = f"{self.device}-sm{self.capability}-trt{self.tensorrt}-cuda{self.cuda}"
        slug = re.sub(r"[^a-z0-9.]+", "-", readable.lower()).strip("-")
        return f"{slug}-{hashlib.sha256(self.text.encode()).hexdigest()[:8]}.timing"


class TimingCacheFile:
    """One cache in a folder; a header line with the key and a digest guards its content.

    Args:
        folder: where it lies; made when it is first written.
        key: what it is true for.
    """

    def __init__(self, folder: Path, key: CacheKey) -> None:
        self.path = folder / key.file_name
        self._key = key

    def read(self) -> tuple[bytes, str]:
        """Return the cache, empty if there is none to use, and a note if one had to be ignored."""
        try:
            header, _, content = self.path.read_bytes().partition(b"\n")
        except FileNotFoundError:
            return b"", ""
        except OSError as error:
            return b"", f"timing cache {self.path} ignored: {error.strerror or error}"
        if header != self._header(content):
            return b"", f"timing cache {self.path} ignored: it is damaged or of another device"
        return content, ""

    def write(self, content: bytes) -> str:
        """Replace the cache in one step; returns a note if that failed."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            replace(self.path, self._header(content) + b"\n" + content)
        except OSError as error:
            return f"timing cache {self.path} not written: {error.strerror or error}"
        return ""

    def _header(self, content: bytes) -> bytes:
        digest = hashlib.sha256(content).hexdigest()
        return b"; ".join((_MAGIC, self._key.text.encode(), digest.encode()))
