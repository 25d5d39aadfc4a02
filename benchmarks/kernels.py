"""Single kernels in CUDA graphs, with cold weights, beside cuBLAS and torch's attention, for Llama-3-8B shapes.

`python benchmarks/kernels.py`, or where the package is not installed `python .ci/link_rooms.py; PYTHONPATH=build/rooms python benchmarks/kernels.py`.
 `--sweep` tries tile sizes around the defaults and prints the best; `--only PATTERN` picks rows whose name fits it, as in `--only "i8 T=1$"`.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import linecache
import multiprocessing
import os
import re
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import tilewright.ir.ops  # noqa: F401  # declares the ops
from tilewright.codegen.emission import KernelText
from tilewright.codegen.plan import Parameter, make_plan
from tilewright.codegen.source import emit
from tilewright.ir.graph import Graph, Op
from tilewright.ir.manifest import Limits
from tilewright.ir.parser import parse_graph
from tilewright.ir.reference import TORCH_DTYPES
from tilewright.ir.regions import Regime, Region
from tilewright.measure import measure_read_limit

HIDDEN, INTERMEDIATE, VOCAB, HEADS, KV_HEADS, HEAD_DIM = 4096, 14336, 128256, 32, 8, 128
QKV = (HEADS + 2 * KV_HEADS) * HEAD_DIM
PAGE = 64
COLD_BYTES = 300 << 20  # copies of a weight that are used in turn hold at least this much: more than the L2 cache
LONGEST = 8192  # tokens of a sequence that kernels are made for, whatever the context that they are timed at


@dataclass
class Row:
    name: str
    text: str  # the graph; embeddings stand for what earlier kernels made
    anchor: str
    kind: str
    tokens: int
    bytes: int
    operations: int
    peer: Callable[[dict[str, torch.Tensor]], torch.Tensor]  # of the arguments by parameter name
    context: int = 0  # keys of each sequence, for attention
    sequences: int = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--early", action="store_true", help="with programmatic dependent launch")
    args = parser.parse_args()
    limit = measure_read_limit()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; read limit {limit / 1e12:.2f} TB/s")
    print(f"{'kernel':34} {'us':>8} {'TB/s':>6} {'TFLOP/s':>8} {'of read':>7}  {'peer us':>8} {'ratio':>5}  {'error':>8}  tile")
    chosen = rows(args.only)
    if args.sweep:
        compile_candidates(args.only, args.early)
    for row in chosen:
        try:
            (sweep if args.sweep else report)(row, limit, args.early)
        except Exception as error:  # one kernel that fails must not hide the others
            print(f"{row.name:34} {type(error).__name__}: {str(error)[:200]!r}")
        torch.cuda.empty_cache()


def rows(word: str) -> list[Row]:
    return [row for row in (*linear_rows(), *attend_rows()) if re.search(word, row.name)]


# -- rows -----------------------------------------------------------------------------------------------------------------------
def linear_rows() -> Iterator[Row]:
    for tokens, encoding in itertools.product((1, 16, 64, 2048), ("bf16", "i8")):
        if tokens > 64 and encoding == "i8":
            continue
        has_norm = tokens <= 16
        yield linear_row("qkv", QKV, HIDDEN, tokens, encoding, norm=has_norm)
        yield linear_row("out", HIDDEN, HIDDEN, tokens, encoding, residual=True)
        yield linear_row("gate_up", 2 * INTERMEDIATE, HIDDEN, tokens, encoding, norm=has_norm, gated=True)
        yield linear_row("down", HIDDEN, INTERMEDIATE, tokens, encoding, residual=True)
        if tokens <= 64:
            yield linear_row("head", VOCAB, HIDDEN, tokens, encoding, norm=has_norm, logits=True)


def linear_row(
    name: str, n: int, k: int, tokens: int, encoding: str, *, norm: bool = False, residual: bool = False, gated: bool = False, logits: bool = False
) -> Row:
    x, weight = ("%n", "@w") if norm else ("%x", "@w")
    lines = [f"  %x = embedding(@emb, %ids) : bf16[T, {k}]", f"  %r = embedding(@emb_r, %ids) : bf16[T, {n}]"]
    if norm:
        lines.append(f"  %n = rms_norm(%x, @g) {{eps=1e-05}} : bf16[T, {k}]")
    if encoding == "i8":
        weight = "@q"
        lines.append(f"  @q = quantize(@w) : i8[{n}, {k}]{{scale=f32}}")
    lines.append(f"  %y = linear({x}, {weight}) : bf16[T, {n}]")
    result = "%y"
    if residual:
        lines.append(f"  %o = add(%r, %y) : bf16[T, {n}]")
        result = "%o"
    if gated:
        lines.append(f"  %o = gated(%y) {{activation=silu}} : bf16[T, {n // 2}]")
        result = "%o"
    if logits:
        lines.append(f"  %o = cast(%y) {{dtype=f32}} : f32[T, {n}]")
        result = "%o"
    params = f"  param @emb : bf16[2, {k}]\n  param @emb_r : bf16[2, {n}]\n  param @g : bf16[{k}]\n  param @w : bf16[{n}, {k}]\n"
    text = f"graph @g(%ids: i32[T]) dims(T in 1..8192) {{\n{params}" + "\n".join(lines) + f"\n  return {result}\n}}\n"
    size = 1 if encoding == "i8" else 2

    def peer(a: dict[str, torch.Tensor]) -> torch.Tensor:
        """The product alone, as cuBLAS does it: bf16 in any case."""
        return torch.mv(a["weight"], a["x"][0]) if tokens == 1 else F.linear(a["x"], a["weight"])

    return Row(f"{name} {encoding} T={tokens}", text, "linear", "decode", tokens, n * k * size + tokens * (n + k) * 2, 2 * n * k * tokens, peer)


def attend_rows() -> Iterator[Row]:
    for sequences, context in ((1, 128), *itertools.product((1, 32), (512, 8192))):
        size = sequences * context * KV_HEADS * HEAD_DIM * 2 * 2
        yield attend_row(f"decode B={sequences} ctx={context}", "decode", sequences, sequences, context, size)
    for tokens in (2048, 8192):
        yield attend_row(f"prefill T={tokens}", "ragged", tokens, 1, tokens, tokens * QKV * 2)


def attend_row(name: str, kind: str, tokens: int, sequences: int, context: int, num_bytes: int) -> Row:
    """decode: as in an engine's step, with the rotary embedding of query and key and the write of the newest key and value."""
    q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    turned = f"rotary({{}}, %cos, %sin) {{{{head_dim={HEAD_DIM}, layout=half}}}}" if kind == "decode" else "reshape({}) {{shape=[T, {}]}}"
    text = f"""graph @g(%ids: i32[T]) dims(T in 1..8192) {{
  param @emb : bf16[2, {QKV}]
  param @table : bf16[2, {HEAD_DIM}]
  %cos = embedding(@table, %ids) : bf16[T, {HEAD_DIM}]
  %sin = embedding(@table, %ids) : bf16[T, {HEAD_DIM}]
  %qkv = embedding(@emb, %ids) : bf16[T, {QKV}]
  %k = slice(%qkv) {{axis=1, start={q}, stop={q + kv}}} : bf16[T, {kv}]
  %v = slice(%qkv) {{axis=1, start={q + kv}, stop={QKV}}} : bf16[T, {kv}]
  %k_turned = {turned.format("%k", kv)} : bf16[T, {kv}]
  %kv = write_kv(%k_turned, %v) {{kv_heads={KV_HEADS}, layer=0}} : kv[{KV_HEADS}, {HEAD_DIM}, {HEAD_DIM}]
  %q = slice(%qkv) {{axis=1, start=0, stop={q}}} : bf16[T, {q}]
  %q_turned = {turned.format("%q", q)} : bf16[T, {q}]
  %o = attend(%q_turned, %kv) {{heads={HEADS}, scale={HEAD_DIM**-0.5}, layer=0}} : bf16[T, {q}]
  return %o
}}
"""
    pairs = sequences * context if kind == "decode" else context * (context + 1) // 2

    def peer(a: dict[str, torch.Tensor]) -> torch.Tensor:
        """Attention alone, over keys and values gathered beforehand: torch has no pages."""
        wide = a["qkv"][:, :q].unflatten(-1, (HEADS, HEAD_DIM))
        queries = wide[:, :, None] if kind == "decode" else wide.transpose(0, 1)[None]
        return F.scaled_dot_product_attention(queries, a["dense_k"], a["dense_v"], is_causal=kind == "ragged", enable_gqa=True)

    return Row(name, text, "attend", kind, tokens, num_bytes, 4 * pairs * HEADS * HEAD_DIM, peer, context, sequences)


