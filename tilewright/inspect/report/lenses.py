"""Views of other packages: a lens is a function of a run that returns rows, found by the entry point group `tilewright.lenses`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata

from tilewright.inspect.report.measured import Table, table_of
from tilewright.inspect.run import Run

LENSES = "tilewright.lenses"


@dataclass(frozen=True, slots=True)
class LensView:
    """What a lens gave. A failure is shown in its place: a lens of somebody else breaks no report."""

    name: str
    table: Table | None
    failure: str = ""


def look_through(run: Run) -> tuple[LensView, ...]:
    return tuple(_look(point, run) for point in metadata.entry_points(group=LENSES))


def _look(point: metadata.EntryPoint, run: Run) -> LensView:
    try:
        rows: Iterable[Mapping[str, object]] = point.load()(run)
        return LensView(point.name, table_of(point.name.replace("-", " ").replace("_", " "), [dict(row) for row in rows]))
    except Exception as error:  # anything, since it is code of another package
        return LensView(point.name, None, f"{type(error).__name__}: {error}")
