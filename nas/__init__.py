"""Hardware-aware architecture search for object detectors."""

from __future__ import annotations
