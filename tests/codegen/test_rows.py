"""Triton rows kernels on the interpreter against the reference, and through the compiler for three architectures."""

import pytest
import torch
from codegen_toys import FUSED_CUTS, LAYER_CUTS, LIMITS, Batcher, Executor, ToyWeights, lower_toy, serve, toy_graph

import tilewright.ir.ops  # noqa: F401
from tilewright.codegen import lower as lower_module
from tilewright.codegen.aot_kernel import compile_kernel
from tilewright.codegen.plan import make_plan
from tilewright.codegen.source import emit
from tilewright.ir.interpreter import interpret
from tilewright.ir.parser import parse_graph
from tilewright.ir.reference import TORCH_DTYPES
from tilewright.ir.regions import Regime, Region
from tilewright.runtime.triton_interpreter import launch, load_kernel


def triton_call(lowered, checked=True):
    loaded = {k.name: load_kernel(lowered.sources[k.name], k.name, k.entry) for k in lowered.kernels}
    return lambda kernel, grid, args: launch(loaded[kernel.name], grid, args, kernel.constants, checked=checked)


def run_rows(text, inputs, weights, outputs=None):
    """Runs the whole graph as one rows region on the interpreter: (got, expected) of each output."""
    graph = parse_graph(text)
    made = [v for op in graph.ops for v in op.results if not v.is_const]
    ops = tuple(op for op in graph.ops if not op.is_const)
    read = tuple(dict.fromkeys(v for op in ops for v in op.inputs if v not in made))
    region = Region("toy", "rows", ops, ops[-1], read, tuple(graph.outputs), "")
    plan, args = make_plan(region, Regime("any", "ragged", 64), LIMITS, "sm_90")
    dims = {"T": len(inputs["ids"]), "S": len(inputs.get("rows", ()))}
    expected = interpret(graph, inputs, weights)
    outs = {v.name: torch.full_like(e, -77) for v, e in zip(graph.outputs, expected)}
    given = {**inputs, **outs}
    for kernel in emit(plan).kernels:
        loaded = load_kernel(kernel.source, plan.name, kernel.entry)
        bound = {p.name: given[a.name] if a.kind != "weight" else weights.load(a.name) for p, a in zip(plan.parameters, args)}
        launch(loaded, tuple(g(dims) for g in kernel.grid), [bound[p] for p in kernel.parameters], kernel.constants, checked=True)
    return [(outs[v.name], e) for v, e in zip(graph.outputs, expected)]


class Table:
    def __init__(self, seed, **shapes):
        generator = torch.Generator().manual_seed(seed)
        self.tensors = {n: torch.randn(shape, generator=generator).to(TORCH_DTYPES[dtype]) for n, (dtype, shape) in shapes.items()}

    def load(self, name):
        return self.tensors[name]


def ids(*values):
    return torch.tensor(values, dtype=torch.int32)


def graph_text(body, params="", extra=""):
    lines = "\n".join(f"  {line.strip()}" for line in (params + body).strip().splitlines())
    return f"graph @g(%ids: i32[T]{extra}) dims(T in 1..64, S in 1..8) {{\n{lines}\n}}\n"


POINTWISE = [
    "silu(%x)", "gelu(%x)", "gelu(%x) {approximate=tanh}", "tanh(%x)", "sigmoid(%x)", "erf(%x)", "relu(%x)", "neg(%x)", "abs(%x)", "exp(%x)",
    "cos(%x)", "sin(%x)", "add(%x) {scalar=1.5}", "sub(%x) {scalar=2, reverse=true}", "div(%x) {scalar=3.0}", "maximum(%x) {scalar=0.25}",
    "minimum(%x, %x)", "pow(%x) {exponent=3.0}", "mul(%x, %x)", "softmax(%x)", "add(%x, @row)", "cast(%x) {dtype=f32}",
    "layer_norm(%x, @row, @row) {eps=0.1}",
    "rms_norm(%x) {eps=1e-05}", "gated(%x, %x) {activation=gelu_tanh}", "floor(%x)", "round(%x)", "pow(%x, @whole)",
]  # fmt: skip


