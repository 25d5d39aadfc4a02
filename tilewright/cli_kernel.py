"""`tilewright kernel`: one kernel of an engine, as summary, source, PTX or machine code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tilewright import cli_panels
from tilewright.ir.errors import TilewrightError


def register(commands: typer.Typer) -> None:
    commands.command(rich_help_panel=cli_panels.KERNELS)(kernel)


def kernel(
    engine: Annotated[Path, typer.Argument(metavar="ENGINE", help="directory that `tilewright build` wrote")],
    name: Annotated[str | None, typer.Argument(metavar="KERNEL", help="its name, or the beginning of it (default: a table of all)")] = None,
    src: Annotated[bool, typer.Option("--src", help="its source alone")] = False,
    ptx: Annotated[bool, typer.Option("--ptx", help="what Triton makes of it")] = False,
    sass: Annotated[bool, typer.Option("--sass", help="machine code, under the lines of source that it was made for")] = False,
    arch: Annotated[str | None, typer.Option(help="architecture, of those that the engine holds (default: its target)")] = None,
) -> None:
    """Show one kernel: where it comes from, what it takes of the machine, what looks slow in it, and its source."""
    from tilewright.engine import Engine
    from tilewright.inspect.kernels import KernelView, print_kernel, print_sass
    from tilewright.show import kernel_table, print_text

    if src + ptx + sass > 1:
        raise TilewrightError("kernel", "got more than one of --src, --ptx and --sass", "pass one of them")
    opened = Engine.open(engine)
    if name is None:
        print_text(kernel_table(opened))
        return
    view = KernelView.find(opened, name, arch)
    if src:
        print_text(view.source)
    elif ptx:
        print_text(view.ptx)
    else:
        print_text(print_sass(view) if sass else print_kernel(view))
