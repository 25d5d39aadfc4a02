"""Rows of one kind: a tuple that is also a table, for a notebook and for pandas where that is installed."""

from __future__ import annotations

import dataclasses
import html
from importlib import import_module
from typing import Any, TypeVar

from tilewright.ir.errors import TilewrightError

T = TypeVar("T")
SHOWN = 200  # rows of a table in a notebook


class Rows(tuple[T, ...]):
    """Of dataclasses, or of things with an `as_row()`."""

    def records(self) -> list[dict[str, Any]]:
        return [_record(row) for row in self]

    def df(self) -> Any:
        """A pandas DataFrame. Raises TilewrightError where pandas is not installed."""
        try:
            pandas = import_module("pandas")  # no dependency of ours
        except ImportError as error:
            raise TilewrightError("df()", "pandas is not installed", "pip install pandas, or use records()") from error
        return pandas.DataFrame(self.records())

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        return Rows(found) if isinstance(key, slice) else found

    def _repr_html_(self) -> str:
        records = self.records()[:SHOWN]
        columns = list(dict.fromkeys(name for record in records for name in record))
        head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(_show(record.get(name)))}</td>" for name in columns) + "</tr>" for record in records)
        more = f"<p>{len(self) - SHOWN} more rows</p>" if len(self) > SHOWN else ""
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def _record(row: Any) -> dict[str, Any]:
    if hasattr(row, "as_row"):
        return row.as_row()
    return {f.name: getattr(row, f.name) for f in dataclasses.fields(row)}


def _show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else "" if value is None else str(value)
