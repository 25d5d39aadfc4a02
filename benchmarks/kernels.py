"""Single kernels in CUDA graphs, with cold weights, beside cuBLAS and torch's attention, for Llama-3-8B shapes; and a layer's products in a chain.

`python benchmarks/kernels.py --early`, or where the package is not installed `python .ci/link_rooms.py; PYTHONPATH=build/rooms python …`.
 `--only PATTERN` picks rows whose name fits it, as in `--only "i8 T=1$"`; `--early` launches as the engine does; `--chain` times products of whole
 layers one after the other; `--sweep` tries tile sizes and prints the best (with `--chain` in the chain, product by product); `--compile-only sm_90`
 needs no GPU: what it compiles is found in the cache by a later run of the same Triton. Tiles print as fields of codegen/tiles.py.
"""

from __future__ import annotations

import argparse
import itertools
import re
import time
from collections.abc import Iterable, Iterator, Sequence

import torch
from graph_timing import time_graph
from kernel_bench import Built, Config, Loaded, Operands, build, compile_built, dense, expect, measure_error
from kernel_rows import KV_HEADS, LAYERS, TOKENS, Row, attend_rows, layer_rows, linear_rows

from tilewright.measure import measure_read_limit

CHAIN_LAYERS = 4  # of their own weights: far more than the cache holds
WRONG = 2e-2  # relative error that no rounding explains


def main() -> None:
    args = parse_arguments()
    chains = [c for c in all_chains() if re.search(args.only, c[0])] if args.chain else []
    chosen = [row for _, layer in chains for row in layer] or [row for row in (*linear_rows(), *attend_rows()) if re.search(args.only, row.name)]
    arch = args.compile_only or "sm_{}{}".format(*torch.cuda.get_device_capability())
    configs = {row.name: [{}, *candidates(row)] if args.sweep else [{}] for row in chosen}
    started = time.perf_counter()
    builts = {row.name: [build(row, overridden(row, config, args), arch) for config in configs[row.name]] for row in chosen}
    failures = compile_built([b for items in builts.values() for b in items], arch, args.jobs)
    print(f"{sum(map(len, builts.values()))} candidates compiled in {time.perf_counter() - started:.0f} s, {len(failures)} refused")
    if not args.sweep or args.compile_only:
        print(*failures, sep="\n")
    if args.compile_only:
        return
    limit = measure_read_limit()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; read limit {limit / 1e12:.2f} TB/s", flush=True)
    if args.chain:
        for name, layer in chains:
            guarded(name, lambda name=name, layer=layer: run_chain(name, [builts[row.name] for row in layer], limit))
        return
    if not args.sweep:
        print(f"{'kernel':20} {'us':>8} {'TB/s':>6} {'TFLOP/s':>8} {'of read':>7}  {'peer us':>8} {'ratio':>5}  {'error':>8}  tile")
    for row in chosen:
        guarded(row.name, lambda row=row: (sweep if args.sweep else report)(builts[row.name], limit))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", metavar="PATTERN")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--chain", action="store_true", help="implies --early; rows are named like 'bf16 T=16'")
    parser.add_argument("--early", action="store_true", help="with programmatic dependent launch")
    parser.add_argument("--set", default="", metavar="TILE", help="fields of tiles: 'num_stages=4; out: splits=4 block_n=128'")
    parser.add_argument("--compile-only", default="", metavar="ARCH")
    parser.add_argument("--jobs", type=int, default=0)
    return parser.parse_args()


def overridden(row: Row, config: Config, args: argparse.Namespace) -> Config:
    """A candidate with what the command line sets, for all rows or for the one named before the colon."""
    whole = {**config, "dependent_launch": int(args.early or args.chain)}
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
    row, operands = built.row, Operands(built)
    loaded = Loaded(built, operands)
    microseconds = time_graph(loaded.run, count_of(row))
    peers = [dense(operands, arguments) for arguments in operands.sets]
    theirs = time_graph(lambda i: row.peer(peers[i % len(peers)]), count_of(row))
    error = measure_error(loaded, expect(operands))
    print(f"{line(row, microseconds, limit)}  {theirs:8.1f} {theirs / microseconds:5.2f}  {error:8.1e}  {built.tile}", flush=True)


def line(row: Row, microseconds: float, limit: float) -> str:
    speed, operations = row.bytes / microseconds / 1e6, row.operations / microseconds / 1e6
    return f"{row.name:20} {microseconds:8.1f} {speed:6.2f} {operations:8.1f} {speed * 1e12 / limit:7.0%}"