@pytest.mark.parametrize("op", POINTWISE)
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_ops_over_rows(op, dtype):
    result = "f32" if "dtype=f32" in op else dtype
    body = f"%x = embedding(@table, %ids) : {dtype}[T, 21]\n %y = {op} : {result}[T, 21]\n return %y"
    weights = Table(1, table=(dtype, (9, 21)), row=(dtype, (21,)), whole=(dtype, (21,)))
    weights.tensors["whole"] = weights.tensors["whole"].mul(2).round()
    text = graph_text(body, f"param @table : {dtype}[9, 21]\nparam @row : {dtype}[21]\nparam @whole : {dtype}[21]\n")
    [(got, expected)] = run_rows(text, {"ids": ids(3, 0, 8)}, weights)
    tolerance = 1e-5 if dtype == "f32" else 0.02
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def test_conditions_choose_between_rows():
    body = """%x = embedding(@t, %ids) : f32[T, 21]
        %small = less(%x) {scalar=0.25} : i1[T, 21]
        %left = less(%x, @row) : i1[T, 21]
        %both = equal(%small, %left) : i1[T, 21]
        %a = abs(%x) : f32[T, 21]
        %l = log(%a) : f32[T, 21]
        %y = where(%both, %l, %x) : f32[T, 21]
        return %y"""
    text = graph_text(body, "param @t : f32[9, 21]\nparam @row : f32[21]\n")
    [(got, expected)] = run_rows(text, {"ids": ids(3, 0, 8)}, Table(1, t=("f32", (9, 21)), row=("f32", (21,))))
    torch.testing.assert_close(got, expected)


def test_add_and_norm_share_a_row_and_write_both():
    body = """%a = embedding(@t, %ids) : f32[T, 33]
        %b = embedding(@u, %ids) : f32[T, 33]
        %h = add(%a, %b) : f32[T, 33]
        %n = rms_norm(%h, @w) {eps=0.01} : f32[T, 33]
        return %h, %n"""
    text = graph_text(body, "param @t : f32[5, 33]\nparam @u : f32[5, 33]\nparam @w : f32[33]\n")
    for got, expected in run_rows(text, {"ids": ids(4, 4, 1)}, Table(2, t=("f32", (5, 33)), u=("f32", (5, 33)), w=("f32", (33,)))):
        torch.testing.assert_close(got, expected)


def test_wide_rows_are_made_in_column_blocks():
    body = "%x = embedding(@t, %ids) : f32[T, 5003]\n %y = mul(%x) {scalar=0.5} : f32[T, 5003]\n %z = tanh(%y) : f32[T, 5003]\n return %z"
    [(got, expected)] = run_rows(graph_text(body, "param @t : f32[3, 5003]\n"), {"ids": ids(2, 1)}, Table(3, t=("f32", (3, 5003))))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_a_norm_wider_than_a_tile_loops():
    body = "%x = embedding(@t, %ids) : f32[T, 17001]\n %y = layer_norm(%x, @w) {eps=0.001} : f32[T, 17001]\n return %y"
    weights = Table(4, t=("f32", (2, 17001)), w=("f32", (17001,)))
    [(got, expected)] = run_rows(graph_text(body, "param @t : f32[2, 17001]\nparam @w : f32[17001]\n"), {"ids": ids(1)}, weights)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_outputs_per_token_and_per_asked_row_are_two_kernels():
    body = """%x = embedding(@t, %ids) : f32[T, 12]
        %y = relu(%x) : f32[T, 12]
        %z = gather_rows(%y, %rows) : f32[S, 12]
        %n = rms_norm(%z) {eps=0.01} : f32[S, 12]
        return %y, %n"""
    text = graph_text(body, "param @t : f32[7, 12]\n", ", %rows: i32[S]")
    for got, expected in run_rows(text, {"ids": ids(6, 0, 2, 2), "rows": ids(3, 0)}, Table(5, t=("f32", (7, 12)))):
        torch.testing.assert_close(got, expected)


