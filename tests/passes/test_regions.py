"""The cut into kernels: of two Llama layers in every regime, and of random small graphs."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_graph import llama
from schedule_checks import check_schedule, run_schedule

from tilewright.ir.errors import PassError
from tilewright.ir.graph import Graph, Value
from tilewright.ir.interpreter import interpret
from tilewright.ir.regions import Regime
from tilewright.ir.types import Bounds, TensorType
from tilewright.ir.verifier import verify
from tilewright.pass_cases import validate_on_fresh_data
from tilewright.passes.manager import PassManager
from tilewright.passes.memory_plan import check_memory
from tilewright.passes.pipelines import default_pipeline
from tilewright.passes.regions import build_schedule, build_schedules, default_regimes, print_schedule

DECODE_ONE = Regime("decode_1", "decode", 1)
DECODE = Regime("decode_8", "decode", 8)
RAGGED = Regime("ragged_64", "ragged", 64)
REGIMES = [DECODE_ONE, DECODE, RAGGED]


@cache
def optimized(quantize: str | None = None) -> Graph:
    graph = llama()
    PassManager.of(default_pipeline(length=64, quantize=quantize)).run(graph)
    return graph


def in_layer(schedule, index):
    return [region for region in schedule.regions if region.name.startswith(f"model.layers.{index}.")]


def computed(region):
    return " ".join(op.name for op in region.ops if op.name not in ("slice", "reshape"))


# -- two Llama layers -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("quantize", [None, "int8"])
@pytest.mark.parametrize("regime", REGIMES, ids=lambda r: r.name)
def test_the_cut_of_llama_holds(regime, quantize):
    check_schedule(optimized(quantize), build_schedule(optimized(quantize), regime))


@pytest.mark.parametrize("regime, lengths", [(DECODE_ONE, [1]), (DECODE, [1, 1, 1]), (RAGGED, [5, 1, 7])])
def test_its_kernels_in_order_on_one_arena_give_what_the_graph_gives(regime, lengths):
    graph = optimized()
    data = validate_on_fresh_data(graph, lengths)
    expected = interpret(graph, data.inputs, data.weights, batch=data.batch)
    found = run_schedule(graph, build_schedule(graph, regime), data.inputs, data.weights, data.batch)
    torch.testing.assert_close(found, expected)


def test_one_token_takes_five_kernels_a_layer():
    layer = in_layer(build_schedule(optimized(), DECODE_ONE), 1)
    assert [(region.template, computed(region)) for region in layer] == [
        ("linear", "rms_norm linear"),
        ("attend", "rotary rotary write_kv attend"),
        ("linear", "linear add"),
        ("linear", "rms_norm linear gated"),
        ("linear", "linear add"),
    ]


@pytest.mark.parametrize("regime, attention", [(DECODE, ["rotary rotary write_kv attend"]), (RAGGED, ["rotary rotary write_kv", "attend"])])
def test_more_tokens_take_more_because_norms_stand_alone_and_many_of_a_sequence_read_one_another(regime, attention):
    layer = in_layer(build_schedule(optimized(), regime), 1)
    assert [computed(region) for region in layer] == [
        "rms_norm", "linear", *attention, "linear add", "rms_norm", "linear gated", "linear add",
    ]  # fmt: skip


def test_quantized_weights_change_no_cut():
    for regime in REGIMES:
        plain, int8 = (build_schedule(optimized(q), regime) for q in (None, "int8"))
        assert [computed(r) for r in plain.regions] == [computed(r) for r in int8.regions]


def test_memory_is_used_again_in_every_layer():
    schedule = build_schedule(optimized(), RAGGED)
    assert schedule.arena_bytes < sum(p.num_bytes for p in schedule.placements) / 2


def test_a_schedule_prints_one_line_a_kernel_with_its_reason():
    schedule = build_schedule(optimized(), DECODE_ONE)
    head, *lines = print_schedule(schedule).splitlines()
    assert head.startswith("decode_1: steps of 1..1 tokens, 14 kernels, ") and len(lines) == len(schedule.regions) == 14
    gate_up = next(line for line in lines if "linear: rms_norm → linear → gated" in line)
    assert "prologue rms_norm: recomputed in each block" in gate_up
    assert all(region.reason in line for region, line in zip(schedule.regions, lines))


def test_attention_must_be_split_before():
    with pytest.raises(PassError, match=r"%model.layers.0.self_attn.attention is still `attention`; run the pass split-attention before"):
        build_schedules(llama(), REGIMES)


def test_the_cpu_has_two_regimes_and_cuda_no_two_of_one_size():
    assert [(r.kind, r.max_tokens) for r in default_regimes("cpu", max_tokens=32, max_batch_size=4)] == [("decode", 4), ("ragged", 32)]
    regimes = default_regimes("sm_90", max_tokens=256, max_batch_size=16)
    assert [r.name for r in regimes] == ["decode_1", "decode_16", "ragged_64", "ragged_256"]


def test_placements_that_overlap_are_refused():
    schedule = build_schedule(optimized(), DECODE)
    spoilt = [replace(p, offset=0) for p in schedule.placements]
    last = {value: len(schedule.regions) for region in schedule.regions for value in region.outputs}
    with pytest.raises(PassError, match=r"memory plan: %\S+ and %\S+ overlap at byte 0"):
        check_memory(schedule.regions, spoilt, last)


# -- random graphs --------------------------------------------------------------------------------------------------------------
def emit_random(graph: Graph, kind: str, x: Value, y: Value) -> Value:
    """One or more ops from f32[T, 8] to f32[T, 8]."""
    count = len(graph.params)

    def param(*shape):
        return graph.add_param(f"w{count}", TensorType("f32", shape))

    def emit(op, *operands, **attrs):
        return graph.emit(op, list(operands), attrs).result

    if kind == "linear":
        return emit("linear", x, param(8, 8))
    if kind in ("add", "mul"):
        return emit(kind, x, y)
    if kind == "norm":
        return emit("rms_norm", x, param(8), eps=1e-5)
    if kind == "norm of heads":
        heads = emit("rms_norm", emit("reshape", x, shape=("T", 2, 4)), eps=1e-5)
        return emit("reshape", heads, shape=("T", 8))
    if kind == "halves":
        fused = emit("linear", x, param(16, 8))
        low, high = (emit("slice", fused, axis=1, start=i, stop=i + 8) for i in (0, 8))
        return emit("gated", low, high, activation="silu")
    if kind == "gate":
        return emit("gated", emit("linear", x, param(16, 8)), activation="relu")
    if kind == "attention":
        kv = emit("write_kv", x, y, kv_heads=2, layer=count)
        return emit("attend", y, kv, heads=2, scale=0.5, layer=count)
    if kind == "attention to another's pages" and (writes := graph.find("write_kv")):
        return emit("attend", emit("mul", x, y), writes[-1].result, heads=2, scale=0.5, layer=writes[-1].attrs["layer"])
    return emit("tanh", x)


KINDS = ["linear", "add", "mul", "norm", "norm of heads", "halves", "gate", "attention", "attention to another's pages", "tanh"]


@st.composite
def random_graphs(draw) -> Graph:
    graph = Graph("random", {"T": Bounds(1, 16), "S": Bounds(1, 4)})
    values = [graph.add_input(name, TensorType("f32", ("T", 8))) for name in ("x", "z")]
    rows = graph.add_input("rows", TensorType("i32", ("S",)))
    for kind in draw(st.lists(st.sampled_from(KINDS), min_size=2, max_size=14)):
        operands = [values[-1 - draw(st.integers(0, min(len(values), 6) - 1))] for _ in range(2)]
        graph.add_param(f"unused{len(values)}", TensorType("f32", (1,)))
        values.append(emit_random(graph, kind, *operands))
    returned = draw(st.lists(st.sampled_from(values[2:]), max_size=2, unique=True))
    graph.outputs = [graph.emit("gather_rows", [values[-1], rows]).result, *returned]
    PassManager.of("drop-dead-ops").run(graph)
    verify(graph)
    return graph


@settings(max_examples=300, deadline=None, derandomize=True)
@given(random_graphs(), st.sampled_from(REGIMES))
def test_the_cut_of_any_graph_holds_and_computes_the_same(graph, regime):
    schedule = build_schedule(graph, regime)
    check_schedule(graph, schedule)
    data = validate_on_fresh_data(graph, [1] if regime is DECODE_ONE else [3, 5])
    expected = interpret(graph, data.inputs, data.weights, batch=data.batch)
    found = run_schedule(graph, schedule, data.inputs, data.weights, data.batch)
    torch.testing.assert_close(found, expected, equal_nan=True)