def count_of(row: Row) -> int:
    return 40 if row.operations < 1e11 else 5


def sweep(builts: Sequence[Built], limit: float) -> None:
    """The first candidate is the default. A result that is wrong is said, and is no candidate."""
    row, operands = builts[0].row, Operands(builts[0])
    expected = expect(operands)
    results: list[tuple[float, Built]] = []
    for built in (b for b in builts if b.compiled):
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


# -- chain ----------------------------------------------------------------------------------------------------------------------
def all_chains() -> Iterable[tuple[str, list[Row]]]:
    return [(f"{encoding} T={t}", list(layer_rows(t, encoding))) for encoding, sizes in TOKENS.items() for t in sizes if t <= 256]


def run_chain(name: str, layer: Sequence[Sequence[Built]], limit: float) -> None:
    """Times CHAIN_LAYERS layers of products; with candidates beside the defaults, takes over those that make the whole faster, product by product."""
    operands = [Operands(builts[0], CHAIN_LAYERS) for builts in layer]
    chosen = [Loaded(builts[0], own) for builts, own in zip(layer, operands)]
    expected = [expect(own) for own in operands]
    bound = sum(own.row.bytes for own in operands) / limit * 1e6

    def measure() -> float:
        def run(index: int) -> None:
            for loaded in chosen:
                loaded.run(index)

        return time_graph(run, 2 * CHAIN_LAYERS, replays=8)

    best = measure()
    alone = [time_graph(loaded.run, 40, replays=6) for loaded in chosen]
    print(f"chain {name} layer_us={best:.2f} of_read={bound / best:.3f} layers_ms={best * LAYERS / 1e3:.3f} "
          f"alone_us={'+'.join(f'{us:.1f}' for us in alone)}={sum(alone):.1f}", flush=True)  # fmt: skip
    for place, builts in enumerate(layer):
        results = [(best, chosen[place].built)]
        for built in (b for b in builts[1:] if b.compiled):
            chosen[place] = Loaded(built, operands[place])
            error = measure_error(chosen[place], expected[place])
            if not error < WRONG:
                print(f"WRONG {built.row.name} error={error:.1e} {built.tile}")
                continue
            results.append((measure(), built))
        best, winner = min(results, key=lambda r: r[0])
        chosen[place] = Loaded(winner, operands[place])
        if len(results) > 1:
            print_best(f"{builts[0].row.name} in chain", results, builts[0], bound)


# -- candidates -----------------------------------------------------------------------------------------------------------------
def candidates(row: Row) -> Iterator[Config]:
    """Tiles worth a try beside the default, a few dozen."""
    if row.anchor == "attend":
        return attend_candidates(row)
    if row.tokens == 1:
        return vector_candidates(" i8 " in row.name)
    return large_candidates() if row.tokens > 256 else stream_candidates(row)


def vector_candidates(is_int8: bool) -> Iterator[Config]:
    for n, k, warps in itertools.product((4, 8) if is_int8 else (2, 4, 8), (1024, 2048, 4096), (4, 8, 16)):
        if 16 <= n * k // (warps * 32) <= (64 if is_int8 else 32):
            yield {"block_n": n, "block_k": k, "num_warps": warps}


