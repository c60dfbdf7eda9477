"""A listener that keeps what it hears."""

from __future__ import annotations

from nas.searcher.progress import Silent

__all__ = ["Heard"]


class Heard(Silent):
    """Keeps what is said, in order.

    Args:
        interrupt_at: a stage, and how many steps it has done when the user stops it.

    Attributes:
        lines: everything, warnings included.
        warnings: these alone.
        stages: their names.
    """

    def __init__(self, interrupt_at: tuple[str, int] | None = None) -> None:
        self.lines: list[str] = []
        self.warnings: list[str] = []
        self.stages: list[str] = []
        self._interrupt_at = interrupt_at

    @property
    def text(self) -> str:
        """All lines as one."""
        return " ".join(self.lines)

    def stage(self, name: str, total: int) -> None:
        """Keep the name."""
        del total
        self.stages.append(name)

    def advance(self, done: int, note: str = "") -> None:
        """Interrupt, if it is time."""
        del note
        if self._interrupt_at is not None:
            name, steps = self._interrupt_at
            if self.stages[-1] == name and done >= steps:
                raise KeyboardInterrupt

    def say(self, text: str, *, warning: bool = False) -> None:
        """Keep the text."""
        self.lines.append(text)
        if warning:
            self.warnings.append(text)
