"""Compact tables for the terminal and for RESULTS.md, headed by the machine that they were measured on."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "RESULTS.md"


def describe_machine() -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})"
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "triton", "transformers"))
    return f"{device}; {versions}"


def format_table(columns: list[str], rows: list[list[str]]) -> str:
    """A Markdown table whose columns line up."""
    widths = [max(len(line[i]) for line in [columns, *rows]) for i in range(len(columns))]

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths)) + " |"

    return "\n".join([line(columns), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(line, rows)])


def show(columns: list[str], row: list[str]) -> list[str]:
    """Prints a row as it comes, by its columns' names, so that a run that is cut short has shown what it measured; returns it."""
    print("; ".join(f"{name} {cell}" for name, cell in zip(columns, row, strict=True)), flush=True)
    return row


def report(title: str, notes: str, columns: list[str], rows: list[list[str]], *, write: bool) -> None:
    """Prints the table; with `write`, appends it to RESULTS.md."""
    text = f"## {title}\n{describe_machine()}. {notes}\n\n{format_table(columns, rows)}\n"
    print(text, flush=True)
    if write:
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(f"\n{text}")
