"""Tables of what was measured, where a command has left it in `inspect/`: errors by `check --save`, times in `perf`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilewright.inspect.run import Run

MAX_ROWS = 2000
NUMERICS = {
    "passes": ("Logits after each pass, against the import in wide floats", ["number", "name", "logits.*", "worst.name", "worst.ratio"]),
    "values": (
        "Tensors of the final graph",
        ["name", "op", "level", "isolated", "floor", "ratio", "lossy", "budget", "accumulated", "abs_max", "not_finite"],
    ),
    "launches": ("Launches of the engine, one by one", []),
}  # title, columns in order; `a.*` stands for all under a, nothing for all there are
Cell = str | float | None


@dataclass(frozen=True, slots=True)
class Table:
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    left_out: int = 0  # rows beyond what a page should hold


def collect_numerics(run: Run) -> tuple[Table, ...]:
    return tuple(table for kind, (title, columns) in NUMERICS.items() if (table := _read(run, f"numerics/{kind}", title, columns)))


def collect_times(run: Run) -> tuple[Table, ...]:
    folder = _inspect(run) / "perf"
    names = sorted(file.stem for file in folder.glob("*.jsonl")) if folder.is_dir() else []
    return tuple(table for name in names if (table := _read(run, f"perf/{name}", name.replace("_", " ").capitalize(), [])))


def _inspect(run: Run) -> Path:
    return run.folder.parent if run.folder.name == "passes" else run.folder


def read_rows(run: Run, name: str) -> list[dict[str, Any]]:
    """Of a file of JSON lines; empty where it is not there. Raises EngineError."""
    return run.read(_inspect(run) / f"{name}.jsonl", lambda text: [dict(_flatten(json.loads(line))) for line in text.splitlines()]) or []


def _read(run: Run, name: str, title: str, wanted: list[str]) -> Table | None:
    rows = read_rows(run, name)
    return table_of(title, rows, wanted) if rows else None


def table_of(title: str, rows: Sequence[Mapping[str, Any]], wanted: Sequence[str] = ()) -> Table:
    """wanted: columns in order, `a.*` for all under a; all there are without it."""
    every = list(dict.fromkeys(key for row in rows for key in row))
    columns = [key for want in wanted for key in every if key == want or (want.endswith("*") and key.startswith(want[:-1]))] or every
    cells = tuple(tuple(_cell(row.get(key)) for key in columns) for row in rows[:MAX_ROWS])
    return Table(title, tuple(columns), cells, max(0, len(rows) - MAX_ROWS))


def _flatten(row: Mapping[str, Any], lead: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in row.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{lead}{key}.")
        else:
            yield f"{lead}{key}", value


def _cell(value: Any) -> Cell:
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, int):
        return value
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text.rpartition("/")[2] if text.startswith("/") else text  # no absolute path leaves the machine
