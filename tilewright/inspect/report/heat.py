"""Errors of values as a strip of layers and names, and by depth: where in the model an error is made, and where it only arrives."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tilewright.inspect.report.measured import read_rows
from tilewright.inspect.report.names import template_of
from tilewright.inspect.run import Run

MAX_CELLS = 1600


@dataclass(frozen=True, slots=True)
class HeatCell:
    layer: int
    level: str  # ok, grey, red
    ratio: float | None  # isolated error to its floor; None where it is not finite
    lossy: float | None


@dataclass(frozen=True, slots=True)
class HeatRow:
    name: str  # with {L} for its layer
    op: str
    cells: tuple[HeatCell, ...]


@dataclass(frozen=True, slots=True)
class Heat:
    layers: int
    rows: tuple[HeatRow, ...]  # in the order of the graph
    outside: tuple[HeatRow, ...]  # values of no layer, one cell each, the worst first
    depth: tuple[tuple[float, float], ...]  # by layer: largest accumulated, largest isolated error
    left_out: int  # rows beyond what a page should hold, those with the smallest ratios


def collect_heat(run: Run) -> Heat | None:
    """None where `check --save` has left nothing."""
    rows = [row for row in read_rows(run, "numerics/values") if str(row.get("name", "")).startswith("%")]
    if not rows:
        return None
    found: dict[str, list[tuple[HeatCell, Mapping[str, Any]]]] = {}
    for row in rows:
        template, layer = template_of(row["name"][1:], run.layers)
        found.setdefault(template, []).append((_cell(row, -1 if layer is None else layer), row))
    folded = {name: HeatRow(name, str(cells[0][1].get("op", "")), tuple(cell for cell, _ in cells)) for name, cells in found.items()}
    inside = [row for row in folded.values() if row.cells[0].layer >= 0]
    layers = 1 + max((cell.layer for row in inside for cell in row.cells), default=-1)
    kept = sorted(inside, key=_badness, reverse=True)[: max(1, MAX_CELLS // max(1, layers))]
    outside = sorted((row for row in folded.values() if row.cells[0].layer < 0), key=_badness, reverse=True)
    cells = [pair for pairs in found.values() for pair in pairs]
    depth = tuple(
        tuple(max((_finite(row.get(key)) for cell, row in cells if cell.layer == layer), default=0.0) for key in ("accumulated", "isolated"))
        for layer in range(layers)
    )
    return Heat(layers, tuple(row for row in inside if row in kept), tuple(outside), depth, len(inside) - len(kept))  # type: ignore[arg-type]  # pairs


def _cell(row: Mapping[str, Any], layer: int) -> HeatCell:
    ratio = row.get("ratio")
    return HeatCell(layer, str(row.get("level", "ok")), ratio if isinstance(ratio, int | float) and math.isfinite(ratio) else None, row.get("lossy"))


def _badness(row: HeatRow) -> tuple[bool, float]:
    return any(cell.level == "red" for cell in row.cells), max(math.inf if cell.ratio is None else cell.ratio for cell in row.cells)


def _finite(value: object) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0


