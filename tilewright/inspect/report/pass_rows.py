"""Passes of a run: counts, what fired and nearly fired, and which snapshot stands after each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tilewright.inspect.layers import Group
from tilewright.inspect.report.names import Names, fold_names
from tilewright.inspect.run import PassRecord, Run
from tilewright.ir.events import Event, Miss
from tilewright.passes.registry import load_passes


@dataclass(frozen=True, slots=True)
class EventRow:
    """Rewrites, or near misses, that are equal up to the layer and the sibling."""

    kind: str  # event, missed
    tag: str  # x64 [L=0..31]
    count: int
    place: str
    what: str
    names: Names  # tensors that they touched


@dataclass(frozen=True, slots=True)
class PassRow:
    number: int
    name: str
    title: str  # with options
    doc: str
    status: str  # changed, same, failed
    ops_before: int
    ops_after: int
    num_events: int
    num_misses: int
    warnings: tuple[str, ...]
    events: tuple[EventRow, ...]


def collect_passes(run: Run) -> tuple[PassRow, ...]:
    known = load_passes()
    return tuple(_row(run, record, known[record.name].doc if record.name in known else "") for record in run.passes)


def _row(run: Run, record: PassRecord, doc: str) -> PassRow:
    title = record.title.partition(" ")[2]
    counts = (record.ops_before, record.ops_after, len(record.events), len(record.misses))
    first = doc.strip().split("\n\n")[0].replace("\n", " ")
    return PassRow(record.number, record.name, title, first, record.status, *counts, tuple(record.warnings), tuple(_events(run, record)))


def _events(run: Run, record: PassRecord) -> Iterable[EventRow]:
    view = record.view()
    groups: list[Group[Event] | Group[Miss]] = [*view.events, *view.misses]
    for found, (head, place, what) in zip(groups, view.rows, strict=True):
        kind, _, tag = head.partition(" ")
        names = dict.fromkeys(name for item in found.items for name in _touched(item) if name)
        yield EventRow(kind, tag, len(found.items), place, what, fold_names(names, run.layers))


def _touched(record: Event | Miss) -> Iterable[str]:
    yield record.anchor
    if isinstance(record, Event):
        yield from (*record.keeps, *record.makes, *record.erases, record.into)
