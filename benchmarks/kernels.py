"""Single kernels in CUDA graphs, with cold weights, beside cuBLAS and torch's attention, for Llama-3-8B shapes.

`python benchmarks/kernels.py --early`, or where the package is not installed `python .ci/link_rooms.py; PYTHONPATH=build/rooms python …`.
 `--only PATTERN` picks rows whose name fits it, as in `--only "i8 T=1$"`; `--early` launches as the engine does; `--sweep` tries tile sizes and
 prints the best; `--compile-only sm_90` needs no GPU: what it compiles is found in the cache by a later run of the same Triton. Tiles print as
 fields of codegen/tiles.py. chain.py times kernels among their neighbours.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterator, Sequence

import torch
from kernel_bench import Built, Config, Loaded, compile_built, dense, expect, measure_error, operands_of, plan_row
from kernel_rows import Row, attend_rows, linear_rows

from tilewright.codegen.candidates import Candidate, list_candidates
from tilewright.graph_timing import time_graph
from tilewright.measure import measure_read_limit

WRONG = 2e-2  # relative error that no rounding explains


def main() -> None:
    args = parse_arguments()
    chosen = [row for row in (*linear_rows(), *attend_rows()) if re.search(args.only, row.name)]
    arch = args.compile_only or "sm_{}{}".format(*torch.cuda.get_device_capability())
    started = time.perf_counter()
    builts = {row.name: build(row, arch, args) for row in chosen}
    failures = compile_built([b for items in builts.values() for b in items], arch, args.jobs)
    print(f"{sum(map(len, builts.values()))} candidates compiled in {time.perf_counter() - started:.0f} s, {len(failures)} refused")
    if not args.sweep or args.compile_only:
        print(*failures, sep="\n")
    if args.compile_only:
        return
    limit = measure_read_limit()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; read limit {limit / 1e12:.2f} TB/s", flush=True)
    if not args.sweep:
        print(f"{'kernel':20} {'us':>8} {'TB/s':>6} {'TFLOP/s':>8} {'of read':>7}  {'peer us':>8} {'ratio':>5}  {'error':>8}  tile")
    for row in chosen:
        guarded(row.name, lambda row=row: (sweep if args.sweep else report)(builts[row.name], limit))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", metavar="PATTERN")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--early", action="store_true", help="with programmatic dependent launch")
    parser.add_argument("--set", default="", metavar="TILE", help="fields of tiles: 'num_stages=4; out: splits=4 block_n=128'")
    parser.add_argument("--compile-only", default="", metavar="ARCH")
    parser.add_argument("--jobs", type=int, default=0)
    return parser.parse_args()


def build(row: Row, arch: str, args: argparse.Namespace) -> list[Built]:
    """The row with its default tile, as the command line has it; with --sweep, the tuner's candidates beside it."""
    plan, named = plan_row(row, arch, early=args.early)
    moves = [c.move for c in list_candidates(plan)] if args.sweep else [{}]
    return [Built(row, Candidate.of(plan, {**move, **overridden(row, args)}), named) for move in moves]


def overridden(row: Row, args: argparse.Namespace) -> Config:
    """What the command line sets, for all rows or for the one named before the colon."""
    whole: dict[str, int] = {}
    for clause in filter(None, map(str.strip, args.set.split(";"))):
        name, _, fields = clause.rpartition(":")
        if name.strip() in ("", row.name.split()[0]):
            whole |= {key: int(value) for key, value in (item.split("=") for item in fields.split())}
    return whole


def guarded(name: str, run) -> None:
    """One kernel that fails must not hide the others."""
    try:
        run()
    except Exception as error:
        print(f"{name:20} {type(error).__name__}: {str(error)[:200]!r}")
    torch.cuda.empty_cache()


# -- one row --------------------------------------------------------------------------------------------------------------------
def report(builts: Sequence[Built], limit: float) -> None:
    (built,) = builts
    row, operands = built.row, operands_of(built)
    loaded = Loaded(built, operands)
    microseconds = time_graph(loaded.run, count_of(row))
    peers = [dense(built, arguments) for arguments in operands.sets]
    theirs = time_graph(lambda i: row.peer(peers[i % len(peers)]), count_of(row))
    error = measure_error(loaded, expect(built, operands))
    print(f"{line(row, microseconds, limit)}  {theirs:8.1f} {theirs / microseconds:5.2f}  {error:8.1e}  {built.tile}", flush=True)


def line(row: Row, microseconds: float, limit: float) -> str:
    speed, operations = row.bytes / microseconds / 1e6, row.operations / microseconds / 1e6
    return f"{row.name:20} {microseconds:8.1f} {speed:6.2f} {operations:8.1f} {speed * 1e12 / limit:7.0%}"


def count_of(row: Row) -> int:
    return 40 if row.operations < 1e11 else 5


def sweep(builts: Sequence[Built], limit: float) -> None:
    """The first candidate is the default. A result that is wrong is said, and is no candidate."""
    row, operands = builts[0].row, operands_of(builts[0])
    expected = expect(builts[0], operands)
    results: list[tuple[float, Built]] = []
    for built in (b for b in builts if b.candidate.compiled):
        loaded = Loaded(built, operands)
        error = measure_error(loaded, expected)
        if not error < WRONG:
            print(f"WRONG {row.name} error={error:.1e} {built.tile}")
            continue
        results.append((time_graph(loaded.run, count_of(row), replays=6), built))
    print_best(row.name, results, builts[0], row.bytes / limit * 1e6)


def print_best(name: str, results: list[tuple[float, Built]], default: Built, bound: float) -> None:
    """bound: microseconds that reading alone takes."""
    for label, (microseconds, built) in ranked(results, default):
        print(f"{label} {name} us={microseconds:.2f} of_read={bound / microseconds:.3f} {built.tile}", flush=True)


def ranked(results: list[tuple[float, Built]], default: Built) -> Iterator[tuple[str, tuple[float, Built]]]:
    yield from (("default", result) for result in results if result[1] is default)
    yield from (("best", result) for result in sorted(results, key=lambda r: r[0])[:5])


if __name__ == "__main__":
    main()
