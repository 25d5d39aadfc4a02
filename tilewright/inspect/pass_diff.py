"""What one pass did, on one screen: its events and near misses, then the tensors that they changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tilewright.inspect.diff import GraphDiff, diff
from tilewright.inspect.event_view import EventView, view_events
from tilewright.inspect.layers import Layers
from tilewright.inspect.text import Readable
from tilewright.ir.events import Event, Miss
from tilewright.ir.graph import Graph


class Recorded(Protocol):
    """A pass that ran: a row of the manager's report, or the record of a run."""

    @property
    def events(self) -> Sequence[Event]: ...
    @property
    def misses(self) -> Sequence[Miss]: ...
    @property
    def warnings(self) -> Sequence[str]: ...


@dataclass(frozen=True)
class PassDiff(Readable):
    title: str  # number and name with options
    events: EventView
    graphs: GraphDiff
    warnings: tuple[str, ...] = ()

    @staticmethod
    def of(title: str, row: Recorded, before: Graph, after: Graph) -> PassDiff:
        view = view_events(row.events, row.misses, Layers.of(before, after))
        return PassDiff(title, view, diff(before, after), tuple(row.warnings))

    def __bool__(self) -> bool:
        return bool(self.graphs)

    @property
    def stat(self) -> str:
        events, misses = (sum(len(g.items) for g in groups) for groups in (self.events.events, self.events.misses))
        missed = f", {misses} nearly" if misses else ""
        return f"pass {self.title}   events {events}{missed}   {self.graphs.stat}"

    def __str__(self) -> str:
        rows = str(self.graphs).partition("\n")[2]
        return "\n".join([self.stat, *(f"  warning: {w}" for w in self.warnings), str(self.events), *([rows] if rows else [])])
