"""Commands that read what a build did: diff, blame, why. Each loads a run, asks it one question, and prints the answer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tilewright import cli_panels

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="an engine directory, or a folder of dumps such as OUT.failed")]


def register(commands: typer.Typer) -> None:
    for command in (diff, blame, why):
        commands.command(rich_help_panel=cli_panels.LOOK)(command)


def diff(
    run: RunPath,
    other: Annotated[str, typer.Argument(metavar="PASS_OR_RUN", help="a pass of RUN, or another run")],
    stage: Annotated[str | None, typer.Argument(metavar="PASS", help="of two runs: after that pass (default: final graphs, kernels)")] = None,
    stat: Annotated[bool, typer.Option("--stat", help="counts alone")] = False,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="end with 1 where they differ")] = False,
) -> None:
    """What a pass changed, or what differs between two builds: tensor by tensor, grouped over layers."""
    from tilewright.inspect import load
    from tilewright.ir.errors import EngineError
    from tilewright.show import print_text

    first = load(run)
    if Path(other).is_dir():
        found = first.diff(load(other), stage)
    elif stage is not None:
        raise EngineError(f"run {other}", "is no directory", "pass two runs and a pass, or one run and a pass")
    elif "/" in other:
        raise EngineError(f"run {other}", "is no directory", f"pass another run, or a pass of {run}")
    else:
        found = first[other].diff()
    print_text(found.stat if stat else str(found))
    if exit_code and found:
        raise typer.Exit(1)


def blame(
    run: RunPath,
    name: Annotated[str, typer.Argument(metavar="NAME", help="a tensor (%x or @x where a module has the same name), a kernel or a module path")],
) -> None:
    """The history of a tensor through all passes, what is behind a kernel, or what became of a module."""
    from tilewright.inspect import load
    from tilewright.show import print_text

    print_text(str(load(run).blame(name)))


def why(
    run: RunPath,
    pattern: Annotated[str, typer.Argument(metavar="PATTERN", help="glob of a rule, a pass, a tensor or a module, as in fuse-* or mlp")],
) -> None:
    """What fired there, what nearly did and why not, and why kernels were cut there."""
    from tilewright.inspect import load
    from tilewright.show import print_text

    print_text(str(load(run).why(pattern)))
