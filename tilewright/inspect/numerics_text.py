"""What `check` found, as text for a terminal. Decides nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tilewright.inspect.launches import LaunchRow
from tilewright.inspect.metrics import LogitsError
from tilewright.inspect.numerics import PassNumerics, ValueRow
from tilewright.inspect.references import Sample

if TYPE_CHECKING:
    from tilewright.inspect.check import Numerics

MARKS = {"red": "RED ", "grey": "grey", "ok": "    "}


def describe(found: Numerics) -> str:
    head = f"{found.run.path}: {len(found.sample.prompts)} prompts, {found.sample.num_tokens} tokens; the reference is the import in "
    wide = "f64" if found.dtype in ("f32", "f64") else "f32"
    lines = [head + f"{wide}, the engine computes in {found.dtype}"]
    if found.transformers is not None:
        lines.append(f"the reference is {found.transformers:.1e} (relative) from transformers in f32")
    lines += ["", f"    {'pass':24}  {'rel':>8}  {'KL':>8}  {'top-1':>6}  {'top-5':>6}  diverges at         worst value that it made"]
    lines += [describe_pass(row, found.sample) for row in found.passes]
    if found.engine is not None:
        lines.append(describe_logits("    engine's kernels", found.engine, found.sample))
    lines += ["", f"      {'isolated':>8}  {'floor':>8}  {'ratio':>8}  {'lossy':>8}  {'accum.':>8}  {'abs max':>8}  value"]
    lines += [describe_row(row) for row in found.worst(10)]
    grey = sum(row.level == "grey" for row in found.values)
    all_of = f"{len(found.values)} values and {len(found.launches)} launches"
    lines += ["", f"{len(found.red)} red, {grey} lossy within the budget of their pass, of {all_of}"]
    return "\n".join(lines)


def describe_pass(row: PassNumerics, sample: Sample) -> str:
    worst = describe_worst(row.worst) if row.worst else ""
    text = describe_logits(f"{row.number:2d}  {row.name}", row.logits, sample)
    return "\n".join([f"{text}{worst}".rstrip(), *(f"    warning: {warning}" for warning in row.warnings)])


def describe_worst(row: ValueRow) -> str:
    if row.lossy is not None and row.budget and row.isolated <= row.lossy:
        return f"{row.name} lossy {row.lossy:.1e}, {row.lossy / row.budget:.0%} of its budget"
    return f"{row.name} {row.isolated:.1e} = {print_ratio(row.ratio)}x floor"


def print_ratio(ratio: float) -> str:
    return f"{ratio:.1f}" if ratio < 1e4 else f"{ratio:.0e}".replace("e+0", "e")


def describe_logits(title: str, error: LogitsError, sample: Sample) -> str:
    where = sample.locate(error.divergent) if error.divergent is not None else "never"
    return f"{title:28}  {error.rel:8.1e}  {error.kl:8.1e}  {error.top1:6.1%}  {error.top5:6.1%}  {where:20}"


def describe_row(row: ValueRow | LaunchRow) -> str:
    if isinstance(row, LaunchRow):
        mark, rest = MARKS["red" if row.severity > 1 else "ok"], f"{'':>8}  {'':>8}  {'':>8}"
        name = f"{row.value} by {' '.join(row.kernels)} ({row.step})"
    else:
        lossy = f"{row.lossy:8.1e}" if row.lossy is not None else f"{'':>8}"
        mark, rest, name = MARKS[row.level], f"{lossy}  {row.accumulated:8.1e}  {row.abs_max:8.2g}", f"{row.name} by {row.op}"
    bad = f"   {row.not_finite} NaN or infinite" if row.not_finite else ""
    return f"{mark}  {row.isolated:8.1e}  {row.floor:8.1e}  {print_ratio(row.ratio):>8}  {rest}  {name}{bad}"
