"""`tilewright profile`: where the time of a step goes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from tilewright import cli_panels
from tilewright.ir.errors import EngineError


def register(commands: typer.Typer) -> None:
    commands.command(rich_help_panel=cli_panels.KERNELS)(profile)


def profile(
    engine: Annotated[Path, typer.Argument(metavar="ENGINE", help="directory that `tilewright build` wrote")],
    batch: Annotated[int, typer.Option(min=1, help="sequences that decode together")] = 1,
    context: Annotated[int | None, typer.Option(help="tokens that each of them has (default: 384, or what the engine takes)")] = None,
    prompt: Annotated[int | None, typer.Option(metavar="TOKENS", help="rather than a decode step, the one that runs such a prompt")] = None,
    sampling: Annotated[str, typer.Option(metavar="KIND", help="how tokens are chosen: greedy, draw (temperature), filter (top_p)")] = "greedy",
    layer: Annotated[int | None, typer.Option(help="the launches of this layer, in order")] = None,
    trace: Annotated[Path | None, typer.Option(metavar="FILE.json", help="write a trace for Perfetto")] = None,
    save: Annotated[bool, typer.Option(help="keep what was measured in ENGINE/inspect/perf, where `tilewright report` finds it")] = True,
) -> None:
    """Time every launch of a step, of decoding or of a prompt, and say which modules it computes and how near it is to the machine's limit."""
    from tilewright.runtime import LLM

    if prompt is not None and (batch != 1 or context is not None):
        raise EngineError("profile", "--prompt stands beside --batch or --context, which are for decode steps", "pass one or the other")
    llm = LLM(engine)  # before what imports torch: its files are hashed meanwhile
    from tilewright.inspect.perf import CONTEXT, profile_here, save_profile
    from tilewright.inspect.profile import print_profile, to_trace
    from tilewright.show import print_text, write_text

    limits = llm.manifest.limits
    context = context or min(CONTEXT, limits.max_input_len + limits.max_output_len - 2)
    found = profile_here(llm, batch=batch, context=context, prompt=prompt, sampling=sampling)
    print_text(print_profile(found, layer=layer))
    if trace is not None:
        write_text(trace, json.dumps(to_trace(found)))
    if save:
        print(f"kept in {save_profile(engine, found, llm.engine.backend.device)}", file=sys.stderr)
