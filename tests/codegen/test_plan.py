"""Plans: by value, without names of layers."""

import dataclasses

import pytest

import tilewright.ir.ops  # noqa: F401
from tilewright.codegen.plan import make_plan, short_label
from tilewright.ir.errors import CodegenError
from tilewright.ir.manifest import Arg, Limits
from tilewright.ir.parser import parse_graph
from tilewright.ir.regions import Regime, Region

LIMITS = Limits(max_batch_size=3, max_input_len=20, max_output_len=12, max_tokens=32, page_size=8)
DECODE = Regime("decode", "decode", 8)

LAYERS = """
graph @g(%ids: i32[T], %positions: i32[T]) dims(T in 1..32) {
  param @emb : f32[50, 24]
  param @layers.0.norm.weight : f32[24]
  param @layers.0.w : f32[30, 24]
  param @layers.1.norm.weight : f32[24]
  param @layers.1.w : f32[30, 24]
  %h = embedding(@emb, %ids) : f32[T, 24]
  @layers.0.w.q = quantize(@layers.0.w) : i8[30, 24]{scale=f32}
  %layers.0.n = rms_norm(%h, @layers.0.norm.weight) {eps=1e-05} : f32[T, 24]
  %layers.0.y = linear(%layers.0.n, @layers.0.w.q) : f32[T, 30]
  @layers.1.w.q = quantize(@layers.1.w) : i8[30, 24]{scale=f32}
  %layers.1.n = rms_norm(%h, @layers.1.norm.weight) {eps=1e-05} : f32[T, 24]
  %layers.1.y = linear(%layers.1.n, @layers.1.w.q) : f32[T, 30]
  return %layers.0.y, %layers.1.y
}
"""


def region_of(graph, layer):
    norm, linear = (graph.value(f"layers.{layer}.{v}").producer for v in "ny")
    inputs = (graph.value(f"layers.{layer}.norm.weight"), graph.value("h"), graph.value(f"layers.{layer}.w.q"))
    return Region(f"layers.{layer}.proj", "linear", (norm, linear), linear, inputs, (linear.result,), "")


def test_equal_layers_give_one_plan_with_two_bindings():
    graph = parse_graph(LAYERS)
    (first, first_args), (second, second_args) = (make_plan(region_of(graph, i), DECODE, LIMITS, "sm_90") for i in (0, 1))
    assert first == second and first.name == second.name and first.name.startswith("proj_")
    assert [p.name for p in first.parameters] == ["x", "rms_norm_weight", "weight", "weight_scale", "out"]
    assert first_args[3] == Arg("weight", "layers.0.w.q.scale") and second_args[3] == Arg("weight", "layers.1.w.q.scale")


def test_the_digest_follows_attributes_and_language():
    graph = parse_graph(LAYERS)
    plan, _ = make_plan(region_of(graph, 0), DECODE, LIMITS, "sm_90")
    other, _ = make_plan(region_of(parse_graph(LAYERS.replace("eps=1e-05", "eps=1e-06")), 0), DECODE, LIMITS, "sm_90")
    torch_plan, _ = make_plan(region_of(graph, 0), DECODE, LIMITS, "cpu")
    assert len({plan.digest, other.digest, torch_plan.digest}) == 3


def test_torch_plans_do_not_depend_on_the_regime():
    region = region_of(parse_graph(LAYERS), 0)
    assert make_plan(region, DECODE, LIMITS, "cpu")[0] == make_plan(region, Regime("prefill", "ragged", 32), LIMITS, "cpu")[0]


def test_an_undeclared_input_is_named():
    region = region_of(parse_graph(LAYERS), 0)
    with pytest.raises(CodegenError, match=r"region layers.0.proj: rms_norm reads %h"):
        make_plan(dataclasses.replace(region, inputs=region.inputs[:1]), DECODE, LIMITS, "cpu")


@pytest.mark.parametrize("name, label", [("layers.0.self_attn.qkv", "qkv"), ("transformer.h.11", "h"), ("a.b-c", "b_c"), ("3", "region")])
def test_labels_drop_layer_numbers(name, label):
    assert short_label(name) == label
