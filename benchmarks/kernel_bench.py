"""Kernels of a row built, compiled ahead of time and launched through the driver, as an engine does it; timed in CUDA graphs with cold weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import torch
import torch.nn.functional as F
from kernel_rows import HEAD_DIM, HEADS, KV_HEADS, Row

import tilewright.ir.ops  # noqa: F401  # declares the ops
from tilewright.codegen.aot import Compiled, compile_each
from tilewright.codegen.emission import Emission
from tilewright.codegen.linear_template import Product, tile_of
from tilewright.codegen.plan import KernelPlan, Parameter, make_plan
from tilewright.codegen.source import emit
from tilewright.ir.graph import Graph, Op
from tilewright.ir.manifest import Kernel, Limits
from tilewright.ir.parser import parse_graph
from tilewright.ir.reference import TORCH_DTYPES
from tilewright.ir.regions import Regime, Region
from tilewright.passes.regions import default_regimes
from tilewright.runtime.cuda_driver import Module, PreparedLaunch

PAGE = 64
COLD_BYTES = 300 << 20  # sets of operands that are used in turn hold at least this much: more than the L2 cache
MAX_TOKENS, MAX_BATCH_SIZE = 8192, 256
LONGEST = 8192  # tokens of a sequence that kernels are made for, whatever the context that they are timed at
Config = dict[str, int]  # fields of LinearTile or AttendTile


@dataclass(eq=False)
class Built:
    """A row's kernels for one config, compiled or not."""

    row: Row
    config: Config
    plan: KernelPlan
    emission: Emission
    named: dict[str, str]  # the graph's names of activations -> parameters
    compiled: list[Compiled] = field(default_factory=list)  # empty where one of them does not compile

    @property
    def tile(self) -> str:
        """As fields of LinearTile or AttendTile."""
        if self.row.anchor == "linear":
            sizes = {key: int(value) for key, value in dataclasses.asdict(tile_of(Product.of(self.plan))).items()}
        else:
            text = self.emission.kernels[0]
            sizes = {**{k.lower(): v for k, v in text.constants.items()}, "num_warps": text.num_warps, "num_stages": text.num_stages}
        return " ".join(f"{key}={value}" for key, value in sizes.items())


def build(row: Row, config: Config, arch: str) -> Built:
    graph = parse_graph(row.text)
    apart = () if row.kind == "decode" else _feeding_pages(graph)
    ops = tuple(op for op in graph.ops if not op.is_const and op.name != "embedding" and op not in apart)
    made = {v for op in ops for v in op.results}
    reads = tuple(dict.fromkeys(v for op in ops for v in op.inputs if v not in made))
    anchor = next(op for op in ops if op.name == row.anchor)
    region = Region(row.name.split()[0], row.anchor, ops, anchor, reads, tuple(graph.outputs), "")  # type: ignore[arg-type]
    limits = Limits(max(MAX_BATCH_SIZE, row.sequences), max(row.context, LONGEST), 64, MAX_TOKENS, PAGE)
    whole = {"arch": int(arch.removeprefix("sm_")), **config}
    plan, binding = make_plan(region, _regime(row, arch), limits, arch, tuple(sorted(whole.items())))
    named = {arg.name: p.name for p, arg in zip(plan.parameters, binding) if arg.kind == "buffer"}
    return Built(row, config, plan, emit(plan), named)


def _regime(row: Row, arch: str) -> Regime:
    """Of the engine's regimes the one that serves such a step. Attention's kernels are made for a number of sequences, which is the row's own."""
    if row.anchor == "attend":
        return Regime("bench", row.kind, row.tokens)  # type: ignore[arg-type]
    regimes = default_regimes(arch, max_tokens=MAX_TOKENS, max_batch_size=MAX_BATCH_SIZE)
    return next(r for r in sorted(regimes, key=lambda r: r.max_tokens) if r.max_tokens >= row.tokens)


def _feeding_pages(graph: Graph) -> set[Op]:
    """What writes pages, and what nothing else reads: a kernel of its own where a sequence has many tokens."""
    found: set[Op] = set()
    for op in reversed(graph.ops):
        if op.name == "write_kv" or (op.result.users and all(user in found for user in op.result.users)):
            found.add(op)
    return found


