"""What a bisection found, and the sentence that says it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Finding:
    """Parts that were not found are None; numbers count from 1."""

    where: str  # `pass 07 fuse-qkv`, `kernel down_proj_6deffd35`, `import`
    reason: str  # how the gate fails
    num_runs: int  # of the gate
    pass_number: int | None = None
    event: int | None = None  # within its pass, or launch within its program
    num_events: int | None = None
    item: str = "event"  # what is counted
    place: str = ""  # `L=20 post_attention_layernorm`
    value: str = ""
    isolated: float | None = None
    floor: float | None = None
    siblings: int | None = None  # events or launches seen to be clean
    note: str = ""  # why the search ended early
    repro: Path | None = None  # a file that was run and failed

    def __str__(self) -> str:
        counted = f", {self.item} {self.event} of {self.num_events}" if self.event is not None else ""
        parts = [f"{self.where}{counted}{', ' if self.place else ''}{self.place}: {self._error()}"]
        if self.siblings is not None:
            plural = "" if self.siblings == 1 else "es" if self.item == "launch" else "s"
            parts.append(f"{self.siblings} sibling {self.item}{plural} clean")
        parts += [self.note] if self.note else []
        parts += [f"repro: {self.repro}"] if self.repro else []
        return "; ".join(parts)

    def _error(self) -> str:
        if self.isolated is None or self.floor is None:
            return self.reason
        return f"isolated rel. error {self.isolated:.1e} = {self.isolated / self.floor:.0f}x floor"