def test_tables_computed_from_positions():
    body = """%p = cast(%ids) {dtype=f32} : f32[T]
        %c = reshape(%p) {shape=[T, 1]} : f32[T, 1]
        %a = mul(%c, @f) : f32[T, 6]
        %d = concat(%a, %a) {axis=1} : f32[T, 12]
        %y = cos(%d) : f32[T, 12]
        return %y"""
    [(got, expected)] = run_rows(graph_text(body, "param @f : f32[6]\n"), {"ids": ids(0, 5, 13)}, Table(6, f=("f32", (6,))))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_broadcast_over_heads_and_pairs_of_columns():
    body = """%x = embedding(@t, %ids) : f32[T, 24]
        %h = reshape(%x) {shape=[T, 3, 8]} : f32[T, 3, 8]
        %s = mul(%h, @heads) : f32[T, 3, 8]
        %f = reshape(%s) {shape=[T, 24]} : f32[T, 24]
        %y = gated(%f) {activation=silu} : f32[T, 12]
        return %y"""
    weights = Table(7, t=("f32", (4, 24)), heads=("f32", (3, 1)))
    [(got, expected)] = run_rows(graph_text(body, "param @t : f32[4, 24]\nparam @heads : f32[3, 1]\n"), {"ids": ids(3, 1)}, weights)
    torch.testing.assert_close(got, expected)


OPTIONS = {
    "plain": {},
    "partial rotary": {"rotary_dim": 6},
    "interleaved rotary": {"rotary_dim": 8, "layout": "interleaved"},
    "int8": {"int8": True},
    "slopes": {"slopes": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_model_of_generated_kernels_is_the_reference(options):
    graph = toy_graph(**options)
    weights = ToyWeights(graph)
    lowered = lower_toy(graph, "sm_90", LAYER_CUTS)
    for got, expected in serve(Executor(lowered, weights, triton_call(lowered), 24), graph, weights):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_programs_that_share_tiles_leave_their_scratch_ready_for_the_next_layer(monkeypatch):
    config = lower_module.tile_config("sm_90")
    monkeypatch.setattr(lower_module, "tile_config", lambda target, **options: (*config, ("block_k", 16), ("block_n", 32), ("splits", 2)))
    graph = toy_graph()
    weights, lowered = ToyWeights(graph), lower_toy(graph, "sm_90", FUSED_CUTS)
    zeroed = [b for program in lowered.programs for b in program.buffers if b.zeroed]
    assert zeroed and all(b.name.endswith(".arrivals") for b in zeroed)
    for got, expected in serve(Executor(lowered, weights, triton_call(lowered), 24), graph, weights):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_padding_rows_write_no_page():
    graph = toy_graph()
    lowered = lower_toy(graph, "sm_90", FUSED_CUTS)
    executor = Executor(lowered, ToyWeights(graph), triton_call(lowered), 24)
    executor.run(lowered.programs[0], Batcher.of(1, LIMITS).step([[5]], padding=2))
    written = [int((~cache.isnan()).any(-1).any(1).sum()) for layer in executor.cache for cache in layer]
    assert written == [1, 1, 1, 1]


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
def test_every_rows_kernel_compiles(arch):
    lowered = lower_toy(toy_graph(dtype="bf16", layers=1, rotary_dim=6), arch)
    for kernel in lowered.kernels:
        if kernel.entry in ("embed", "tables", "in_norm", "rotary", "mid", "act", "out", "norm_s"):
            assert compile_kernel(kernel, lowered.sources[kernel.name], arch).binary.stack_bytes == 0
