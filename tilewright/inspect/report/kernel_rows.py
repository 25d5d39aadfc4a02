"""Kernels of an engine as rows: who launches them, what they take of the machine, their source, what looks slow in them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from tilewright.inspect.kernels import KernelView, describe_tuned, rank_trials
from tilewright.inspect.report.names import Names, Texts, fold_names
from tilewright.inspect.run import Run
from tilewright.ir.errors import TilewrightError
from tilewright.ir.manifest import Kernel

HEADER_BYTES = re.compile(r"^# reads .*?([\d.]+(?:e\+\d+)?)[\s#]+(B|KB|MB|GB)[\s#]+at[\s#]+T=1", re.MULTILINE | re.DOTALL)  # lines may be wrapped
HEADER_WHAT = re.compile(r"^# [\w.]+: (.*?)[\s#]+plan ", re.MULTILINE | re.DOTALL)
WRAPPED = re.compile(r"\s*\n#\s*")
UNITS = {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9}
MAX_PTX_BYTES = 1_000_000  # of all kernels together


@dataclass(frozen=True, slots=True)
class KernelRow:
    name: str
    language: str
    what: str  # its ops, as in its header
    launches: dict[str, int]  # by program
    modules: Names
    reasons: tuple[str, ...]  # why regions were cut so
    values: tuple[tuple[str, Names], ...]  # what it computes, by program
    tile: str  # constants, warps, stages
    registers: int | None  # of a thread; None for torch code
    shared_bytes: int | None
    stack_bytes: int | None  # > 0: spills
    bytes_read: int | None  # by a launch for one token, as its header says; without pages
    source: tuple[int, ...]
    ptx: tuple[int, ...]
    lints: tuple[tuple[int, str], ...]  # (line of the source, what); line 0: of the whole kernel
    lint_note: str  # why there are none
    tuned: str  # what its tile gained over the default; empty: it is the default
    trials: tuple[str, ...]  # tiles that were measured, the fastest first


def collect_kernels(run: Run, texts: Texts, *, lints: bool) -> tuple[KernelRow, ...]:
    if run.engine is None:
        return ()
    values = _values(run)
    budget = MAX_PTX_BYTES
    rows: list[KernelRow] = []
    for kernel in run.engine.manifest.all_kernels:
        ptx = _read_ptx(run, kernel)
        budget -= len(ptx)
        rows.append(_row(run, KernelView(run.engine, kernel), texts, values, ptx if budget >= 0 else "", lints=lints))
    return tuple(rows)


def _row(run: Run, view: KernelView, texts: Texts, values: dict[str, dict[str, list[str]]], ptx: str, *, lints: bool) -> KernelRow:
    kernel, launches = view.kernel, view.launches
    binary = kernel.binaries.get(view.arch)
    amount, what = HEADER_BYTES.search(view.source), HEADER_WHAT.search(view.source)
    reasons = dict.fromkeys(launch.reason for all_ in launches.values() for launch in all_ if launch.reason)
    found, note = _lints(view, wanted=lints)
    return KernelRow(
        kernel.name, kernel.language, WRAPPED.sub(" ", what[1]) if what else view.docstring,
        {name: len(all_) for name, all_ in launches.items()}, fold_names(view.modules, run.layers), tuple(reasons),
        tuple((program, fold_names(names, run.layers)) for program, names in values.get(kernel.name, {}).items()),
        _tile(kernel), binary.num_registers if binary else None, binary.shared_bytes if binary else None, binary.stack_bytes if binary else None,
        round(float(amount[1]) * UNITS[amount[2]]) if amount else None, texts.places(view.source), texts.places(ptx), found, note,
        describe_tuned(kernel), tuple(map(str, rank_trials(view.trials))),
    )  # fmt: skip


def _tile(kernel: Kernel) -> str:
    if kernel.language != "triton":
        return ""
    constants = ", ".join(f"{name}={value}" for name, value in kernel.constants.items())
    return f"{constants}; {kernel.num_warps} warps, {kernel.num_stages} stages"


def _lints(view: KernelView, *, wanted: bool) -> tuple[tuple[tuple[int, str], ...], str]:
    if view.kernel.language != "triton":
        return (), "This kernel is torch code: there is no machine code to look at. Build for a GPU target, such as sm_90."
    if not wanted:
        return (), "Machine code was not looked at: the report was written with --no-lints."
    try:
        return tuple((found.line, found.problem) for found in view.lints()), ""
    except (TilewrightError, ImportError, OSError) as error:
        reason = getattr(error, "problem", "") or type(error).__name__
        return (), f"Machine code could not be looked at: {reason}."


def _read_ptx(run: Run, kernel: Kernel) -> str:
    assert run.engine is not None
    file = run.engine.path / "inspect" / "kernels" / f"{kernel.name}.{run.engine.manifest.target}.ptx"
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def _values(run: Run) -> dict[str, dict[str, list[str]]]:
    """By kernel, then by program."""
    assert run.engine is not None
    launched = {(p.name, launch.region): launch.kernel for p in run.engine.manifest.programs for launch in p.launches}
    found: dict[str, dict[str, list[str]]] = {}
    for region in run.regions:
        kernel = launched.get((region.program, region.name))
        if kernel is not None:
            found.setdefault(kernel, {}).setdefault(region.program, []).extend(region.values)
    return found


def left_out(run: Run, kernels: Iterable[KernelRow]) -> str:
    """A sentence about recorded PTX that made the page too big; empty where all is in."""
    shown = {k.name for k in kernels if k.ptx}
    recorded = [k for k in run.engine.manifest.all_kernels if _read_ptx(run, k)] if run.engine else []
    missing = sum(k.name not in shown for k in recorded)
    return f"The PTX of {missing} kernels is left out to keep this page small: `tilewright kernel ENGINE NAME --ptx` prints it." if missing else ""
