"""`tilewright test-pass`: for authors of passes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from tilewright import cli_panels


def register(commands: typer.Typer) -> None:
    commands.command("test-pass", rich_help_panel=cli_panels.PASSES)(test_pass)


def test_pass(
    name: Annotated[str, typer.Argument(metavar="PASS", help="as `tilewright passes` lists it")],
    cases: Annotated[Path | None, typer.Option(metavar="FILE.ir", help="graphs and what the pass makes of them (default: PASS.ir beside it)")] = None,
    model: Annotated[str | None, typer.Option(help="also find out where in the default pipeline it fires on this model")] = None,
    bless: Annotated[bool, typer.Option("--bless", help="write what comes out into the cases")] = False,
) -> None:
    """Try a pass: its cases in text and in numbers, a second run, and where it fires on a real model."""
    from tilewright.pass_trial import try_pass

    failed = False
    for finding in try_pass(name, cases=cases, model=model, bless=bless):
        print(finding, flush=True)
        failed |= not finding.passed
    if failed:
        sys.exit(1)