# (block_n, block_k, warps, stages) for products that stream the weight, by how many tokens a tile holds. Where a core has one block, many stages
# make up for it: the tokens are on their way, too.
_NARROW = (
    (64, 128, 4, 3), (64, 128, 4, 4), (64, 128, 4, 5), (64, 128, 4, 6), (64, 256, 4, 3), (64, 64, 4, 6), (128, 64, 4, 4), (128, 128, 8, 3),
    (128, 64, 8, 5),
)  # fmt: skip
_MIDDLE = (
    (64, 128, 4, 3), (64, 128, 4, 5), (64, 64, 4, 4), (64, 64, 4, 6), (64, 64, 4, 8), (128, 64, 4, 3), (128, 64, 4, 4), (128, 64, 8, 4),
    (128, 64, 8, 6), (128, 128, 8, 3),
)  # fmt: skip
_BROAD = (
    (64, 64, 4, 4), (64, 64, 4, 6), (64, 64, 4, 8), (64, 128, 4, 4), (128, 64, 8, 3), (128, 64, 8, 4), (128, 64, 8, 6), (128, 128, 8, 3),
    (256, 64, 8, 3), (256, 64, 8, 4),
)  # fmt: skip
_FINE = ((16, 256, 2, 4), (16, 256, 2, 6), (16, 512, 4, 3), (32, 128, 2, 6), (32, 256, 2, 3), (32, 256, 4, 4), (32, 512, 4, 3))  # for mma.sync
# The same for int8 as words on the left, in front of wgmma; two warps are too few for it and take bytes to mma.
_NARROW_INT8 = (
    (64, 128, 4, 4), (64, 128, 4, 6), (64, 256, 4, 4), (64, 256, 4, 6), (64, 512, 4, 3), (128, 128, 4, 4), (128, 128, 8, 4), (128, 128, 8, 6),
    (128, 256, 8, 3), (256, 64, 8, 5), (64, 128, 2, 4), (128, 64, 2, 4),
)  # fmt: skip
_MIDDLE_INT8 = (
    (64, 128, 4, 4), (64, 128, 4, 6), (128, 64, 4, 4), (128, 64, 4, 6), (128, 128, 8, 4), (128, 128, 8, 5), (256, 64, 8, 4), (256, 128, 8, 3),
)  # fmt: skip
_BROAD_INT8 = (
    (64, 64, 4, 4), (128, 64, 8, 4), (128, 64, 8, 6), (128, 128, 8, 3), (128, 128, 8, 4), (256, 64, 8, 3), (256, 64, 8, 4),
)  # fmt: skip


def stream_candidates(row: Row) -> Iterator[Config]:
    is_int8, m = " i8 " in row.name, min(128, max(16, row.tokens))
    n = int(re.findall(r"linear\(.*\) : bf16\[\w+, (\d+)\]", row.text)[0])
    splits = (1,) if n > 16384 and m < 128 else (1, 2, 4) if n > 16384 else (1, 2, 3, 4, 8)
    narrow, middle, broad = (_NARROW_INT8, _MIDDLE_INT8, _BROAD_INT8) if is_int8 else (_NARROW, _MIDDLE, _BROAD)
    shapes = [(m, *size, 1) for size in (narrow if m <= 32 else middle if m <= 64 else broad)]
    shapes += [(m, *size, 0) for size in _FINE] if m <= 32 and not is_int8 else []
    shapes += [(m, n_rows, 64, 8, stages, 0) for n_rows, stages in ((128, 4), (128, 6), (256, 4))] if m > 32 and is_int8 else []
    for (token_rows, block_n, k, warps, stages, left), parts, direct in itertools.product(shapes, splits, (0, 1)):
        in_flight = stages * k * (token_rows * 2 + block_n * (1 if is_int8 else 2))
        if direct and not (is_int8 and left and block_n % (16 * warps) == 0 and warps >= 4 and stages <= 4):
            continue
        if in_flight <= 200_000 and 60 <= -(-n // block_n) * parts <= 2000:
            yield {
                "block_m": token_rows, "block_n": block_n, "block_k": k, "num_warps": warps, "num_stages": stages, "splits": parts,
                "weights_left": left, "direct": direct,
            }  # fmt: skip


def large_candidates() -> Iterator[Config]:
    for (m, n), k, warps, stages in itertools.product(((128, 128), (128, 256), (256, 128)), (64, 128), (4, 8), (3, 4)):
        yield {"block_m": m, "block_n": n, "block_k": k, "num_warps": warps, "num_stages": stages}


_DECODE_SHAPES = ((32, 1), (64, 2), (64, 4), (128, 4), (128, 8))  # keys of a block, warps


def attend_candidates(row: Row) -> Iterator[Config]:
    if row.kind == "decode":
        for (n, warps), stages, splits, fill in itertools.product(_DECODE_SHAPES, (2, 3), (1, 2, 4, 8, 16, 32), (1, 2, 4)):
            programs, each = row.sequences * KV_HEADS * splits, row.context / (n * splits)
            if each > 0.5 and 32 <= programs <= 1024 and n * stages <= 384 and (each > 1 or stages == 2) and (splits > 1 or fill == 1):
                yield {"block_n": n, "num_warps": warps, "num_stages": stages, "num_splits": splits, "fill_blocks": fill}
        return
    for m, n, warps, stages in itertools.product((64, 128), (32, 64, 128), (4, 8), (2, 3, 4)):
        yield {"block_m": m, "block_n": n, "num_warps": warps, "num_stages": stages}


if __name__ == "__main__":
    main()
