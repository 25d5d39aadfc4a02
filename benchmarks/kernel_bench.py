"""Kernels of a row built and compiled by the package's tuner, over its operands; and what is right, by the same mathematics in f32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from kernel_rows import HEAD_DIM, HEADS, KV_HEADS, Row

import tilewright.ir.ops  # noqa: F401  # declares the ops
from tilewright.codegen.candidates import Candidate, compile_candidates
from tilewright.codegen.plan import KernelPlan, make_plan
from tilewright.gpu_timer import LoadedKernels
from tilewright.ir.graph import Graph, Op
from tilewright.ir.manifest import Limits
from tilewright.ir.parser import parse_graph
from tilewright.ir.regions import Regime, Region
from tilewright.operands import Operands, Step
from tilewright.passes.regions import default_regimes

PAGE = 64
MAX_TOKENS, MAX_BATCH_SIZE = 8192, 256
LONGEST = 8192  # tokens of a sequence that kernels are made for, whatever the context that they are timed at
Config = Mapping[str, int]  # fields of LinearTile or AttendTile


@dataclass(eq=False)
class Built:
    """A row's kernels for one config, compiled or not."""

    row: Row
    candidate: Candidate
    named: dict[str, str]  # the graph's names of activations -> parameters

    @property
    def plan(self) -> KernelPlan:
        return self.candidate.plan

    @property
    def tile(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.candidate.tile.items())

    @property
    def step(self) -> Step:
        row = self.row
        return Step(row.tokens, row.tokens, tuple(row.context_of(sequence) or 1 for sequence in range(row.sequences)))


def plan_row(row: Row, arch: str, *, early: bool) -> tuple[KernelPlan, dict[str, str]]:
    """The plan with its default tile, and the parameters of the graph's activations. early: launched as the engine does."""
    graph = parse_graph(row.text)
    apart = () if row.kind == "decode" else _feeding_pages(graph)
    ops = tuple(op for op in graph.ops if not op.is_const and op.name != "embedding" and op not in apart)
    made = {v for op in ops for v in op.results}
    reads = tuple(dict.fromkeys(v for op in ops for v in op.inputs if v not in made))
    anchor = next(op for op in ops if op.name == row.anchor)
    region = Region(row.name.split()[0], row.anchor, ops, anchor, reads, tuple(graph.outputs), "")  # type: ignore[arg-type]
    limits = Limits(max(MAX_BATCH_SIZE, row.sequences), max(row.context, LONGEST), 64, MAX_TOKENS, PAGE)
    config = (("arch", int(arch.removeprefix("sm_"))), ("dependent_launch", int(early)))
    plan, binding = make_plan(region, _regime(row, arch), limits, arch, config)
    return plan, {arg.name: p.name for p, arg in zip(plan.parameters, binding) if arg.kind == "buffer"}


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
    """In parallel and from the cache (XDG_CACHE_HOME). Gives what each that fails says."""
    compile_candidates([built.candidate for built in builts], arch, jobs)
    return [f"{b.row.name} {b.tile}: {b.candidate.problem:.160}" for b in builts if b.candidate.problem]


# -- on the GPU -----------------------------------------------------------------------------------------------------------------
def operands_of(built: Built) -> Operands:
    return Operands(built.plan, built.step)


class Loaded(LoadedKernels):
    """A compiled row on the GPU."""

    def __init__(self, built: Built, operands: Operands) -> None:
        super().__init__(built.candidate.emission, built.candidate.compiled, operands)
        self.built = built


# -- what is right --------------------------------------------------------------------------------------------------------------
def dense(built: Built, arguments: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the peer reads: a bf16 weight, or keys and values without pages."""
    ours = dict(arguments)
    if "weight" in ours and ours["weight"].dtype == torch.int8:
        ours["weight"] = ours["weight"].to(torch.bfloat16)
    if "block_table" in ours:
        row = built.row
        ours["qkv"] = ours[built.named["qkv"]]
        used = ours["block_table"][:, : -(-row.context // PAGE)].long()
        for name in ("k", "v"):
            pages = ours[f"{name}_cache"][used].transpose(2, 3).flatten(1, 2)
            ours[f"dense_{name}"] = pages[:, : row.context].transpose(1, 2).contiguous()
    return ours


def expect(built: Built, operands: Operands) -> torch.Tensor:
    """The first set's output by the same mathematics in f32."""
    arguments = operands.sets[0]
    return _expect_attend(built, arguments) if "block_table" in arguments else _expect_linear(operands.plan, arguments)


def _expect_attend(built: Built, a: dict[str, torch.Tensor]) -> torch.Tensor:
    """From the pages as they are, but for the newest key and value, which are made anew."""
    row, group = built.row, HEADS // KV_HEADS
    q, k, v = a[built.named["qkv"]].float().unflatten(-1, (-1, HEAD_DIM)).split((HEADS, KV_HEADS, KV_HEADS), 1)
    used = a["block_table"][:, : -(-row.context // PAGE)].long()
    if row.kind == "decode":
        cos, sin = (a[built.named[name]].float()[:, None] for name in ("cos", "sin"))
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
