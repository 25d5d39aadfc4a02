"""`tilewright report`: a run as one HTML file that is read offline."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from tilewright import cli_panels


def register(commands: typer.Typer) -> None:
    commands.command(rich_help_panel=cli_panels.LOOK)(report)


def report(
    run: Annotated[Path, typer.Argument(metavar="ENGINE", help="an engine directory, or a folder of dumps such as OUT.failed")],
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="(default: report.html in its inspect folder)")] = None,
    vs: Annotated[Path | None, typer.Option(metavar="ENGINE_B", help="another run, to compare with")] = None,
    lints: Annotated[bool, typer.Option(help="compile Triton kernels again, 2 seconds each, to see what looks slow in them")] = True,
) -> None:
    """Write one HTML file of passes, graphs, kernels and modules. It needs no server and no network."""
    from tilewright.inspect import load
    from tilewright.inspect.report import write_report

    opened = load(run)
    compiled = [k for k in opened.engine.manifest.all_kernels if k.language == "triton"] if opened.engine else []
    if lints and compiled:
        print(f"looking at the machine code of {len(compiled)} kernels; --no-lints leaves that out", file=sys.stderr)
    written = write_report(opened, out or default_place(opened.folder), vs=load(vs) if vs else None, lints=lints)
    print(f"{written}: {written.stat().st_size / 1e3:.0f} kB; open it in a browser")


def default_place(passes: Path) -> Path:
    """Beside the passes of an engine; in the folder itself where it holds nothing but dumps."""
    return (passes.parent if passes.name == "passes" else passes) / "report.html"
