"""`python -m nas` is `nas`."""

from __future__ import annotations

from nas.cli import main

main()