# -- one row --------------------------------------------------------------------------------------------------------------------
class Prepared:
    """A row's kernels loaded, and as many sets of arguments as keep its large operands out of the cache."""

    def __init__(self, row: Row, config: dict[str, int], most_sets: int = 40) -> None:
        graph = parse_graph(row.text)
        apart = () if row.kind == "decode" else _feeding_pages(graph)
        ops = tuple(op for op in graph.ops if not op.is_const and op.name != "embedding" and op not in apart)
        made = {v for op in ops for v in op.results}
        reads = tuple(dict.fromkeys(v for op in ops for v in op.inputs if v not in made))
        anchor = next(op for op in ops if op.name == row.anchor)
        region = Region(row.name.split()[0], row.anchor, ops, anchor, reads, tuple(graph.outputs), "")  # type: ignore[arg-type]
        limits = Limits(max(32, row.sequences), max(row.context, LONGEST), 64, 8192, PAGE)
        regime = Regime("bench", row.kind, row.tokens)  # type: ignore[arg-type]
        self.row = row
        self.plan, binding = make_plan(region, regime, limits, "sm_90", tuple(sorted(config.items())))
        self.named = {arg.name: p.name for p, arg in zip(self.plan.parameters, binding) if arg.kind == "buffer"}  # the graph's names
        self.emission = emit(self.plan)
        self.functions = [load(text) for text in self.emission.kernels]
        self.dims = {"T": row.tokens, "S": row.tokens, "B": row.sequences}
        copies = max(1, min(most_sets, -(-COLD_BYTES // max(1, row.bytes)))) if row.kind == "decode" else 1
        self.sets = [self._arguments(seed) for seed in range(copies)]

    def _arguments(self, seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        arguments = {p.name: self._tensor(p) for p in self.plan.parameters}
        for space in self.emission.workspaces:
            shape = [self.dims[d] if isinstance(d, str) else d for d in space.shape]
            arguments[space.name] = torch.zeros(shape, dtype=TORCH_DTYPES[space.dtype], device="cuda")
        if "slots" in arguments:
            newest = self.row.context - 1
            arguments["slots"] = arguments["block_table"][:, newest // PAGE] * PAGE + newest % PAGE
        return arguments

    def _tensor(self, p: Parameter) -> torch.Tensor:
        row = self.row
        pages = -(-row.context // PAGE)
        if p.name == "context_len":
            return torch.full((row.sequences,), row.context, dtype=torch.int32, device="cuda")
        if p.name == "query_start":
            return (torch.arange(row.sequences + 1, device="cuda") * (row.tokens // row.sequences)).int()
        if p.name == "block_table":
            table = torch.full((row.sequences, int(p.type.shape[1])), 0, dtype=torch.int32, device="cuda")
            table[:, :pages] = torch.randperm(row.sequences * pages, device="cuda").reshape(row.sequences, pages)
            return table
        shape = [row.sequences * pages if d == "pages" else self.dims[d] if isinstance(d, str) else d for d in p.type.shape]
        dtype = TORCH_DTYPES[p.type.dtype]
        if p.name == "slots":  # known once the block table is
            return torch.empty(shape, dtype=dtype, device="cuda")
        if dtype == torch.int8:
            return torch.randint(-127, 128, shape, dtype=dtype, device="cuda")
        scale = shape[-1] ** -0.5 / 127 ** (p.type.dtype == "i8") if p.role == "weight" and len(shape) == 2 else 1.0
        if p.role == "scale":
            return torch.rand(shape, dtype=dtype, device="cuda") / 4096
        return torch.randn(shape, dtype=dtype, device="cuda") * scale

    def launch(self, index: int, *, early: bool = False) -> None:
        arguments = self.sets[index % len(self.sets)]
        for text, function in zip(self.emission.kernels, self.functions):
            args = [arguments.get(name, self.dims.get(name)) for name in text.parameters]
            grid = tuple(extent(self.dims) for extent in text.grid)
            extra = {"launch_pdl": True} if early else {}
            function[grid](*args, **text.constants, num_warps=text.num_warps, num_stages=text.num_stages, **extra)


def _feeding_pages(graph: Graph) -> set[Op]:
    """What writes pages, and what nothing else reads: a kernel of its own where a sequence has many tokens."""
    found: set[Op] = set()
    for op in reversed(graph.ops):
        if op.name == "write_kv" or (op.result.users and all(user in found for user in op.result.users)):
            found.add(op)
    return found


def report(row: Row, limit: float, early: bool) -> None:
    prepared = Prepared(row, {"dependent_launch": 1} if early else {})
    microseconds = time_graph(lambda i: prepared.launch(i, early=early), row)
    peer_arguments = [dense(prepared, arguments) for arguments in prepared.sets]
    theirs = time_graph(lambda i: row.peer(peer_arguments[i % len(peer_arguments)]), row)
    error = check(prepared, peer_arguments[0])
    print(f"{line(row, microseconds, limit)}  {theirs:8.1f} {theirs / microseconds:5.2f}  {error:8.1e}  {tile_of(prepared)}", flush=True)


def line(row: Row, microseconds: float, limit: float) -> str:
    speed, operations = row.bytes / microseconds / 1e6, row.operations / microseconds / 1e6
    return f"{row.name:34} {microseconds:8.1f} {speed:6.2f} {operations:8.1f} {speed * 1e12 / limit:7.0%}"


def tile_of(prepared: Prepared) -> str:
    text = prepared.emission.kernels[0]
    sizes = " ".join(f"{k.removeprefix('BLOCK_').removeprefix('NUM_')}={v}" for k, v in text.constants.items())
    return f"{sizes} w{text.num_warps} s{text.num_stages}"


def dense(prepared: Prepared, arguments: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the peer reads: a bf16 weight, or keys and values without pages."""
    ours = dict(arguments)
    if "weight" in ours and ours["weight"].dtype == torch.int8:
        ours["weight"] = ours["weight"].to(torch.bfloat16)
    if "block_table" in ours:
        row = prepared.row
        ours["qkv"] = ours[prepared.named["qkv"]]
        used = ours["block_table"][:, : -(-row.context // PAGE)].long()
        for name in ("k", "v"):
            pages = ours[f"{name}_cache"][used].transpose(2, 3).flatten(1, 2)
            ours[f"dense_{name}"] = pages[:, : row.context].transpose(1, 2).contiguous()
    return ours


def check(prepared: Prepared, peer: dict[str, torch.Tensor]) -> float:
    """Relative error of the output against the same mathematics in f32."""
    prepared.launch(0)
    arguments = prepared.sets[0]
    out = arguments[prepared.plan.outputs[0].name].float()
    expected = expected_attend(prepared, arguments) if "block_table" in arguments else expected_linear(prepared, arguments)
    return float((out - expected).norm() / expected.norm())


def expected_attend(prepared: Prepared, a: dict[str, torch.Tensor]) -> torch.Tensor:
    """In f32 from the pages as the kernel left them, but for the newest key and value, which are made anew."""
    row, group = prepared.row, HEADS // KV_HEADS
    q, k, v = a[prepared.named["qkv"]].float().unflatten(-1, (-1, HEAD_DIM)).split((HEADS, KV_HEADS, KV_HEADS), 1)
    used = a["block_table"][:, : -(-row.context // PAGE)].long()
    if row.kind == "decode":
        cos, sin = (a[prepared.named[name]].float()[:, None] for name in ("cos", "sin"))
        q, k = (x * cos + torch.cat([-x[..., HEAD_DIM // 2 :], x[..., : HEAD_DIM // 2]], -1) * sin for x in (q, k))
    out = torch.empty(row.tokens, HEADS, HEAD_DIM, device="cuda")
    for sequence in range(row.sequences):
        rows = slice(sequence, sequence + 1) if row.kind == "decode" else slice(None)
        keys, values = (a[f"{name}_cache"][used[sequence]].transpose(0, 1).flatten(1, 2)[:, : row.context].float() for name in ("k", "v"))
        if row.kind == "decode":
            keys[:, -1], values[:, -1] = k[sequence], v[sequence]
        for head in range(HEADS):
            one, its_keys, its_values = q[None, rows, head], keys[None, head // group], values[None, head // group]
            out[rows, head] = F.scaled_dot_product_attention(one, its_keys, its_values, is_causal=row.kind == "ragged")[0]
    return out.flatten(1)


def expected_linear(prepared: Prepared, a: dict[str, torch.Tensor]) -> torch.Tensor:
    x = a["x"].float()
    if "rms_norm_weight" in a:
        x = (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)).bfloat16().float() * a["rms_norm_weight"].float()
    y = torch.cat([x @ rows.float().t() for rows in a["weight"].split(1 << 14)], 1)
    if "weight_scale" in a:
        y = y * a["weight_scale"]
    ops = [op.op for op in prepared.plan.ops]
    if "gated" in ops:
        y = F.silu(y[:, ::2]) * y[:, 1::2]
    if "add" in ops:
        y = y + next(a[p.name] for p in prepared.plan.parameters if p.role == "buffer" and p.name != "x").float()
    return y


# -- timing ---------------------------------------------------------------------------------------------------------------------
def time_graph(run: Callable[[int], object], row: Row) -> float:
    """Microseconds of one run, as the median over replays of a graph of many."""
    count = 40 if row.operations < 1e11 else 5
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for i in range(2):
            run(i)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for i in range(count):
                run(i)
        times = []
        for _ in range(12):
            start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record(stream)
            graph.replay()
            stop.record(stream)
            stop.synchronize()
            times.append(start.elapsed_time(stop) / count * 1e3)
    return sorted(times)[len(times) // 3]


def load(text: KernelText) -> object:
    """The jit function; Triton reads its source back through linecache."""
    filename = f"<bench {text.entry} {hash(text.source) & 0xFFFFFFFF:x}>"
    linecache.cache[filename] = (len(text.source), None, text.source.splitlines(True), filename)
    module = types.ModuleType(text.entry)
    exec(compile(text.source, filename, "exec"), module.__dict__)
    return module.__dict__[text.entry]


# -- sweep ----------------------------------------------------------------------------------------------------------------------
def candidates(row: Row) -> Iterator[dict[str, int]]:
    """Fields of LinearTile or AttendTile around the defaults."""
    if row.kind == "decode" and row.anchor == "attend":
        for n, warps, stages, splits in itertools.product((16, 32, 64, 128), (1, 2, 4, 8), (2, 3, 4, 5), (1, 2, 4, 8, 16, 32, 64)):
            fits = 16 <= n // warps <= 64 and n * stages <= 384
            if fits and 8 <= row.sequences * KV_HEADS * splits <= 4096 and (splits == 1 or 2 * splits * n <= row.context):
                yield {"block_n": n, "num_warps": warps, "num_stages": stages, "num_splits": splits}
    elif row.anchor == "attend":
        for m, n, warps, stages in itertools.product((64, 128), (32, 64, 128), (4, 8), (2, 3, 4)):
            yield {"block_m": m, "block_n": n, "num_warps": warps, "num_stages": stages}
    elif row.tokens == 1:
        is_int8 = " i8 " in row.name
        for n, k, warps, biased in itertools.product((4, 8) if is_int8 else (2, 4, 8, 16), (1024, 2048, 4096), (4, 8), (1, 0) if is_int8 else (1,)):
            if 16 <= n * k // (warps * 32) <= 128:
                yield {"block_n": n, "block_k": k, "num_warps": warps, "biased": biased}
    elif row.tokens <= 64:
        for n, k, warps, stages, left in itertools.product((16, 32, 64, 128), (64, 128, 256, 512), (2, 4, 8), (3, 4, 5, 6), (0, 1)):
            if 8192 <= n * k <= 32768:
                yield {"block_n": n, "block_k": k, "num_warps": warps, "num_stages": stages, "weights_left": left}
    else:
        for (m, n), k, warps, stages in itertools.product(((128, 128), (128, 256), (256, 128)), (64, 128), (4, 8), (3, 4)):
            yield {"block_m": m, "block_n": n, "block_k": k, "num_warps": warps, "num_stages": stages}


def compile_candidates(word: str, early: bool) -> None:
    """Compiles every candidate in processes of its own, into Triton's cache; those that the compiler refuses are left to the sweep."""
    wanted = [(place, config) for place, row in enumerate(rows(word)) for config in candidates(row)]
    jobs = min(len(wanted), os.cpu_count() or 1, 12)
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_compile, *zip(*[(word, place, {**config, "dependent_launch": int(early)}) for place, config in wanted])))


def _compile(word: str, place: int, config: dict[str, int]) -> None:
    with contextlib.suppress(Exception):
        Prepared(rows(word)[place], config, most_sets=1).launch(0, early=bool(config["dependent_launch"]))


def sweep(row: Row, limit: float, early: bool) -> None:
    results: list[tuple[float, str]] = []
    for config in candidates(row):
        try:
            prepared = Prepared(row, {**config, "dependent_launch": int(early)})
            microseconds = time_graph(lambda i, p=prepared: p.launch(i, early=early), row)
        except Exception:  # too much shared memory, or refused by the compiler: not a candidate
            continue
        results.append((microseconds, tile_of(prepared) + "".join(f" {k}={config[k]}" for k in ("weights_left", "biased") if k in config)))
    print(f"{row.name}: default {default_time(row, early):.1f} us, {len(results)} candidates, read limit {row.bytes / limit * 1e6:.1f} us")
    for microseconds, tile in sorted(results)[:6]:
        print(f"    {line(row, microseconds, limit)}  {tile}", flush=True)


def default_time(row: Row, early: bool) -> float:
    prepared = Prepared(row, {"dependent_launch": int(early)})
    return time_graph(lambda i: prepared.launch(i, early=early), row)


if __name__ == "__main__":
    main()
