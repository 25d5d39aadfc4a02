"""The `inspect/` folder of an engine: what the compiler did, as text to read, compare and run again. No weights, times or environment."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilewright.ir.manifest import Limits
from tilewright.ir.regions import Schedule
from tilewright.passes.manager import Report

if TYPE_CHECKING:
    from tilewright.codegen.lower import Lowered

Files = dict[str, "bytes | Path"]


def inspection_files(level: int, report: Report, schedules: Sequence[Schedule], lowered: Lowered, *, dump: Path | None, again: str) -> Files:
    """By name relative to the engine. level 0: none; 1: passes, regions, how to build it again; 2: PTX too."""
    if level == 0:
        return {}
    from tilewright.passes.regions import print_schedule

    regions = "\n\n".join(print_schedule(schedule) for schedule in schedules)
    files: Files = {
        "inspect/passes.txt": f"{report}\n".encode(),
        "inspect/pipeline.txt": f"{report.pipeline}\n".encode(),
        "inspect/regions.txt": f"{regions}\n".encode(),
    }
    if again:
        files["inspect/REPRO.sh"] = again.encode()
    if dump is not None:
        files |= {f"inspect/passes/{file.name}": file for file in sorted(dump.iterdir())}
    if level >= 2 and lowered.target != "cpu":
        files |= _ptx(lowered)
    return files


def _ptx(lowered: Lowered) -> Files:
    """Compiles ahead of packing, which then finds the binaries in the cache."""
    from tilewright.codegen.aot import compile_all

    compiled = compile_all(lowered.kernels, lowered.sources, [lowered.target], modules=lowered.modules)
    return {f"inspect/kernels/{name}.{arch}.ptx": result.ptx.encode() for (name, arch), result in compiled.items()}


def reproduce(model: Any, *, dtype: Any, quantize: str | None, target: str, pipeline: str | None, limits: Limits) -> str:
    """A script that builds the same engine again into its first argument."""
    if not isinstance(model, str | Path):
        return f"#!/bin/sh\necho 'this engine was compiled from a {type(model).__name__} in memory' >&2\nexit 2\n"
    options = {
        "--dtype": None if dtype is None else str(dtype).removeprefix("torch."), "--quantize": quantize, "--target": target, "--pipeline": pipeline,
        "--max-batch-size": limits.max_batch_size, "--max-input-len": limits.max_input_len, "--max-output-len": limits.max_output_len,
        "--max-tokens": limits.max_tokens, "--page-size": limits.page_size,
    }  # fmt: skip
    flags = " ".join(f"{flag} {shlex.quote(str(value))}" for flag, value in options.items() if value is not None)
    return f'#!/bin/sh\n# Builds this engine again: sh REPRO.sh OUT\nexec tilewright build {shlex.quote(str(model))} "$1" {flags}\n'


@contextmanager
def keep_crash(dump: Path, out: Path) -> Iterator[None]:
    """If a pass fails, its dumps stay beside `out`: the graph before it, the traceback, and the command that fails again."""
    try:
        yield
    except Exception as error:
        if any(dump.glob("*.FAILED.ir")):
            kept = out.parent / f"{out.name}.failed"
            shutil.copytree(dump, kept, dirs_exist_ok=True)
            error.add_note(f"the graph before the pass that failed is in {kept}")
        raise