def compile_built(builts: Sequence[Built], arch: str, jobs: int = 0) -> list[str]:
    """Fills in `compiled`, in parallel and from the cache (XDG_CACHE_HOME). Gives the first line of what each that fails says."""
    kernels: dict[str, tuple[Built, Kernel, str]] = {}
    for place, built in enumerate(builts):
        types = {p.name: f"*{p.type.dtype}" for p in built.plan.parameters} | {w.name: f"*{w.dtype}" for w in built.emission.workspaces}
        for position, text in enumerate(built.emission.kernels):
            name = f"{text.entry}_{place}_{position}"
            parameters = tuple((p, types.get(p, "i32")) for p in text.parameters)
            kernel = Kernel(
                name, "triton", f"{name}.py", text.entry, parameters, dict(text.constants), text.num_warps, text.num_stages, text.dependent_launch
            )
            kernels[name] = (built, kernel, text.source)
    results = compile_each([k for _, k, _ in kernels.values()], {name: source for name, (_, _, source) in kernels.items()}, [arch], jobs)
    failed: dict[Built, str] = {}
    for name, (built, _, _) in kernels.items():
        result = results[name, arch]
        if isinstance(result, Compiled):
            built.compiled.append(result)
        else:
            failed[built] = str(result).splitlines()[0]
    for built in failed:
        built.compiled.clear()
    return [f"{built.row.name} {built.tile}: {problem:.160}" for built, problem in failed.items()]


