"""`tilewright profile`: where the time of a decode step goes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer


def register(commands: typer.Typer) -> None:
    commands.command()(profile)


def profile(
    engine: Annotated[Path, typer.Argument(metavar="ENGINE", help="directory that `tilewright build` wrote")],
    batch: Annotated[int, typer.Option(min=1, help="sequences that decode together")] = 1,
    context: Annotated[int | None, typer.Option(help="tokens that each of them has (default: 384, or what the engine takes)")] = None,
    layer: Annotated[int | None, typer.Option(help="the launches of this layer, in order")] = None,
    trace: Annotated[Path | None, typer.Option(metavar="FILE.json", help="write a trace for Perfetto")] = None,
    save: Annotated[bool, typer.Option(help="keep what was measured in ENGINE/inspect/perf, where `tilewright report` finds it")] = True,
) -> None:
    """Time every launch of a decode step, and say which modules it computes and how near it is to the machine's limit."""
    from tilewright.inspect.perf import save_profile
    from tilewright.inspect.profile import print_profile, profile_decode, to_trace
    from tilewright.measure import measure_compute_limit, measure_read_limit
    from tilewright.runtime import LLM
    from tilewright.runtime.dtypes import TORCH_DTYPES
    from tilewright.show import print_text, write_text

    llm = LLM(engine)
    limits = llm.manifest.limits
    device = llm.engine.backend.device
    has_limits = device.type == "cuda"
    found = profile_decode(
        llm, batch=batch, context=context or min(384, limits.max_input_len + limits.max_output_len - 1),
        limit=measure_read_limit() if has_limits else None,
        compute_limit=measure_compute_limit(TORCH_DTYPES[llm.manifest.model.dtype]) if has_limits else None,
    )  # fmt: skip
    print_text(print_profile(found, layer=layer))
    if trace is not None:
        write_text(trace, json.dumps(to_trace(found)))
    if save:
        print(f"kept in {save_profile(engine, found, device)}", file=sys.stderr)
