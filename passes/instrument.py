"""What a person hangs into a pipeline to watch it, or to hold single rewrites back."""

from __future__ import annotations

from tilewright.ir.events import Event
from tilewright.ir.graph import Graph


class Instrument:
    """Override what you need. Graphs are those of the pipeline: look, and change nothing."""

    def should_run(self, name: str) -> bool:
        """False leaves a pass out."""
        return True

    def before_pass(self, name: str, graph: Graph) -> None: ...

    def after_pass(self, name: str, graph: Graph) -> None: ...

    def on_rewrite(self, event: Event) -> bool | None:
        """False takes the rewrite back; its pass then runs again without that place, so the same events come by more than once."""
        return None

    def on_error(self, name: str, error: Exception) -> None: ...