# -- on the GPU -----------------------------------------------------------------------------------------------------------------
class Operands:
    """As many sets of a row's arguments as keep its large operands out of the cache; they serve every config."""

    def __init__(self, built: Built, copies: int = 0) -> None:
        self.row, self.plan, self.named = built.row, built.plan, built.named
        self.dims = {"T": self.row.tokens, "S": self.row.tokens, "B": self.row.sequences}
        cold = max(1, min(40, -(-COLD_BYTES // max(1, self.row.bytes)))) if self.row.kind == "decode" else 1
        self.sets = [self._arguments(seed) for seed in range(copies or cold)]

    def _arguments(self, seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        arguments = {p.name: self._tensor(p) for p in self.plan.parameters}
        if "slots" in arguments:
            newest = arguments["context_len"].long()[:, None] - 1
            arguments["slots"] = (arguments["block_table"].gather(1, newest // PAGE) * PAGE + newest % PAGE)[:, 0].int()
        return arguments

    def _tensor(self, p: Parameter) -> torch.Tensor:
        row = self.row
        pages = -(-row.context // PAGE)
        if p.name == "context_len":
            return torch.tensor([row.context_of(s) for s in range(row.sequences)], dtype=torch.int32, device="cuda")
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
        if p.role == "scale":
            return torch.rand(shape, dtype=dtype, device="cuda") / 4096
        scale = shape[-1] ** -0.5 if p.role == "weight" and len(shape) == 2 else 1.0
        return torch.empty(shape, dtype=dtype, device="cuda").normal_(0.0, scale)


class Loaded:
    """A compiled row on the GPU, with a prepared launch of each kernel for each set of operands."""

    def __init__(self, built: Built, operands: Operands) -> None:
        self.built, self.operands, dims = built, operands, operands.dims
        self.spaces: dict[str, torch.Tensor] = {}
        for space in built.emission.workspaces:
            shape = [dims[d] if isinstance(d, str) else d for d in space.shape]
            make = torch.zeros if space.zeroed else torch.empty
            self.spaces[space.name] = make(shape, dtype=TORCH_DTYPES[space.dtype], device="cuda")
        self.modules = [Module(c.cubin, c.binary.symbol, c.binary.shared_bytes) for c in built.compiled]
        self.scratches: list[torch.Tensor] = []
        self.launches = [self._prepare(arguments) for arguments in operands.sets]

    def _prepare(self, arguments: dict[str, torch.Tensor]) -> list[PreparedLaunch]:
        known = {**arguments, **self.spaces}
        prepared = []
        for text, module, compiled in zip(self.built.emission.kernels, self.modules, self.built.compiled):
            tensors = [known.get(name) for name in text.parameters]
            values = [self.operands.dims[name] if t is None else t.data_ptr() for name, t in zip(text.parameters, tensors)]
            types = ["i32" if t is None else "*" for t in tensors]
            grid = tuple(extent(self.operands.dims) for extent in text.grid)
            scratch = torch.empty(compiled.binary.global_scratch_bytes * prod(grid), dtype=torch.uint8, device="cuda")
            self.scratches.append(scratch)
            options = {"dependent_launch": text.dependent_launch, "global_scratch": scratch.data_ptr()}
            prepared.append(module.prepare(grid, compiled.binary.num_warps, values, types, **options))  # type: ignore[arg-type]
        return prepared

    def run(self, index: int) -> None:
        stream = torch.cuda.current_stream().cuda_stream
        for launch in self.launches[index % len(self.launches)]:
            launch.launch(stream)


# -- what is right --------------------------------------------------------------------------------------------------------------
def dense(operands: Operands, arguments: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the peer reads: a bf16 weight, or keys and values without pages."""
    ours = dict(arguments)
    if "weight" in ours and ours["weight"].dtype == torch.int8:
        ours["weight"] = ours["weight"].to(torch.bfloat16)
    if "block_table" in ours:
        row = operands.row
        ours["qkv"] = ours[operands.named["qkv"]]
        used = ours["block_table"][:, : -(-row.context // PAGE)].long()
        for name in ("k", "v"):
            pages = ours[f"{name}_cache"][used].transpose(2, 3).flatten(1, 2)
            ours[f"dense_{name}"] = pages[:, : row.context].transpose(1, 2).contiguous()
    return ours


def expect(operands: Operands) -> torch.Tensor:
    """The first set's output by the same mathematics in f32."""
    arguments = operands.sets[0]
    return _expect_attend(operands, arguments) if "block_table" in arguments else _expect_linear(operands.plan, arguments)


def _expect_attend(operands: Operands, a: dict[str, torch.Tensor]) -> torch.Tensor:
    """From the pages as they are, but for the newest key and value, which are made anew."""
    row, group = operands.row, HEADS // KV_HEADS
    q, k, v = a[operands.named["qkv"]].float().unflatten(-1, (-1, HEAD_DIM)).split((HEADS, KV_HEADS, KV_HEADS), 1)
    used = a["block_table"][:, : -(-row.context // PAGE)].long()
    if row.kind == "decode":
        cos, sin = (a[operands.named[name]].float()[:, None] for name in ("cos", "sin"))
        q, k = (x * cos + torch.cat([-x[..., HEAD_DIM // 2 :], x[..., : HEAD_DIM // 2]], -1) * sin for x in (q, k))
    out = torch.empty(row.tokens, HEADS, HEAD_DIM, device="cuda")
    for sequence in range(row.sequences):
        rows = slice(sequence, sequence + 1) if row.kind == "decode" else slice(None)
        pages = (a[f"{name}_cache"][used[sequence]].transpose(0, 1).flatten(1, 2) for name in ("k", "v"))
        keys, values = (cache[:, : row.context_of(sequence)].float() for cache in pages)
        if row.kind == "decode":
            keys[:, -1], values[:, -1] = k[sequence], v[sequence]
        for head in range(HEADS):
            own = keys[None, head // group], values[None, head // group]
            out[rows, head] = F.scaled_dot_product_attention(q[None, rows, head], *own, is_causal=row.kind == "ragged")[0]
    return out.flatten(1)


def _expect_linear(plan: KernelPlan, a: dict[str, torch.Tensor]) -> torch.Tensor:
    x = a["x"].float()
    if "rms_norm_weight" in a:
        x = (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)).bfloat16().float() * a["rms_norm_weight"].float()
    y = torch.cat([x @ rows.float().t() for rows in a["weight"].split(1 << 14)], 1)
    if "weight_scale" in a:
        y = y * a["weight_scale"]
    ops = [op.op for op in plan.ops]
    if "gated" in ops:
        y = F.silu(y[:, ::2]) * y[:, 1::2]
    if "add" in ops:
        y = y + next(a[p.name] for p in plan.parameters if p.role == "buffer" and p.name != "x").float()
    return y


def measure_error(loaded: Loaded, expected: torch.Tensor) -> float:
    """Relative error of the first set's output, the larger of two launches: the second finds the scratch as the first left it."""
    out = loaded.operands.sets[0][loaded.built.plan.outputs[0].name]
    errors = []
    for _ in range(2):
        out.fill_(float("nan"))
        loaded.run(0)
        errors.append(float((out.float() - expected).norm() / expected.norm()))
    return max(errors, key=lambda e: (e != e, e))
